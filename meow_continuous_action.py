"""MEow: maximum entropy RL via an energy-based normalizing flow, in one file (NeurIPS 2024, arXiv 2405.13629).

    python meow_continuous_action.py --env-id Humanoid-v4           # the paper's settings for that environment
    python meow_continuous_action.py --env-id Hopper-v4 --num-shifts 0    # ablation: 0 vanilla, 1 +LRS, 2 +LRS & SCDQ
    python meow_continuous_action.py --resume runs/NAME             # continues an interrupted run (CPU: bit for bit)
    python meow_continuous_action.py --evaluate runs/NAME           # plays episodes with what was learnt

One conditional flow is the soft Q-function, the exact soft value and the sampler at once. Its inverse pass
g(a|s) = z has non-linear layers S_n (tanh and couplings) and one linear layer S_l (a state-dependent diagonal scale):

    Q(s,a) =  alpha * log( p_z(g(a|s)) * prod_{i in S_n} |det J_i(a,s)| )                                   (Eq. 8)
    V(s)   = -alpha * log( prod_{i in S_l} |det J_i(s)| )  =  alpha * log integral exp(Q(s,a)/alpha) da     (Eq. 8)
    pi(a|s) = exp((Q(s,a) - V(s)) / alpha),  drawn by running the flow forward from z ~ N(0, I)
    loss   =  E[ 1/2 * (Q(s,a) - (r + gamma * (1 - terminated) * V_target(s')))^2 ]                         (Eq. 9)
(The code counts p_z's constant, alpha * A/2 * log(2 pi), in V: Q and V move together, the policy stays.)

Expected (paper, mean return of 10 greedy episodes): Hopper-v4 1,390 at 150k steps, 3,490 at 1.5M; Humanoid-v4 5,620 at
1.25M, 6,810 at 5M. In this order: settings (Tables A1, A3); flow (Eq. 8, Fig. A6); replay buffer, Adam, update (Eq. 9,
Algorithm 1); evaluation; `train`, the loop. What follows under "Plumbing" is not about MEow.
"""

import contextlib
import ctypes
import io
import json
import math
import os
import random
import re
import shlex
import sys
import time
import warnings
import zipfile
from collections import namedtuple
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import gymnasium as gym
import mujoco
import numpy as np
import psutil
import torch
import torch.nn as nn
import tyro
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# Table A3 and the authors' launch settings. A row holds only what differs from the shared defaults.
SHARED_SETTINGS = {"total_timesteps": 1_500_000, "learning_starts": 5_000, "alpha": 0.25, "tau": 0.005}
SHARED_SETTINGS |= {"sigma_min": -5.0, "sigma_max": -0.3}
PAPER_SETTINGS = {
    "Hopper-v4": {},
    "HalfCheetah-v4": {"learning_starts": 10_000, "tau": 0.003, "sigma_max": 2.0},
    "Walker2d-v4": {"total_timesteps": 4_000_000, "learning_starts": 10_000, "alpha": 0.1},
    "Ant-v4": {"total_timesteps": 4_000_000, "alpha": 0.05, "tau": 0.0001},
    "Humanoid-v4": {"total_timesteps": 5_000_000, "alpha": 0.125, "tau": 0.0005},
}


@dataclass
class Args:
    env_id: str = "Hopper-v4"  # the environment id of the task; PACKAGE:ID or MY_MODULE:ID imports that first
    seed: int = 1  # seed of the experiment (the paper's curves: 5 seeds)
    total_timesteps: int | None = None  # environment steps (Fig. 3; None: the paper's for --env-id)
    exp_name: str = os.path.basename(__file__)[: -len(".py")]  # the name of this experiment
    resume: str | None = None  # the folder of a run to continue from its checkpoint, with its own settings
    evaluate: str | None = None  # a run's folder or a model file: play --eval-episodes episodes, print the returns
    track: bool = False  # track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: str | None = None  # the entity (team) of the project at W&B
    capture_video: bool = False  # film to videos/: training episodes 0, 1, 8, 27, ...; --evaluate: the first
    # Evaluation (the paper's protocol) and checkpoints
    eval_frequency: int = 10_000  # steps between two evaluations; there is one at step 0 and one at the end too
    eval_episodes: int = 10  # episodes of an evaluation, reset with seeds 0, 1, 2, ...
    eval_max_steps: int = 10_000  # an evaluation episode is cut there, for environments without a time limit
    eval_deterministic: bool = True  # act by the forward pass of z = 0 (Sec. 3.3), or else sample the policy (Fig. 7)
    checkpoint_frequency: int | None = None  # steps between two checkpoints (None: --eval-frequency)
    # The algorithm. None: the paper's for --env-id (Table A3 and the authors' launch settings)
    num_shifts: Literal[0, 1, 2] = 2  # learnable reward shifts (Sec. 3.2, Fig. 6): 0 vanilla, 1 +LRS, 2 +LRS & SCDQ
    coupling: Literal["additive", "affine"] = "additive"  # kind of the non-linear layers (Fig. A1)
    alpha: float | None = None  # temperature of pi = exp((Q - V) / alpha), weight of the entropy (Table A3)
    tau: float | None = None  # target smoothing coefficient of the Polyak average (Table A3)
    sigma_min: float | None = None  # lower bound of log sigma(s), the linear layer's scale (Table A3)
    sigma_max: float | None = None  # upper bound of log sigma(s) (Table A3)
    learning_starts: int | None = None  # step to start learning; uniform actions before (authors' settings)
    learning_rate: float = 1e-3  # the learning rate of Adam, the one optimizer (Table A1)
    max_grad_norm: float = 30.0  # the maximum norm of the gradient (Table A1)
    gamma: float = 0.99  # the discount factor gamma (Table A1)
    batch_size: int = 256  # transitions per update (Table A1)
    buffer_size: int = 1_000_000  # transitions in the replay buffer (Table A1)
    # The machine
    cuda: bool = True  # use a CUDA device where there is one
    cuda_graph: bool = True  # on CUDA: replay sampling, update and action as one captured graph
    compile: bool = True  # on the CPU, in runs of 20,000 steps or more: compile update and action (a minute, once)
    torch_threads: int = 1  # threads of PyTorch on the CPU: 1 is best for runs side by side, one per core

    def __post_init__(self):
        settings = SHARED_SETTINGS | PAPER_SETTINGS.get(paper_row(self.env_id), {})
        for name, value in {**settings, "checkpoint_frequency": self.eval_frequency}.items():
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


# A batch, float32: (B, S), (B, S), (B, A; before tanh), (B, 1), (B, 1)
Transitions = namedtuple("Transitions", ["obs", "next_obs", "act", "reward", "terminated"])


class ReplayBuffer:
    """Uniform replay memory on `device`; one row per transition, so that a batch is one gather."""

    def __init__(self, capacity, obs_dim, act_dim, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        self.rows = torch.empty(capacity, sum(self.widths), device=device)  # the CPU takes memory only as it fills
        self.added = 0  # transitions ever
        self.size = torch.zeros((), dtype=torch.float64, device=device)  # rows filled; a tensor, for CUDA graphs

    def add(self, obs, next_obs, act, reward, terminated):
        """Stores one transition (arrays (S,), (S,), (A,) and two numbers); the oldest makes room."""
        row = np.concatenate([obs, next_obs, act, [reward, terminated]], dtype=np.float32)
        self.set_rows(torch.from_numpy(row)[None])

    def set_rows(self, rows):
        """Stores transitions as rows (n, width)."""
        self.rows[torch.arange(self.added, self.added + len(rows)) % len(self.rows)] = rows.to(self.rows.device)
        self.added += len(rows)
        self.size.fill_(min(self.added, len(self.rows)))

    def get_rows(self, first, stop):
        """Transitions number `first` to `stop` - 1, counted from the first ever: rows (stop - first, width)."""
        return self.rows[torch.arange(first, stop) % len(self.rows)].cpu()

    def sample(self, batch_size):
        """Draws Transitions uniformly with replacement."""
        draws = torch.rand(batch_size, dtype=torch.float64, device=self.rows.device)
        return Transitions(*self.rows[(draws * self.size).long()].split(self.widths, dim=1))


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


def learn_and_act(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout, obs, z):
    """An `update`, and the next action at obs (1, S) from noise z (1, A): u (1, A), loss, Q, gradient norm."""
    loss, q, grad_norm = update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout)
    with torch.no_grad():
        return policy(obs, z), loss, q, grad_norm


def evaluate(policy, envs, deterministic=True):
    """The paper's evaluation: plays one episode in each of `envs` (seeds 0, 1, 2, ...), without dropout. Returns the
    undiscounted returns (len(envs),). Leaves the global random streams as they were."""
    device, streams = next(policy.parameters()).device, random_streams()
    torch.manual_seed(0)
    returns, running = np.zeros(len(envs)), np.arange(len(envs))
    obs = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    progress = tqdm(desc="steps of the evaluation", delay=5, leave=False)
    while len(running) > 0:
        with torch.no_grad():
            actions = policy.act(torch.from_numpy(obs[running]).to(device), deterministic).cpu().numpy()
        done = np.zeros(len(running), dtype=bool)
        for k, i in enumerate(running):
            obs[i], reward, terminated, truncated, _ = envs[i].step(actions[k])
            returns[i] += reward
            done[k] = terminated or truncated
        running = running[~done]
        progress.update()
    progress.close()
    set_random_streams(streams)
    return returns


def train(args):
    """Algorithm 1. Returns the policy and the Run. UsageError for bad input, FloatingPointError on divergence."""
    check_args(args)
    device = set_up_torch(args)
    obs_dim, act_dim = check_env(args, device)
    rb = ReplayBuffer(args.buffer_size, obs_dim, act_dim, device)
    columns = ["mean", "std", *(f"return_{i}" for i in range(args.eval_episodes))]
    with Run(args, args.env_id, "evaluations.csv", columns, args.total_timesteps, rb) as run:
        run.say(f"{run.dir}: {paper_row(args.env_id) or 'shared'} settings, flags win\n{args}")
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # TRY NOT TO MODIFY: seeding
            seed(args.seed)
        env = make_env(args.env_id, f"videos/{run.dir.name}-{run.first_step}" if args.capture_video else None)
        eval_envs = [make_env(args.env_id, max_steps=args.eval_max_steps) for _ in range(args.eval_episodes)]
        names = ("alpha", "sigma_min", "sigma_max", "coupling", "num_shifts")
        network = {"obs_dim": obs_dim, "act_dim": act_dim, **{name: getattr(args, name) for name in names}}
        policy, target = (FlowPolicy(**network).to(device) for _ in range(2))
        target.requires_grad_(False).load_state_dict(policy.state_dict())
        optimizer = Adam(policy.vector, args.learning_rate)
        compiled = args.compile and device.type == "cpu" and args.total_timesteps >= 20_000  # shorter: not worth it
        learn = CompiledStep(learn_and_act, policy, target, compiled)

        def draw_learn_and_act(obs):
            """All of a learning step except the environment: obs (1, S) -> the batch, Q, [u, loss, gradient norm]."""
            data, dropout = rb.sample(args.batch_size), policy.dropout_masks(args.batch_size)
            z = torch.randn(1, act_dim, device=device)
            u, loss, q, norm = learn.run(optimizer, data, args.gamma, args.tau, args.max_grad_norm, dropout, obs, z)
            return data, q, torch.cat([u[0], torch.stack([loss, norm])])  # one transfer from a GPU

        if device.type == "cuda" and args.cuda_graph:
            draw_learn_and_act = CudaGraph(draw_learn_and_act)

        def evaluate_and_save(step):
            returns = evaluate(policy, eval_envs, args.eval_deterministic)
            run.log_row(step, [returns.mean(), returns.std(), *returns])
            run.log(step, {"eval/episodic_return": returns.mean(), "eval/episodic_return_std": returns.std()})
            run.say(f"step {step:,}: eval return {returns.mean():.1f} +- {returns.std():.1f}")
            run.save_models(policy, step, returns.mean(), network)

        learned = {"policy": policy.vector, "target": target.vector, "exp_avg": optimizer.exp_avg}
        learned |= {"exp_avg_sq": optimizer.exp_avg_sq, "beta_powers": optimizer.beta_powers}
        obs = u = None
        if run.first_step > 0:
            for name, tensor in learned.items():
                tensor.copy_(run.state["learned"][name])
            obs, u = replay(env, rb, run.state["begun"]), run.state["u"] and np.float32(run.state["u"])
            set_random_streams(run.state["random"])
            if obs is None:
                run.say("a new episode begins, not bit for bit as before: the last one could not be repeated")
        else:
            evaluate_and_save(0)
        if obs is None:
            env.steps, env.begun, u = rb.added, [], None
            obs, _ = env.reset(seed=(args.seed + run.first_step) % 2**32)  # seeds the stream of all episodes
        for global_step in range(run.first_step + 1, args.total_timesteps + 1):
            # Algorithm 1: act. The first actions are uniform, the later ones come with the update before them
            if global_step <= args.learning_starts:
                u = policy.pre_tanh(2 * torch.rand(act_dim) - 1).numpy()
            elif u is None:
                u = policy.draw(torch.from_numpy(obs[None]).to(device))[0].detach().cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(np.tanh(u))

            # Algorithm 1: store (s, a, r, s'), the action before tanh
            rb.add(obs, next_obs, u, reward, terminated)
            obs, u = next_obs, None
            if terminated or truncated:
                run.log(global_step, info["episode"])
                obs, _ = env.reset()

            # Algorithm 1: one gradient step on Eq. 9, one step of the target, and the next action
            if global_step > args.learning_starts:
                data, q, packed = draw_learn_and_act(torch.from_numpy(obs[None]).to(device))
                u, (loss, grad_norm) = np.split(packed.cpu().numpy(), [act_dim])
                if not np.isfinite(loss + grad_norm + u.sum()):
                    advice = "lower --learning-rate or raise --alpha"
                    raise FloatingPointError(f"loss, gradient or action not finite at step {global_step:,}: {advice}")
                if global_step % 100 == 0:
                    scalars = {f"losses/qf{k + 1}_values": q_k for k, q_k in enumerate(q.mean(dim=0))}
                    scalars |= {"losses/qf_loss": loss, "losses/grad_norm": grad_norm}
                    with torch.no_grad():  # Fig. 1: logs of the products of the Jacobian determinants
                        scalars["flow/log_det_nonlinear"] = policy.inverse(data.obs, data.act)[1].mean()
                        scalars["flow/log_det_linear"] = -policy.log_sigma(data.obs).sum(dim=1).mean()
                    run.log(global_step, scalars | {"charts/SPS": int(global_step / (time.time() - run.start_time))})
            run.progress.update()
            ends = global_step == args.total_timesteps
            if ends or global_step % args.eval_frequency == 0:
                evaluate_and_save(global_step)
            if ends or global_step % args.checkpoint_frequency == 0:
                run.checkpoint(global_step, learned, begun=env.begun, u=None if u is None else u.tolist())
        env.close()
        run.say(f"finished: {run.dir} (look at it with `tensorboard --logdir runs`)")
    return policy, run


# ---- Plumbing: nothing below is about MEow ---------------------------------------------------------------------------
VERSIONED = {"gymnasium", "jax", "mujoco", "numpy", "torch"}  # modules that decide a run's numbers


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Raised before any work; exit code 2."""


def paper_row(env_id):
    """The name of `env_id`'s row in PAPER_SETTINGS, whatever its module and version, or None if it has none."""
    row = re.sub(r"(-v\d+)?$", "-v4", env_id.rpartition(":")[2], count=1)
    return row if row in PAPER_SETTINGS else None


RULES = """0 <= --learning-starts < --total-timesteps; 1 <= --batch-size <= --buffer-size; 1 <= --eval-frequency
    1 <= --eval-episodes; 1 <= --eval-max-steps; 1 <= --checkpoint-frequency; 1 <= --torch-threads <= 1024
    0 < --learning-rate < inf; 0 < --max-grad-norm < inf; 0 < --alpha < inf; 0 < --tau <= 1; 0 <= --gamma <= 1
    0 <= --seed < 2**32; -inf < --sigma-min < --sigma-max < inf; None in (--resume, --evaluate)"""


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


def check_env(args, device):
    """Tries the environment out: makes, resets and steps it. Returns (obs_dim, act_dim); raises UsageError."""
    if args.capture_video and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default renderer needs a display
    try:
        env = make_env(args.env_id, "" if args.capture_video else None)
        rounds = [[env.reset(seed=args.seed)[0], env.step(env.action_space.high)[0], env.reset()[0]] for _ in range(3)]
        if args.capture_video:
            if env.render() is None:
                raise TypeError("it renders no pictures")
            os.makedirs("videos", exist_ok=True)
        env.close()
    except (Exception, SystemExit) as error:  # every environment fails in its own way
        hint = "PACKAGE:ID imports PACKAGE first, or your MY_MODULE.py, with kwargs or wrappers (FlattenObservation)"
        flags = f"--env-id {args.env_id}" + " --capture-video" * args.capture_video
        raise UsageError(f"{flags} must work here: {type(error).__name__}: {error}; {hint}") from error
    if np.ptp(rounds, axis=0).any():  # in three rounds, for BipedalWalker-v3 differs in the third
        print(f"{args.env_id} does not repeat after reset(seed=...): evaluations differ by more than the policy")
    limited = env.has_wrapper_attr("_max_episode_steps")  # gymnasium's TimeLimit, wherever it wraps
    if not limited or env.get_wrapper_attr("_max_episode_steps") > args.eval_max_steps:
        print(f"{args.env_id} has no time limit up to --eval-max-steps {args.eval_max_steps}, where evaluations end")
    if paper_row(args.env_id) and mujoco.__version__ != "3.4.0":  # the newest with the contacts of the paper's 2.3.7
        print(f"mujoco {mujoco.__version__} is not 3.4.0: returns do not compare with the paper's", flush=True)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    check_memory("--buffer-size", args.buffer_size, 2 * obs_dim + act_dim + 2, device)
    return obs_dim, act_dim


class Episodes(gym.Wrapper):
    """Float32 copies of observations, returns of episodes, and how the last two episodes began, for `replay`: begun is
    [(steps before the episode, global random streams and the environment's just before its reset, seed), ...]."""

    steps, begun, total = 0, [], 0.0

    def reset(self, *, seed=None, options=None):
        bits = getattr(self.unwrapped.np_random, "bit_generator", None)
        stream = bits.state if isinstance(bits, np.random.PCG64) else None  # others' states are not plain data
        self.begun, self.total = [*self.begun[-1:], (self.steps, random_streams(), stream, seed)], 0.0
        obs, info = self.env.reset(seed=seed, options=options)
        return self.copied(obs), info

    def copied(self, obs, reward=0.0):
        """obs as a new array, float32 (S,). Raises FloatingPointError if it, or the reward, is not finite."""
        obs = np.array(obs, dtype=np.float32).reshape(self.observation_space.shape)
        if not (np.isfinite(obs).all() and np.isfinite(np.float32(reward))):
            raise FloatingPointError("an observation or reward of the environment is not finite in float32")
        return obs

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward, terminated, truncated = (float(np.asarray(x).item()) for x in (reward, terminated, truncated))
        obs = self.copied(obs, reward)
        self.steps, self.total = self.steps + 1, self.total + reward
        if terminated or truncated:
            length = self.steps - self.begun[-1][0]
            info = {**info, "episode": {"charts/episodic_return": self.total, "charts/episodic_length": length}}
        return obs, reward, terminated, truncated, info


def make_env(env_id, video_folder=None, max_steps=None):
    """The environment in `Episodes`, with actions in [-1,1]^A, rescaled to its own bounds (Humanoid's are +-0.4) and
    clipped, as rounding may leave them. video_folder "" renders, None does not. TypeError for unfit spaces."""
    env = gym.make(env_id, **({} if video_folder is None else {"render_mode": "rgb_array"}))
    obs_space, space = env.observation_space, env.action_space
    fits = all(isinstance(box, gym.spaces.Box) and len(box.shape) == 1 for box in (obs_space, space))
    if not (fits and space.dtype.kind == "f" and space.is_bounded() and (space.low < space.high).all()):
        raise TypeError(f"needs a 1-D Box of observations, a bounded 1-D Box of float actions; {obs_space}, {space}")
    env = gym.wrappers.TimeLimit(env, max_steps) if max_steps else env
    if video_folder:
        renderer = getattr(env.unwrapped, "mujoco_renderer", None)
        if renderer is not None:  # gymnasium 1.4 films where the body started; the model's camera follows it
            renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        env = gym.wrappers.RecordVideo(env, video_folder)
    env = gym.wrappers.TransformAction(env, lambda action: action.clip(space.low, space.high), space)
    return Episodes(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))


def replay(env, rb, begun, to_action=np.tanh):
    """Brings a new environment to the run's state with the actions since its last two resets: a whole episode shows
    if more than the random streams matters. Returns the observation (S,), or None if a number differs or is lost."""
    begun = [episode for episode in begun if episode[0] >= rb.added - len(rb.rows)]
    if not begun:
        return None
    env.steps, streams, stream, seed = begun[0]
    set_random_streams(streams)
    if stream is not None:
        env.unwrapped.np_random.bit_generator.state = stream
    obs, _ = env.reset(seed=seed)
    for row in rb.get_rows(env.steps, rb.added):
        data = Transitions(*row.split(rb.widths))
        next_obs, reward, terminated, truncated, _ = env.step(to_action(data.act.numpy()))
        if not np.array_equal([*obs, *next_obs, np.float32(reward)], torch.cat([data.obs, data.next_obs, data.reward])):
            return None
        obs = env.reset()[0] if terminated or truncated else next_obs
    return obs


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
MAY_CHANGE = {"total_timesteps", "track", "wandb_project_name", "wandb_entity", "capture_video", "resume", "evaluate"}
MAY_CHANGE |= {"cuda", "cuda_graph", "compile", "torch_threads"}


def check_unchanged(args, stored, flag, may_change):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names, except names in `may_change`."""
    for name, value in stored.items():
        if name not in may_change and getattr(args, name, None) != value:
            raise UsageError(f"--{name.replace('_', '-')} must stay {value} with {flag}")


def load_policy(path):
    """The FlowPolicy of a model file or of a run's folder, on the CPU, and the dict about it. Raises UsageError."""

    def make(model):
        policy = FlowPolicy(**model["about"]["network"])
        policy.load_state_dict(model["state_dict"])
        return policy, model["about"]

    return load_file(Path(path, "model.pt") if Path(path).is_dir() else path, "--evaluate", make)


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError if there is none."""
    if args.resume is not None:
        stored = load_file(Path(args.resume, "checkpoint.pt"), "--resume", lambda state: state["config"]["args"])
    else:
        stored = load_policy(args.evaluate)[1]["args"]
    known = {name: value for name, value in stored.items() if hasattr(args, name)}
    return replace(args, **{**known, "resume": args.resume, "evaluate": args.evaluate})


def play(args):
    """Plays --eval-episodes episodes with the model of --evaluate. Prints and returns their returns."""
    check_args(args)
    policy, about = load_policy(args.evaluate)
    check_unchanged(args, about["args"], "--evaluate", {*MAY_CHANGE, *(k for k in about["args"] if k[:5] == "eval_")})
    dims = check_env(replace(args, buffer_size=0), set_up_torch(replace(args, cuda=False)))
    if dims != (known := (about["network"]["obs_dim"], about["network"]["act_dim"])):
        raise UsageError(f"--env-id must have {known} observations and actions with --evaluate, not {dims}")
    print(f"{args.env_id} after {about['step']:,} steps with mujoco {about['versions']['mujoco']}", flush=True)
    video_folder = f"videos/{about['run']}-at-{about['step']}" if args.capture_video else None
    envs = [make_env(args.env_id, None if i else video_folder, args.eval_max_steps) for i in range(args.eval_episodes)]
    returns = evaluate(policy, envs, args.eval_deterministic)
    envs[0].close()  # writes the film
    print(*(f"episode {seed}: {episodic_return:.1f}" for seed, episodic_return in enumerate(returns)), sep="\n")
    summary = ", ".join(f"{name} {getattr(returns, name)():.1f}" for name in ("mean", "std", "min", "max"))
    print(f"{len(returns)} {'deterministic' if args.eval_deterministic else 'stochastic'} episodes: {summary}")
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130 after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    warnings.filterwarnings("ignore", message=".*is out of date")  # that v4 is not v5 is the point here
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
