"""The training loop of the off-policy baselines: that of meow_continuous_action.py with another algorithm in it.

Environment, replay buffer, evaluation, logs, checkpoints and resume are meow_continuous_action.py's own, so that all
systems of a figure are measured alike. sql.py and actor_critic.py each hand `train` an `Agent`; sb3.py, whose loop is
stable-baselines3's, shares the rest.
"""

import math
import os
import random
import sys
import time
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_continuous_action as meow  # noqa: E402  the line above lets Python find it


@dataclass
class OffPolicyArgs:
    """The flags that the baselines share. What they mean, and what they may be, is as in meow_continuous_action.py."""

    exp_name: str  # the name of this experiment
    env_id: str = "Hopper-v4"  # the environment id of the task
    seed: int = 1  # seed of the experiment
    total_timesteps: int | None = None  # environment steps (None: those of the paper's Fig. 3 for --env-id)
    resume: str | None = None  # the folder of a run to continue from its checkpoint
    track: bool = False  # track this experiment with Weights and Biases
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: str | None = None  # the entity (team) of the project at W&B
    capture_video: bool = False  # film training episodes to videos/NAME
    eval_frequency: int = 10_000  # steps between two evaluations; there is one at step 0 and one at the end too
    eval_episodes: int = 10  # episodes of an evaluation, reset with seeds 0, 1, 2, ...
    eval_max_steps: int = 10_000  # an evaluation episode is cut there, for environments without a time limit
    eval_deterministic: bool = True  # evaluate deterministic actions, or else samples of the policy
    checkpoint_frequency: int | None = None  # steps between two checkpoints (None: --eval-frequency)
    buffer_size: int = 1_000_000  # transitions in the replay buffer
    batch_size: int = 256  # transitions per update
    learning_starts: int = 10_000  # step to start learning; uniform actions before
    gamma: float = 0.99  # the discount factor gamma
    cuda: bool = True  # use a CUDA device where there is one
    torch_threads: int = 1  # threads of PyTorch on the CPU

    def __post_init__(self):
        steps = paper_settings(self.env_id)["total_timesteps"]
        self.fill({"total_timesteps": steps, "checkpoint_frequency": self.eval_frequency})

    def fill(self, settings):
        """Gives flags that are None their values."""
        for name, value in settings.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def rules(self):
        """{name of a flag of the one baseline: (whether it is allowed, what it must be)}."""
        return {}

    def describe(self):
        """What the run resolved its settings to, for the reader of its log."""
        raise NotImplementedError


class Agent(nn.Module):
    """An off-policy algorithm. Its parameters, buffers and `optimizers` are all of its state."""

    optimizers: tuple = ()

    def act(self, obs, deterministic=False):
        """Actions: (B, S) -> (B, A) in [-1,1]."""
        raise NotImplementedError

    def update(self, data):
        """One learning step on meow.Transitions, with actions in [-1,1]. Returns {name of a loss: tensor ()}."""
        raise NotImplementedError


def paper_settings(env_id):
    """MEow's settings in the paper, the shared defaults for an environment that is not in it."""
    return meow.SHARED_SETTINGS | meow.PAPER_SETTINGS.get(meow.paper_row(env_id), {})


def start(args, capacity):
    """Checks the input and opens the run, with a replay buffer of `capacity` transitions.

    Returns the meow.Run, the training environment and the device. Raises meow.UsageError for bad input.
    """
    names = [field.name for field in fields(meow.Args) if getattr(args, field.name, None) is not None]
    meow.check_args(meow.Args(**{name: getattr(args, name) for name in names}))
    for name, (allowed, what) in args.rules().items():
        if not allowed:
            raise meow.UsageError(f"--{name.replace('_', '-')} must be {what}, got {getattr(args, name)}")
    device = meow.set_up_torch(args)
    rb = meow.ReplayBuffer(capacity, *meow.check_env(args, device), device)
    columns = ["mean", "std", *(f"return_{i}" for i in range(args.eval_episodes))]
    run = meow.Run(args, args.env_id, "evaluations.csv", columns, args.total_timesteps, rb)
    run.say(f"{run.dir}\n{args.describe()}")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    video_folder = f"videos/{run.dir.name}-{run.first_step}" if args.capture_video else None
    return run, meow.make_env(args.env_id, video_folder), device


def evaluator(run, policy):
    """A function of the step that evaluates the policy and logs its returns."""
    envs = [meow.make_env(run.args.env_id, max_steps=run.args.eval_max_steps) for _ in range(run.args.eval_episodes)]

    def evaluate(step):
        returns = meow.evaluate(policy, envs, run.args.eval_deterministic)
        mean, std = returns.mean(), returns.std()
        run.log_row(step, [mean, std, *returns])
        run.log(step, {"eval/episodic_return": mean, "eval/episodic_return_std": std})
        run.say(f"step {step:,}: eval return {mean:.1f} +- {std:.1f}")

    return evaluate


def resume_episode(run, env):
    """Brings the environment and the random streams to where a resumed run's were. Returns the observation (S,).

    A new episode begins at the start of a run, and where the environment does not repeat.
    """
    if run.first_step > 0:
        obs = meow.replay(env, run.rb, run.state["begun"], to_action=np.asarray)
        meow.set_random_streams(run.state["random"])
        if obs is not None:
            return obs
        run.say(f"{run.args.env_id} does not repeat its episode: not bit for bit as before, a new one begins")
    env.steps, env.begun = run.rb.added, []
    return env.reset(seed=(run.args.seed + run.first_step) % 2**32)[0]  # seeds the stream of all episodes


def train(args, make_agent):
    """Trains make_agent(args, obs_dim, act_dim), an `Agent`, and writes runs/NAME as meow_continuous_action.py does.

    Returns the agent and the meow.Run. Raises as meow.train.
    """
    run, env, device = start(args, args.buffer_size)
    with run:
        rb, obs_dim, act_dim = run.rb, *env.observation_space.shape, *env.action_space.shape
        agent = make_agent(args, obs_dim, act_dim).to(device)
        evaluate = evaluator(run, agent)
        if run.first_step > 0:
            agent.load_state_dict(run.state["learned"])
            for optimizer, state in zip(agent.optimizers, run.state["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        else:
            evaluate(0)
        obs = resume_episode(run, env)
        for global_step in range(run.first_step + 1, args.total_timesteps + 1):
            if global_step <= args.learning_starts:
                act = (2 * torch.rand(act_dim) - 1).numpy()
            else:
                with torch.no_grad():
                    act = agent.act(torch.from_numpy(obs[None]).to(device))[0].cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(act)
            rb.add(obs, next_obs, act, reward, terminated)
            obs = next_obs
            if terminated or truncated:
                run.log(global_step, info["episode"])
                obs, _ = env.reset()

            if global_step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
                for name, value in losses.items():
                    if not math.isfinite(value):
                        raise FloatingPointError(f"{name} is not finite at step {global_step:,}")
                if global_step % 100 == 0:
                    run.log(global_step, {f"losses/{name}": value for name, value in losses.items()})
                    run.log(global_step, {"charts/SPS": int(global_step / (time.time() - run.start_time))})
            run.progress.update()

            ends = global_step == args.total_timesteps
            if ends or global_step % args.eval_frequency == 0:
                evaluate(global_step)
            if ends or global_step % args.checkpoint_frequency == 0:
                optimizers = [optimizer.state_dict() for optimizer in agent.optimizers]
                run.checkpoint(global_step, agent.state_dict(), optimizers=optimizers, begun=env.begun)
        env.close()
        run.say(f"finished: {run.dir}")
    return agent, run


def main(args_class, train):
    """The command line of a baseline: train(args) on its flags, or on those of the run to resume.

    Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130 after Ctrl-C.
    """
    sys.path.append(os.getcwd())  # where --env-id MODULE:ID may be too
    warnings.filterwarnings("ignore", message=".*is out of date")  # that v4 is not v5 is the point here
    args, code = tyro.cli(args_class), 0
    try:
        if args.resume is not None:
            path = Path(args.resume, "checkpoint.pt")
            stored = meow.load_file(path, "--resume", lambda state: args_class(**state["config"]["args"]))
            args = tyro.cli(args_class, default=replace(stored, resume=args.resume))
        train(args)
    except meow.UsageError as error:
        code = 2
        print(error, file=sys.stderr)
    except (FloatingPointError, OSError) as error:
        code = 1
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    return code
