"""SAC on thousands of parallel environments: the paper's baseline of Fig. 4, with the paper's settings for its tasks.

    python benchmark/baselines/sac_isaacgym.py --task Ant
    python benchmark/baselines/sac_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco
    python benchmark/baselines/sac_isaacgym.py --resume runs/NAME

Soft actor-critic (Haarnoja et al. 2018, with a learnt entropy weight): two critics 512-256, an actor 512-256 with tanh
mean and a log-std that does not depend on the state. Simulator, replay buffer, normaliser, statistics, logs and
checkpoints are meow_isaacgym.py's own, so that both systems of the figure are measured alike: a run writes runs/NAME.
"""

import contextlib
import copy
import math
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_isaacgym as meow  # noqa: E402  it imports isaacgym, which must come before torch

import torch  # noqa: E402  isort: skip
import torch.nn as nn  # noqa: E402
import tyro  # noqa: E402

# The paper's settings of SAC; environments, batch and vector steps are MEow's (Table A4). Here: what differs.
SHARED_SETTINGS = {"alpha": 0.1, "tau": 0.0025}
PAPER_SETTINGS = {
    "Ant": {"alpha": 0.4},
    "Humanoid": {"alpha": 0.025},
    "Ingenuity": {},
    "Anymal": {"alpha": 0.01},
    "AllegroHand": {},
    "FrankaCabinet": {"tau": 0.025},
}


@dataclass
class Args:
    task: str = "Ant"  # the task, by the simulator's name for it
    make: str = "isaacgymenvs:make"  # MODULE:FUNCTION that makes the simulator
    make_kwargs: str = "{}"  # more arguments for that function, as a JSON object
    seed: int = 1  # seed of the experiment
    total_vector_steps: Optional[int] = None  # steps, each in all environments (None: the paper's for --task)
    num_envs: Optional[int] = None  # parallel environments (None: the paper's for --task)
    exp_name: str = "sac"  # the name of this experiment
    resume: Optional[str] = None  # the folder of a run to continue from its checkpoint, with its own settings
    track: bool = False  # track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: Optional[str] = None  # the entity (team) of the project at W&B
    log_frequency: int = 1_000  # vector steps between two logs of the mean return of the last 100 training episodes
    checkpoint_frequency: int = 10_000  # vector steps between two checkpoints
    buffer_steps: int = 15_000  # the replay buffer's size in vector steps, --num-envs transitions each
    batch_size: Optional[int] = None  # transitions per update (None: the paper's for --task)
    random_steps: int = 100  # vector steps with uniform actions
    learning_starts: int = 200  # vector step to start learning, one update per vector step
    learning_rate: float = 3e-4  # the learning rate of Adam for actor and critics
    alpha_learning_rate: float = 1e-3  # the learning rate of Adam for the entropy weight, whose target entropy is -A
    gamma: float = 0.99  # the discount factor gamma
    tau: Optional[float] = None  # target smoothing coefficient (None: the paper's for --task)
    alpha: Optional[float] = None  # entropy weight at the start (None: the paper's for --task)
    cuda: bool = True  # use a CUDA device where there is one, for simulator and learning
    torch_threads: int = 1  # threads of PyTorch on the CPU

    def __post_init__(self):
        row = meow.paper_row(self.task)
        table = {**meow.SHARED_SETTINGS, **meow.PAPER_SETTINGS.get(row, {})}
        table.update({**SHARED_SETTINGS, **PAPER_SETTINGS.get(row, {})})
        for name, value in table.items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)


def check_args(args):
    """Raises UsageError for settings that no run can have."""
    shared = {}
    for field in fields(meow.Args):
        if hasattr(args, field.name):
            shared[field.name] = getattr(args, field.name)
    meow.check_args(meow.Args(**shared))
    if not 0 < args.alpha_learning_rate < math.inf:
        raise meow.UsageError("--alpha-learning-rate must be a finite number above 0")


def mlp(in_dim, out_dim):
    """in_dim -> 512 -> 256 -> out_dim with ReLU, the paper's size for these tasks."""
    return nn.Sequential(
        nn.Linear(in_dim, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, out_dim)
    )  # fmt: skip


class Actor(nn.Module):
    """a = clip(u, -1, 1), u ~ N(tanh(f(s)), exp(log_std)^2), with one log_std (A,) in [-5, 2] for all states.

    The paper's SAC of these tasks has this mean and log_std; that it clips instead of squashing is our reading of it.
    """

    def __init__(self, obs_dim, act_dim):
        super().__init__()
        self.mean, self.log_std = mlp(obs_dim, act_dim), nn.Parameter(torch.zeros(act_dim))

    def forward(self, obs):
        """(B, S) -> a sample (B, A) in [-1,1] and the log-density of u (B, 1)."""
        mean, log_std = torch.tanh(self.mean(obs)), self.log_std.clamp(-5.0, 2.0)
        z = torch.randn_like(mean)
        log_prob = (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1, keepdim=True)
        return (mean + log_std.exp() * z).clamp(-1.0, 1.0), log_prob


class SAC(nn.Module):
    """Actor, two critics with their targets, the entropy weight, the normaliser, and the three optimizers."""

    def __init__(self, args, obs_dim, act_dim, device):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        self.normalizer, self.actor = meow.RunningNormalizer(obs_dim), Actor(obs_dim, act_dim)
        self.critics = nn.ModuleList([mlp(obs_dim + act_dim, 1), mlp(obs_dim + act_dim, 1)])
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(args.alpha)))
        self.to(device)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=args.learning_rate)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=args.learning_rate)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=args.alpha_learning_rate)
        self.optimizers = (self.critic_optimizer, self.actor_optimizer, self.alpha_optimizer)

    @torch.no_grad()
    def act(self, obs):
        """Sampled actions for raw observations: (N, S) -> (N, A)."""
        return self.actor(self.normalizer(obs))[0]

    def update(self, data):
        """One step of critics, actor, entropy weight and targets on Transitions of raw observations, whose u is here
        the action in [-1,1]. Returns {name of a loss or value: tensor ()}."""
        args, obs, next_obs = self.args, self.normalizer(data.obs), self.normalizer(data.next_obs)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_act, next_log_prob = self.actor(next_obs)
            next_pair = torch.cat([next_obs, next_act], dim=1)
            next_v = torch.min(*(target(next_pair) for target in self.targets)) - alpha * next_log_prob
            target_q = data.reward + args.gamma * (1 - data.terminated) * next_v
        pair = torch.cat([obs, data.u], dim=1)
        qf_loss = sum((critic(pair) - target_q).square().mean() for critic in self.critics)
        self.step(self.critic_optimizer, qf_loss)

        act, log_prob = self.actor(obs)
        pair = torch.cat([obs, act], dim=1)
        actor_loss = (alpha * log_prob - torch.min(*(critic(pair) for critic in self.critics))).mean()
        self.step(self.actor_optimizer, actor_loss)

        alpha_loss = -self.log_alpha.exp() * (log_prob.detach() - self.act_dim).mean()  # target entropy -A
        self.step(self.alpha_optimizer, alpha_loss)

        with torch.no_grad():
            for param, target in zip(self.critics.parameters(), self.targets.parameters()):
                target.lerp_(param, args.tau)
        losses = {"qf_loss": qf_loss.detach(), "actor_loss": actor_loss.detach()}
        losses.update(alpha_loss=alpha_loss.detach(), qf_values=target_q.mean(), alpha=alpha)
        return losses

    def step(self, optimizer, loss):
        """One step of an optimizer; only its own parameters move and keep a gradient."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(args):
    """Trains SAC as `args` says and writes runs/NAME. Returns the agent and the Run. Raises as meow_isaacgym.train."""
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    folder = meow.run_folder(args, args.task)
    with contextlib.ExitStack() as stack:
        meow.set_up_torch(args, device, stack)
        env, (obs, reward, done, _, in_episode) = meow.make_env(args, args.num_envs, device, stack)
        obs_dim, act_dim = obs.shape[1], env.action_space.shape[0]
        capacity = args.buffer_steps * args.num_envs
        meow.check_memory(device, "--buffer-steps", capacity, 2 * obs_dim + act_dim + 2)
        rb = meow.VectorReplayBuffer(capacity, obs_dim, act_dim, device)
        network = {"obs_dim": obs_dim, "act_dim": act_dim}
        run = stack.enter_context(meow.Run(args, folder, args.total_vector_steps, network, rb))
        meow.say(f"{run.name}\n{args}")
        agent = SAC(args, obs_dim, act_dim, device)
        statistics = meow.EpisodeStatistics(args.num_envs, device)
        learned = [param.data for param in agent.parameters()] + list(agent.buffers())
        learned += [statistics.finished.rows, statistics.finished.count, statistics.running]
        restorable = hasattr(env, "get_state") and hasattr(env, "set_state")
        if args.resume is not None:
            run.restore(learned)
            for optimizer, state in zip(agent.optimizers, run.state["optimizers"]):
                optimizer.load_state_dict(state)
        if args.resume is not None and restorable:
            env.set_state(run.state["simulator"])
            obs, done = run.state["obs"].to(device), run.state["done"].to(device)
        else:
            statistics.running.zero_()
            statistics.add(reward, done, in_episode)
        if args.resume is not None and not restorable:
            meow.say(f"{args.make} has no get_state and set_state: not bit for bit as before, new episodes begin")
        for global_step in meow.trange(run.first_step + 1, args.total_vector_steps + 1, mininterval=1, miniters=1):
            if global_step <= args.random_steps:
                actions = 2 * torch.rand(args.num_envs, act_dim, device=device) - 1
            else:
                actions = agent.act(obs)
            resets = done
            next_obs, reward, done, timed_out, in_episode = meow.step_simulator(env, actions, resets)
            statistics.add(reward, done, in_episode)
            rb.add(obs, next_obs, actions, reward, done & ~timed_out, valid=~resets)
            agent.normalizer.update(next_obs)
            obs = next_obs

            losses = {}
            if global_step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
            if global_step % args.log_frequency == 0 or global_step == args.total_vector_steps:
                rb.check_finite(global_step)
                run.log(global_step, {f"losses/{name}": loss for name, loss in losses.items()})
                meow.log_and_save(run, agent, statistics, global_step, None)
            if run.checkpoint_is_due(global_step, ended=True):
                rb.check_finite(global_step)
                simulator = env.get_state() if restorable else None
                optimizers = [optimizer.state_dict() for optimizer in agent.optimizers]
                rest = {"simulator": simulator, "obs": obs, "done": done, "optimizers": optimizers}
                run.checkpoint(global_step, learned, **rest)
        meow.say(f"finished: {run.name}")
    return agent, run


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130 after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    args = tyro.cli(Args)

    def stored_args(state):
        return Args(**{**state["config"]["args"], "resume": args.resume})

    try:
        if args.resume is not None:
            stored = meow.load_file(Path(args.resume, "checkpoint.pt"), "--resume", stored_args)
            args = tyro.cli(Args, default=stored)  # flags win over what that run had
        train(args)
    except (meow.UsageError, FloatingPointError, OSError, KeyboardInterrupt, SystemExit) as error:  # the last: an env
        print(str(error) or repr(error), file=sys.stderr)
        return {meow.UsageError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
