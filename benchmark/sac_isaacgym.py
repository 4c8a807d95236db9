"""SAC on thousands of parallel environments: the paper's baseline of Fig. 4, with the paper's settings for its tasks.

    python benchmark/sac_isaacgym.py --task Ant
    python benchmark/sac_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco

Soft actor-critic (Haarnoja et al. 2018, with a learnt entropy weight): two critics 512-256, an actor 512-256 with tanh
mean and a log-std that does not depend on the state. Simulator, replay buffer, normaliser, statistics, logs and
checkpoints are meow_isaacgym.py's own, so that both systems of the figure are measured alike: a run writes runs/NAME.
"""

import contextlib
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import meow_isaacgym as meow  # noqa: E402  it imports isaacgym, which must come before torch

import numpy as np  # noqa: E402  isort: skip
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import tyro  # noqa: E402
from tqdm import tqdm  # noqa: E402

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
    exp_name: str = "sac"
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    cuda: bool = True
    """use a CUDA device where there is one, for simulator and learning"""
    torch_threads: int = 1
    """threads of PyTorch on the CPU"""
    track: bool = False
    """track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)"""
    wandb_project_name: str = "meow"
    """the wandb's project name"""
    wandb_entity: Optional[str] = None
    """the entity (team) of wandb's project"""
    log_frequency: int = 1_000
    """vector steps between two lines of returns.csv: mean return of the last 100 training episodes"""
    checkpoint_frequency: int = 10_000
    """vector steps between two checkpoints, of which the newest two are kept"""
    resume: Optional[str] = None
    """the folder of a run to go on with, from its newest checkpoint"""
    make: str = "isaacgymenvs:make"
    """MODULE:FUNCTION with the signature of isaacgymenvs.make"""
    task: str = "Ant"
    """the task, by the simulator's name for it"""
    num_envs: Optional[int] = None
    """parallel environments (None: the paper's for --task)"""
    total_vector_steps: Optional[int] = None
    """vector steps of the experiment (None: the paper's for --task)"""
    buffer_steps: int = 15_000
    """the replay memory's size in vector steps"""
    batch_size: Optional[int] = None
    """the batch size of sample from the replay memory (None: the paper's for --task)"""
    random_steps: int = 100
    """vector steps with uniform actions"""
    learning_starts: int = 200
    """vector step after which there is one update a step"""
    learning_rate: float = 3e-4
    """the learning rate of Adam for actor and critics"""
    alpha_learning_rate: float = 1e-3
    """the learning rate of Adam for the entropy weight, whose target entropy is -A"""
    gamma: float = 0.99
    """the discount factor gamma"""
    tau: Optional[float] = None
    """target smoothing coefficient (None: the paper's for --task)"""
    alpha: Optional[float] = None
    """entropy weight at the start (None: the paper's for --task)"""

    def __post_init__(self):
        row = meow.paper_row(self.task)
        table = {**meow.SHARED_SETTINGS, **meow.PAPER_SETTINGS.get(row, {})}
        table.update({**SHARED_SETTINGS, **PAPER_SETTINGS.get(row, {})})
        for name, value in table.items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)


MAY_CHANGE = {"total_vector_steps", "checkpoint_frequency", "track", "wandb_project_name", "wandb_entity"}
MAY_CHANGE |= {"cuda", "torch_threads", "resume"}


def check_args(args):
    """Raises UsageError for arguments no run can have."""
    counts = ("num_envs", "total_vector_steps", "buffer_steps", "batch_size", "log_frequency", "checkpoint_frequency")
    for names, allowed, is_allowed in [
        ((*counts, "torch_threads", "learning_starts"), "an integer of at least 1", lambda x: x >= 1),
        (("random_steps",), "an integer of at least 0", lambda x: x >= 0),
        (("seed",), "an integer from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32),
        (("learning_rate", "alpha_learning_rate", "alpha"), "a finite number above 0", lambda x: 0 < x < math.inf),
        (("tau",), "above 0 and at most 1", lambda x: 0 < x <= 1),
        (("gamma",), "between 0 and 1", lambda x: 0 <= x <= 1),
        (("exp_name", "task"), "a name without /", lambda x: "/" not in x),
        (("make",), "MODULE:FUNCTION", lambda x: x.count(":") == 1),
    ]:
        for name in names:
            if not is_allowed(getattr(args, name)):
                raise meow.UsageError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(args, name)}")
    if not args.random_steps <= args.learning_starts < args.total_vector_steps:
        raise meow.UsageError(
            "--learning-starts must be at least --random-steps and below --total-vector-steps, "
            f"got {args.learning_starts}, {args.random_steps} and {args.total_vector_steps}"
        )


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
        self.critics, self.targets = (nn.ModuleList([mlp(obs_dim + act_dim, 1) for _ in range(2)]) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
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
        """One step of critics, actor, entropy weight and targets on Transitions of raw observations.

        Returns {name of a loss or value: tensor ()}.
        """
        args, obs, next_obs = self.args, self.normalizer(data.obs), self.normalizer(data.next_obs)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_act, next_log_prob = self.actor(next_obs)
            next_pair = torch.cat([next_obs, next_act], dim=1)
            next_v = torch.min(*(target(next_pair) for target in self.targets)) - alpha * next_log_prob
            target_q = data.reward + args.gamma * (1 - data.terminated) * next_v
        pair = torch.cat([obs, data.act], dim=1)
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
        losses = {"qf_loss": qf_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss, "qf_values": target_q.mean()}
        return {**{name: value.detach() for name, value in losses.items()}, "alpha": alpha}

    def step(self, optimizer, loss):
        """One step of an optimizer; only its own parameters move and keep a gradient."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(args):
    """Trains SAC as `args` says and writes runs/NAME. Returns the run's folder. Raises as meow_isaacgym.train."""
    check_args(args)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda:0" if torch.cuda.is_available() and args.cuda else "cpu")
    meow.use_onednn(device)
    env = meow.make_env(args, args.num_envs, device)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    rb = meow.VectorReplayBuffer(args.buffer_steps * args.num_envs, obs_dim, act_dim, device)
    with contextlib.ExitStack() as stack:
        run_dir = meow.make_run_dir(args) if args.resume is None else Path(args.resume)
        meow.lock_run(run_dir, stack)
        checkpoints = meow.Checkpoints(run_dir / "checkpoints")
        state = checkpoints.load(rb) if args.resume is not None else None
        first_step = state["step"] if state else 0
        if args.total_vector_steps < first_step:
            raise meow.UsageError(f"--total-vector-steps must be at least {first_step:,}, which that run has done")
        config = {"args": {**asdict(args), "resume": None}, "versions": meow.versions_here()}
        config["resumed_at"] = [*state["resumed_at"], first_step] if state else []
        writer, log_returns, wandb_id = meow.start_logging(args, config, run_dir, state, stack)
        print(f"{run_dir}\n{args}", flush=True)
        stop = meow.StopSignals()
        stack.callback(stop.restore)

        agent, statistics = SAC(args, obs_dim, act_dim, device), meow.EpisodeStatistics(args.num_envs, device)
        obs = env.reset()["obs"].clone()
        done = torch.ones(args.num_envs, dtype=torch.bool, device=device)  # the first step is no step of an episode
        returns, seconds_before, losses = [], 0.0, {}
        counts = {"running": statistics.running, "ring": statistics.ring, "episodes": statistics.count}
        restorable = hasattr(env, "get_state") and hasattr(env, "set_state")
        if state:
            returns, seconds_before = state["returns"], state["seconds"]
            agent.load_state_dict(state["agent"])
            for optimizer, saved in zip(agent.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            for name, tensor in counts.items():
                tensor.copy_(state["counts"][name])
            if restorable:
                env.set_state(state["env"])
                obs, done = state["obs"].to(device), state["done"].to(device)
            else:
                statistics.running.zero_()
            meow.set_random_streams(state["random"])
        start_time = time.time() - seconds_before
        bar = {"unit": "vector step", "dynamic_ncols": True, "mininterval": 1.0, "miniters": 1}
        progress = stack.enter_context(tqdm(total=args.total_vector_steps, initial=first_step, **bar))

        def say(text):
            progress.write(text, file=sys.stdout)
            sys.stdout.flush()  # a log file shows it now too

        def log(step):
            """One line of returns.csv; raises FloatingPointError if a loss is not finite."""
            episodes, seconds = statistics.last(), time.time() - start_time
            mean, std = (episodes[:, 0].mean(), episodes[:, 0].std()) if len(episodes) else (math.nan, math.nan)
            scalars = {f"losses/{name}": float(value) for name, value in losses.items()}
            if not all(map(math.isfinite, scalars.values())):
                raise FloatingPointError(f"a loss is not finite at vector step {step:,}")
            returns.append((step, round(seconds, 1), float(mean), float(std), len(episodes)))
            log_returns(*returns[-1])
            scalars["charts/SPS"] = int(step * args.num_envs / seconds)
            if len(episodes):
                scalars.update({"charts/episodic_return": mean, "charts/episodic_length": episodes[:, 1].mean()})
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            say(f"vector step {step:,}: return {mean:.1f} +- {std:.1f} of the last {len(episodes)} episodes")

        def checkpoint(step):
            """Returns whether there was room for it."""
            writer.flush()
            saved = {**config, "returns": returns, "seconds": time.time() - start_time, "wandb_id": wandb_id}
            saved["events"] = {path.name: path.stat().st_size for path in run_dir.glob("events.out.*")}
            saved.update(env=env.get_state() if restorable else None, obs=obs, done=done, counts=counts)
            saved.update(random=meow.random_streams(), agent=dict(agent.state_dict()))
            saved["optimizers"] = [optimizer.state_dict() for optimizer in agent.optimizers]
            try:
                checkpoints.save(step, meow.to_cpu(saved), rb)
            except OSError as error:  # a full disk must not end a run: the next time there may be room
                say(f"the checkpoint could not be written ({error}); what was written before is as it was")
                return False
            return True

        for step in range(first_step, args.total_vector_steps):
            if step < args.random_steps:
                actions = 2 * torch.rand(args.num_envs, act_dim, device=device) - 1
            else:
                actions = agent.act(obs)
            spurious = done  # the step in which the simulator resets is no step of an episode
            next_obs, reward, done, extras = env.step(actions)
            next_obs, reward, done = next_obs["obs"].clone(), reward.clone(), done != 0
            rb.add(obs, next_obs, actions, reward, done & ~extras["time_outs"], ~spurious)
            statistics.add(reward, done, ~spurious)
            agent.normalizer.update(next_obs)
            obs = next_obs
            if step >= args.learning_starts:
                losses = agent.update(rb.sample(args.batch_size))
            progress.update()

            steps_done, ends = step + 1, step + 1 == args.total_vector_steps
            if ends or steps_done % args.log_frequency == 0:
                log(steps_done)
            if ends or stop.number or steps_done % args.checkpoint_frequency == 0:
                written = checkpoint(steps_done)
            if stop.number and not ends:
                how = "go on" if written else "go on from the newest checkpoint, if there is one,"
                say(f"stopped at vector step {steps_done:,}; {how} with: python {sys.argv[0]} --resume {run_dir}")
                sys.exit(128 + stop.number)
        say(f"finished: {run_dir}")
    return str(run_dir)


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop."""
    args = tyro.cli(Args)
    try:
        if args.resume is not None:
            stored = meow.Checkpoints(Path(args.resume) / "checkpoints").load()["args"]
            if stored.keys() != {field.name for field in fields(Args)}:
                raise meow.UsageError(f"--resume must name a run of this script, {args.resume} is of another")
            args = tyro.cli(Args, default=Args(**{**stored, "resume": args.resume}))
            meow.check_unchanged(args, stored, "--resume", MAY_CHANGE)
        train(args)
    except (meow.UsageError, FloatingPointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, meow.UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
