"""The training loop of the off-policy baselines: that of meow_continuous_action.py with another algorithm in it.

Environment, replay buffer, evaluation, logs, checkpoints and resume are meow_continuous_action.py's own, so that all
systems of a figure are measured alike. sql.py and actor_critic.py each hand `train` an `Agent`; sb3.py, whose loop is
stable-baselines3's, shares the rest.
"""

import contextlib
import os
import random
import sys
import time
import warnings
from dataclasses import dataclass, fields
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
    capture_video: bool = False  # film training episodes 0, 1, 8, 27, ... to videos/
    eval_frequency: int = 10_000  # steps between two evaluations; there is one at step 0 and one at the end too
    eval_episodes: int = 10  # episodes of an evaluation, reset with seeds 0, 1, 2, ...
    eval_max_steps: int = 10_000  # an evaluation episode is cut there, for environments without a time limit
    eval_deterministic: bool = True  # evaluate deterministic actions, or else samples of the policy
    checkpoint_frequency: int = 10_000  # steps between two checkpoints, each at the end of an episode
    buffer_size: int = 1_000_000  # transitions in the replay buffer
    batch_size: int = 256  # transitions per update
    learning_starts: int = 10_000  # step to start learning; uniform actions before
    gamma: float = 0.99  # the discount factor gamma
    cuda: bool = True  # use a CUDA device where there is one
    torch_threads: int = 1  # threads of PyTorch on the CPU

    def __post_init__(self):
        self.fill({"total_timesteps": paper_settings(self.env_id)["total_timesteps"]})

    def fill(self, settings):
        """Gives flags that are None their values."""
        for name, value in settings.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def rules(self):
        """{sentence: whether it holds} about the flags that only this baseline has."""
        return {}


class Agent(nn.Module):
    """An off-policy algorithm. Its parameters, buffers and `optimizers` are all of its state."""

    optimizers: tuple = ()

    def act(self, obs, deterministic=False):
        """Actions: (B, S) -> (B, A) in [-1,1]."""
        raise NotImplementedError

    def update(self, data):
        """One learning step on meow.Transitions, whose u is here the action in [-1,1].
        Returns {name of a loss: tensor ()}."""
        raise NotImplementedError


def paper_settings(env_id):
    """MEow's settings in the paper, the shared defaults for an environment that is not in it."""
    return meow.SHARED_SETTINGS | meow.PAPER_SETTINGS.get(meow.paper_row(env_id), {})


@contextlib.contextmanager
def open_run(args, capacity):
    """Checks the input and opens the run, with a replay buffer of `capacity` transitions.
    Gives the meow.Run, the training environment, the evaluation environments (None without) and the device, and closes
    them, whatever ends the run. Raises meow.UsageError for bad input."""
    shared = {}
    for field in fields(meow.Args):
        if getattr(args, field.name, None) is not None:
            shared[field.name] = getattr(args, field.name)
    meow.check_args(meow.Args(**shared))
    for sentence, holds in args.rules().items():
        if not holds:
            raise meow.UsageError(sentence)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    obs_dim, act_dim = meow.check_env(args, device)
    folder = meow.run_folder(args, args.env_id)  # first: an environment may go to another one
    film = os.path.abspath(f"videos/{folder.name}-{int(time.time())}") if args.capture_video else None
    with contextlib.ExitStack() as stack:
        meow.set_up_torch(args, device, stack)
        # TRY NOT TO MODIFY: seeding
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        with meow.usable(args):
            eval_envs = meow.make_eval_envs(args, stack) if args.eval_episodes > 0 else None
            env = stack.enter_context(meow.make_env(args.env_id, film))
        rb = meow.ReplayBuffer(capacity, obs_dim, act_dim, device)
        network = {"obs_dim": obs_dim, "act_dim": act_dim}
        run = stack.enter_context(meow.Run(args, folder, args.total_timesteps, network, rb))
        meow.say(f"{run.name}\n{args}")
        yield run, env, eval_envs, device
        meow.say(f"finished: {run.name}")


def train(args, make_agent):
    """Trains make_agent(args, obs_dim, act_dim), an `Agent`, and writes runs/NAME as meow_continuous_action.py does.
    Returns the agent and the meow.Run. Raises as meow.train."""
    with open_run(args, args.buffer_size) as (run, env, eval_envs, device):
        rb, act_dim = run.rb, env.action_space.shape[0]
        agent = make_agent(args, env.observation_space.shape[0], act_dim).to(device)
        learned = list(agent.state_dict().values())
        obs, _ = env.reset(seed=args.seed)  # seeds the stream of all episodes
        if args.resume is None:
            meow.evaluate_and_save(run, agent, env, eval_envs, 0)
        else:
            run.restore(learned)
            for optimizer, state in zip(agent.optimizers, run.state["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            env.set_state(run.state["env"])
            obs, _ = env.reset()
        for global_step in meow.trange(run.first_step + 1, args.total_timesteps + 1, mininterval=1, miniters=1):
            if global_step <= args.learning_starts:
                act = 2 * torch.rand(1, act_dim) - 1
            else:
                with torch.no_grad():
                    act = agent.act(torch.from_numpy(obs[None]).to(device))
            act = act[0].cpu().numpy()
            next_obs, reward, terminated, truncated, _ = env.step(act)
            rb.add(obs, next_obs, act, reward, terminated)
            obs = next_obs

            if global_step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
                if global_step % 100 == 0:
                    run.log(global_step, {f"losses/{name}": value for name, value in losses.items()})
                    run.log(global_step, {"charts/SPS": int(global_step / run.seconds())})
            if global_step % args.eval_frequency == 0 or global_step == args.total_timesteps:
                meow.evaluate_and_save(run, agent, env, eval_envs, global_step)
            if terminated or truncated:
                run.log(global_step, env.charts)
            if run.checkpoint_is_due(global_step, terminated or truncated):
                optimizers = [optimizer.state_dict() for optimizer in agent.optimizers]
                run.checkpoint(global_step, learned, optimizers=optimizers, env=env.get_state())
            if terminated or truncated:
                obs, _ = env.reset()
    return agent, run


def main(args_class, train):
    """The command line of a baseline: train(args) on its flags, or on those of the run to resume.
    Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130 after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    warnings.filterwarnings("ignore", message=".*is out of date")  # that v4 is not v5 is the point here
    args = tyro.cli(args_class)

    def stored_args(state):
        return args_class(**{**state["config"]["args"], "resume": args.resume})

    try:
        if args.resume is not None:
            stored = meow.load_file(Path(args.resume, "checkpoint.pt"), "--resume", stored_args)
            args = tyro.cli(args_class, default=stored)  # flags win over what that run had
        train(args)
    except (meow.UsageError, FloatingPointError, OSError, KeyboardInterrupt, SystemExit) as error:  # the last: an env
        print(str(error) or repr(error), file=sys.stderr)
        return {meow.UsageError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
    return 0
