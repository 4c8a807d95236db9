"""What the baselines share: flags, command line, and the loop of sql.py and actor_critic.py.

The loop is that of meow_continuous_action.py with another algorithm in it. Environment, buffer,
evaluation, logs, checkpoints and resume are that script's, so that all systems are measured alike.
"""

import contextlib
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_continuous_action as meow

MeowArgs = meow.Args  # `main` replaces it


@dataclass
class OffPolicyArgs:
    """The flags that the baselines share, with the meaning of meow_continuous_action.py's."""

    exp_name: str  # the name of this experiment
    env_id: str = "Hopper-v4"  # the environment; PACKAGE:ID or MY_MODULE:ID imports that first
    seed: int = 1  # seed of the experiment
    total_timesteps: int | None = None  # environment steps (Fig. 3; None: the paper's for --env-id)
    resume: str | None = None  # the folder of a run to continue, with its own settings
    track: bool = False  # track with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: str | None = None  # the entity (team) of the project at W&B
    capture_video: bool = False  # film training episodes 0, 1, 8, 27, ... to videos/
    eval_frequency: int = 10_000  # steps between two evaluations; also one at step 0 and at the end
    eval_episodes: int = 10  # episodes of an evaluation, reset with seeds 0, 1, 2, ...
    eval_max_steps: int = 10_000  # an evaluation episode is cut there, for lack of a time limit
    eval_deterministic: bool = True  # evaluate deterministic actions, or else samples of the policy
    checkpoint_frequency: int = 10_000  # steps between two checkpoints, each at an episode's end
    buffer_size: int = 1_000_000  # transitions in the replay buffer
    batch_size: int = 256  # transitions per update
    learning_starts: int = 10_000  # step to start learning; uniform actions before
    gamma: float = 0.99  # the discount factor gamma
    cuda: bool = True  # use a CUDA device where there is one
    torch_threads: int = 1  # threads of PyTorch on the CPU
    evaluate = None  # no flag: only meow_continuous_action.py plays models
    rules = ()  # what its own flags of a baseline must be, Python over vars(args)

    def __post_init__(self):
        self.fill({"total_timesteps": paper_settings(self.env_id)["total_timesteps"]})

    def fill(self, settings):
        """Gives flags that are None their values."""
        for name, value in settings.items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)


def paper_settings(env_id):
    """MEow's settings in the paper, its defaults for an environment that is not in it."""
    return meow.DEFAULT_SETTINGS | meow.PAPER_SETTINGS.get(meow.paper_row(env_id), {})


def check_args(args):
    """Raises UsageError for settings that break a rule of MEow's or of the baseline's."""
    given = vars(args).items()
    shared = {name: x for name, x in given if x is not None and hasattr(MeowArgs, name)}
    meow.check_args(MeowArgs(**shared))
    for rule in args.rules:
        if not eval(rule, {"inf": math.inf}, vars(args)):
            raise meow.UsageError(f"{rule} must hold, not {args}")


@contextlib.contextmanager
def open_run(args, capacity, **about):
    """Opens the run, with a replay buffer of `capacity` transitions; config.json tells `about` it.
    Gives the meow.Run, the training environment, the evaluation environments (None without) and
    the device, and closes all, whatever ends the run. Raises meow.UsageError for bad input."""
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    obs_dim, act_dim = meow.check_env(args, device)
    folder = meow.run_folder(args, args.env_id)  # first: an environment may go to another one
    film = os.path.abspath(f"videos/{folder.name}-{int(time.time())}") if args.capture_video else None
    with contextlib.ExitStack() as stack:
        meow.set_up_torch(args, device, stack)  # with the seeding
        with meow.usable(args):
            eval_envs = meow.make_eval_envs(args, stack) if args.eval_episodes > 0 else None
            env = stack.enter_context(meow.make_env(args.env_id, film))
        rb = meow.ReplayBuffer(capacity, obs_dim, act_dim, device)
        network = {"obs_dim": obs_dim, "act_dim": act_dim, **about}
        run = stack.enter_context(meow.Run(args, folder, network, rb))
        if args.total_timesteps < run.first_step:
            raise meow.UsageError(f"--total-timesteps must be {run.first_step:,} or more, which are done")
        meow.say(f"{run.name}\n{args}")
        yield run, env, eval_envs, device
        meow.say(f"finished: {run.name}")


def train(make_agent, args):
    """Trains an agent and writes runs/NAME. Returns it and the meow.Run. Raises as meow.train.
    make_agent(args, obs_dim, act_dim) gives an nn.Module with act(obs (B, S), deterministic=False)
    -> (B, A) in [-1,1]; update(data) on meow.Transitions, whose u is here the action in [-1,1], ->
    {name of a loss: tensor ()}; optimizers, with parameters and buffers all of its state."""
    with open_run(args, args.buffer_size) as (run, env, eval_envs, device):
        rb, act_dim = run.rb, env.action_space.shape[0]
        with device:
            agent = make_agent(args, env.observation_space.shape[0], act_dim)
        learned = list(agent.state_dict().values())
        if args.resume is None:
            meow.evaluate_and_save(run, agent, eval_envs, 0)
        else:
            run.restore(learned)
            for optimizer, state in zip(agent.optimizers, run.state["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        obs, _ = env.reset(seed=np.random.randint(2**31))  # always a seed, so that episodes repeat
        for step in meow.trange(run.first_step + 1, args.total_timesteps + 1, mininterval=1):
            if step <= args.learning_starts:
                act = 2 * torch.rand(1, act_dim) - 1
            else:
                with torch.no_grad():
                    act = agent.act(torch.from_numpy(obs[None]).to(device))
            act = act[0].cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(act)
            rb.add(obs, next_obs, act, reward, terminated)
            obs = next_obs

            if step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
                if step % 100 == 0:
                    run.log(step, {f"losses/{name}": loss for name, loss in losses.items()})
                    run.log(step, {"charts/SPS": int(step / run.seconds())})
            if terminated or truncated:
                meow.log_episode(run, step, info)
            if step % args.eval_frequency == 0 or step == args.total_timesteps:
                meow.evaluate_and_save(run, agent, eval_envs, step)
            if run.checkpoint_is_due(step, terminated or truncated):
                optimizers = [optimizer.state_dict() for optimizer in agent.optimizers]
                run.checkpoint(step, learned, optimizers=optimizers)
            if terminated or truncated:
                obs, _ = env.reset(seed=np.random.randint(2**31))
    return agent, run


def gradient_step(optimizer, loss, max_grad_norm=math.inf):
    """A step on the optimizer's own parameters alone. Returns the gradient's norm () unclipped."""
    params = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward(inputs=params)  # not autograd.grad: fused Adam needs the parameters' layout
    grad_norm = torch.nn.utils.clip_grad_norm_(params, max_grad_norm)
    optimizer.step()
    return grad_norm


def log_det_tanh(u):
    """log|det d tanh(u)/du|, without overflow or rounding to log 0: (..., A) -> (...)."""
    return (2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))).sum(dim=-1)


def main(args_class, train):
    """The command line of meow_continuous_action.py, with the flags and train(args) of a baseline.
    Returns the exit code."""
    meow.Args, meow.train = args_class, train
    return meow.main()
