"""MEow on thousands of parallel environments, in one file (NeurIPS 2024, arXiv 2405.13629).

    python meow_isaacgym.py --task Ant            # Isaac Gym, the paper's settings for that task
    python meow_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco    # no GPU needed
    python meow_isaacgym.py --resume runs/NAME    # continues an interrupted run
    python meow_isaacgym.py --evaluate runs/NAME  # plays episodes with what was learnt

The algorithm is that of meow_continuous_action.py, whose classes are repeated here word for word.
N environments take one vector step together, with one update per vector step, on one device and
without host synchronisation. New are a normaliser, a replay buffer for N transitions at once, and
the care for a simulator that resets by itself, one step late. Expected (paper, 1M vector steps, the
Omniverse port): Ant 7,990, Humanoid 4,650; not run on Isaac Gym itself. In order: settings (Tables
A1, A4); flow (Eq. 8, Fig. A6); normaliser, buffer, update (Eq. 9); `train`; "Plumbing".
"""

import contextlib
import copy
import ctypes
import importlib
import io
import json
import math
import os
import random
import re
import shlex
import sys
import tempfile
import time
import zipfile
from collections import namedtuple
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Optional

try:
    import isaacgym  # noqa: F401  it must come before torch

    isaacgym_problem = ""
except Exception as error:  # it is not here, torch came first, or the Python version is another
    isaacgym_problem = f"{type(error).__name__}: {error}"

import numpy as np
import psutil
import torch
import torch.nn as nn
import tyro
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm, trange

# Table A4 and the authors' launch settings. A row holds only what differs from the defaults.
DEFAULT_SETTINGS = {"num_envs": 128, "batch_size": 1024, "total_vector_steps": 1_000_000}
DEFAULT_SETTINGS.update(alpha=0.075, tau=0.0005, sigma_min=-5.0, sigma_max=-0.3)
PAPER_SETTINGS = {
    "Ant": {"sigma_max": 2.0},
    "Humanoid": {"alpha": 0.25, "tau": 0.00025},
    "Ingenuity": {"total_vector_steps": 500_000, "alpha": 0.025, "tau": 0.0025, "sigma_min": -4.0},
    "Anymal": {"alpha": 0.00075, "tau": 0.025, "sigma_max": -1.0},
    "AllegroHand": {"num_envs": 512, "batch_size": 256, "alpha": 0.1, "tau": 0.001, "sigma_min": -4.0},
    "FrankaCabinet": {"num_envs": 512, "batch_size": 256, "tau": 0.01},
}


@dataclass
class Args:
    task: str = "Ant"  # the task, by the simulator's name for it
    make: str = "isaacgymenvs:make"  # MODULE:FUNCTION that makes the simulator: see `make_env`
    make_kwargs: str = "{}"  # more arguments for that function, as a JSON object
    seed: int = 1  # seed of the experiment (the paper's curves: 5 seeds)
    total_vector_steps: Optional[int] = None  # steps, each in all environments (Fig. 4)
    num_envs: Optional[int] = None  # parallel environments (None: the paper's for --task)
    exp_name: str = os.path.basename(__file__)[: -len(".py")]  # the name of this experiment
    resume: Optional[str] = None  # the folder of a run to continue, with its own settings
    evaluate: Optional[str] = None  # a run's folder or a model file: play --eval-episodes episodes
    eval_episodes: int = 10  # with --evaluate: episodes, one in each of so many environments
    eval_max_steps: int = 10_000  # with --evaluate: an episode is cut there
    eval_deterministic: bool = True  # with --evaluate: act by z = 0 (Sec. 3.3), or else sample
    track: bool = False  # track with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: Optional[str] = None  # the entity (team) of the project at W&B
    log_frequency: int = 1_000  # vector steps between two logs of the last 100 training episodes
    checkpoint_frequency: int = 10_000  # vector steps between two checkpoints
    # The algorithm. None: the paper's for --task (Table A4 and the authors' launch settings)
    num_shifts: Literal[0, 1, 2] = 2  # learnable reward shifts (Sec. 3.2): 0, 1 LRS, 2 LRS and SCDQ
    coupling: Literal["additive", "affine"] = "additive"  # kind of the non-linear layers (Fig. A1)
    alpha: Optional[float] = None  # temperature of pi = exp((Q - V) / alpha) (Table A4)
    tau: Optional[float] = None  # target smoothing coefficient of the Polyak average (Table A4)
    sigma_min: Optional[float] = None  # lower bound of log sigma(s), the linear layer's (Table A4)
    sigma_max: Optional[float] = None  # upper bound of log sigma(s) (Table A4)
    random_steps: int = 100  # vector steps with uniform actions
    learning_starts: int = 200  # vector step to start learning, one update per vector step
    learning_rate: float = 1e-3  # the learning rate of Adam, the one optimizer (Table A1)
    max_grad_norm: float = 60.0  # 30 (Table A1) of the authors' loss, which is half of ours
    gamma: float = 0.99  # the discount factor gamma (Table A1)
    batch_size: Optional[int] = None  # transitions per update (Table A4)
    buffer_steps: int = 15_000  # the replay buffer's vector steps, --num-envs transitions each
    # The paper's own conventions, to reproduce its curves as they were made
    timeouts_terminate: bool = False  # a time limit cuts the bootstrap as a termination does
    keep_spurious: bool = False  # store the step that resets, from a last observation to a first
    normalize_samples: bool = False  # the normaliser learns from batches, not new observations
    clamp_actions: bool = False  # store atanh of float32 actions clamped 1e-5 from +-1, not u
    # The machine
    cuda: bool = True  # use a CUDA device where there is one (Isaac Gym's physics: always)
    cuda_graph: bool = True  # on CUDA: capture update and action as graphs
    compile: bool = True  # on the CPU, from 20,000 vector steps on: compile (PyTorch >= 2.13)
    torch_threads: int = 1  # threads of PyTorch on the CPU: 1 is best for one run per core

    def __post_init__(self):
        row = PAPER_SETTINGS.get(paper_row(self.task), {})
        for name, value in {**DEFAULT_SETTINGS, **row}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


# ALGO LOGIC: initialize agent here:
class Swish(nn.Module):
    """x * sigmoid(beta * x) with a learnable beta per unit, 1 at first: (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class MLP(nn.Sequential):
    """in_dim -> hidden -> hidden -> out_dim; a hidden layer: Linear, [LayerNorm], Swish, [dropout].
    init_weight initialises the weight of every Linear; biases keep the framework's default."""

    def __init__(self, in_dim, hidden, out_dim, init_weight, layer_norm=False):
        layers = []
        for fan_in in (in_dim, hidden):
            layers.append(Linear(fan_in, hidden))  # nn.Linear, written for the compiler: see Speed
            if layer_norm:
                layers.append(nn.LayerNorm(hidden))
            layers.append(Swish(hidden))
        super().__init__(*layers, Linear(hidden, out_dim))
        for layer in self:
            if isinstance(layer, nn.Linear):
                init_weight(layer.weight)

    def forward(self, x, dropout=None):
        """(B, in_dim) -> (B, out_dim). dropout: factors (2, B, hidden), 0 or 1/0.9, or None."""
        for layer in self:
            x = layer(x)
            if dropout is not None and isinstance(layer, Swish):
                x, dropout = x * dropout[0], dropout[1:]
        return x


class CouplingLayer(nn.Module):
    """A non-linear layer of the flow (i in S_n) and hypernetwork (a), which makes its parameters.
    Coordinates where mask is 1 pass unchanged, and with the state they determine the map of the
    others: u + t (additive, NICE) or u * exp(log_scale) + t (affine, RealNVP). Its Jacobian is
    triangular."""

    def __init__(self, obs_dim, act_dim, mask, affine):
        super().__init__()
        self.register_buffer("mask", mask)  # (A,)
        sizes = obs_dim + act_dim, 64, act_dim
        self.translation = MLP(*sizes, nn.init.orthogonal_, layer_norm=True)
        self.log_scale = MLP(*sizes, nn.init.orthogonal_, layer_norm=True) if affine else None

    def forward(self, obs, u):
        """Sampling direction: (B, S), (B, A) -> (B, A)."""
        x = torch.cat([self.mask * u, obs], dim=1)
        if self.log_scale is not None:
            u = u * ((1 - self.mask) * self.log_scale(x)).exp()
        return u + (1 - self.mask) * self.translation(x)

    def inverse(self, obs, u, dropout=(None, None)):
        """Density direction g^i: (B, S), (B, A) -> (B, A), log|det J_i| (B,).
        dropout: factors for each hypernetwork."""
        x = torch.cat([self.mask * u, obs], dim=1)
        u = u - (1 - self.mask) * self.translation(x, dropout[0])
        if self.log_scale is None:
            return u, torch.zeros_like(u[:, 0])  # additive: preserves volume
        log_scale = (1 - self.mask) * self.log_scale(x, dropout[1])
        return u * (-log_scale).exp(), -log_scale.sum(dim=1)


class FlowPolicy(nn.Module):
    """The conditional flow that is Q, V and the policy at once (Eq. 8; architecture: Fig. A6).
    Forward: z ~ N(0, I) -> linear layer sigma(s) * z -> 2 blocks x 2 couplings -> u, a = tanh(u).
    obs is (B, S), u (B, A), a in [-1,1] (B, A); Q, V and shifts are in units of the soft return,
    log_prob in nats. get_q and log_prob are those of a = tanh(u), but take u: rounded near +-1, an
    action has lost it. K = max(1, num_shifts)."""

    def __init__(self, obs_dim, act_dim, alpha, sigma_min=-5.0, sigma_max=-0.3, coupling="additive", num_shifts=2):
        super().__init__()
        if coupling not in ("additive", "affine"):
            raise ValueError(f"coupling must be additive or affine, not {coupling}")
        self.act_dim, self.alpha = act_dim, alpha
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        mask = (torch.arange(act_dim) + 1) % 2.0  # 1, 0, 1, 0, ...
        self.couplings = nn.ModuleList()
        for layer_mask in (mask, 1 - mask, mask, 1 - mask):  # 2 blocks x 2 couplings
            self.couplings.append(CouplingLayer(obs_dim, act_dim, layer_mask, coupling == "affine"))
        self.sigma_net = MLP(obs_dim, 64, act_dim, nn.init.zeros_)  # hypernetwork (b)
        self.shifts = nn.ModuleList()  # b1, b2
        for _ in range(num_shifts):
            self.shifts.append(MLP(obs_dim, 256, 1, nn.init.zeros_))

    def log_sigma(self, obs):
        """Log of the linear layer's diagonal, in [sigma_min, sigma_max]: (B, S) -> (B, A)."""
        half = 0.5 * (self.sigma_max - self.sigma_min)
        return self.sigma_min + half * (torch.tanh(self.sigma_net(obs)) + 1)

    def shift(self, obs):
        """b_k(s) of learnable reward shifting (Sec. 3.2), with its factor alpha: (B, S) -> (B, K)."""
        if len(self.shifts) == 0:
            return torch.zeros_like(obs[:, :1])
        return self.alpha * torch.cat([b(obs) for b in self.shifts], dim=1)

    @staticmethod
    def pre_tanh(act):
        """u with tanh(u) = act, for actions that come from elsewhere; the paper's code keeps them
        1e-5 from +-1."""
        return torch.atanh(act.clamp(-1 + 1e-5, 1 - 1e-5))

    def inverse_nonlinear(self, obs, u, dropout=None):
        """u (B, A) -> sigma(s) * z (B, A), log prod_{i in S_n} |det J_i(a,s)| (B,), with tanh's."""
        # d atanh(a)/da = 1/(1-a^2), and log of that = 2 log cosh(u), for 1 - tanh(u)^2 rounds to 0
        log_det = 2 * (u + nn.functional.softplus(-2 * u) - math.log(2)).sum(dim=1)
        for i in reversed(range(len(self.couplings))):
            layer_dropout = (None, None) if dropout is None else dropout[i]
            u, layer_log_det = self.couplings[i].inverse(obs, u, layer_dropout)
            log_det = log_det + layer_log_det
        return u, log_det

    def log_unnormalized(self, obs, u, dropout=None):
        """log( p_z(g(a|s)) * prod_{i in S_n} |det J_i| ) of Eq. 8, without p_z's constant:
        (B, S), (B, A) -> (B,)."""
        scaled_z, log_det = self.inverse_nonlinear(obs, u, dropout)
        return log_det - 0.5 * (scaled_z / self.log_sigma(obs).exp()).square().sum(dim=1)

    def log_partition(self, obs):
        """-log( prod_{i in S_l} |det J_i| ) of Eq. 8, less p_z's constant: (B, S) -> (B,)."""
        return self.log_sigma(obs).sum(dim=1) + 0.5 * self.act_dim * math.log(2 * math.pi)

    def get_q(self, obs, u, dropout=None):
        """Q_b(s,a) = Q(s,a) + b_k(s), a = tanh(u), in one pass: (B, S), (B, A) -> (B, K).
        dropout: `dropout_masks(policy, B)` in the loss, None elsewhere."""
        q = self.alpha * self.log_unnormalized(obs, u, dropout)  # Eq. 8
        return q[:, None] + self.shift(obs)  # Sec. 3.2

    def get_v(self, obs):
        """V_b(s) = V(s) + b_k(s), not clipped: (B, S) -> (B, K). Evaluates no coupling layer."""
        v = self.alpha * self.log_partition(obs)  # Eq. 8
        return v[:, None] + self.shift(obs)  # Sec. 3.2

    def log_prob(self, obs, u):
        """log pi(a|s) = (Q(s,a) - V(s)) / alpha; the shifts cancel: (B, S), (B, A) -> (B,)."""
        return self.log_unnormalized(obs, u) - self.log_partition(obs)

    def forward(self, obs, z):
        """Sampling direction: (B, S), z (B, A) -> u (B, A), the action before tanh."""
        u = self.log_sigma(obs).exp() * z
        for layer in self.couplings:
            u = layer(obs, u)
        return u

    def draw(self, obs, deterministic=False):
        """u of an action a = tanh(u) ~ pi(.|s), by one forward pass: (B, S) -> (B, A).
        deterministic: the forward pass of z = 0 (Sec. 3.3). With additive couplings it is the mode
        of u's density; argmax_a Q(s,a) differs a little, for Q counts tanh's Jacobian too."""
        z = obs.new_zeros(obs.shape[0], self.act_dim)
        return self(obs, z if deterministic else torch.randn_like(z))

    def act(self, obs, deterministic=False):
        """An action in [-1,1]: (B, S) -> act (B, A). See `draw`."""
        return torch.tanh(self.draw(obs, deterministic))


class RunningNormalizer(nn.Module):
    """(x - mean) / std of all that it was updated with, within [-5, 5]: (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()  # in float64, for float32 cannot count to 1e8
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    def update(self, x):
        """Takes in a batch (B, dim), by the parallel formula of Chan et al. (1979)."""
        x = x.double()
        self.count += len(x)
        weight = len(x) / self.count
        delta = x.mean(dim=0) - self.mean
        spread = x.var(dim=0, unbiased=False) + (1 - weight) * delta.square()
        self.var += weight * (spread - self.var)
        self.mean += weight * delta

    def forward(self, x):
        normalized = (x - self.mean) / (self.var + 1e-5).sqrt()
        return normalized.float().clamp(-5.0, 5.0)


class Agent(nn.Module):
    """A FlowPolicy behind a RunningNormalizer: what has to be saved to act later."""

    def __init__(self, network):
        super().__init__()
        self.policy = FlowPolicy(**network)
        self.normalizer = RunningNormalizer(network["obs_dim"])

    @torch.no_grad()
    def act(self, obs, deterministic=False):
        """An action in [-1,1] at raw observations: (B, S) -> (B, A)."""
        return self.policy.act(self.normalizer(obs), deterministic)


# A batch, float32: (B, S), (B, S), (B, A; the action before tanh), (B, 1), (B, 1)
Transitions = namedtuple("Transitions", ["obs", "next_obs", "u", "reward", "terminated"])


class Ring:
    """The last `capacity` rows (width,) that were put in, without host synchronisation."""

    def __init__(self, capacity, width, device, dtype=torch.float32):
        self.rows_and_waste = torch.empty(capacity + 1, width, dtype=dtype, device=device)
        self.rows = self.rows_and_waste[:-1]
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # rows ever

    def put(self, rows, valid):
        """Puts in the rows (n, width) for which valid (n,) is true; others go to the waste row."""
        slots = (self.count + valid.cumsum(0) - 1) % len(self.rows)
        self.rows_and_waste[slots.masked_fill(~valid, -1)] = rows
        self.count += valid.sum()

    def get_rows(self, first, stop):
        """Rows number `first` to `stop` - 1 of all ever. FloatingPointError if one is not finite."""
        rows = self.rows[torch.arange(first, stop) % len(self.rows)]
        if not bool(torch.isfinite(rows).all()):
            raise FloatingPointError("an observation, action or reward is not finite")
        return rows


class VectorReplayBuffer(Ring):
    """Uniform replay memory on `device`; one row per transition, so that a batch is one gather."""

    def __init__(self, capacity, obs_dim, act_dim, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        super().__init__(capacity, sum(self.widths), device)

    @property
    def added(self):
        """Transitions ever (synchronises)."""
        return int(self.count)

    def add(self, obs, next_obs, u, reward, terminated, valid):
        """Stores the transitions (N, ...) for which valid (N,) is true; if full, over the oldest."""
        numbers = torch.stack([reward, terminated.float()], dim=1)
        self.put(torch.cat([obs, next_obs, u, numbers], dim=1), valid)

    def sample(self, batch_size):
        """Draws Transitions uniformly with replacement."""
        draws = torch.randint(2**62, (batch_size,), device=self.rows.device)
        index = draws % self.count.clamp(max=len(self.rows))
        return Transitions(*self.rows[index].split(self.widths, dim=1))

    def set_rows(self, first, rows):
        """Puts back what `get_rows` gave, as the newest transitions."""
        self.count.fill_(first + len(rows))
        slots = torch.arange(first, first + len(rows)) % len(self.rows)
        self.rows[slots] = rows.to(self.rows.device)


class EpisodeStatistics:
    """Undiscounted returns and lengths of finished episodes, on the device."""

    def __init__(self, num_envs, device):
        self.running = torch.zeros(num_envs, 2, dtype=torch.float64, device=device)  # so far
        self.finished = Ring(num_envs + 100, 2, device, torch.float64)

    def add(self, reward, done, valid):
        """Takes in a step of all environments, (N,) each; where not `valid` it is of no episode."""
        self.running[:, 0] += reward * valid
        self.running[:, 1] += valid
        ended = done & valid
        self.finished.put(self.running, ended)
        self.running *= ~ended[:, None]

    def last(self):
        """Returns and lengths of the last 100 or fewer episodes (synchronises)."""
        stop = int(self.finished.count)
        rows = self.finished.get_rows(max(0, stop - 100), stop)
        return rows.cpu().numpy().T


class ParamGroup:
    """The settings of an optimizer: numbers to read and set, tensors inside, where recorded steps look."""

    def __init__(self, lr):
        self.lr = lr

    def __getitem__(self, name):
        return getattr(self, name).item()

    def __setitem__(self, name, value):
        getattr(self, name).fill_(value)


class Adam:
    """Adam (Kingma & Ba 2015) on a vector (P,): torch.optim.Adam's numbers, but torch.compile can
    trace it. A schedule sets optimizer.param_groups[0]["lr"], as with PyTorch's optimizers."""

    __slots__ = ("param_groups", "exp_avg", "exp_avg_sq", "weights", "bias")  # so that .lr = x fails

    def __init__(self, vector, lr):
        self.param_groups = [ParamGroup(vector.new_tensor(lr))]
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(vector), torch.zeros_like(vector)
        self.weights = vector.new_tensor([1 - 0.9, 1 - 0.999])  # 1 - beta1, 1 - beta2
        self.bias = torch.zeros_like(self.weights)  # 1 - beta**steps

    def step(self, vector, grad):
        """Moves the vector, given the gradient (P,) at it."""
        self.bias.lerp_(torch.ones_like(self.bias), self.weights)
        self.exp_avg.lerp_(grad, self.weights[0])
        self.exp_avg_sq.lerp_(grad.square(), self.weights[1])
        denominator = (self.exp_avg_sq / self.bias[1]).sqrt() + 1e-8
        vector.sub_(self.param_groups[0].lr / self.bias[0] * self.exp_avg / denominator)


def update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout):
    """Algorithm 1's update: a gradient step on Eq. 9 and a Polyak step of the target, which starts
    as a copy of the policy and keeps an alpha of its own. See `flatten`.
    optimizer: Adam(policy.vector, lr). data: Transitions of B rows.
    dropout: `dropout_masks(policy, B)`; None: no dropout, which MEow's loss has. (.eval() changes
    nothing.)
    Returns the loss (), Q (B, K) and the norm of the gradient before it is clipped ()."""
    check_flat(policy)
    check_flat(target)
    with torch.no_grad():
        v_clip = target.get_v(data.next_obs).min(dim=1, keepdim=True).values  # SCDQ (Sec. 3.2)
        target_q = data.reward + gamma * (1 - data.terminated) * v_clip  # only termination cuts
    q = policy.get_q(data.obs, data.u.detach(), dropout)  # Q + b1, Q + b2: one pass of the flow
    loss = 0.5 * (q - target_q.expand_as(q)).square().sum(dim=1).mean()  # Eq. 9, both shifts
    grads = torch.autograd.grad(loss, list(policy.parameters()))

    with torch.no_grad():
        grad = torch.cat([g.flatten() for g in grads])
        grad_norm = torch.linalg.vector_norm(grad)
        optimizer.step(policy.vector, grad * (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        target.vector.lerp_(policy.vector, tau)  # target <- (1 - tau) * target + tau * policy
    return loss.detach(), q.detach(), grad_norm


@torch.no_grad()
def diagnostics(policy, data, loss, q, grad_norm):
    """{name: number} for the logs: of an `update`, and log-determinants of the policy after it."""
    scalars = {"losses/qf_loss": loss, "losses/grad_norm": grad_norm}
    for k, q_k in enumerate(q.mean(dim=0)):
        scalars[f"losses/qf{k + 1}_values"] = q_k
    # Fig. 1: logs of the products of the Jacobian determinants
    _, log_det = policy.inverse_nonlinear(data.obs, data.u)
    scalars["flow/log_det_nonlinear"] = log_det.mean()
    scalars["flow/log_det_linear"] = -policy.log_sigma(data.obs).sum(dim=1).mean()
    return scalars


def log_and_save(run, agent, statistics, step, results):
    """Logs the last episodes and the last update's results, where there are any. Saves the agent."""
    if results is not None:
        run.log(step, diagnostics(agent.policy, *results))
    run.log(step, {"charts/SPS": int(step * run.args.num_envs / run.seconds())})
    returns, lengths = statistics.last()
    if len(returns) > 0:
        run.log(step, {"charts/episodic_return": returns.mean()})
        run.log(step, {"charts/episodic_length": lengths.mean()})
        run.log_returns(step, returns, {"episodes": len(returns)})
    score = returns.mean() if len(returns) == 100 else -math.inf  # fewer may be a lucky few
    run.save_models(agent, step, score)


def begin(run, learned, env, first, statistics):
    """Observations (N, S) to begin at, and which environments reset in the next step (N,): where a
    resumed run was, if the simulator can go back there, or else `first`, of `make_env`."""
    obs, reward, done, _, in_episode = first
    if run.args.resume is not None:
        run.restore(learned)
        if run.state["simulator"] is not None:
            env.set_state(run.state["simulator"])
            obs, done = run.state["obs"], run.state["resets"]
            return obs.to(reward.device), done.to(reward.device)
        say(f"{run.args.make} has no set_state: not bit for bit as before, new episodes begin")
        statistics.running.zero_()
    statistics.add(reward, done, in_episode)
    return obs, done


def train(args):
    """Algorithm 1. Returns the Agent and the Run. Raises UsageError and FloatingPointError."""
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    folder = run_folder(args, args.task)
    with contextlib.ExitStack() as stack:
        set_up_torch(args, device, stack)  # with the seeding
        env, first = make_env(args, args.num_envs, device, stack)
        obs_dim, act_dim = first[0].shape[1], env.action_space.shape[0]
        network = dict(obs_dim=obs_dim, act_dim=act_dim, alpha=args.alpha, coupling=args.coupling)
        network.update(sigma_min=args.sigma_min, sigma_max=args.sigma_max, num_shifts=args.num_shifts)
        capacity = args.buffer_steps * args.num_envs
        check_memory(device, "--buffer-steps", capacity, 2 * obs_dim + act_dim + 2)
        rb = VectorReplayBuffer(capacity, obs_dim, act_dim, device)
        run = stack.enter_context(Run(args, folder, network, rb))
        if args.total_vector_steps < run.first_step:
            raise UsageError(f"--total-vector-steps must be {run.first_step:,} or more, which are done")
        say(f"{run.name}: {paper_row(args.task) or 'default'} settings, flags win\n{args}")
        agent = Agent(network).to(device)
        policy, normalizer = flatten(agent.policy), agent.normalizer
        target = flatten(copy.deepcopy(policy)).requires_grad_(False)
        optimizer = Adam(policy.vector, args.learning_rate)
        statistics = EpisodeStatistics(args.num_envs, device)
        learned = [policy.vector, target.vector, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.bias]
        learned += [*normalizer.buffers(), statistics.running]
        learned += [statistics.finished.rows, statistics.finished.count]
        update, forward = accelerated(args, device, args.total_vector_steps)  # the same, sooner
        settings = args.gamma, args.tau, args.max_grad_norm
        shape = args.num_envs, act_dim
        obs, resets = begin(run, learned, env, first, statistics)
        results = None  # of the last update
        for global_step in trange(run.first_step + 1, args.total_vector_steps + 1, mininterval=1, miniters=1):
            # Algorithm 1: act. u is the action before tanh
            if global_step <= args.random_steps:
                u = policy.pre_tanh(2 * torch.rand(shape, device=device) - 1)
            else:
                u = forward(policy, normalizer(obs), torch.randn(shape, device=device))
            next_obs, reward, done, timed_out, in_episode = step_simulator(env, u.tanh(), resets)
            statistics.add(reward, done, in_episode)

            # Algorithm 1: store, except where the simulator reset: there s' does not follow s
            terminated = done & (~timed_out | args.timeouts_terminate)  # a time limit does not cut
            stored_u = policy.pre_tanh(torch.tanh(u)) if args.clamp_actions else u
            rb.add(obs, next_obs, stored_u, reward, terminated, valid=~resets | args.keep_spurious)
            if not args.normalize_samples:
                normalizer.update(next_obs)
            obs, resets = next_obs, done

            # Algorithm 1: sample, and update by a gradient step on Eq. 9 and a step of the target
            if global_step > args.learning_starts:
                data, dropout = rb.sample(args.batch_size), dropout_masks(policy, args.batch_size)
                if args.normalize_samples:
                    normalizer.update(torch.cat([data.obs, data.next_obs]))
                data = data._replace(obs=normalizer(data.obs), next_obs=normalizer(data.next_obs))
                results = data, *update(policy, target, optimizer, data, *settings, dropout)
            if global_step % args.log_frequency == 0 or global_step == args.total_vector_steps:
                log_and_save(run, agent, statistics, global_step, results)
            if run.checkpoint_is_due(global_step, ended=True):
                simulator = env.get_state() if hasattr(env, "set_state") else None
                run.checkpoint(global_step, learned, simulator=simulator, obs=obs, resets=resets)
        say(f"finished: {run.name} (look at it with `tensorboard --logdir runs`)")
    return agent, run


# ---- Speed: the same numbers, sooner. Of the paper there is only the 0.1 of dropout below -------
def flatten(module):
    """Makes all parameters views of one new vector (P,), `module.vector`, which `update` moves in one
    operation. Call it after .to(device), copying, a new layer: whatever gives parameters other
    memory. All parameters learn: layers must share none, and none may be frozen or unused."""
    module.vector = nn.utils.parameters_to_vector(module.parameters()).detach()
    nn.utils.vector_to_parameters(module.vector, module.parameters())
    return module


def check_flat(module):
    """Raises ValueError if not all parameters are views of `module.vector`: they would not learn."""
    if hasattr(torch, "compiler") and torch.compiler.is_compiling():
        return  # the compiler cannot trace addresses; RecordedStep has checked
    vector = getattr(module, "vector", torch.empty(0))
    if parameters_end(module, vector.data_ptr()) != vector.data_ptr() + vector.nbytes:
        advice = "call flatten(policy), flatten(target) again; layers must share none"
        raise ValueError(f"update needs all parameters in module.vector: {advice}")


def parameters_end(module, address):
    """Where the parameters end in memory, if they begin at `address` and follow each other, or else
    -1. A recursion, for module.parameters() takes four times as long."""
    for param in module._parameters.values():
        if param is not None:
            address = address + param.nbytes if param.data_ptr() == address else -1
    for child in module._modules.values():
        if child is not None:
            address = parameters_end(child, address)
    return address


def dropout_masks(policy, batch):
    """Draws the masks of dropout 0.1 for `batch` rows:
    (couplings, hypernetworks, hidden layers 2, batch, hidden), 0 or 1/0.9."""
    networks = 1 if policy.couplings[0].log_scale is None else 2
    # SPEED: one draw of 16 random bits per unit for all masks: 0.14 ms, compiled nn.Dropout 1.3 ms
    hidden = policy.couplings[0].translation[-1].in_features
    shape = len(policy.couplings), networks, 2, batch, hidden // 4
    bits = torch.empty(shape, dtype=torch.int64, device=policy.couplings[0].mask.device)
    bits, dropped = bits.random_(-(2**63), None).view(torch.int16), round(0.1 * 2**16)
    masks = torch.empty(bits.shape, device=bits.device)
    torch.ge(bits, dropped - 2**15, out=masks)
    return masks.div_(1 - dropped / 2**16)


class Linear(nn.Linear):
    """nn.Linear with a bias, whose narrow layers compile to faster code: (B, in) -> (B, out)."""

    def forward(self, x):
        if self.out_features <= 8:
            # SPEED: -8% of a compiled step: matrix routines are slow here, and a sum fuses
            return (x[:, None, :] * self.weight).sum(dim=-1) + self.bias
        if self.in_features < self.out_features:
            # SPEED: with this copy the weight's gradient is x^T g; g^T x is 2 to 4 times slower
            return x @ self.weight.T.contiguous() + self.bias
        return super().forward(x)


class RecordedStep:
    """A function that is recorded at its first calls and then repeated. Call it with arguments by
    position, modules first, and always the same modules, optimizer, shapes, types, strides and
    numbers. The learning rate may change; for anything else make a new one. Subclasses have `run`."""

    def __init__(self, function):
        self.function, self.first, self.calls = function, None, 0

    def __call__(self, *inputs):
        """Raises ValueError if an input would be ignored."""
        tensors, given = [], []
        for x in inputs:
            for part in x if isinstance(x, tuple) else [x]:
                if isinstance(part, torch.Tensor):
                    tensors.append(part)
                    given.append((part.shape, part.stride(), part.dtype))
                else:
                    given.append(part)
            if isinstance(x, nn.Module):
                check_flat(x)
                given.append(x.vector.data_ptr())
                for name, value in vars(x).items():
                    if isinstance(value, (int, float)) and name != "training":
                        given.append(value)
            elif isinstance(x, Adam):
                for tensor in (x.param_groups[0].lr, x.exp_avg, x.exp_avg_sq, x.bias):
                    given.append(tensor.data_ptr())
        self.first = self.first or given
        if given != self.first:
            name, kind = self.function.__name__, type(self).__name__
            raise ValueError(f"{kind} has recorded {name} with other numbers, shapes or objects: make a new one")
        self.calls += 1
        return self.run(inputs, tensors)


class OnVectors(nn.ModuleList):
    """The modules that a function takes. `on_vectors` calls it with parameters cut from their vectors.
    SPEED: -5%: the compiled graph takes two vectors instead of 100 parameters."""

    def forward(self, function, *inputs):
        return function(*self, *inputs)

    def on_vectors(self, *inputs):
        pieces = {}
        for i, module in enumerate(self):
            vector, first = module.vector.detach().requires_grad_(), 0
            for name, param in module.named_parameters(str(i)):
                pieces[name] = vector[first : first + param.numel()].view(param.shape)
                first += param.numel()
        return torch.func.functional_call(self, pieces, inputs)


class CompiledStep(RecordedStep):
    """Compiled for the CPU; where that fails one line says so, and the function runs as it is."""

    def run(self, inputs, tensors):
        if self.calls == 1:
            print(f"compiling {self.function.__name__}: a minute or two, seconds where cached", flush=True)
            self.modules = OnVectors([x for x in inputs if isinstance(x, nn.Module)])
            try:
                torch._dynamo.config.trace_autograd_ops = True  # autograd.grad is a part of the graph
                options = {"cpp_wrapper": True}  # SPEED: -6%
                options["cpp.enable_floating_point_contract_flag"] = "fast"  # SPEED: -3%
                options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe  # SPEED: -5%
                settings = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
                self.compiled = torch.compile(OnVectors.on_vectors, options=options, **settings)
                return self.compiled(self.modules, self.function, *inputs[len(self.modules) :])
            except Exception as error:  # no compiler, no cache, an older PyTorch
                print(f"--compile: running eager, for compiling failed: {error!s:.200}", flush=True)
                self.compiled = OnVectors.forward
        return self.compiled(self.modules, self.function, *inputs[len(self.modules) :])


class CapturedStep(RecordedStep):
    """One CUDA graph from the fourth call on. Later calls overwrite that call's inputs and results.
    SPEED: 564 steps/s of Hopper-v4 on an H100, not 68."""

    def run(self, inputs, tensors):
        if self.calls == 1:
            self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        if self.calls <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if self.calls == 4:
            self.tensors = tensors
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(*inputs)
        for recorded, given in zip(self.tensors, tensors):
            recorded.copy_(given)
        self.graph.replay()
        return self.outputs


def accelerated(args, device, steps):
    """`update` and the flow's forward pass without gradients: captured, compiled or plain."""
    functions = update, FlowPolicy.forward
    if device.type == "cuda" and args.cuda_graph:
        functions = CapturedStep(update), CapturedStep(FlowPolicy.forward)
    if device.type == "cpu" and args.compile and steps >= 20_000:  # shorter runs are not worth it
        functions = CompiledStep(update), CompiledStep(FlowPolicy.forward)
    return functions[0], torch.no_grad()(functions[1])


# ---- Plumbing: the environment, files, checks and the command line ------------------------------
class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed, before any work. Exit code 2."""


def paper_row(task):
    """The name of `task`'s row in PAPER_SETTINGS (AntMujoco has Ant's), or None if it has none."""
    row = task.replace("Mujoco", "")
    return row if row in PAPER_SETTINGS else None


RULES = """1 <= num_envs; 1 <= buffer_steps; 1 <= batch_size <= num_envs * buffer_steps
1 <= log_frequency; 1 <= checkpoint_frequency; 1 <= eval_episodes; 1 <= eval_max_steps
1 <= torch_threads <= 1024; 0 <= seed < 2**32; ':' in make; 0 <= random_steps <= learning_starts
1 <= learning_starts < total_vector_steps; 0 < learning_rate < inf; 0 < max_grad_norm < inf
0 < alpha < inf; 0 < tau <= 1; 0 <= gamma <= 1; -inf < sigma_min < sigma_max < inf
resume is None or evaluate is None"""


def check_args(args):
    """Raises UsageError for settings that break a rule."""
    for rule in RULES.replace("\n", "; ").split("; "):
        if not eval(rule, {"inf": math.inf}, vars(args)):
            flags = [f"--{name.replace('_', '-')} {vars(args)[name]}" for name in rule.split() if name in vars(args)]
            raise UsageError(f"{rule} must hold, not {', '.join(flags)}")


def check_memory(device, flag, transitions, width):
    """Raises UsageError if a replay buffer does not fit into the free memory."""
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    if 4 * transitions * width > free:
        raise UsageError(f"{flag} must fit into {free / 1e9:,.1f} GB of free memory, not {transitions:,} transitions")


def make_env(args, num_envs, device, stack):
    """Makes the simulator of --make. Returns it and `step_simulator` of a first step.
    make(seed, task, num_envs, sim_device, rl_device, graphics_device_id, headless, **--make-kwargs)
    gives an object with
    observation_space, action_space of shapes (S,), (A,); actions are float32 in [-1,1] on rl_device
    reset() -> {"obs": (N, S)}; only with an attribute reset_is_real = True does it begin episodes,
        or else the first step does
    step(actions (N, A)) -> {"obs": (N, S)}, reward (N,), done (N,),
        {"time_outs": (N,), ended by a time limit alone}. The obs where done is the last; the next
        step resets without acting and returns the new episode's first obs
    get_state() -> tensors and plain data, set_state(state): optional, for an exact --resume
    close(): optional, called when the stack closes. Raises UsageError if it does otherwise."""
    module, _, function = args.make.partition(":")
    folder, place = os.getcwd(), "cuda:0" if device.type == "cuda" else "cpu"
    machine = dict(sim_device=place, rl_device=place, graphics_device_id=-1, headless=True)
    try:
        make = getattr(importlib.import_module(module), function)
        if module == "isaacgymenvs" and args.task == "Ingenuity":
            # It writes ./ingenuity.xml and reads ../assets: runs side by side need folders apart
            own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (own / "assets").symlink_to(Path(sys.modules[module].__file__).parents[1] / "assets")
            (own / "here").mkdir()
            os.chdir(own / "here")
        env = make(args.seed, args.task, num_envs, **machine, **json.loads(args.make_kwargs))
        if hasattr(env, "close"):
            stack.callback(env.close)
        first = first_step(env, num_envs, device)
        if torch.get_default_dtype() != torch.float32 or not torch.is_grad_enabled():
            raise TypeError("it must leave PyTorch's default type and gradients as they are")
    except (Exception, SystemExit) as error:  # each fails in its own way, Isaac Gym by quit()
        advice = "make_env says what it must return; for gymnasium: --make benchmark.simulators.gymnasium_vector:make"
        if module == "isaacgymenvs":
            advice = f"isaacgym: {isaacgym_problem or 'imported'}; without: --make benchmark.simulators.mujoco:make"
        what = f"--make {args.make} --make-kwargs {args.make_kwargs} must make --task {args.task} here"
        raise UsageError(f"{what}: {error!r} ({advice})") from error
    finally:
        os.chdir(folder)  # wherever the simulator went
    return env, first


def first_step(env, num_envs, device):
    """First contact with a simulator: see `make_env`. Raises ValueError for unfit shapes."""
    (obs_dim,), (act_dim,) = env.observation_space.shape, env.action_space.shape
    env.reset()
    resets = torch.ones(num_envs, dtype=torch.bool, device=device)
    obs, *rest = step_simulator(env, torch.zeros(num_envs, act_dim, device=device), resets)
    if getattr(env, "reset_is_real", False):
        obs = copied(env.reset(), num_envs, device)
        rest = [torch.zeros_like(x) for x in rest]
    if obs.shape != (num_envs, obs_dim):
        raise ValueError(f"observations {tuple(obs.shape)}, not {num_envs, obs_dim}")
    low, high = getattr(env.action_space, "low", -1), getattr(env.action_space, "high", 1)
    if np.any(low != -1) or np.any(high != 1):
        raise ValueError(f"actions {env.action_space}, not in [-1,1]")
    return obs, *rest


def copied(x, num_envs, device):
    """A float32 copy (N, ...), for a simulator reuses its memory, of a tensor or array,
    {"obs": that} or (that, info)."""
    if isinstance(x, tuple):
        x = x[0]
    if isinstance(x, dict):
        x = x["obs"]
    x = torch.as_tensor(x, dtype=torch.float32, device=device).clone()
    return x.unflatten(0, (num_envs, -1)).flatten(1)


def step_simulator(env, actions, resets):
    """A step; environments in `resets` (N,), which were done, reset in it. Returns obs (N, S),
    reward, done, timed_out and in_episode (N,): whose reward counts; a resetting step's if it is a
    first step (AllegroHand: progress 1)."""
    obs, reward, done, extras = env.step(actions)
    results = obs, reward, done, extras["time_outs"]
    obs, *results = [copied(x, len(resets), resets.device) for x in results]
    reward, done, timed_out = [x.view_as(resets) for x in results]
    begun = getattr(env, "progress_buf", torch.zeros_like(done)) == 1
    return obs, reward, done != 0, timed_out != 0, ~resets | begun


def set_up_torch(args, device, stack):
    """Seeds the random streams; sets PyTorch's threads and precision until the stack closes."""
    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_num_threads(args.torch_threads)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # SPEED: up to -10%: glibc keeps freed memory: 2 page faults per step instead of 40 to 90
        ctypes.CDLL(None).mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
    # SPEED: -16% (Hopper-v4), -32% (Humanoid-v4) on a Zen 5: "medium" allows oneDNN; not bfloat16
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "highest")
    x = torch.linspace(-1, 1, 2**16).view(2**8, 2**8)
    if (x @ x - x.double() @ x.double()).abs().max() > 1e-3:
        torch.set_float32_matmul_precision("highest")


def random_streams():
    """The states of the random streams (python, numpy, torch, GPUs in use), as plain data."""
    kind, keys, *rest = np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), (kind, keys.tolist(), *rest), torch.get_rng_state(), gpus


def set_random_streams(streams):
    """Puts the global random streams into states of `random_streams`."""
    random.setstate(streams[0])
    np.random.set_state(streams[1])
    torch.set_rng_state(streams[2])
    torch.cuda.set_rng_state_all(streams[3][: torch.cuda.device_count()])


def save_file(path, content):
    """Writes tensors and plain data, the whole file or nothing: what was there stays until then."""
    torch.save(content, buffer := io.BytesIO())  # not to the file, or a full disk is no OSError
    with open(f"{path}.tmp", "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


@contextlib.contextmanager
def loaded(path, flag):
    """Gives what save_file wrote; nothing in it can run code. Raises UsageError if it is missing or
    damaged, or if the block fails."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise ValueError("it is damaged")
        yield torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they like
        raise UsageError(f"{flag} must name what this script wrote, not {path}: {error!r:.200}") from error


def say(text):
    """Prints above the progress bar; a log file shows it at once."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def run_folder(args, task):
    """The folder of the run to resume, or of a new one, which is named as CleanRL names them."""
    name = f"{task}__{args.exp_name}__{args.seed}__{int(1e3 * time.time())}"
    return Path(args.resume or os.path.join("runs", re.sub("[/:]", "-", name))).absolute()


class Run(contextlib.ExitStack):
    """The folder runs/NAME: lock, logs, models, checkpoint. It closes what was entered, whatever
    ends the run. state: what --resume continues from. Raises UsageError."""

    def __init__(self, args, folder, network, rb):
        super().__init__()
        self.args, self.dir, self.rb, self.wandb = args, folder, rb, None
        self.name = args.resume or f"runs/{folder.name}"
        versions = {name: str(sys.modules[name].__version__) for name in VERSIONED if name in sys.modules}
        settings = {**asdict(args), "resume": None}
        self.about = {"args": settings, "versions": versions, "network": network, "run": folder.name}
        self.state = {"step": 0, "seconds": 0.0, "replay": [], "added": 0, "returns": [], "successes": []}
        self.state.update(best=-math.inf, table="", wandb_id=None)
        if args.resume is not None:
            self.load_checkpoint()
        self.first_step, self.start_time = self.state["step"], time.time() - self.state["seconds"]
        try:
            if args.resume is not None:
                self.lock()  # before W&B, which would disturb a live run
            if args.track:
                self.track()
            if args.resume is None:
                self.dir.mkdir(parents=True)  # after W&B: a bad login leaves no folder
                self.lock()
            (self.dir / "config.json").write_text(json.dumps(self.about, indent=2))
        except Exception as error:  # W&B without a key or network, bad WANDB_* variables
            self.close()
            flag = "--track needs a W&B login or WANDB_MODE=offline, and " * args.track
            raise UsageError(f"{flag}{self.name} must be writable and in no other use: {error}") from error
        self.writer = SummaryWriter(self.dir, purge_step=self.first_step + 1)
        self.callback(self.writer.close)

    def lock(self):
        """Keeps a second process away, where the file system can."""
        try:
            self.enter_context(FileLock(self.dir / "lock", timeout=0))
        except Timeout:  # an OSError too
            raise
        except OSError as error:
            say(f"{self.name} is not guarded against a second process: {error}")

    def track(self):
        """Opens the run's record at W&B."""
        import wandb

        self.wandb = wandb.init(
            project=self.args.wandb_project_name,
            entity=self.args.wandb_entity,
            name=self.dir.name,
            id=self.state["wandb_id"],
            resume="allow",
            config={**self.about, **self.about["args"]},
            save_code=True,
        )
        self.callback(self.wandb.finish)
        self.state["wandb_id"] = self.wandb.id

    def __exit__(self, kind, error, traceback):
        if kind is FloatingPointError and self.rb.added > 0:
            largest = self.rb.rows[: self.rb.added].abs().max()
            say(f"the largest number in the replay buffer is {largest:.3g}")
        if kind not in (None, FloatingPointError) and self.state["replay"]:  # it would diverge again
            say(f"continue with: python {shlex.join([sys.argv[0], '--resume', self.name])}")
        return super().__exit__(kind, error, traceback)

    def seconds(self):
        """How long the run has been at work, in all its lives."""
        return time.time() - self.start_time

    def log(self, step, scalars):
        """Writes {name: number} to TensorBoard and W&B. FloatingPointError if one is not finite."""
        for name, value in scalars.items():
            if not math.isfinite(value):
                advice = "lower --learning-rate, or scale the rewards"
                raise FloatingPointError(f"not finite at step {step:,}, {advice}: {scalars}")
            self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(scalars, step=step)

    def log_returns(self, step, returns, columns):
        """Says what the returns (n,) were, and adds a row with columns {name: number} to a table."""
        table, kind = "evaluations.csv", "eval return"
        if "episodes" in columns:
            table, kind = "returns.csv", f"return of the last {len(returns)} episodes"
        say(f"step {step:,}: {kind} {returns.mean():.1f} +- {returns.std():.1f}")
        row = {"step": step, "seconds": round(self.seconds(), 1), "mean": returns.mean(), "std": returns.std()}
        row.update(columns)
        self.state["table"] = self.state["table"] or ",".join(row) + "\n"
        self.state["table"] += ",".join(map(str, row.values())) + "\n"
        (self.dir / table).write_text(self.state["table"])

    def save_models(self, module, step, score):
        """Writes model.pt, and model_best.pt if the score is the best so far."""
        about = {**self.about, "step": step, "score": float(score)}
        model = {"about": about, "state_dict": module.state_dict()}
        save_file(self.dir / "model.pt", model)
        if score > self.state["best"]:
            save_file(self.dir / "model_best.pt", model)
            self.state["best"] = float(score)

    def checkpoint_is_due(self, step, ended):
        """At the end of the first episode, then of the first one after --checkpoint-frequency steps;
        where none ends, after ten times as many."""
        waited = (step - self.state["step"]) / self.args.checkpoint_frequency
        return waited >= 10 or (ended and (waited >= 1 or not self.state["replay"]))

    def checkpoint(self, step, learned, **rest):
        """Writes what --resume needs, new transitions first. A kill or full disk leaves the one
        before it whole. Raises FloatingPointError if the first of `learned` is not finite."""
        if not torch.isfinite(learned[0]).all():
            raise FloatingPointError(f"not finite at step {step:,}: the policy has diverged, lower --learning-rate")
        self.writer.flush()
        added = self.rb.added
        oldest = max(0, added - len(self.rb.rows))
        parts = [*self.state["replay"], max(self.state["added"], oldest)]
        save_file(self.dir / f"replay_{parts[-1]}.pt", self.rb.get_rows(parts[-1], added))
        parts = [part for part, end in zip(parts, [*parts[1:], added]) if end > oldest]
        self.state.update(step=step, seconds=self.seconds(), about=self.about, replay=parts)
        self.state.update(added=added, learned=learned, random=random_streams(), **rest)
        save_file(self.dir / "checkpoint.pt", self.state)
        for path in {*self.dir.glob("replay_*")} - {self.dir / f"replay_{part}.pt" for part in parts}:
            path.unlink()

    def load_checkpoint(self):
        """Fills `state` and the replay buffer."""
        with loaded(self.dir / "checkpoint.pt", "--resume") as state:
            self.state = dict(state)
        check_unchanged(self.args, self.state["about"]["args"], "--resume")
        for part in self.state["replay"]:
            with loaded(self.dir / f"replay_{part}.pt", "--resume") as rows:
                self.rb.set_rows(part, rows[: self.state["added"] - part])
        before, now = self.state["about"]["versions"], self.about["versions"]
        if before != now:
            say(f"not bit for bit as before: versions were {before}, are {now}")

    def restore(self, learned):
        """Puts what was learned and the global random streams back."""
        for tensor, stored in zip(learned, self.state["learned"]):
            tensor.copy_(stored)
        set_random_streams(self.state["random"])


VERSIONED = ["gymnasium", "jax", "mujoco", "numpy", "torch"]  # modules that decide a run's numbers
# What a resumed run may change: how long it runs, and what changes its numbers by rounding
MAY_CHANGE = """resume evaluate total_vector_steps checkpoint_frequency track
wandb_project_name wandb_entity cuda cuda_graph compile torch_threads"""
MAY_CHANGE_TOO = "seed eval_episodes eval_deterministic eval_max_steps"  # with --evaluate


def check_unchanged(args, stored, flag):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names."""
    may_change = f"{MAY_CHANGE} {MAY_CHANGE_TOO if flag == '--evaluate' else ''}".split()
    for name, value in stored.items():
        if name not in may_change and getattr(args, name, value) != value:
            raise UsageError(f"--{name.replace('_', '-')} must stay {value} with {flag}")


def load_agent(path):
    """The Agent of a model file or of a run's folder, on the CPU, and the dict about it.
    Raises UsageError."""
    path = Path(path, "model.pt") if Path(path).is_dir() else path
    with loaded(path, "--evaluate") as model:
        if "task" not in model["about"]["args"]:
            raise ValueError("meow_continuous_action.py wrote it")
        agent = Agent(model["about"]["network"])
        agent.load_state_dict(model["state_dict"])
    return agent, model["about"]


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError without one."""
    if args.evaluate is not None:
        stored = load_agent(args.evaluate)[1]["args"]
        stored = {name: value for name, value in stored.items() if hasattr(args, name)}
        return replace(args, **{**stored, "evaluate": args.evaluate})
    with loaded(Path(args.resume, "checkpoint.pt"), "--resume") as state:
        if "task" not in state["about"]["args"]:
            raise ValueError("meow_continuous_action.py wrote it")
        return Args(**{**state["about"]["args"], "resume": args.resume})


def play(args):
    """Plays --eval-episodes episodes at once with the model of --evaluate. Returns their returns."""
    agent, about = load_agent(args.evaluate)
    check_unchanged(args, about["args"], "--evaluate")
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    with contextlib.ExitStack() as stack:
        set_up_torch(args, device, stack)
        env, (obs, reward, done, _, in_episode) = make_env(args, args.eval_episodes, device, stack)
        dims = obs.shape[1], env.action_space.shape[0]
        if dims != (len(agent.normalizer.mean), agent.policy.act_dim):
            raise UsageError("--task must have observations and actions as in the run that --evaluate names")
        say(f"{args.task} after {about['step']:,} vector steps")
        agent.to(device)
        returns, running = torch.zeros_like(reward).double(), torch.ones_like(done)
        for _ in range(args.eval_max_steps + 1):  # and the one that resets
            returns += torch.where(running & in_episode, reward, torch.zeros_like(reward))
            running &= ~(done & in_episode)
            if not bool(running.any()):
                break
            actions = agent.act(obs, args.eval_deterministic)
            obs, reward, done, _, in_episode = step_simulator(env, actions, resets=done)
    returns, cut = returns.cpu().numpy(), int(running.sum())
    if not np.isfinite(returns).all():
        raise FloatingPointError("--evaluate: a return is not finite, the model or the simulator has diverged")
    for i, episodic_return in enumerate(returns):
        say(f"episode {i}: {episodic_return:.1f}")
    kind = "deterministic" if args.eval_deterministic else "stochastic"
    say(f"{len(returns)} {kind} episodes, {cut} of them cut at --eval-max-steps {args.eval_max_steps}")
    say(f"mean {returns.mean():.1f}, std {returns.std():.1f}")
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130
    after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    for flag in sys.argv:
        if flag.endswith(("=True", "=False")):
            print(f"{flag} must be written without a value: --track, --no-track and the like", file=sys.stderr)
            return 2
    args = tyro.cli(Args)
    try:
        if args.resume is not None or args.evaluate is not None:
            args = tyro.cli(Args, default=stored_args(args))  # flags win over what that run had
        (play if args.evaluate else train)(args)
    except (UsageError, FloatingPointError, OSError, KeyboardInterrupt, SystemExit) as error:
        print(str(error) or repr(error), file=sys.stderr)
        return {UsageError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
