"""MEow: maximum entropy RL via an energy-based normalizing flow (NeurIPS 2024, arXiv 2405.13629).

    python meow_continuous_action.py --env-id Humanoid-v4    # the paper's settings for that task
    python meow_continuous_action.py --num-shifts 0          # 0 vanilla, 1 LRS, 2 LRS & SCDQ (Fig. 6)
    python meow_continuous_action.py --resume runs/NAME      # continues a run (CPU: bit for bit)
    python meow_continuous_action.py --evaluate runs/NAME    # plays episodes with what was learnt

One conditional flow is the soft Q-function, the exact soft value and the sampler at once. Its
inverse pass g(a|s) = z has non-linear layers S_n (tanh and couplings) and one linear layer S_l (a
diagonal scale, from the state):

    Q(s,a) =  alpha * log( p_z(g(a|s)) * prod_{i in S_n} |det J_i(a,s)| )                    (Eq. 8)
    V(s)   = -alpha * log( prod_{i in S_l} |det J_i(s)| )                                    (Eq. 8)
           =  alpha * log integral exp(Q(s,a)/alpha) da
    pi(a|s) = exp((Q(s,a) - V(s)) / alpha), drawn by the forward pass of z ~ N(0, I)
    loss   =  E[ 1/2 * (Q(s,a) - (r + gamma * (1 - terminated) * V_target(s')))^2 ]          (Eq. 9)
(The code's Q and V are both larger than these by alpha * A/2 * log(2 pi), for p_z's constant is
left out of Q. The policy is the same.)

Easy to overlook: the buffer stores u, the action before tanh; only termination cuts the bootstrap,
a time limit does not; dropout in the Q of the loss is a part of MEow.

Expected (paper, mean return of 10 greedy episodes): Hopper-v4 1,390 at 150k steps, 3,490 at 1.5M;
Humanoid-v4 5,620 at 1.25M, 6,810 at 5M. The file, in order: settings (Tables A1, A3); flow (Eq. 8,
Fig. A6); replay buffer, Adam, update (Eq. 9, Algorithm 1); evaluation; `train`, the loop. "Speed" and
"Plumbing" after it hold nothing about MEow except how dropout's masks are drawn.
"""

import contextlib
import copy
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
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm, trange

# Table A3 and the authors' launch settings. A row holds only what differs from the defaults.
DEFAULT_SETTINGS = {"total_timesteps": 1_500_000, "learning_starts": 5_000, "alpha": 0.25}
DEFAULT_SETTINGS |= {"tau": 0.005, "sigma_min": -5.0, "sigma_max": -0.3}
PAPER_SETTINGS = {
    "Hopper-v4": {},
    "HalfCheetah-v4": {"learning_starts": 10_000, "tau": 0.003, "sigma_max": 2.0},
    "Walker2d-v4": {"total_timesteps": 4_000_000, "learning_starts": 10_000, "alpha": 0.1},
    "Ant-v4": {"total_timesteps": 4_000_000, "alpha": 0.05, "tau": 0.0001},
    "Humanoid-v4": {"total_timesteps": 5_000_000, "alpha": 0.125, "tau": 0.0005},
}


@dataclass
class Args:
    env_id: str = "Hopper-v4"  # the environment; PACKAGE:ID or MY_MODULE:ID imports it first
    seed: int = 1  # seed of the experiment (the paper's curves: 5 seeds)
    total_timesteps: int | None = None  # environment steps (Fig. 3; None: the paper's for --env-id)
    exp_name: str = os.path.basename(__file__)[: -len(".py")]  # the name of this experiment
    resume: str | None = None  # the folder of a run to continue, with its own settings
    evaluate: str | None = None  # a run's folder or a model file: play --eval-episodes episodes
    track: bool = False  # track with Weights and Biases (offline: set WANDB_MODE=offline)
    wandb_project_name: str = "meow"  # the project's name at W&B
    wandb_entity: str | None = None  # the entity (team) of the project at W&B
    capture_video: bool = False  # film training episodes 0, 1, 8, 27, ... to videos/ (--evaluate: 0)
    # Evaluation (the paper's protocol) and checkpoints
    eval_frequency: int = 10_000  # steps between two evaluations; also one at step 0 and at the end
    eval_episodes: int = 10  # episodes of an evaluation, reset with seeds 0, 1, 2, ...
    eval_max_steps: int = 10_000  # an evaluation episode without a shorter limit is cut there
    eval_deterministic: bool = True  # act by the forward pass of z = 0 (Sec. 3.3), or else sample
    checkpoint_frequency: int = 10_000  # steps between two checkpoints, each at an episode's end
    # The algorithm. None: the paper's for --env-id (Table A3 and the authors' launch settings)
    num_shifts: Literal[0, 1, 2] = 2  # learnable reward shifts (Sec. 3.2): 0, 1 LRS, 2 LRS and SCDQ
    coupling: Literal["additive", "affine"] = "additive"  # kind of the non-linear layers (Fig. A1)
    alpha: float | None = None  # temperature of pi = exp((Q - V) / alpha) (Table A3)
    tau: float | None = None  # target smoothing coefficient of the Polyak average (Table A3)
    sigma_min: float | None = None  # lower bound of log sigma(s), the linear layer's (Table A3)
    sigma_max: float | None = None  # upper bound of log sigma(s) (Table A3)
    learning_starts: int | None = None  # steps with uniform actions before learning starts
    learning_rate: float = 1e-3  # the learning rate of Adam, the one optimizer (Table A1)
    max_grad_norm: float = 30.0  # the maximum norm of the gradient (Table A1)
    gamma: float = 0.99  # the discount factor gamma (Table A1)
    batch_size: int = 256  # transitions per update (Table A1)
    buffer_size: int = 1_000_000  # transitions in the replay buffer (Table A1)
    # The machine
    cuda: bool = True  # use a CUDA device where there is one
    cuda_graph: bool = True  # on CUDA: capture update and action as graphs
    compile: bool = True  # on the CPU, in runs of 20,000 steps or more (it takes a minute)
    torch_threads: int = 1  # threads of PyTorch on the CPU: 1 is best for one run per core

    def __post_init__(self):
        row = PAPER_SETTINGS.get(paper_row(self.env_id), {})
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


# A batch, float32: (B, S), (B, S), (B, A; the action before tanh), (B, 1), (B, 1)
Transitions = namedtuple("Transitions", ["obs", "next_obs", "u", "reward", "terminated"])


class ReplayBuffer:
    """Uniform replay memory on `device`; one row per transition, so that a batch is one gather."""

    def __init__(self, capacity, obs_dim, act_dim, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        self.rows = torch.empty(capacity, sum(self.widths), device=device)  # lazy memory
        self.added = 0  # transitions so far, forgotten ones too

    def add(self, obs, next_obs, u, reward, terminated):
        """Stores one transition: arrays (S,), (S,), (A,) and two numbers. A full buffer forgets its
        oldest. Raises FloatingPointError for what is not finite."""
        row = np.hstack([obs, next_obs, u, reward, terminated], dtype=np.float32)
        if not np.isfinite(row).all():
            raise FloatingPointError(f"not finite in float32: u {u}, reward {reward}, {obs} or {next_obs}")
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1

    def sample(self, batch_size):
        """Draws Transitions uniformly with replacement."""
        stored = min(self.added, len(self.rows))
        index = torch.randint(stored, (batch_size,), device=self.rows.device)
        return Transitions(*self.rows[index].split(self.widths, dim=1))

    def get_rows(self, first, stop):
        """Transitions number `first` to `stop` - 1, counted from the first ever, as rows."""
        return self.rows[torch.arange(first, stop) % len(self.rows)]

    def set_rows(self, first, rows):
        """Puts back what `get_rows` gave, as the newest transitions."""
        self.added = first + len(rows)
        self.rows[torch.arange(first, self.added) % len(self.rows)] = rows.to(self.rows.device)


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


def evaluate(policy, envs, deterministic=True, seed=0):
    """The paper's evaluation: plays an episode in each of `envs`, a gym.vector.SyncVectorEnv that
    is reset with seeds seed, seed + 1, ..., without dropout. Returns the undiscounted returns, and
    successes as the last infos tell them or nan, (num_envs,) each. Leaves the global random streams
    as they were."""
    device, streams = next(policy.parameters()).device, random_streams()
    torch.manual_seed(seed)
    obs, _ = envs.reset(seed=seed)
    returns, successes = np.zeros(len(obs)), np.full(len(obs), np.nan)
    ended = np.zeros(len(obs), dtype=bool)
    while not ended.all():
        with torch.no_grad():
            obs = torch.as_tensor(obs, dtype=torch.float32, device=device)
            actions = policy.act(obs, deterministic).cpu().numpy()
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        returns += rewards * ~ended
        success = infos.get("is_success", infos.get("success", np.nan))
        successes = np.where(ended, successes, success)
        ended |= terminated | truncated
    set_random_streams(streams)
    return returns, successes


def evaluate_and_save(run, policy, eval_envs, step):
    """Evaluates and saves the policy. Without eval_envs (--eval-episodes 0) the last training
    episodes count."""
    if eval_envs is None:
        returns = np.array(run.state["returns"])
        columns = {"episodes": len(returns)}
    else:
        returns, successes = evaluate(policy, eval_envs, run.args.eval_deterministic)
        columns = {f"return_{i}": episodic_return for i, episodic_return in enumerate(returns)}
        columns["success_rate"] = successes.mean()  # nan without
        scalars = {"eval/episodic_return": returns.mean(), "eval/episodic_return_std": returns.std()}
        if np.isfinite(successes).all():
            scalars["eval/success_rate"] = successes.mean()
        run.log(step, scalars)
    if len(returns) > 0:
        run.log_returns(step, returns, columns)
    run.save_models(policy, step, returns.mean() if len(returns) > 0 else -math.inf)


def log_episode(run, step, info):
    """Logs a training episode by its last info; keeps the last 100 returns and successes."""
    episodic_return, length = float(info["sums"]["r"]), info["sums"]["l"]
    scalars = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
    run.state["returns"] = [*run.state["returns"][-99:], episodic_return]
    success = info.get("is_success", info.get("success"))
    if success is not None:
        run.state["successes"] = [*run.state["successes"][-99:], float(success)]
        scalars["charts/success_rate"] = np.mean(run.state["successes"])
    run.log(step, scalars)


def train(args):
    """Algorithm 1. Returns the policy and the Run. UsageError for bad input, FloatingPointError on
    divergence."""
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    obs_dim, act_dim = check_env(args, device)
    network = dict(obs_dim=obs_dim, act_dim=act_dim, alpha=args.alpha, coupling=args.coupling)
    network.update(sigma_min=args.sigma_min, sigma_max=args.sigma_max, num_shifts=args.num_shifts)
    folder = run_folder(args, args.env_id)  # before the environments, which may change it
    film = os.path.abspath(f"videos/{folder.name}-{int(time.time())}") if args.capture_video else None
    with contextlib.ExitStack() as stack:
        set_up_torch(args, device, stack)  # with the seeding
        with usable(args):
            eval_envs = make_eval_envs(args, stack) if args.eval_episodes > 0 else None
            env = stack.enter_context(make_env(args.env_id, film))
        rb = ReplayBuffer(args.buffer_size, obs_dim, act_dim, device)
        run = stack.enter_context(Run(args, folder, network, rb))
        if args.total_timesteps < run.first_step:
            raise UsageError(f"--total-timesteps must be {run.first_step:,} or more, which are done")
        say(f"{run.name}: {paper_row(args.env_id) or 'default'} settings, flags win\n{args}")
        policy = flatten(FlowPolicy(**network).to(device))
        target = flatten(copy.deepcopy(policy)).requires_grad_(False)
        optimizer = Adam(policy.vector, args.learning_rate)
        learned = [policy.vector, target.vector, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.bias]
        update, forward = accelerated(args, device, args.total_timesteps)  # the same, sooner
        if args.resume is None:
            evaluate_and_save(run, policy, eval_envs, 0)
        else:
            run.restore(learned)
        obs, _ = env.reset(seed=np.random.randint(2**31))  # always a seed, so that episodes repeat
        for global_step in trange(run.first_step + 1, args.total_timesteps + 1, mininterval=1, miniters=1):
            # Algorithm 1: act. u is the action before tanh
            if global_step <= args.learning_starts:
                u = policy.pre_tanh(2 * torch.rand(1, act_dim) - 1)
            else:
                z = torch.randn(1, act_dim, device=device)
                u = forward(policy, torch.from_numpy(obs[None]).to(device), z)
            u = u[0].cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(np.tanh(u))

            # Algorithm 1: store
            rb.add(obs, next_obs, u, reward, terminated)
            obs = next_obs

            # Algorithm 1: sample, and update by a gradient step on Eq. 9 and a step of the target
            if global_step > args.learning_starts:
                data, dropout = rb.sample(args.batch_size), dropout_masks(policy, args.batch_size)
                settings = args.gamma, args.tau, args.max_grad_norm
                results = update(policy, target, optimizer, data, *settings, dropout)
                if global_step % 100 == 0:
                    run.log(global_step, diagnostics(policy, data, *results))
                    run.log(global_step, {"charts/SPS": int(global_step / run.seconds())})
            if terminated or truncated:
                log_episode(run, global_step, info)
            if global_step % args.eval_frequency == 0 or global_step == args.total_timesteps:
                evaluate_and_save(run, policy, eval_envs, global_step)
            if run.checkpoint_is_due(global_step, terminated or truncated):
                run.checkpoint(global_step, learned)
            if terminated or truncated:  # after the checkpoint, for a resumed run draws this seed too
                obs, _ = env.reset(seed=np.random.randint(2**31))
        say(f"finished: {run.name} (look at it with `tensorboard --logdir runs`)")
    return policy, run


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


def paper_row(env_id):
    """The name of `env_id`'s row in PAPER_SETTINGS, whatever its module and version, or None."""
    row = re.sub(r"(-v\d+)?$", "-v4", env_id.rpartition(":")[2], count=1)
    return row if row in PAPER_SETTINGS else None


RULES = """0 <= learning_starts < total_timesteps; 1 <= batch_size <= buffer_size
1 <= eval_frequency; 0 <= eval_episodes; 1 <= eval_max_steps; 1 <= checkpoint_frequency
1 <= torch_threads <= 1024; 0 < learning_rate < inf; 0 < max_grad_norm < inf; 0 < alpha < inf
0 < tau <= 1; 0 <= gamma <= 1; 0 <= seed < 2**32; -inf < sigma_min < sigma_max < inf
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


def beginning(envs, seed):
    """Resets environments and steps them side by side. Returns what each gave, (len(envs), n)."""
    seen = [[env.reset(seed=seed)[0]] for env in envs]
    for _ in range(3):
        for env, numbers in zip(envs, seen):
            obs, reward, terminated, truncated, _ = env.step(env.action_space.high)
            numbers += [obs, reward, terminated, truncated]
            if terminated or truncated:
                env.reset()
    return np.stack([np.hstack(numbers, dtype=np.float32) for numbers in seen])


@contextlib.contextmanager
def usable(args):
    """Raises UsageError if the environment fails in here."""
    try:
        yield
    except (Exception, SystemExit) as error:  # each in its own way
        flags = f"--env-id {args.env_id}" + " --capture-video (to videos/)" * args.capture_video
        hint = "PACKAGE:ID imports PACKAGE, or your MY_MODULE.py with kwargs or wrappers (FlattenObservation)"
        several = "evaluations need several independent instances, --eval-episodes 0 trains without"
        raise UsageError(f"{flags} must work here: {error!r}; {hint}; {several}") from error


def check_env(args, device):
    """First contact: tries the environment out, says what it does not keep to, and closes it.
    Returns (obs_dim, act_dim). Raises UsageError."""
    with contextlib.ExitStack() as stack, usable(args):
        stack.enter_context(contextlib.chdir("."))  # and back here, wherever the environment goes
        env = stack.enter_context(make_env(args.env_id, "" if args.capture_video else None))
        seen = np.concatenate([beginning([env], args.seed) for _ in range(3)])  # some differ only late
        if seen.shape[1] != 4 * env.observation_space.shape[0] + 9:
            raise TypeError(f"observations are not in {env.observation_space}")
        if torch.get_default_dtype() != torch.float32 or not torch.is_grad_enabled():
            raise TypeError("it must leave PyTorch's default type and gradients as they are")
        if args.capture_video and env.render() is None:
            raise TypeError("it renders no pictures")
        if args.eval_episodes > 0:
            both = beginning([env, stack.enter_context(make_env(args.env_id))], args.seed)
            if np.ptp(seen, axis=0).max() == 0 and not np.array_equal(both[0], seen[0]):
                raise TypeError("stepping a second instance moves the first")
            seen = np.concatenate([seen, both])
    if np.ptp(seen, axis=0).max() > 0:
        follows = "evaluations, --evaluate and --resume (not bit for bit) begin anew what outlives a"
        follows += " reset, such as running statistics; to normalise, take a wrapper without memory or"
        follows += " meow_isaacgym.py"
        say(f"{args.env_id} does not repeat after reset(seed=...): {follows}")
    limit = None
    if env.has_wrapper_attr("_max_episode_steps"):
        limit = env.get_wrapper_attr("_max_episode_steps")
    if (limit or math.inf) > min(args.eval_max_steps, 10 * args.checkpoint_frequency):
        ends = "evaluations end there, and --resume begins a new episode, not bit for bit"
        say(f"{args.env_id} has no time limit up to --eval-max-steps or 10 * --checkpoint-frequency: {ends}")
    if paper_row(args.env_id) and mujoco.__version__ != "3.4.0":  # newest with the paper's contacts
        say(f"mujoco {mujoco.__version__} is not 3.4.0: returns do not compare with the paper's")
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    check_memory(device, "--buffer-size", args.buffer_size, 2 * obs_dim + act_dim + 2)
    return obs_dim, act_dim


def make_env(env_id, film=None, max_steps=None):
    """The environment with copies of observations in float32 and actions in [-1,1]^A, rescaled to
    its bounds (Humanoid's are +-0.4) and clipped, as rounding may leave them.
    film: a folder for films, "" only renders, None does not. TypeError for unfit spaces."""
    if film is not None and sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default renderer needs a display
    env = gym.make(env_id) if film is None else gym.make(env_id, render_mode="rgb_array")
    obs_space, space = env.observation_space, env.action_space
    fits = isinstance(obs_space, gym.spaces.Box) and isinstance(space, gym.spaces.Box)
    fits = fits and len(obs_space.shape) == len(space.shape) == 1 and space.is_bounded()
    if not (fits and space.dtype.kind == "f" and (space.low < space.high).all()):
        env.close()
        raise TypeError(f"needs a 1-D Box of observations, a bounded 1-D Box of float actions; {obs_space}, {space}")
    if max_steps is not None:
        env = gym.wrappers.TimeLimit(env, max_steps)
    if film:
        renderer = getattr(env.unwrapped, "mujoco_renderer", None)
        if renderer is not None:  # gymnasium 1.4 films where the body started
            renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        endless = (env.spec.max_episode_steps or math.inf) > 1000  # its film ends, or memory would
        env = gym.wrappers.RecordVideo(env, film, video_length=1000 * endless)

    def clipped(action):
        if not np.isfinite(action).all():
            advice = "the policy has diverged, lower --learning-rate, or an observation was not"
            raise FloatingPointError(f"an action is not finite: {advice}")
        return action.clip(space.low, space.high)

    env = gym.wrappers.TransformAction(env, clipped, space)
    env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    env = gym.wrappers.DtypeObservation(env, np.float32)
    env = gym.wrappers.TransformReward(env, lambda reward: np.asarray(reward).item())
    return gym.wrappers.RecordEpisodeStatistics(env, stats_key="sums")


def make_eval_envs(args, stack, film=None):
    """--eval-episodes environments in one vector; the first is filmed, if `film` is a folder."""
    envs = []
    for i in range(args.eval_episodes):
        env = make_env(args.env_id, film if i == 0 else None, args.eval_max_steps)
        envs.append(stack.enter_context(env))
    return gym.vector.SyncVectorEnv([lambda env=env: env for env in envs])


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
MAY_CHANGE = """resume evaluate total_timesteps checkpoint_frequency capture_video track
wandb_project_name wandb_entity cuda cuda_graph compile torch_threads"""
MAY_CHANGE_TOO = "env_id seed eval_episodes eval_deterministic eval_max_steps"  # with --evaluate


def check_unchanged(args, stored, flag):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names."""
    may_change = f"{MAY_CHANGE} {MAY_CHANGE_TOO if flag == '--evaluate' else ''}".split()
    for name, value in stored.items():
        if name not in may_change and getattr(args, name, value) != value:
            raise UsageError(f"--{name.replace('_', '-')} must stay {value} with {flag}")


def load_policy(path):
    """The FlowPolicy of a model file or of a run's folder, on the CPU, and the dict about it.
    Raises UsageError."""
    path = Path(path, "model.pt") if Path(path).is_dir() else path
    with loaded(path, "--evaluate") as model:
        if "env_id" not in model["about"]["args"]:
            raise ValueError("meow_isaacgym.py wrote it")
        policy = FlowPolicy(**model["about"]["network"])
        policy.load_state_dict(model["state_dict"])
    return policy, model["about"]


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError without one."""
    if args.evaluate is not None:
        stored = load_policy(args.evaluate)[1]["args"]
        stored = {name: value for name, value in stored.items() if hasattr(args, name)}
        return replace(args, **{**stored, "evaluate": args.evaluate, "seed": 0})
    with loaded(Path(args.resume, "checkpoint.pt"), "--resume") as state:
        if "env_id" not in state["about"]["args"]:
            raise ValueError("meow_isaacgym.py wrote it")
        return Args(**{**state["about"]["args"], "resume": args.resume})


def play(args):
    """Plays --eval-episodes episodes with the model of --evaluate. Returns their returns."""
    policy, about = load_policy(args.evaluate)
    args.eval_episodes = args.eval_episodes or 1  # of a run without evaluations
    check_unchanged(args, about["args"], "--evaluate")
    check_args(args)
    instances = replace(args, eval_episodes=args.eval_episodes - 1)  # for one, a second is not tried
    dims = check_env(instances, torch.device("cpu"))
    if dims != (about["network"]["obs_dim"], about["network"]["act_dim"]):
        raise UsageError(f"--env-id must have the observations and actions of the model of --evaluate, not {dims}")
    say(f"{about['args']['env_id']} after {about['step']:,} steps ({about['versions']})")
    with contextlib.ExitStack() as stack:
        set_up_torch(args, torch.device("cpu"), stack)
        film = os.path.abspath(f"videos/{about['run']}-at-{about['step']}") if args.capture_video else None
        with usable(args):
            envs = make_eval_envs(args, stack, film)
        returns, successes = evaluate(policy, envs, args.eval_deterministic, args.seed)
    kind = "deterministic" if args.eval_deterministic else "stochastic"
    for seed, episodic_return in enumerate(returns, args.seed):
        say(f"episode {seed}: {episodic_return:.1f}")
    summary = f"mean {returns.mean():.1f}, std {returns.std():.1f}, success rate {successes.mean():.2f}"
    say(f"{len(returns)} {kind} episodes of {args.env_id}: {summary}")
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop, 130
    after Ctrl-C."""
    sys.path.append(os.getcwd())  # for a user's own modules
    for message in (".*is out of date", ".*precision lowered"):  # v4 and float32 are the point here
        warnings.filterwarnings("ignore", message=message)
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
