"""The paper's baselines SAC, TD3, DDPG and PPO: stable-baselines3 with rl-zoo3's settings, as the paper ran them.

    python benchmark/baselines.py --algo sac --env-id Hopper-v4 --exp-name sac        # also td3, ddpg, ppo
    python benchmark/baselines.py --resume runs/NAME                                  # goes on, on the CPU to the bit

The algorithms are stable-baselines3's (SB3's). Environment, evaluation, logs, checkpoints and resume are those of
meow_continuous_action.py, so that all systems of a figure are measured alike. That makes three differences:

- All agents act in [-1,1]^A. So they do with rl-zoo3, but for PPO on Humanoid, whose own bounds are +-0.4: its initial
  standard deviation, exp(-2), is 0.4 times rl-zoo3's in the environment's units.
- The replay memory is meow.ReplayBuffer: float32, what the networks read anyhow, drawn from as SB3's is.
- An evaluation at step N comes before the update of step N (meow_continuous_action.py: after it). PPO's uses the
  observation normaliser as it stands at that step.

Checkpoints are written between two rollouts. A rollout is one step, PPO's 512 (SB3's default: 2,048): a stop and
--checkpoint-frequency wait for its end. The last checkpoint is that before the last rollout, so that a run resumed with
more --total-timesteps becomes the run that was that long at once.
"""

import contextlib
import copy
import inspect
import math
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import stable_baselines3
import torch
import torch.nn as nn
from off_policy import OffPolicyArgs, check_args, main, meow
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tqdm import tqdm

ALGORITHMS = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO}

# hyperparams/*.yml of rl-zoo3 2.9.2, as differences from stable-baselines3 2.9.2. "default" is for environments that it
# does not list. `noise_std` is that of normal action noise, `normalize` means VecNormalize of observations and rewards.
# SAC's rows are the paper's Table A2. No row has a schedule.
NOISE = {"noise_std": 0.1}
WIDE = {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.ReLU, "net_arch": [256, 256]}
PPO_COLUMNS = ("learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef")
PPO_COLUMNS += ("max_grad_norm", "policy_kwargs")
PPO_ROWS = {
    "Hopper-v4": (9.80828e-05, 32, 5, 0.999, 0.99, 0.2, 0.00229519, 0.835671, 0.7, WIDE),
    "HalfCheetah-v4": (2.0633e-05, 64, 20, 0.98, 0.92, 0.1, 0.000401762, 0.58096, 0.8, WIDE),
    "Walker2d-v4": (5.05041e-05, 32, 20, 0.99, 0.95, 0.1, 0.000585045, 0.871923, 1.0, {}),
    "Humanoid-v4": (3.56987e-05, 256, 5, 0.95, 0.9, 0.3, 0.00238306, 0.431892, 2.0, WIDE),
}
ZOO = {
    "sac": {"default": {}} | dict.fromkeys(meow.PAPER_SETTINGS, {"learning_starts": 10_000}),
    "td3": {"default": NOISE} | dict.fromkeys(meow.PAPER_SETTINGS, NOISE | {"learning_starts": 10_000}),
    "ddpg": {"default": NOISE} | dict.fromkeys(meow.PAPER_SETTINGS, NOISE | {"learning_starts": 10_000}),
    "ppo": {"default": {}, "Ant-v4": {"normalize": True}},
}
PPO_ROWS = {name: dict(zip(PPO_COLUMNS, row, strict=True)) for name, row in PPO_ROWS.items()}
ZOO["ppo"] |= {name: {"normalize": True, "n_steps": 512} | row for name, row in PPO_ROWS.items()}


def zoo_row(args):
    """rl-zoo3's settings of `args.algo` for `args.env_id`, also for its other versions, as in ZOO."""
    return ZOO[args.algo][meow.paper_row(args.env_id) or "default"]


@dataclass
class Args(OffPolicyArgs):
    algo: Literal["sac", "td3", "ddpg", "ppo"] = "sac"
    """the algorithm of stable-baselines3"""
    exp_name: str | None = None
    """the name of this experiment (None: --algo)"""
    total_timesteps: int | None = None
    """total timesteps of the experiments (Fig. 3; None: the paper's for --env-id)"""
    buffer_size: int | None = None
    """the replay memory buffer size; ppo: the steps of a rollout (None: rl-zoo3's for --env-id, as those below)"""
    batch_size: int | None = None
    """the batch size of sample from the replay memory or the rollout"""
    learning_starts: int | None = None
    """timestep to start learning; uniform actions before (ppo: 0)"""
    learning_rate: float | None = None
    """the learning rate of all optimizers"""
    gamma: float | None = None
    """the discount factor gamma"""

    def __post_init__(self):
        super().__post_init__()
        settings = {"exp_name": self.algo}
        settings |= meow.SHARED_SETTINGS | meow.PAPER_SETTINGS.get(meow.paper_row(self.env_id), {})
        parameters = inspect.signature(ALGORITHMS[self.algo]).parameters
        settings |= {name: parameter.default for name, parameter in parameters.items()} | zoo_row(self)
        if self.algo == "ppo":
            settings |= {"buffer_size": settings["n_steps"], "learning_starts": 0}
        for field in fields(Args):
            if field.name in settings and getattr(self, field.name) is None:
                setattr(self, field.name, settings[field.name])

    def check(self):
        """Raises meow.UsageError for values that no run can have."""
        if not 0 < self.learning_rate < math.inf:
            raise meow.UsageError(f"--learning-rate must be a finite number above 0, got {self.learning_rate}")
        if self.algo in ("td3", "ddpg") and not self.eval_deterministic:
            raise meow.UsageError("--no-eval-deterministic is allowed with sac and ppo only: others draw no actions")
        if self.algo == "ppo" and self.learning_starts > 0:
            raise meow.UsageError(f"--learning-starts must be 0 with --algo ppo, got {self.learning_starts}")
        if self.algo == "ppo" and (self.batch_size < 2 or self.buffer_size % self.batch_size > 0):
            numbers = f"got {self.batch_size} and {self.buffer_size}"
            raise meow.UsageError(f"--batch-size must be above 1 and divide --buffer-size with --algo ppo, {numbers}")


class Replay:
    """What SB3 asks of a replay buffer, from a meow.ReplayBuffer `rb`: uniform draws with replacement, one environment.

    float32 rows (half of SB3's memory, that has the environment's float64), taken as they fill, that meow.Checkpoints
    writes piece by piece. A time limit does not end the task: only `terminated` cuts the bootstrap, as with SB3's own.
    """

    def __init__(self, buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, rb):
        self.device, self.rb = device, rb

    def add(self, obs, next_obs, action, reward, done, infos):
        """Stores one transition of SB3's vector environment of one: arrays (1, S), (1, S), (1, A), (1,), (1,)."""
        terminated = done[0] and not infos[0]["TimeLimit.truncated"]
        self.rb.add(obs[0], next_obs[0], action[0], reward[0], terminated)

    def sample(self, batch_size, env=None):
        """Draws ReplayBufferSamples, each (batch_size, ...)."""
        data = self.rb.sample(batch_size, self.device)
        return ReplayBufferSamples(data.obs, data.act, data.next_obs, data.terminated, data.reward)


def make_model(args, env, rb, device):
    """The SB3 model of `args`, seeded: ZOO's settings, over them the flags. env: VecEnv of one. rb: meow.ReplayBuffer.

    Seeds the global random streams, the environment's next reset and its action space.
    """
    settings = copy.deepcopy(zoo_row(args))
    noise_std = settings.pop("noise_std", None)
    if settings.pop("normalize", False):
        env = VecNormalize(env, gamma=args.gamma)
    settings |= {name: getattr(args, name) for name in ("batch_size", "learning_rate", "gamma")}
    if args.algo == "ppo":
        settings |= {"n_steps": args.buffer_size}
    else:
        settings |= {"buffer_size": args.buffer_size, "learning_starts": args.learning_starts}
        settings |= {"replay_buffer_class": Replay, "replay_buffer_kwargs": {"rb": rb}}
    if noise_std is not None:
        shape = env.action_space.shape
        settings |= {"action_noise": NormalActionNoise(np.zeros(shape), np.full(shape, noise_std))}
    model = ALGORITHMS[args.algo]("MlpPolicy", env, seed=args.seed, device=device, **settings)
    model.set_logger(Logger(None, []))  # keeps the newest losses
    return model


def hyperparameters(model):
    """{name: what it resolved to} of all that an SB3 model was made with, as JSON takes it."""
    names = inspect.signature(type(model)).parameters.keys() - {"policy", "env", "replay_buffer_kwargs"}
    values = {name: getattr(model, name) for name in sorted(names) if hasattr(model, name)}
    values |= {"normalize": model.get_vec_normalize_env() is not None}
    plain = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}


def newest_losses(model):
    """{name: number} of what SB3 logged of its last update, without what is constant or counts."""
    logged = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
    return {name: logged[name] for name in logged.keys() - {"learning_rate", "clip_range", "n_updates"}}


class Policy:
    """An SB3 model's policy as meow.evaluate plays it. A normaliser is read and not moved."""

    def __init__(self, model):
        self.model, self.parameters = model, model.policy.parameters

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A) in [-1,1]."""
        obs, normaliser = obs.cpu().numpy(), self.model.get_vec_normalize_env()
        if normaliser is not None:
            obs = normaliser.normalize_obs(obs)
        return torch.from_numpy(self.model.predict(obs, deterministic=deterministic)[0])


COUNTERS = ("num_timesteps", "_n_updates", "_last_obs", "_last_episode_starts")  # where SB3's loop stands


def get_model_state(model):
    """All that an SB3 model has learnt and where it stands between two rollouts, as tensors and plain data."""
    state, normaliser = {name: getattr(model, name) for name in COUNTERS}, model.get_vec_normalize_env()
    if normaliser is not None:
        state["normaliser"] = {name: vars(getattr(normaliser, name)) for name in ("obs_rms", "ret_rms")}
        state["returns"] = normaliser.returns
    learnt = {"parameters": model.get_parameters()}  # not by `plain`: the keys of an optimizer's state are numbers
    learnt["variables"] = {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]}
    return meow.plain(state) | learnt


def set_model_state(model, state):
    """Puts a state of `get_model_state` into another model of the same settings."""
    model.set_parameters(state["parameters"])
    for name, value in state["variables"].items():
        getattr(model, name).data.copy_(value)
    for name in COUNTERS:
        setattr(model, name, meow.unplain(state[name]))
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None:
        for name, saved in state["normaliser"].items():
            vars(getattr(normaliser, name)).update(meow.unplain(saved))
        normaliser.returns = meow.unplain(state["returns"])


class Hooks(BaseCallback):
    """Two functions called from within SB3's `learn`: between two rollouts, and after each step of the environment."""

    def __init__(self, between_rollouts, after_step):
        super().__init__()
        self.between_rollouts, self.after_step = between_rollouts, after_step

    def _on_rollout_start(self):
        self.between_rollouts()

    def _on_step(self):
        return self.after_step(self.locals)


def train(args):
    """Trains a baseline as `args` says and writes runs/NAME as meow_continuous_action.py does, without its models.

    Returns the SB3 model, the run's folder and [(step, returns (eval_episodes,)), ...]. Raises as meow.train.
    """
    check_args(args)
    obs_dim, act_dim = meow.check_env(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    rb = meow.ReplayBuffer(args.buffer_size, obs_dim, act_dim, args.seed)  # ppo: stays empty
    with contextlib.ExitStack() as stack:
        run_dir = meow.make_run_dir(args) if args.resume is None else Path(args.resume)
        meow.lock_run(run_dir, stack)
        checkpoints = meow.Checkpoints(run_dir / "checkpoints")
        state = checkpoints.load(rb) if args.resume is not None else None
        first_step = state["step"] if state else 0
        if args.total_timesteps <= first_step:
            raise meow.UsageError(f"--total-timesteps must be above {first_step:,}, which that run has done")
        stop = meow.StopSignals()
        stack.callback(stop.restore)
        torch.set_num_threads(args.torch_threads)
        meow.keep_freed_memory()
        meow.use_onednn(device)

        env = DummyVecEnv([meow.make_env(args.env_id, args.seed, 0, args.capture_video, run_dir.resolve().name)])
        eval_envs = [meow.make_env(args.env_id, i, i, False, "")() for i in range(args.eval_episodes)]
        for each in (env, *eval_envs):
            stack.callback(each.close)
        env_state_saved = meow.env_state_is_whole(args)
        model = make_model(args, env, rb, device)
        versions = meow.versions_here() | {"stable_baselines3": stable_baselines3.__version__}
        config = {"args": asdict(args) | {"resume": None}, "versions": versions}
        config["hyperparameters"] = hyperparameters(model)
        config["resumed_at"] = [*state["resumed_at"], first_step] if state else []
        writer, log_evaluation, wandb_id = meow.start_logging(args, config, run_dir, state, stack)
        settings = "rl-zoo3's defaults" if meow.paper_row(args.env_id) is None else "rl-zoo3's settings"
        print(f"{run_dir}\n{args.algo} on {args.env_id}: {settings}, flags win; config.json has them all", flush=True)

        evaluations, seconds_before = [], 0.0
        if state:
            evaluations = [(step, seconds, returns.numpy()) for step, seconds, returns in state["evaluations"]]
            seconds_before = state["seconds"]
            env.reset()
            if env_state_saved:
                for each in eval_envs:
                    each.reset(seed=args.seed)
                for each, env_state in zip([env.envs[0], *eval_envs], state["envs"], strict=True):
                    meow.set_env_state(each, env_state)
            set_model_state(model, state["model"])
            if not env_state_saved:
                print(f"{args.env_id}: its state cannot be saved, so the run goes on with a new episode", flush=True)
                env.seed((args.seed + first_step) % 2**32)
                model._last_obs = None  # SB3 resets the environment
            rb.generator.set_state(state["rb_stream"])
            meow.unplain(state["action_space"], model.action_space)
            meow.set_random_streams(state["random"])
        policy, start_time = Policy(model), time.time() - seconds_before
        bar = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "miniters": 1}
        progress = stack.enter_context(tqdm(total=args.total_timesteps, initial=first_step, **bar))
        saved_at = first_step

        def say(text):
            progress.write(text, file=sys.stdout)
            sys.stdout.flush()  # a log file shows it now too

        def evaluate_and_log(step):
            returns = meow.evaluate(policy, eval_envs, args.eval_deterministic)
            evaluations.append((step, time.time() - start_time, returns))
            log_evaluation(*evaluations[-1])
            say(f"step {step:,}: eval return {returns.mean():.1f} +- {returns.std():.1f}")

        def checkpoint(step):
            """Returns whether there was room for it."""
            writer.flush()
            saved = config | {"evaluations": evaluations, "seconds": time.time() - start_time, "wandb_id": wandb_id}
            saved |= {"events": {path.name: path.stat().st_size for path in run_dir.glob("events.out.*")}}
            saved |= {"random": meow.random_streams(), "rb_stream": rb.generator.get_state()}
            saved |= {"envs": [meow.get_env_state(each) for each in (env.envs[0], *eval_envs)]}
            saved |= {"action_space": model.action_space}
            try:
                checkpoints.save(step, meow.plain(saved) | {"model": get_model_state(model)}, rb)
            except OSError as error:  # a full disk must not end a run: the next time there may be room
                say(f"the checkpoint could not be written ({error}); what was written before is as it was")
                return False
            return True

        def between_rollouts():
            nonlocal saved_at
            step, global_step = model.num_timesteps, model.num_timesteps - 1
            for name, value in newest_losses(model).items():
                if "loss" in name and not math.isfinite(value):
                    raise FloatingPointError(f"{name} is not finite at step {global_step:,}")
                if global_step % 100 == 0 or args.algo == "ppo":
                    writer.add_scalar(f"losses/{name}", value, global_step)
            ends_next = step + (args.buffer_size if args.algo == "ppo" else 1) >= args.total_timesteps
            if stop.number or ends_next or step // args.checkpoint_frequency > saved_at // args.checkpoint_frequency:
                saved_at, written = step, checkpoint(step)
            if stop.number:
                how = "go on" if written else "go on from the newest checkpoint, if there is one,"
                say(f"stopped at step {step:,}; {how} with: python {sys.argv[0]} --resume {run_dir}")
                sys.exit(128 + stop.number)

        def after_step(seen):
            """Takes the local variables of SB3's loop. Returns whether it shall go on."""
            step, global_step = model.num_timesteps, model.num_timesteps - 1
            if not (np.isfinite(seen["new_obs"]).all() and np.isfinite(seen["rewards"]).all()):
                raise FloatingPointError(f"an observation or reward is not finite at step {global_step:,}")
            if seen["dones"][0]:
                episode = seen["infos"][0]["episode"]
                writer.add_scalar("charts/episodic_return", episode["r"], global_step)
                writer.add_scalar("charts/episodic_length", episode["l"], global_step)
                progress.set_postfix_str(f"return {episode['r']:.1f}", refresh=False)
            if global_step % 100 == 0:
                writer.add_scalar("charts/SPS", int(global_step / (time.time() - start_time)), global_step)
            progress.update()
            ends = step == args.total_timesteps
            if ends or step % args.eval_frequency == 0:
                evaluate_and_log(step)
            return not ends

        if not state:
            evaluate_and_log(0)
        hooks = Hooks(between_rollouts, after_step)
        try:
            model.learn(args.total_timesteps - first_step, hooks, log_interval=None, reset_num_timesteps=False)
        except ValueError as error:
            if "of distribution Normal" not in str(error):  # torch's, where its mean or deviation is none
                raise
            raise FloatingPointError(f"the policy is no Gaussian at step {model.num_timesteps - 1:,}") from None
        say(f"finished: {run_dir}")
    return model, str(run_dir), [(step, returns) for step, _, returns in evaluations]


if __name__ == "__main__":
    sys.exit(main(Args, train))
