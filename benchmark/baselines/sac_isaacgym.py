"""SAC on thousands of parallel environments: the baseline of Fig. 4, with the paper's settings.

    python benchmark/baselines/sac_isaacgym.py --task Ant    # all flags: --help
    python benchmark/baselines/sac_isaacgym.py --resume runs/NAME

Soft actor-critic (Haarnoja et al. 2018) with a learnt entropy weight and networks 512-256. Simulator,
replay buffer, normaliser, statistics, logs and checkpoints are meow_isaacgym.py's own, so that both
systems of the figure are measured alike.
"""

import contextlib
import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_isaacgym as meow  # it imports isaacgym, which must come before torch

import torch  # isort: skip
import torch.nn as nn

MeowArgs = meow.Args  # the last lines replace it

# The paper's settings of SAC. Environments, batch and vector steps are MEow's (Table A4)
ALPHA = {"Ant": 0.4, "Humanoid": 0.025, "Anymal": 0.01}  # others 0.1
ALPHA_LEARNING_RATE = 1e-3


@dataclass
class Args:
    task: str = "Ant"  # the task, by the simulator's name for it
    make: str = "isaacgymenvs:make"  # MODULE:FUNCTION that makes the simulator
    make_kwargs: str = "{}"  # more arguments for that function, as a JSON object
    seed: int = 1  # seed of the experiment
    total_vector_steps: Optional[int] = None  # steps, each in all environments (Fig. 4)
    num_envs: Optional[int] = None  # parallel environments (None: the paper's for --task)
    exp_name: str = "sac"  # the name of this experiment
    resume: Optional[str] = None  # the folder of a run to continue, with its own settings
    track: bool = False  # track with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: Optional[str] = None  # the entity (team) of the project at W&B
    log_frequency: int = 1_000  # vector steps between two logs of the last 100 training episodes
    checkpoint_frequency: int = 10_000  # vector steps between two checkpoints
    buffer_steps: int = 15_000  # the replay buffer's vector steps, --num-envs transitions each
    batch_size: Optional[int] = None  # transitions per update (None: the paper's for --task)
    random_steps: int = 100  # vector steps with uniform actions
    learning_starts: int = 200  # vector step to start learning, one update per vector step
    learning_rate: float = 3e-4  # the learning rate of Adam for actor and critics
    gamma: float = 0.99  # the discount factor gamma
    tau: Optional[float] = None  # target smoothing coefficient (None: the paper's for --task)
    alpha: Optional[float] = None  # entropy weight at the start (None: the paper's for --task)
    cuda: bool = True  # use a CUDA device where there is one, for simulator and learning
    torch_threads: int = 1  # threads of PyTorch on the CPU
    evaluate = None  # no flag: only meow_isaacgym.py plays models

    def __post_init__(self):
        row = meow.paper_row(self.task)
        settings = {**meow.DEFAULT_SETTINGS, **meow.PAPER_SETTINGS.get(row, {})}
        tau = 0.025 if row == "FrankaCabinet" else 0.0025
        settings.update(alpha=ALPHA.get(row, 0.1), tau=tau)
        for name, value in settings.items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)


# ALGO LOGIC: initialize agent here:
def mlp(in_dim, out_dim):
    """in_dim -> 512 -> 256 -> out_dim with ReLU, the paper's size for these tasks."""
    layers = nn.Linear(in_dim, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(256, out_dim))


class Actor(nn.Module):
    """a = clip(u, -1, 1), u ~ N(tanh(f(s)), exp(log_std)^2), one log_std (A,) in [-5, 2] for all
    states, as the paper's SAC of these tasks has; that it clips is our reading of it."""

    def __init__(self, obs_dim, act_dim):
        super().__init__()
        self.mean = mlp(obs_dim, act_dim)
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def forward(self, obs):
        """(B, S) -> a sample (B, A) in [-1,1] and the log-density of u (B, 1)."""
        mean = torch.tanh(self.mean(obs))
        std = self.log_std.clamp(-5.0, 2.0).exp()
        normal = torch.distributions.Normal(mean, std, validate_args=False)
        u = normal.rsample()
        log_prob = normal.log_prob(u).sum(dim=1, keepdim=True)
        return u.clamp(-1.0, 1.0), log_prob


class SAC(nn.Module):
    """Actor, two critics, their targets, the entropy weight, the normaliser, three optimizers."""

    def __init__(self, args, obs_dim, act_dim, device):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        self.normalizer = meow.RunningNormalizer(obs_dim)
        self.actor = Actor(obs_dim, act_dim)
        self.critics = nn.ModuleList([mlp(obs_dim + act_dim, 1), mlp(obs_dim + act_dim, 1)])
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(args.alpha)))
        self.to(device)
        self.optimizers = [
            torch.optim.Adam(self.critics.parameters(), args.learning_rate),
            torch.optim.Adam(self.actor.parameters(), args.learning_rate),
            torch.optim.Adam([self.log_alpha], ALPHA_LEARNING_RATE),
        ]

    @torch.no_grad()
    def act(self, obs):
        """Sampled actions for raw observations: (N, S) -> (N, A)."""
        return self.actor(self.normalizer(obs))[0]

    def update(self, data):
        """A step of all on Transitions of raw observations, whose u is here the action in [-1,1].
        Returns {name of a loss or value: tensor ()}."""
        args = self.args
        alpha = self.log_alpha.exp().detach()
        critic_adam, actor_adam, alpha_adam = self.optimizers
        obs = self.normalizer(data.obs)
        next_obs = self.normalizer(data.next_obs)
        with torch.no_grad():
            next_act, next_log_prob = self.actor(next_obs)
            next_q = both(self.targets, next_obs, next_act).min(dim=1, keepdim=True).values
            next_v = next_q - alpha * next_log_prob
            # only termination cuts the bootstrap
            target_q = data.reward + args.gamma * (1 - data.terminated) * next_v
        q = both(self.critics, obs, data.u)
        qf_loss = (q - target_q).square().mean(dim=0).sum()
        gradient_step(critic_adam, qf_loss)

        act, log_prob = self.actor(obs)
        actor_q = both(self.critics, obs, act).min(dim=1, keepdim=True).values
        actor_loss = (alpha * log_prob - actor_q).mean()
        gradient_step(actor_adam, actor_loss)

        entropy_gap = (log_prob.detach() - self.act_dim).mean()  # from the entropy to -A
        gradient_step(alpha_adam, -self.log_alpha.exp() * entropy_gap)

        with torch.no_grad():
            for param, target in zip(self.critics.parameters(), self.targets.parameters()):
                target.lerp_(param, args.tau)
        losses = {"qf_loss": qf_loss.detach(), "actor_loss": actor_loss.detach()}
        losses.update(qf_values=target_q.mean(), alpha=alpha)
        return losses


def both(critics, obs, act):
    """Q of both critics: (B, S), (B, A) -> (B, 2)."""
    x = torch.cat([obs, act], dim=1)
    return torch.cat([critics[0](x), critics[1](x)], dim=1)


def gradient_step(optimizer, loss):
    """A step of an optimizer; only its own parameters get a gradient."""
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()


def train(args):
    """Trains SAC and writes runs/NAME. Returns the agent and the Run. Raises as meow.train."""
    meow.check_args(MeowArgs(**vars(args)))
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    folder = meow.run_folder(args, args.task)  # first: a simulator may go to another one
    with contextlib.ExitStack() as stack:
        meow.set_up_torch(args, device, stack)  # with the seeding
        env, first = meow.make_env(args, args.num_envs, device, stack)
        network = {"obs_dim": first[0].shape[1], "act_dim": env.action_space.shape[0]}
        capacity = args.buffer_steps * args.num_envs
        width = 2 * network["obs_dim"] + network["act_dim"] + 2
        meow.check_memory(device, "--buffer-steps", capacity, width)
        rb = meow.VectorReplayBuffer(capacity, **network, device=device)
        run = stack.enter_context(meow.Run(args, folder, network, rb))
        meow.say(f"{run.name}\n{args}")
        agent = SAC(args, **network, device=device)
        statistics = meow.EpisodeStatistics(args.num_envs, device)
        learned = [*agent.state_dict().values(), statistics.running]
        learned += [statistics.finished.rows, statistics.finished.count]
        obs, resets = meow.begin(run, learned, env, first, statistics)
        if args.resume is not None:
            for optimizer, state in zip(agent.optimizers, run.state["optimizers"]):
                optimizer.load_state_dict(state)
        for step in meow.trange(run.first_step + 1, args.total_vector_steps + 1, mininterval=1):
            act = agent.act(obs)
            if step <= args.random_steps:
                act.uniform_(-1, 1)
            next_obs, reward, done, timed_out, in_episode = meow.step_simulator(env, act, resets)
            statistics.add(reward, done, in_episode)
            rb.add(obs, next_obs, act, reward, done & ~timed_out, valid=~resets)
            agent.normalizer.update(next_obs)
            obs, resets = next_obs, done

            losses = {}
            if step > args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
            if step % args.log_frequency == 0 or step == args.total_vector_steps:
                run.log(step, {f"losses/{name}": loss for name, loss in losses.items()})
                meow.log_and_save(run, agent, statistics, step, None)
            if run.checkpoint_is_due(step, ended=True):
                rest = {"optimizers": [optimizer.state_dict() for optimizer in agent.optimizers]}
                rest["simulator"] = env.get_state() if hasattr(env, "set_state") else None
                run.checkpoint(step, learned, obs=obs, resets=resets, **rest)
    return agent, run


if __name__ == "__main__":  # the command line of meow_isaacgym.py, with the flags and loop of here
    meow.Args, meow.train = Args, train
    sys.exit(meow.main())
