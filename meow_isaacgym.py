"""MEow on thousands of parallel environments (Isaac Gym), in one file (NeurIPS 2024, arXiv 2405.13629).

    python meow_isaacgym.py --task Ant                # Isaac Gym, the paper's settings for that task; writes runs/NAME
    python meow_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco     # on MuJoCo, no GPU needed
    python meow_isaacgym.py --resume runs/NAME                      # continues an interrupted run
    python meow_isaacgym.py --evaluate runs/NAME                    # plays episodes with what was learnt

The algorithm is that of meow_continuous_action.py, whose classes are repeated here word for word. N environments take
one vector step together, with one update per vector step, on one device and without host synchronisation. New are a
normaliser, a replay buffer for N transitions at once, and the care for a simulator that resets by itself, one step
late. Expected (paper, 1M vector steps, the Omniverse port): Ant 7,990, Humanoid 4,650; not run on Isaac Gym itself.
In order: settings (Tables A1, A4); flow (Eq. 8, Fig. A6); normaliser, buffer, update (Eq. 9); `train`; "Plumbing".
"""

import contextlib
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
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# Table A4 and the authors' launch settings. A row holds only what differs from the shared defaults.
SHARED_SETTINGS = {"num_envs": 128, "batch_size": 1024, "total_vector_steps": 1_000_000, "alpha": 0.075, "tau": 0.0005}
SHARED_SETTINGS.update(sigma_min=-5.0, sigma_max=-0.3)
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
    make: str = "isaacgymenvs:make"  # MODULE:FUNCTION that makes the simulator: see `make_env` for what it must do
    make_kwargs: str = "{}"  # more arguments for that function, as a JSON object
    seed: int = 1  # seed of the experiment (the paper's curves: 5 seeds)
    total_vector_steps: Optional[int] = None  # steps, each in all environments (Fig. 4; None: the paper's for --task)
    num_envs: Optional[int] = None  # parallel environments (None: the paper's for --task)
    exp_name: str = os.path.basename(__file__)[: -len(".py")]  # the name of this experiment
    resume: Optional[str] = None  # the folder of a run to continue from its checkpoint, with its own settings
    evaluate: Optional[str] = None  # a run's folder or a model file: play --eval-episodes episodes, print the returns
    eval_episodes: int = 10  # with --evaluate: episodes, one in each of so many environments
    eval_deterministic: bool = True  # with --evaluate: act by the forward pass of z = 0 (Sec. 3.3), or else sample
    track: bool = False  # track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: Optional[str] = None  # the entity (team) of the project at W&B
    log_frequency: int = 1_000  # vector steps between two logs of the mean return of the last 100 training episodes
    checkpoint_frequency: int = 10_000  # vector steps between two checkpoints
    # The algorithm. None: the paper's for --task (Table A4 and the authors' launch settings)
    num_shifts: Literal[0, 1, 2] = 2  # learnable reward shifts (Sec. 3.2, Fig. 6): 0 vanilla, 1 +LRS, 2 +LRS & SCDQ
    coupling: Literal["additive", "affine"] = "additive"  # kind of the non-linear layers (Fig. A1)
    alpha: Optional[float] = None  # temperature of pi = exp((Q - V) / alpha), weight of the entropy (Table A4)
    tau: Optional[float] = None  # target smoothing coefficient of the Polyak average (Table A4)
    sigma_min: Optional[float] = None  # lower bound of log sigma(s), the linear layer's scale (Table A4)
    sigma_max: Optional[float] = None  # upper bound of log sigma(s) (Table A4)
    random_steps: int = 100  # vector steps with uniform actions
    learning_starts: int = 200  # vector step to start learning, one update per vector step
    learning_rate: float = 1e-3  # the learning rate of Adam, the one optimizer (Table A1)
    max_grad_norm: float = 60.0  # the maximum norm of the gradient: 30 (Table A1) of the authors' loss, half of ours
    gamma: float = 0.99  # the discount factor gamma (Table A1)
    batch_size: Optional[int] = None  # transitions per update (Table A4)
    buffer_steps: int = 15_000  # the replay buffer's size in vector steps, --num-envs transitions each
    # The paper's own conventions, to reproduce its curves as they were made
    timeouts_terminate: bool = False  # a time limit cuts the bootstrap as a termination does (default: it does not)
    keep_spurious: bool = False  # store the step that resets, from a last observation to a first (default: dropped)
    normalize_samples: bool = False  # the normaliser learns from the sampled batches (default: each new observation)
    clamp_actions: bool = False  # store atanh of float32 actions, clamped 1e-5 from +-1 (default: those before tanh)
    # The machine
    cuda: bool = True  # use a CUDA device where there is one, for simulator and learning
    cuda_graph: bool = True  # on CUDA: replay sampling, update and action as one captured graph
    compile: bool = True  # on the CPU, in runs of 20,000 vector steps or more: compile the update (PyTorch >= 2.13)
    torch_threads: int = 1  # threads of PyTorch on the CPU: 1 is best for runs side by side, one per core

    def __post_init__(self):
        for name, value in {**SHARED_SETTINGS, **PAPER_SETTINGS.get(paper_row(self.task), {})}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


# ALGO LOGIC: initialize agent here:
class Swish(nn.Module):
    """x * sigmoid(beta * x) with a learnable beta per unit, 1 at the start. (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Linear(nn.Linear):
    """nn.Linear with a bias, written so that narrow layers compile to faster code. (B, in) -> (B, out)."""

    def forward(self, x):
        if self.out_features <= 8:
            # SPEED: -8% of a compiled step: matrix routines are slow here, and a sum fuses with its neighbours
            return (x[:, None, :] * self.weight).sum(dim=-1) + self.bias
        if self.in_features < self.out_features:
            # SPEED: with this copy the weight's gradient is x^T g; g^T x is 2 to 4 times slower for a narrow x
            return x @ self.weight.T.contiguous() + self.bias
        return super().forward(x)


class MLP(nn.Sequential):
    """in_dim -> hidden -> hidden -> out_dim, each hidden layer: Linear, [LayerNorm], Swish, [dropout].
    init_weight initialises the weight of every Linear; the biases keep the framework's default."""

    def __init__(self, in_dim, hidden, out_dim, init_weight, layer_norm=False):
        layers = []
        for fan_in in (in_dim, hidden):
            layers += [Linear(fan_in, hidden), *([nn.LayerNorm(hidden)] if layer_norm else []), Swish(hidden)]
        super().__init__(*layers, Linear(hidden, out_dim))
        for layer in self:
            if isinstance(layer, nn.Linear):
                init_weight(layer.weight)

    def forward(self, x, dropout=None):
        """(B, in_dim) -> (B, out_dim). dropout: one mask per hidden layer, (2, B, hidden), or None for none."""
        masks = iter(()) if dropout is None else iter(dropout)
        for layer in self:
            x = layer(x)
            if dropout is not None and isinstance(layer, Swish):
                x = x * next(masks)
        return x


class CouplingLayer(nn.Module):
    """A non-linear layer of the flow (i in S_n) and hypernetwork (a), which makes its parameters.
    Coordinates where mask is 1 pass unchanged, and with the state they determine the map of the others:
    u + t (additive, NICE) or u * exp(log_scale) + t (affine, RealNVP). Its Jacobian is triangular."""

    def __init__(self, obs_dim, act_dim, mask, affine):
        super().__init__()
        self.register_buffer("mask", mask)  # (A,)
        sizes = obs_dim + act_dim, 64, act_dim
        self.translation = MLP(*sizes, nn.init.orthogonal_, layer_norm=True)
        self.log_scale = MLP(*sizes, nn.init.orthogonal_, layer_norm=True) if affine else None

    def forward(self, u, obs):
        """Sampling direction: (B, A), (B, S) -> (B, A)."""
        x = torch.cat([self.mask * u, obs], dim=1)
        if self.log_scale is not None:
            u = u * ((1 - self.mask) * self.log_scale(x)).exp()
        return u + (1 - self.mask) * self.translation(x)

    def inverse(self, u, obs, dropout=(None, None)):
        """Density direction g^i: (B, A), (B, S) -> (B, A), log|det J_i| (B,). dropout: masks of each hypernetwork."""
        x = torch.cat([self.mask * u, obs], dim=1)
        u = u - (1 - self.mask) * self.translation(x, dropout[0])
        if self.log_scale is None:
            return u, u.new_zeros(len(u))  # additive: preserves volume
        log_scale = (1 - self.mask) * self.log_scale(x, dropout[1])
        return u * (-log_scale).exp(), -log_scale.sum(dim=1)


class FlowPolicy(nn.Module):
    """The conditional flow that is Q, V and the policy at once (Eq. 8; architecture: Fig. A6).
    Forward (sampling): z ~ N(0, I) -> linear layer sigma(s) * z -> 2 blocks x 2 couplings -> u, and a = tanh(u).
    obs is (B, S), u (B, A), a in [-1,1] (B, A); Q, V and the shifts are in units of the soft return, log_prob in nats.
    Q and log_prob are over a, but take u: where tanh saturates, a float32 a does not give u back."""

    def __init__(self, obs_dim, act_dim, alpha, sigma_min=-5.0, sigma_max=-0.3, coupling="additive", num_shifts=2):
        super().__init__()
        affine = {"additive": False, "affine": True}[coupling]
        self.act_dim, self.alpha, self.sigma_min, self.sigma_max = act_dim, alpha, sigma_min, sigma_max
        mask = (torch.arange(act_dim) + 1) % 2.0  # 1, 0, 1, 0, ...
        masks = [mask, 1 - mask, mask, 1 - mask]  # 2 blocks x 2 couplings
        self.couplings = nn.ModuleList([CouplingLayer(obs_dim, act_dim, m, affine) for m in masks])
        self.sigma_net = MLP(obs_dim, 64, act_dim, nn.init.zeros_)  # hypernetwork (b)
        self.shifts = nn.ModuleList([MLP(obs_dim, 256, 1, nn.init.zeros_) for _ in range(num_shifts)])  # b1, b2
        self.flatten()

    def flatten(self):
        """Makes all parameters views of one new vector (P,), `self.vector`, so that `update` moves them in one pass."""
        self.vector = torch.cat([param.detach().flatten() for param in self.parameters()])
        for param, view in zip(self.parameters(), self.views(self.vector).values()):
            param.data = view
        return self

    def views(self, vector):
        """{name: parameter} with the values of a vector (P,)."""
        named = dict(self.named_parameters())
        pieces = vector.split([param.numel() for param in named.values()])
        return {name: piece.view(named[name].shape) for name, piece in zip(named, pieces)}

    def _apply(self, *args, **kwargs):
        return super()._apply(*args, **kwargs).flatten()  # to(device) and the like separate the parameters

    def __setstate__(self, state):
        super().__setstate__(state)
        self.flatten()  # so does copying

    def log_sigma(self, obs):
        """Log of the linear layer's diagonal, in [sigma_min, sigma_max]: (B, S) -> (B, A)."""
        return self.sigma_min + 0.5 * (self.sigma_max - self.sigma_min) * (torch.tanh(self.sigma_net(obs)) + 1)

    def shift(self, obs):
        """b_k(s) of learnable reward shifting (Sec. 3.2), with its factor alpha: (B, S) -> (B, max(1, num_shifts))."""
        return self.alpha * torch.cat([b(obs) for b in self.shifts] or [obs.new_zeros(len(obs), 1)], dim=1)

    def dropout_masks(self, batch):
        """Draws the masks of dropout 0.1 for `batch` rows: (couplings, hypernetworks, hidden layers 2, batch, 64)."""
        shape = (len(self.couplings), 2 if self.couplings[0].log_scale is not None else 1, 2, batch, 64)
        # SPEED: one draw of 16 random bits per unit for all masks: 0.14 ms per step, compiled nn.Dropout 1.3 ms
        bits = torch.empty(math.prod(shape) // 4, dtype=torch.int64, device=self.vector.device).random_(-(2**63), None)
        dropped = round(0.1 * 2**16)
        masks = torch.empty(shape, device=bits.device)
        torch.ge(bits.view(torch.int16).view(shape), dropped - 2**15, out=masks)
        return masks.div_(1 - dropped / 2**16)

    @staticmethod
    def pre_tanh(act):
        """u with tanh(u) = act, for actions that come from elsewhere; the paper's code keeps them 1e-5 from +-1."""
        return torch.atanh(act.clamp(-1 + 1e-5, 1 - 1e-5))

    def inverse(self, obs, u, dropout=None):
        """Non-linear layers, u (B, A) -> sigma(s) * z (B, A), log prod_{i in S_n} |det J_i(a,s)| (B,), with tanh's."""
        # d atanh(a)/da = 1/(1-a^2), and -log(1 - tanh(u)^2) = 2 log cosh(u), written so as not to overflow
        log_det = 2 * (u + nn.functional.softplus(-2 * u) - math.log(2)).sum(dim=1)
        for i, layer in reversed(list(enumerate(self.couplings))):
            u, layer_log_det = layer.inverse(u, obs) if dropout is None else layer.inverse(u, obs, dropout[i])
            log_det = log_det + layer_log_det
        return u, log_det

    def log_unnormalized(self, obs, u, dropout=None):
        """log( p_z(g(a|s)) * prod_{i in S_n} |det J_i| ), without p_z's constant: (B, S), (B, A) -> (B,)."""
        scaled_z, log_det = self.inverse(obs, u, dropout)
        return log_det - 0.5 * (scaled_z / self.log_sigma(obs).exp()).square().sum(dim=1)

    def log_partition(self, obs):
        """-log( prod_{i in S_l} |det J_i| ), with p_z's constant: (B, S) -> (B,)."""
        return self.log_sigma(obs).sum(dim=1) + 0.5 * self.act_dim * math.log(2 * math.pi)

    def get_q(self, obs, u, dropout=None):
        """Q_b(s,a) = Q(s,a) + b_k(s), a = tanh(u), in one pass: (B, S), (B, A) -> (B, max(1, num_shifts)).
        dropout: masks of `dropout_masks(B)`, or None for no dropout."""
        return self.alpha * self.log_unnormalized(obs, u, dropout)[:, None] + self.shift(obs)  # Eq. 8, Sec. 3.2

    def get_v(self, obs):
        """V_b(s) = V(s) + b_k(s), not clipped: (B, S) -> (B, max(1, num_shifts)). Evaluates no coupling layer."""
        return self.alpha * self.log_partition(obs)[:, None] + self.shift(obs)  # Eq. 8, Sec. 3.2

    def log_prob(self, obs, u):
        """log pi(a|s) = (Q(s,a) - V(s)) / alpha, a = tanh(u), in which the shifts cancel: (B, S), (B, A) -> (B,)."""
        return self.log_unnormalized(obs, u) - self.log_partition(obs)

    def forward(self, obs, z):
        """Sampling direction: (B, S), z (B, A) -> u (B, A), the action before tanh."""
        u = self.log_sigma(obs).exp() * z
        for layer in self.couplings:
            u = layer(u, obs)
        return u

    def draw(self, obs, deterministic=False):
        """u of an action a = tanh(u) ~ pi(.|s), by one forward pass: (B, S) -> (B, A).
        deterministic: the forward pass of z = 0 (Sec. 3.3). With additive couplings that is the mode of the density of
        u, so tanh(u) is not quite argmax_a Q(s,a), in which tanh's log-determinant counts too."""
        z = obs.new_zeros(len(obs), self.act_dim)
        return self(obs, z if deterministic else torch.randn_like(z))

    def act(self, obs, deterministic=False):
        """An action as the environment takes it: (B, S) -> act (B, A). See `draw`."""
        return torch.tanh(self.draw(obs, deterministic))


class RunningNormalizer(nn.Module):
    """(x - mean) / std, clipped to [-5, 5], by the running moments of all it was updated with. (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64))  # float32 cannot count to 1e8

    def update(self, x):
        """Takes in a batch (B, dim), by the parallel formula of Chan et al. (1979)."""
        x = x.double()
        total = self.count + len(x)
        delta = x.mean(dim=0) - self.mean
        moments = self.var * self.count + x.var(dim=0, unbiased=False) * len(x)
        self.var.copy_((moments + delta.square() * self.count * len(x) / total) / total)
        self.mean.add_(delta * len(x) / total)
        self.count.copy_(total)

    def forward(self, x):
        return ((x - self.mean) / (self.var + 1e-5).sqrt()).float().clamp(-5.0, 5.0)


class Agent(nn.Module):
    """A FlowPolicy behind a RunningNormalizer: what has to be saved to act later."""

    def __init__(self, network):
        super().__init__()
        self.policy, self.normalizer = FlowPolicy(**network), RunningNormalizer(network["obs_dim"])

    @torch.no_grad()
    def act(self, obs, deterministic=False):
        """An action in [-1,1] at raw observations: (B, S) -> (B, A)."""
        return self.policy.act(self.normalizer(obs), deterministic)


# A batch, float32: (B, S), (B, S), (B, A; before tanh), (B, 1), (B, 1)
Transitions = namedtuple("Transitions", ["obs", "next_obs", "act", "reward", "terminated"])


class VectorReplayBuffer:
    """Uniform replay memory: one preallocated ring on `device`, written and drawn without host synchronisation."""

    def __init__(self, capacity, obs_dim, act_dim, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        self.rows_and_waste = torch.empty(capacity + 1, sum(self.widths), device=device)  # the last: not to be stored
        self.rows = self.rows_and_waste[:-1]
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # transitions ever

    added = property(lambda self: int(self.count), lambda self, number: self.count.fill_(number))  # synchronises

    def add(self, obs, next_obs, act, reward, terminated, valid):
        """Stores the transitions (N, ...) for which valid (N,) is true; the oldest make room."""
        rows = torch.cat([obs, next_obs, act, reward[:, None], terminated[:, None].float()], dim=1)
        slots = (self.count + valid.cumsum(0) - 1) % len(self.rows)
        self.rows_and_waste[torch.where(valid, slots, torch.full_like(slots, len(self.rows)))] = rows
        self.count += valid.sum()

    def sample(self, batch_size):
        """Draws Transitions uniformly with replacement."""
        draws = torch.rand(batch_size, dtype=torch.float64, device=self.rows.device)
        rows = self.rows[(draws * self.count.clamp(max=len(self.rows))).long()]
        return Transitions(*rows.split(self.widths, dim=1))

    def set_rows(self, rows):
        """Stores transitions as rows (n, width)."""
        self.rows[torch.arange(self.added, self.added + len(rows)) % len(self.rows)] = rows.to(self.rows.device)
        self.count += len(rows)

    def get_rows(self, first, stop):
        """Transitions number `first` to `stop` - 1, counted from the first ever: rows (stop - first, width)."""
        return self.rows[torch.arange(first, stop) % len(self.rows)].cpu()


class EpisodeStatistics:
    """Undiscounted returns and lengths of finished episodes, on the device; the last 100 are read when logged."""

    def __init__(self, num_envs, device):
        self.running = torch.zeros(num_envs, 2, dtype=torch.float64, device=device)  # return and length so far
        self.ring = torch.zeros(num_envs + 101, 2, dtype=torch.float64, device=device)  # the last row is not read
        self.episodes = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, reward, done, valid):
        """Takes in a step of all environments, (N,) each; where `valid` is false it belongs to no episode."""
        self.running += torch.stack([reward.double(), torch.ones_like(reward, dtype=torch.float64)], 1) * valid[:, None]
        done = done & valid
        slots = (self.episodes + done.cumsum(0) - 1) % (len(self.ring) - 1)
        self.ring[torch.where(done, slots, torch.full_like(slots, len(self.ring) - 1))] = self.running
        self.episodes += done.sum()
        self.running *= ~done[:, None]

    def last(self):
        """Of the last 100 or fewer episodes: mean return, its std, mean length, and their number (synchronises)."""
        stop = int(self.episodes)
        returns, lengths = self.ring[torch.arange(max(0, stop - 100), stop) % (len(self.ring) - 1)].cpu().T
        variance = (returns - returns.mean()).square().mean()
        return returns.mean().item(), variance.sqrt().item(), lengths.mean().item(), len(returns)


class Adam:
    """Adam (Kingma & Ba 2015) on a vector (P,): torch.optim.Adam's numbers, but torch.compile can trace it."""

    def __init__(self, vector, lr):
        self.lr, self.exp_avg, self.exp_avg_sq = lr, torch.zeros_like(vector), torch.zeros_like(vector)
        self.betas = torch.tensor([0.9, 0.999], dtype=torch.float64, device=vector.device)
        self.beta_powers = torch.ones_like(self.betas)

    def step(self, vector, grad):
        """Moves the vector, given the gradient (P,) at it."""
        # SPEED: -3%; compiled, betas**steps is computed again for every 16 numbers. The clamp avoids slow denormals
        self.beta_powers.mul_(self.betas).clamp_(min=1e-300)
        bias1, bias2 = (1 - self.beta_powers).to(grad.dtype)
        self.exp_avg.lerp_(grad, 1 - 0.9)
        self.exp_avg_sq.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
        vector.sub_(self.lr / bias1 * self.exp_avg / (self.exp_avg_sq.sqrt() * bias2.rsqrt() + 1e-8))


def update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout=None):
    """Algorithm 1's update: a gradient step on Eq. 9 and a Polyak step of the target, at first a copy of the policy.
    optimizer: Adam(policy.vector, lr). data: Transitions, act before tanh. dropout: `policy.dropout_masks(B)` or None.
    Returns the loss (), Q (B, max(1, num_shifts)) and the norm of the gradient before it is clipped ()."""
    with torch.no_grad():
        v_clip = target.get_v(data.next_obs).min(dim=1, keepdim=True).values  # SCDQ: V + min(b1, b2), Sec. 3.2
        target_q = data.reward + gamma * (1 - data.terminated) * v_clip  # only termination cuts the bootstrap
    q = policy.get_q(data.obs, data.act, dropout)  # Q + b1 and Q + b2, by one pass of the flow
    loss = 0.5 * (q - target_q).square().sum(dim=1).mean()  # Eq. 9, summed over the shifts
    grads = torch.autograd.grad(loss, list(policy.parameters()))

    with torch.no_grad():
        grad = torch.cat([g.flatten() for g in grads])
        grad_norm = torch.linalg.vector_norm(grad)
        optimizer.step(policy.vector, grad * (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        target.vector.lerp_(policy.vector, tau)  # target <- (1 - tau) * target + tau * policy (Polyak)
    return loss.detach(), q.detach(), grad_norm


def train(args):
    """Algorithm 1. Returns the Agent and the Run. UsageError for bad input, FloatingPointError on divergence."""
    check_args(args)
    device = set_up_torch(args)
    env, (obs, reward, done, _, in_episode) = make_env(args, args.num_envs, device, args.buffer_steps)
    obs_dim, act_dim = obs.shape[1], env.action_space.shape[0]
    rb = VectorReplayBuffer(args.buffer_steps * args.num_envs, obs_dim, act_dim, device)
    with Run(args, args.task, "returns.csv", ["mean", "std", "episodes"], args.total_vector_steps, rb) as run:
        run.say(f"{run.dir}: settings of {paper_row(args.task) or 'no task of the paper'}, flags win\n{args}")
        names = ("alpha", "sigma_min", "sigma_max", "coupling", "num_shifts")
        network = {"obs_dim": obs_dim, "act_dim": act_dim, **{name: getattr(args, name) for name in names}}
        agent, target = Agent(network).to(device), FlowPolicy(**network).to(device)
        policy, normalizer = agent.policy, agent.normalizer
        target.requires_grad_(False).load_state_dict(policy.state_dict())
        optimizer, statistics = Adam(policy.vector, args.learning_rate), EpisodeStatistics(args.num_envs, device)
        compiled = args.compile and device.type == "cpu" and args.total_vector_steps >= 20_000  # shorter: not worth it
        learn = CompiledStep(update, policy, target, compiled)
        finite = torch.ones((), dtype=torch.bool, device=device)  # of all numbers so far: read when logging

        def draw_learn_and_act(obs):
            """All of a step except the simulator: raw obs (N, S) -> u (N, A), the batch, Q, loss, gradient norm."""
            data = rb.sample(args.batch_size)
            if args.normalize_samples:
                normalizer.update(torch.cat([data.obs, data.next_obs]))
            data = data._replace(obs=normalizer(data.obs), next_obs=normalizer(data.next_obs))
            dropout = policy.dropout_masks(args.batch_size)
            loss, q, grad_norm = learn.run(optimizer, data, args.gamma, args.tau, args.max_grad_norm, dropout)
            finite.logical_and_(torch.isfinite(loss + grad_norm))
            return policy.draw(normalizer(obs)).detach(), data, q, loss, grad_norm

        if device.type == "cuda" and args.cuda_graph:
            draw_learn_and_act = CudaGraph(draw_learn_and_act)

        def log_and_save(step, results):
            mean, std, length, number = statistics.last()
            run.log_row(step, [mean, std, number])
            run.say(f"vector step {step:,}: return {mean:.1f} +- {std:.1f} of the last {number} episodes")
            scalars = {"charts/episodic_return": mean, "charts/episodic_length": length} if number > 0 else {}
            scalars["charts/SPS"] = int(step * args.num_envs / (time.time() - run.start_time))
            if results is not None:
                data, q, loss, grad_norm = results
                with torch.no_grad():  # Fig. 1: logs of the products of the Jacobian determinants
                    scalars["flow/log_det_nonlinear"] = policy.inverse(data.obs, data.act)[1].mean()
                    scalars["flow/log_det_linear"] = -policy.log_sigma(data.obs).sum(dim=1).mean()
                scalars.update({f"losses/qf{k + 1}_values": q_k for k, q_k in enumerate(q.mean(dim=0))})
                scalars.update({"losses/qf_loss": loss, "losses/grad_norm": grad_norm})
            run.log(step, scalars)
            run.save_models(agent, step, mean if number == 100 else math.nan, network)  # fewer: may be a lucky few

        learned = {name: getattr(optimizer, name) for name in ("exp_avg", "exp_avg_sq", "beta_powers")}
        learned.update(policy=policy.vector, target=target.vector, **vars(statistics), **normalizer.state_dict())
        statistics.add(reward, done, in_episode)
        u = results = None  # u: actions before tanh (N, A), where they came with the update before them
        restorable = hasattr(env, "get_state") and hasattr(env, "set_state")
        if run.first_step > 0:
            for name in learned.keys() - (set() if restorable else {"running"}):  # new episodes have run one step
                learned[name].copy_(run.state["learned"][name])
            if restorable:
                env.set_state(run.state["env"])
                obs, done, u = (x if x is None else x.to(device) for x in run.state["between_steps"])
            else:
                run.say(f"{args.make} has no get_state and set_state: not bit for bit as before, new episodes begin")
            set_random_streams(run.state["random"])
        for step in range(run.first_step, args.total_vector_steps):
            # Algorithm 1: act. The first actions are uniform, the later ones come with the update before them
            if step < args.random_steps:
                u = policy.pre_tanh(2 * torch.rand(args.num_envs, act_dim, device=device) - 1)
            elif u is None:
                u = policy.draw(normalizer(obs)).detach()
            resets = done
            next_obs, reward, done, timed_out, in_episode = step_simulator(env, torch.tanh(u), resets)
            finite.logical_and_(torch.isfinite(next_obs).all() & torch.isfinite(reward + u.sum(dim=1)).all())
            statistics.add(reward, done, in_episode)
            # Algorithm 1: store (s, a, r, s'), the action before tanh; where a simulator resets, s' does not follow s
            terminated = done if args.timeouts_terminate else done & ~timed_out  # a time limit does not cut
            stored_u = policy.pre_tanh(torch.tanh(u)) if args.clamp_actions else u
            rb.add(obs, next_obs, stored_u, reward, terminated, valid=~resets | args.keep_spurious)
            if not args.normalize_samples:
                normalizer.update(next_obs)
            obs, u = next_obs, None
            # Algorithm 1: one gradient step on Eq. 9, one step of the target, and the next actions
            if step >= args.learning_starts:
                u, *results = draw_learn_and_act(obs)
            run.progress.update()
            ends = step + 1 == args.total_vector_steps
            logs, saves = (ends or (step + 1) % n == 0 for n in (args.log_frequency, args.checkpoint_frequency))
            if (logs or saves) and not bool(finite):  # only here does the host wait for the device
                raise FloatingPointError(f"not finite before vector step {step + 1:,}: simulator or --learning-rate")
            if logs:
                log_and_save(step + 1, results)
            if saves:
                run.checkpoint(step + 1, learned, env=restorable and env.get_state(), between_steps=[obs, done, u])
        run.say(f"finished: {run.dir} (look at it with `tensorboard --logdir runs`)")
    return agent, run


# ---- Plumbing: nothing below is about MEow ---------------------------------------------------------------------------
VERSIONED = {"gymnasium", "jax", "mujoco", "numpy", "torch"}  # modules that decide a run's numbers


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Raised before any work; exit code 2."""


def paper_row(task):
    """The name of `task`'s row in PAPER_SETTINGS (AntMujoco has Ant's), or None if it has none."""
    row = task[: -len("Mujoco")] if task.endswith("Mujoco") else task
    return row if row in PAPER_SETTINGS else None


RULES = """1 <= --num-envs; 1 <= --batch-size <= --num-envs * --buffer-steps; 1 <= --buffer-steps; 1 <= --log-frequency
    1 <= --checkpoint-frequency; 1 <= --eval-episodes; 1 <= --torch-threads <= 1024; 0 <= --seed < 2**32
    0 <= --random-steps <= --learning-starts; 1 <= --learning-starts < --total-vector-steps; ':' in --make
    0 < --learning-rate < inf; 0 < --max-grad-norm < inf; 0 < --alpha < inf; 0 < --tau <= 1; 0 <= --gamma <= 1
    -inf < --sigma-min < --sigma-max < inf; None in (--resume, --evaluate)"""


def check_args(args):
    """Raises UsageError for settings that break a rule."""
    for rule in re.split("[;\n] *", RULES):
        values = re.sub("--([a-z-]+)", lambda flag: repr(getattr(args, flag[1].replace("-", "_"))), rule)
        if not eval(values, {"inf": math.inf, "nan": math.nan}):
            raise UsageError(f"{rule} must hold, not {values}")


def check_memory(flag, transitions, width, device):
    """Raises UsageError if a replay buffer does not fit into the GPU, or the machine, the cgroup and `ulimit -v`."""
    free = [torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available]
    if device.type == "cpu" and sys.platform == "linux":
        limit, used = psutil.Process().rlimit(psutil.RLIMIT_AS)[0], psutil.Process().memory_info()
        free += [limit - used.vms] * (limit != psutil.RLIM_INFINITY)
        for controller, group in re.findall("[0-9]:(memory|):/(.*)", Path("/proc/self/cgroup").read_text()):
            for folder in Path("/sys/fs/cgroup", controller, group, "_").parents:
                for file in (*folder.glob("memory.max"), *folder.glob("memory.limit_in_bytes")):  # cgroup v2, v1
                    free += [int(size) - used.rss for size in file.read_text().split() if size != "max"]
    needed, free = 4e-9 * transitions * width, 1e-9 * min(free)
    if needed > free:
        raise UsageError(f"{flag} must fit in memory: it needs {needed:,.1f} GB, {free:,.1f} are free")


def make_env(args, num_envs, device, buffer_steps=0):
    """Seeds the global random streams, makes the simulator of --make, returns it and `step_simulator` of a first step.
    make(seed, task, num_envs, sim_device, rl_device, graphics_device_id, headless, **--make-kwargs) gives an object:
    observation_space, action_space of shapes (S,), (A,); actions will be float32 in [-1,1] on rl_device
    reset() -> {"obs": (N, S)}; only with an attribute reset_is_real = True does it begin episodes, else the first step
    step(actions (N, A)) -> {"obs": (N, S)}, reward (N,), done (N,), {"time_outs": (N,), ended by a time limit alone}
        The obs where done is the last; the next step resets without acting and returns the new episode's first obs
    get_state() -> tensors and plain data, set_state(state): optional, for an exact --resume
    Raises UsageError if the object does otherwise."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    module, _, function = args.make.partition(":")
    devices = dict.fromkeys(("sim_device", "rl_device"), "cuda:0" if device.type == "cuda" else "cpu")
    try:  # headless, or it opens a viewer
        make, kwargs = getattr(importlib.import_module(module), function), json.loads(args.make_kwargs)
        env = make(args.seed, args.task, num_envs, **devices, graphics_device_id=-1, headless=True, **kwargs)
        (obs_dim,), (act_dim,), space = env.observation_space.shape, env.action_space.shape, env.action_space
        _, zeros = env.reset(), torch.zeros(num_envs, act_dim, device=device)
        first = step_simulator(env, zeros, resets=zeros[:, 0] == 0)
        if getattr(env, "reset_is_real", False):
            first = (copied(env.reset(), num_envs, device), *(torch.zeros_like(x) for x in first[1:]))
        low, high = np.float32(getattr(space, "low", -1)), np.float32(getattr(space, "high", 1))
        if first[0].shape != (num_envs, obs_dim) or (low != -1).any() or (high != 1).any():
            raise ValueError(f"observations {tuple(first[0].shape)}, actions {space}: not {num_envs, obs_dim}, [-1,1]")
    except (Exception, SystemExit) as error:  # every simulator fails in its own way, Isaac Gym by quit()
        advice = "make_env says what it must return; for gymnasium: --make benchmark.simulators.gymnasium_vector:make"
        if module == "isaacgymenvs":
            advice = f"isaacgym: {isaacgym_problem or 'imported'}; without: --make benchmark.simulators.mujoco:make"
        what = f"--make {args.make} --make-kwargs {args.make_kwargs} must make --task {args.task} here"
        raise UsageError(f"{what}: {error!r} ({advice})") from error
    check_memory("--buffer-steps", buffer_steps * num_envs, 2 * obs_dim + act_dim + 2, device)
    return env, first


def copied(x, num_envs, device):
    """A float32 copy (N, ...), for a simulator reuses its memory, of a tensor, array, {"obs": x} or (x, info)."""
    x = x[0] if isinstance(x, tuple) else x
    x = x["obs"] if isinstance(x, dict) else x
    return torch.as_tensor(x, dtype=torch.float32, device=device).clone().unflatten(0, (num_envs, -1)).flatten(1)


def step_simulator(env, actions, resets):
    """A step; environments in `resets` (N,), which were done, reset in it. Returns obs (N, S), reward, done, timed_out
    and in_episode (N,): whose reward counts; a resetting step's if it is a first step (AllegroHand: progress 1)."""
    obs, *rest, extras = env.step(actions)
    obs, reward, done, timed_out = (copied(x, len(resets), resets.device) for x in (obs, *rest, extras["time_outs"]))
    reward, done, timed_out = (x.view_as(resets) for x in (reward, done, timed_out))
    return obs, reward, done != 0, timed_out != 0, ~resets | (getattr(env, "progress_buf", 0 * done) == 1)


def set_up_torch(args):
    """Sets threads, memory and matrix products of PyTorch. Returns the device."""
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    torch.set_num_threads(args.torch_threads)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # SPEED: up to -10%: glibc keeps freed memory: 2 page faults per step instead of 40 to 90
        for parameter, value in ((-1, 2**30), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)
    # SPEED: -16% (Hopper-v4), -32% (Humanoid-v4) on a Zen 5: "medium" allows oneDNN; not where it would be bfloat16
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "highest")
    x = torch.linspace(-1, 1, 2**16).view(2**8, 2**8)
    if (x @ x - x.double() @ x.double()).abs().max() > 1e-3:
        torch.set_float32_matmul_precision("highest")
    return device


class CompiledStep(nn.Module):
    """`run(...)` calls step(policy, target, ...), compiled once: shapes, gamma, tau, alpha are the first call's."""

    def __init__(self, step, policy, target, compiled=True):
        super().__init__()
        self.step, self.policy, self.target = step, policy, target
        self.function = None if compiled else CompiledStep.forward

    def forward(self, *inputs):
        return self.step(self.policy, self.target, *inputs)

    def on_vectors(self, *inputs):
        """SPEED: -5%: the compiled graph makes the parameters from two vectors instead of taking 100 inputs."""
        policy, target = self.policy, self.target
        parameters = {f"policy.{k}": view for k, view in policy.views(policy.vector.detach().requires_grad_()).items()}
        parameters.update({f"target.{k}": view for k, view in target.views(target.vector).items()})
        return torch.func.functional_call(self, parameters, inputs)

    def run(self, *inputs):
        if self.function is None:
            print("compiling the learning step: about a minute, seconds where cached", flush=True)
            try:
                torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad becomes a part of the one graph
                options = {"cpp_wrapper": True}  # SPEED: -6%
                options["cpp.enable_floating_point_contract_flag"] = "fast"  # SPEED: -3%, by fused multiply-adds
                options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe  # SPEED: -5%: not checked later
                settings = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True, "options": options}
                self.function = torch.compile(CompiledStep.on_vectors, **settings)
                return self.function(self, *inputs)
            except (RuntimeError, OSError, AttributeError, TypeError) as error:  # the last two: an older PyTorch
                print("--compile: running eager, for compiling failed:", str(error).partition("\n")[0], flush=True)
                self.function = CompiledStep.forward
        return self.function(self, *inputs)


class CudaGraph:
    """`step`, a function of obs (B, S), from the fourth call one CUDA graph. SPEED: 564 steps/s on an H100, not 68."""

    def __init__(self, step):
        self.step, self.calls, self.stream, self.graph = step, 0, torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def __call__(self, obs):
        self.calls += 1
        if self.calls <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.outputs = self.step(obs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return self.outputs
        if self.calls == 4:
            self.obs = obs.clone()
            with torch.cuda.graph(self.graph):
                self.outputs = self.step(self.obs)
        self.obs.copy_(obs)
        self.graph.replay()
        return self.outputs


def random_streams():
    """The states of the global random streams (python, numpy, torch, GPUs in use), as plain data."""
    numpy = tuple(x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state())
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # asking would initialise CUDA
    return random.getstate(), numpy, torch.get_rng_state(), gpus


def set_random_streams(streams):
    """Puts the global random streams into states of `random_streams`."""
    for set_state, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), streams):
        set_state(state)
    torch.cuda.set_rng_state_all(streams[3][: torch.cuda.device_count()])


def save_file(path, content):
    """Writes tensors and plain data, the whole file or nothing: what was there stays until all is on the disk."""
    torch.save(content, buffer := io.BytesIO())  # not to the file, or a full disk is no OSError
    with open(f"{path}.tmp", "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def load_file(path, flag, use):
    """use(what save_file wrote); nothing in it can run code. Raises UsageError if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise ValueError("it is damaged")
        return use(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes raise whatever they like
        raise UsageError(f"{flag} must name what this script wrote, not {path}: {error!r:.150}") from error


class Run(contextlib.AbstractContextManager):
    """The folder runs/NAME of a run: lock, logs, progress bar, models and checkpoint. table, columns: the CSV file, and
    what follows step and seconds in it. state: what --resume continues from. Raises UsageError."""

    def __init__(self, args, task, table, columns, total, rb):
        name = re.sub("[/:]", "-", f"{task}__{args.exp_name}__{args.seed}__{int(1e3 * time.time())}")
        self.args, self.rb, self.dir = args, rb, Path("runs", name) if args.resume is None else Path(args.resume)
        self.versions = {name: str(module.__version__) for name, module in sys.modules.items() if name in VERSIONED}
        self.state = {"step": 0, "seconds": 0.0, "best": -math.inf, "rows": [], "replay": [], "wandb_id": None}
        if args.resume is not None:
            self.load_checkpoint(total)
        self.first_step, self.start_time = self.state["step"], time.time() - self.state["seconds"]
        self.config = {"args": {**asdict(args), "resume": None}, "versions": self.versions, "resumed": self.first_step}
        self.lock = FileLock(self.dir / "lock")
        try:
            if args.resume is not None:
                self.lock.acquire(timeout=0)  # before W&B, which would disturb a live run
            if args.track:
                import wandb

                names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": self.dir.name}
                names.update(id=self.state["wandb_id"], resume="allow", config={**self.config["args"], **self.config})
                self.state["wandb_id"] = wandb.init(**names, sync_tensorboard=True, save_code=True).id
            self.dir.mkdir(parents=True, exist_ok=args.resume is not None)  # after W&B: a bad login leaves no folder
            self.lock.acquire(timeout=0)
            (self.dir / "config.json").write_text(json.dumps(self.config, indent=2))
        except Exception as error:  # W&B without a key or network, bad WANDB_* variables: each its own class
            what = "--track needs a W&B login or WANDB_MODE=offline, and" if args.track else ""
            raise UsageError(f"{what} {self.dir} must be writable and in no other use: {error}".strip()) from error
        self.table, self.columns = self.dir / table, ["step", "seconds", *columns]
        self.writer = SummaryWriter(self.dir, purge_step=self.first_step + 1)  # readers drop what was logged later
        self.writer.add_text("hyperparameters", f"```\n{json.dumps(self.config, indent=2)}\n```", self.first_step)
        self.progress = tqdm(total=total, initial=self.first_step, dynamic_ncols=True, mininterval=1.0, miniters=1)

    def __exit__(self, kind, error, traceback):
        if kind not in (None, FloatingPointError) and (self.dir / "checkpoint.pt").exists():  # it would diverge again
            self.say(f"continue with: python {shlex.join([sys.argv[0], '--resume', str(self.dir)])}")
        self.progress.close()
        self.writer.close()
        self.lock.release(force=True)

    def say(self, text):
        """Prints above the progress bar."""
        self.progress.write(text, file=sys.stdout)
        sys.stdout.flush()  # a log file shows it now too

    def log(self, step, scalars):
        """Writes {name: number} to TensorBoard and W&B."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, float(value), step)

    def log_row(self, step, values):
        """Adds a line to the CSV file."""
        self.state["rows"].append([step, round(time.time() - self.start_time, 1), *map(float, values)])
        self.table.write_text("".join(",".join(map(str, row)) + "\n" for row in [self.columns, *self.state["rows"]]))

    def save_models(self, module, step, score, network):
        """Writes model.pt, and model_best.pt if the score is the best so far. network: how to make the module again."""
        about = {**self.config, "run": self.dir.resolve().name, "step": step, "score": float(score), "network": network}
        model = {"about": about, "state_dict": {name: tensor.cpu() for name, tensor in module.state_dict().items()}}
        save_file(self.dir / "model.pt", model)
        if score > self.state["best"]:
            save_file(self.dir / "model_best.pt", model)
            self.state["best"] = float(score)

    def checkpoint(self, step, learned, **rest):
        """Writes what --resume needs, new transitions first. A kill or full disk leaves the one before it whole."""
        self.writer.flush()
        oldest, stop = max(0, self.rb.added - len(self.rb.rows)), self.rb.added
        replay = [(first, last) for first, last in self.state["replay"] if last > oldest]
        for first in range(replay[-1][1] if replay else oldest, stop, 2**20):
            replay.append((first, min(first + 2**20, stop)))
            save_file(self.dir / f"replay_{first}_{replay[-1][1]}.pt", {"rows": self.rb.get_rows(*replay[-1])})
        self.state.update(step=step, config=self.config, seconds=time.time() - self.start_time, replay=replay, **rest)
        self.state.update(random=random_streams(), learned={name: tensor.cpu() for name, tensor in learned.items()})
        save_file(self.dir / "checkpoint.pt", self.state)
        for path in {*self.dir.glob("replay_*")} - {self.dir / f"replay_{first}_{stop}.pt" for first, stop in replay}:
            path.unlink()

    def load_checkpoint(self, total):
        """Fills `state` and the replay buffer."""
        self.state = load_file(self.dir / "checkpoint.pt", "--resume", dict)
        check_unchanged(self.args, self.state["config"]["args"], "--resume", MAY_CHANGE)
        before, now = self.state["config"]["versions"], self.versions
        if total < self.state["step"]:
            raise UsageError(f"--resume: that run has done {self.state['step']:,} steps, more than {total:,}")
        if before.get("mujoco") != now.get("mujoco"):  # one curve must be of one simulator
            raise UsageError(f"--resume needs mujoco {before.get('mujoco')}, as before, not {now.get('mujoco')}")
        if before != now:
            print(f"not bit for bit as before: versions were {before}, are {now}", flush=True)
        self.rb.added = self.state["replay"][0][0]
        for first, stop in tqdm(self.state["replay"], "loading the replay buffer", delay=2):
            load_file(self.dir / f"replay_{first}_{stop}.pt", "--resume", lambda file: self.rb.set_rows(file["rows"]))


# What a resumed run may change: how long it runs, and what changes its numbers by rounding (cuda: its draws too).
MAY_CHANGE = {"total_vector_steps", "checkpoint_frequency", "track", "wandb_project_name", "wandb_entity", "resume"}
MAY_CHANGE |= {"cuda", "cuda_graph", "compile", "torch_threads", "evaluate", "eval_episodes", "eval_deterministic"}


def check_unchanged(args, stored, flag, may_change):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names, except names in `may_change`."""
    for name, value in stored.items():
        if name not in may_change and getattr(args, name, None) != value:
            raise UsageError(f"--{name.replace('_', '-')} must stay {value} with {flag}")


def load_agent(path):
    """The Agent of a model file or of a run's folder, on the CPU, and the dict about it. Raises UsageError."""

    def make(model):
        agent = Agent(model["about"]["network"])
        agent.load_state_dict(model["state_dict"])
        return agent, model["about"]

    return load_file(Path(path, "model.pt") if Path(path).is_dir() else path, "--evaluate", make)


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError if there is none."""
    if args.resume is not None:
        stored = load_file(Path(args.resume, "checkpoint.pt"), "--resume", lambda state: state["config"]["args"])
    else:
        stored = load_agent(args.evaluate)[1]["args"]
    known = {name: value for name, value in stored.items() if hasattr(args, name)}
    return replace(args, **{**known, "resume": args.resume, "evaluate": args.evaluate})


def play(args):
    """Plays --eval-episodes whole episodes at once with the model of --evaluate. Prints and returns their returns."""
    check_args(args)
    (agent, about), device = load_agent(args.evaluate), set_up_torch(args)
    check_unchanged(args, about["args"], "--evaluate", {*MAY_CHANGE, "seed"})
    env, (obs, reward, done, _, in_episode) = make_env(args, args.eval_episodes, device)
    if (obs.shape[1], *env.action_space.shape) != (about["network"]["obs_dim"], about["network"]["act_dim"]):
        raise UsageError("--task must have observations and actions as in the run that --evaluate names")
    print(f"{args.task} after {about['step']:,} vector steps", flush=True)
    agent.to(device)
    returns, running = torch.where(in_episode, reward, torch.zeros_like(reward)).double(), ~(done & in_episode)
    while bool(running.any()):
        obs, reward, done, _, in_episode = step_simulator(env, agent.act(obs, args.eval_deterministic), resets=done)
        returns += torch.where(running & in_episode, reward.double(), torch.zeros_like(returns))
        running = running & ~(done & in_episode)
    returns = returns.cpu().numpy()
    if not np.isfinite(returns).all():
        raise FloatingPointError("--evaluate: a return is not finite, the model or the simulator has diverged")
    print(*(f"episode {i}: {episodic_return:.1f}" for i, episodic_return in enumerate(returns)), sep="\n")
    kind = "deterministic" if args.eval_deterministic else "stochastic"
    print(f"{len(returns)} {kind} episodes: mean {returns.mean():.1f}, std {returns.std():.1f}")
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130 after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    args = tyro.cli(Args)
    try:
        if args.resume is not None or args.evaluate is not None:
            args = tyro.cli(Args, default=stored_args(args))  # flags win over what that run had
        (play if args.evaluate else train)(args)
    except (UsageError, FloatingPointError, OSError, KeyboardInterrupt) as error:
        print(error, file=sys.stderr)
        return {UsageError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
