"""The training loop of the off-policy baselines: that of meow_continuous_action.py with another algorithm in it.

Environment, replay buffer, evaluation, logs, checkpoints and resume are meow_continuous_action.py's own, so that all
systems of a figure are measured alike. The algorithms are in sql_continuous_action.py and
actor_critic_continuous_action.py: each hands `train` an `Agent`.
"""

import contextlib
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import meow_continuous_action as meow  # noqa: E402


@dataclass
class OffPolicyArgs:
    """The flags that the off-policy baselines share; their meanings are meow_continuous_action.py's."""

    exp_name: str
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    cuda: bool = True
    """use a CUDA device where there is one"""
    torch_threads: int = 1
    """threads of PyTorch on the CPU"""
    track: bool = False
    """track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)"""
    wandb_project_name: str = "meow"
    """the wandb's project name"""
    wandb_entity: str | None = None
    """the entity (team) of wandb's project"""
    capture_video: bool = False
    """write videos of training episodes to `videos/NAME`"""
    checkpoint_frequency: int | None = None
    """environment steps between two checkpoints, of which the newest two are kept (None: --eval-frequency)"""
    resume: str | None = None
    """the folder of a run to go on with, from its newest checkpoint"""
    eval_frequency: int = 10_000
    """environment steps between two evaluations; there is one at step 0 and one at the end too"""
    eval_episodes: int = 10
    """episodes of an evaluation, reset with seeds 0, 1, 2, ..."""
    eval_deterministic: bool = True
    """evaluate deterministic actions, or else samples of the policy"""
    env_id: str = "Hopper-v4"
    """the environment id of the task"""
    total_timesteps: int = 1_500_000
    """total timesteps of the experiments"""
    buffer_size: int = 1_000_000
    """the replay memory buffer size"""
    batch_size: int = 256
    """the batch size of sample from the replay memory"""
    learning_starts: int = 10_000
    """timestep to start learning; uniform actions before"""
    gamma: float = 0.99
    """the discount factor gamma"""

    def __post_init__(self):
        if self.checkpoint_frequency is None:
            self.checkpoint_frequency = self.eval_frequency

    def check(self):
        """Raises meow.UsageError for values of a baseline's own flags that no run can have."""


MAY_CHANGE = {"total_timesteps", "checkpoint_frequency", "track", "wandb_project_name", "wandb_entity", "resume"}
MAY_CHANGE |= {"capture_video", "cuda", "torch_threads"}


class Agent(nn.Module):
    """An off-policy algorithm. Its parameters, buffers and `optimizers` are all of its state."""

    optimizers: tuple = ()

    def act(self, obs, deterministic=False):
        """Actions: (B, S) -> (B, A) in [-1,1]."""
        raise NotImplementedError

    def update(self, data):
        """One learning step on meow.Transitions. Returns {name of a loss: tensor ()}."""
        raise NotImplementedError


def check_args(args):
    """Raises UsageError for arguments that no run can have."""

    def integer(low, high=math.inf):
        return lambda x: low <= x <= high

    counts = ("total_timesteps", "buffer_size", "batch_size", "eval_frequency", "eval_episodes", "torch_threads")
    counts += ("checkpoint_frequency",)
    for names, allowed, is_allowed in [
        (counts, "an integer of at least 1", integer(1)),
        (("learning_starts",), "an integer of at least 0", integer(0)),
        (("seed",), "an integer from 0 to 2**32 - 1", integer(0, 2**32 - 1)),
        (("gamma",), "between 0 and 1", lambda x: 0 <= x <= 1),
        (("exp_name",), "a name without /", lambda x: "/" not in x),
    ]:
        for name in names:
            if not is_allowed(getattr(args, name)):
                raise meow.UsageError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(args, name)}")
    if args.learning_starts >= args.total_timesteps:
        numbers = f"got {args.learning_starts} and {args.total_timesteps}"
        raise meow.UsageError(f"--learning-starts must be below --total-timesteps, {numbers}")
    args.check()


def train(args, make_agent):
    """Trains make_agent(args, obs_dim, act_dim), an `Agent`, and writes runs/NAME as meow_continuous_action.py does.

    Returns the agent, the run's folder and [(step, returns (eval_episodes,)), ...]. Raises as meow.train.
    """
    check_args(args)
    obs_dim, act_dim = meow.check_env(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    rb = meow.ReplayBuffer(args.buffer_size, obs_dim, act_dim, args.seed)
    with contextlib.ExitStack() as stack:
        run_dir = meow.make_run_dir(args) if args.resume is None else Path(args.resume)
        meow.lock_run(run_dir, stack)
        checkpoints = meow.Checkpoints(run_dir / "checkpoints")
        state = checkpoints.load(rb) if args.resume is not None else None
        first_step = state["step"] if state else 0
        if args.total_timesteps < first_step:
            raise meow.UsageError(f"--total-timesteps must be at least {first_step:,}, which that run has done")
        config = {"args": asdict(args) | {"resume": None}, "versions": meow.versions_here()}
        config["resumed_at"] = [*state["resumed_at"], first_step] if state else []
        writer, log_evaluation, wandb_id = meow.start_logging(args, config, run_dir, state, stack)
        print(run_dir, flush=True)
        stop = meow.StopSignals()
        stack.callback(stop.restore)

        torch.manual_seed(args.seed)
        torch.set_num_threads(args.torch_threads)
        meow.keep_freed_memory()
        meow.use_onednn(device)
        envs, obs = meow.make_envs(args, run_dir.resolve().name, args.capture_video)
        eval_envs = [meow.make_env(args.env_id, i, i, False, "")() for i in range(args.eval_episodes)]
        for env in (envs, *eval_envs):
            stack.callback(env.close)
        env_state_saved = meow.env_state_is_whole(args)
        torch.manual_seed(args.seed)
        agent = make_agent(args, obs_dim, act_dim).to(device)
        evaluations, seconds_before = [], 0.0
        if state:
            evaluations = [(step, seconds, returns.numpy()) for step, seconds, returns in state["evaluations"]]
            seconds_before = state["seconds"]
            agent.load_state_dict(state["agent"])
            for optimizer, saved in zip(agent.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            rb.generator.set_state(state["rb_stream"])
            meow.unplain(state["action_space"], envs.action_space)
            if env_state_saved:
                for env in eval_envs:
                    env.reset(seed=args.seed)
                for env, env_state in zip([envs, *eval_envs], state["envs"], strict=True):
                    meow.set_env_state(env, env_state)
                obs = meow.unplain(state["obs"])
            else:
                obs, _ = envs.reset(seed=(args.seed + first_step) % 2**32)
            meow.set_random_streams(state["random"])
        start_time = time.time() - seconds_before
        bar = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "miniters": 1}
        progress = stack.enter_context(tqdm(total=args.total_timesteps, initial=first_step, **bar))

        def say(text):
            progress.write(text, file=sys.stdout)
            sys.stdout.flush()  # a log file shows it now too

        def evaluate_and_log(step):
            returns = meow.evaluate(agent, eval_envs, args.eval_deterministic)
            evaluations.append((step, time.time() - start_time, returns))
            log_evaluation(*evaluations[-1])
            say(f"step {step:,}: eval return {returns.mean():.1f} +- {returns.std():.1f}")

        def checkpoint(step):
            """Returns whether there was room for it."""
            writer.flush()
            seconds = time.time() - start_time
            saved = config | {"evaluations": evaluations, "seconds": seconds, "wandb_id": wandb_id}
            saved |= {"events": {path.name: path.stat().st_size for path in run_dir.glob("events.out.*")}}
            saved |= {"random": meow.random_streams(), "rb_stream": rb.generator.get_state(), "obs": obs}
            saved |= {"envs": [meow.get_env_state(env) for env in (envs, *eval_envs)]}
            saved |= {"action_space": envs.action_space}
            learnt = {"agent": agent.state_dict(), "optimizers": [o.state_dict() for o in agent.optimizers]}
            try:
                checkpoints.save(step, meow.plain(saved) | learnt, rb)
            except OSError as error:  # a full disk must not end a run: the next time there may be room
                say(f"the checkpoint could not be written ({error}); what was written before is as it was")
                return False
            return True

        if not state:
            evaluate_and_log(0)
        for global_step in range(first_step, args.total_timesteps):
            if global_step < args.learning_starts:
                actions = envs.action_space.sample()
            else:
                with torch.no_grad():
                    actions = agent.act(torch.as_tensor(obs, dtype=torch.float32, device=device)).cpu().numpy()
            next_obs, rewards, terminations, truncations, infos = envs.step(actions)
            done = terminations[0] or truncations[0]
            if done:
                episode = infos["final_info"]["episode"]
                writer.add_scalar("charts/episodic_return", episode["r"][0], global_step)
                writer.add_scalar("charts/episodic_length", episode["l"][0], global_step)
                progress.set_postfix_str(f"return {episode['r'][0]:.1f}", refresh=False)
            real_next_obs = infos["final_obs"][0] if done else next_obs[0]
            rb.add(obs[0], real_next_obs, actions[0], rewards[0], terminations[0])
            obs = next_obs
            if global_step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size, device))
                for name, value in losses.items():
                    if not math.isfinite(value):
                        raise FloatingPointError(f"{name} is not finite at step {global_step:,}")
                    if global_step % 100 == 0:
                        writer.add_scalar(f"losses/{name}", float(value), global_step)
                if global_step % 100 == 0:
                    writer.add_scalar("charts/SPS", int(global_step / (time.time() - start_time)), global_step)
            progress.update()

            steps_done, ends = global_step + 1, global_step + 1 == args.total_timesteps
            if ends or steps_done % args.eval_frequency == 0:
                evaluate_and_log(steps_done)
            if ends or stop.number or steps_done % args.checkpoint_frequency == 0:
                written = checkpoint(steps_done)
            if stop.number and not ends:
                how = "go on" if written else "go on from the newest checkpoint, if there is one,"
                say(f"stopped at step {steps_done:,}; {how} with: python {sys.argv[0]} --resume {run_dir}")
                sys.exit(128 + stop.number)
        say(f"finished: {run_dir}")
    return agent, str(run_dir), [(step, returns) for step, _, returns in evaluations]


def main(args_class, train):
    """The command line of a baseline: train(args) on its flags, or on those of the run to resume.

    Returns the exit code: 0, 2 for bad input, 1 where a run had to stop.
    """
    warnings.filterwarnings("ignore", module="gymnasium")  # that v4 is not v5 is the point here
    args = tyro.cli(args_class)
    try:
        if args.resume is not None:
            stored = meow.Checkpoints(Path(args.resume) / "checkpoints").load()["args"]
            if stored.keys() != {field.name for field in fields(args_class)}:
                raise meow.UsageError(f"--resume must name a run of this script, {args.resume} is of another")
            args = tyro.cli(args_class, default=args_class(**stored | {"resume": args.resume}))
            meow.check_unchanged(args, stored, "--resume", MAY_CHANGE)
        train(args)
    except (meow.UsageError, FloatingPointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, meow.UsageError) else 1
    return 0
