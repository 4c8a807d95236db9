"""MEow on thousands of parallel environments (Isaac Gym), in one file (NeurIPS 2024, arXiv 2405.13629).

    python meow_isaacgym.py --task Ant                              # Isaac Gym, the paper's settings for that task
    python meow_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco     # on MuJoCo, no GPU needed
    python meow_isaacgym.py --resume runs/NAME                      # goes on with an interrupted run
    python meow_isaacgym.py --evaluate runs/NAME                    # plays episodes with what was learnt

The algorithm is that of meow_continuous_action.py, whose classes are repeated here word for word (Eq. 8, Eq. 9, LRS,
SCDQ). What this setting adds: a running normaliser of the observations, a replay buffer of (steps x N) transitions,
episode statistics and all else on one device, with no host synchronisation in the loop, and the data of a simulator
that resets by itself, one step late. N environments take one vector step together, with one update a vector step.

Expected (paper, mean return of the last 100 training episodes after 1M vector steps, on the Omniverse port of these
tasks, whose rewards and physics differ somewhat): Ant 7,990, Humanoid 4,650. Nothing here was run on Isaac Gym itself.

Where the paper's code stores something else, the default here is the correct one and a switch gives the paper's:
--timeouts-terminate, --keep-spurious, --normalize-samples, --clamp-actions.
"""

import contextlib
import copy
import hashlib
import importlib
import io
import json
import math
import os
import pickle
import platform
import random
import re
import signal
import sys
import threading
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Optional

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
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# Table A4 and the authors' launch settings. A row holds only what differs from the shared defaults.
SHARED_SETTINGS = {
    "num_envs": 128,
    "batch_size": 1024,
    "total_vector_steps": 1_000_000,
    "alpha": 0.075,
    "tau": 0.0005,
    "sigma_min": -5.0,
    "sigma_max": -0.3,
}
PAPER_SETTINGS = {
    "Ant": {"sigma_max": 2.0},
    "Humanoid": {"alpha": 0.25, "tau": 0.00025},
    "Ingenuity": {"total_vector_steps": 500_000, "alpha": 0.025, "tau": 0.0025, "sigma_min": -4.0},
    "Anymal": {"alpha": 0.00075, "tau": 0.025, "sigma_max": -1.0},
    "AllegroHand": {"num_envs": 512, "batch_size": 256, "alpha": 0.1, "tau": 0.001, "sigma_min": -4.0},
    "FrankaCabinet": {"num_envs": 512, "batch_size": 256, "tau": 0.01},
}


def paper_row(task):
    """The name of `task`'s row in PAPER_SETTINGS (AntMujoco has Ant's), or None if it has none."""
    row = task[: -len("Mujoco")] if task.endswith("Mujoco") else task
    return row if row in PAPER_SETTINGS else None


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Raised before any work; exit code 2."""


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment (the paper's curves: 5 seeds)"""
    torch_deterministic: bool = True
    """sets `torch.backends.cudnn.deterministic`"""
    cuda: bool = True
    """use a CUDA device where there is one, for simulator and learning"""
    compile: bool = True
    """on the CPU: compile the update (about a minute once); eager where that fails, as before PyTorch 2.13"""
    compile_min_vector_steps: int = 20_000
    """runs with fewer vector steps stay eager: they would not win the time to compile back"""
    cuda_graph: bool = True
    """on CUDA: replay update and action as one captured graph"""
    torch_threads: int = 1
    """threads of PyTorch on the CPU"""
    track: bool = False
    """track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)"""
    wandb_project_name: str = "meow"
    """the wandb's project name"""
    wandb_entity: Optional[str] = None
    """the entity (team) of wandb's project"""

    # What a run leaves, and what can be done with it
    log_frequency: int = 1_000
    """vector steps between two lines of returns.csv: mean return of the last 100 training episodes"""
    save_model: bool = True
    """write the networks: `model.pt` at the end, `model_best.pt` when the mean of 100 episodes is the best so far"""
    checkpoint_frequency: int = 10_000
    """vector steps between two checkpoints, of which the newest two are kept"""
    resume: Optional[str] = None
    """the folder of a run to go on with, from its newest checkpoint; the settings are the run's own"""
    evaluate: Optional[str] = None
    """a run's folder (its model.pt) or a model file: play --eval-episodes episodes, print the returns, train nothing"""
    eval_episodes: int = 10
    """with --evaluate: episodes, one in each of so many environments"""
    stochastic: bool = False
    """with --evaluate: sample the policy instead of acting by the flow's forward pass of z = 0 (Sec. 3.3)"""

    # The simulator
    make: str = "isaacgymenvs:make"
    """MODULE:FUNCTION with the signature of isaacgymenvs.make; without Isaac Gym: benchmark.simulators.mujoco:make"""
    task: str = "Ant"
    """the task, by the simulator's name for it"""
    num_envs: Optional[int] = None
    """parallel environments (None: the paper's for --task)"""

    # Algorithm specific arguments
    total_vector_steps: Optional[int] = None
    """vector steps of the experiment, each one step in every environment (Fig. 4; None: the paper's for --task)"""
    buffer_steps: int = 15_000
    """the replay memory's size in vector steps, --num-envs transitions each"""
    batch_size: Optional[int] = None
    """the batch size of sample from the replay memory (None: the paper's for --task)"""
    random_steps: int = 100
    """vector steps with uniform actions"""
    learning_starts: int = 200
    """vector step after which there is one update a step; between --random-steps and it the policy acts only"""
    learning_rate: float = 1e-3
    """the learning rate of Adam, the one optimizer (Table A1)"""
    max_grad_norm: float = 60.0
    """the maximum norm for the gradient clipping: 30 (Table A1) of the authors' loss here, which is half of this one"""
    gamma: float = 0.99
    """the discount factor gamma (Table A1)"""
    tau: Optional[float] = None
    """target smoothing coefficient of the Polyak average (None: the paper's for --task)"""
    alpha: Optional[float] = None
    """temperature of pi = exp((Q - V) / alpha), weight of the entropy (None: the paper's for --task)"""
    sigma_min: Optional[float] = None
    """lower bound of log sigma(s), the linear layer's scale (None: the paper's for --task)"""
    sigma_max: Optional[float] = None
    """upper bound of log sigma(s) (None: the paper's for --task)"""
    coupling: Literal["additive", "affine"] = "additive"
    """kind of the non-linear layers (Fig. A1)"""
    num_shifts: Literal[0, 1, 2] = 2
    """learnable reward shifts (Sec. 3.2): 0 vanilla, 1 +LRS, 2 +LRS & SCDQ"""

    # The paper's own conventions, to reproduce its curves as they were made
    timeouts_terminate: bool = False
    """a time limit cuts the bootstrap as a termination does (paper); default: it does not"""
    keep_spurious: bool = False
    """store the step in which the simulator resets, from a last observation to a first (paper); default: dropped"""
    normalize_samples: bool = False
    """the normaliser learns from the sampled batches at every update (paper); default: from each new observation"""
    clamp_actions: bool = False
    """store atanh of float32 actions, clamped 1e-5 from the bounds (paper); default: the actions before tanh"""

    def __post_init__(self):
        settings = {**SHARED_SETTINGS, **PAPER_SETTINGS.get(paper_row(self.task), {})}
        for name, value in settings.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


def describe_settings(args):
    """One line a setting of the paper's table: what the run resolved it to and where that comes from."""
    row = paper_row(args.task)
    if row is None:
        lines = [f"{args.task} is not in the paper: settings not given as flags are the shared defaults"]
    else:
        lines = [f"{args.task}: the paper's settings for {row}, flags win"]
    for name, default in SHARED_SETTINGS.items():
        table, value = PAPER_SETTINGS.get(row, {}).get(name, default), getattr(args, name)
        lines.append(f"  {name} = {value:,}" + ("" if value == table else f" (set by you; the table has {table:,})"))
    return "\n".join(lines)


def use_onednn(device):
    """Lets PyTorch take oneDNN for matrix products on the CPU, if it computes them in float32 there.

    SPEED: -16% of a step of Hopper-v4, -32% of Humanoid-v4's, on a Zen 5, whose AVX-512 units MKL leaves half idle.
    "medium" also allows bfloat16, which oneDNN takes on CPUs with AMX, and TF32 on CUDA: there it is "highest".
    """
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "highest")
    x = torch.linspace(-1, 1, 2**16).view(2**8, 2**8)
    if (x @ x - x.double() @ x.double()).abs().max() > 1e-3:
        torch.set_float32_matmul_precision("highest")


def check_args(args):
    """Raises UsageError for arguments no run can have."""

    def integer(low, high=math.inf):
        return lambda x: isinstance(x, int) and low <= x <= high

    counts = ("num_envs", "total_vector_steps", "buffer_steps", "batch_size", "log_frequency", "checkpoint_frequency")
    for names, allowed, is_allowed in [
        ((*counts, "eval_episodes", "torch_threads"), "an integer of at least 1", integer(1)),
        (("random_steps", "compile_min_vector_steps"), "an integer of at least 0", integer(0)),
        (("learning_starts",), "an integer of at least 1", integer(1)),
        (("seed",), "an integer from 0 to 2**32 - 1", integer(0, 2**32 - 1)),
        (("learning_rate", "max_grad_norm", "alpha"), "a finite number above 0", lambda x: 0 < x < math.inf),
        (("tau",), "above 0 and at most 1", lambda x: 0 < x <= 1),
        (("gamma",), "between 0 and 1", lambda x: 0 <= x <= 1),
        (("sigma_min", "sigma_max"), "a finite number", math.isfinite),
        (("coupling",), "additive or affine", lambda x: x in ("additive", "affine")),
        (("num_shifts",), "0, 1 or 2", lambda x: x in (0, 1, 2)),
        (("exp_name", "task"), "a name without /", lambda x: "/" not in x),
        (("make",), "MODULE:FUNCTION", re.compile(r"[A-Za-z_][\w.]*:\w+").fullmatch),
    ]:
        for name in names:
            if not is_allowed(getattr(args, name)):
                raise UsageError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(args, name)}")
    if args.sigma_min >= args.sigma_max:
        raise UsageError(f"--sigma-min must be below --sigma-max, got {args.sigma_min} and {args.sigma_max}")
    if not args.random_steps <= args.learning_starts < args.total_vector_steps:
        raise UsageError(
            "--learning-starts must be at least --random-steps and below --total-vector-steps, "
            f"got {args.learning_starts}, {args.random_steps} and {args.total_vector_steps}"
        )
    if args.resume is not None and args.evaluate is not None:
        raise UsageError("--resume and --evaluate must not be given together: one trains, the other only plays")
    if args.stochastic and args.evaluate is None:
        raise UsageError("--stochastic is allowed with --evaluate only; training always samples the policy")


def make_env(args, num_envs, device):
    """The simulator: whatever --make names, called with the signature of isaacgymenvs.make.

    Raises UsageError if it cannot be imported or made.
    """
    module, _, function = args.make.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module may raise when it is imported
        problem = f"--make {args.make} cannot be imported ({type(error).__name__}: {error}"
        if not module.startswith("isaacgymenvs"):
            raise UsageError(
                f"{problem}): benchmark/ must lie beside this script, or MODULE be on PYTHONPATH"
            ) from error
        raise UsageError(
            f"{problem}; isaacgym: {isaacgym_problem or 'imported'}): install Isaac Gym as the README says, or train "
            "on MuJoCo with --make benchmark.simulators.mujoco:make --task AntMujoco"
        ) from error
    sim = {"num_envs": num_envs, "sim_device": str(device), "rl_device": str(device)}
    try:  # headless, or it opens a viewer
        return make(seed=args.seed, task=args.task, **sim, graphics_device_id=-1, headless=True)
    except (Exception, SystemExit) as error:  # every simulator fails in its own way, Isaac Gym by quit()
        problem = f"{type(error).__name__}: {error}"
        raise UsageError(f"--make {args.make} could not make --task {args.task} here ({problem})") from error


# ALGO LOGIC: initialize agent here:
class Swish(nn.Module):
    """x * sigmoid(beta * x) with a learnable beta per unit, 1 at the start. (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Linear(nn.Linear):
    """nn.Linear with a bias, compiled faster if narrow or with fewer inputs than outputs. (B, in) -> (B, out)."""

    NARROW = 8

    def forward(self, x):
        if self.out_features <= self.NARROW:
            # SPEED: -8% of a compiled step: too narrow for a matrix routine, and a sum fuses with what is around it
            return (x[:, None, :] * self.weight).sum(dim=-1) + self.bias
        if self.in_features < self.out_features:
            # SPEED: through a transposed copy the weight's gradient is x^T g, not g^T x, 2-4x slower for a narrow x
            return x @ self.weight.T.contiguous() + self.bias
        return super().forward(x)


class MLP(nn.Sequential):
    """in_dim -> hidden -> hidden -> out_dim, each hidden layer: Linear, [LayerNorm], Swish, [dropout].

    init_weight initialises the weight of every Linear; the biases keep the framework's default.
    """

    def __init__(self, in_dim, hidden, out_dim, init_weight, layer_norm=False):
        layers = []
        for fan_in in (in_dim, hidden):
            layers.append(Linear(fan_in, hidden))
            if layer_norm:
                layers.append(nn.LayerNorm(hidden))
            layers.append(Swish(hidden))
        super().__init__(*layers, Linear(hidden, out_dim))
        for layer in self:
            if isinstance(layer, nn.Linear):
                init_weight(layer.weight)

    def forward(self, x, dropout=None):
        """(B, in_dim) -> (B, out_dim). dropout: a mask a hidden layer, (2, B, hidden), or None for no dropout."""
        masks = iter(()) if dropout is None else iter(dropout)
        for layer in self:
            x = layer(x)
            if dropout is not None and isinstance(layer, Swish):
                x = x * next(masks)
        return x


class CouplingLayer(nn.Module):
    """A non-linear layer of the flow (i in S_n) and hypernetwork (a), which makes its parameters from the state.

    Coordinates where mask is 1 pass unchanged, and with the state they determine the map of the others:
    u + t (additive, NICE) or u * exp(log_scale) + t (affine, RealNVP). Its Jacobian is triangular.
    """

    def __init__(self, obs_dim, act_dim, mask, affine):
        super().__init__()
        self.register_buffer("mask", mask)  # (A,)

        def hypernetwork():
            return MLP(obs_dim + act_dim, 64, act_dim, nn.init.orthogonal_, layer_norm=True)

        self.translation = hypernetwork()
        self.log_scale = hypernetwork() if affine else None

    def forward(self, u, obs):
        """Sampling direction: (B, A), (B, S) -> (B, A)."""
        x = torch.cat([self.mask * u, obs], dim=1)
        if self.log_scale is not None:
            u = u * ((1 - self.mask) * self.log_scale(x)).exp()
        return u + (1 - self.mask) * self.translation(x)

    def inverse(self, u, obs, dropout=(None, None)):
        """Density direction g^i: (B, A), (B, S) -> (B, A) and log|det J_i| (B,). dropout: masks a hypernetwork."""
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
    Q and log_prob are over a, but take u: where tanh saturates, a float32 a does not give u back.
    Raises ValueError if coupling is neither "additive" nor "affine" or num_shifts is not 0, 1 or 2.
    """

    def __init__(self, obs_dim, act_dim, alpha, sigma_min=-5.0, sigma_max=-0.3, coupling="additive", num_shifts=2):
        super().__init__()
        if coupling not in ("additive", "affine"):
            raise ValueError(f"coupling must be 'additive' or 'affine', got {coupling!r}")
        if num_shifts not in (0, 1, 2):
            raise ValueError(f"num_shifts must be 0, 1 or 2, got {num_shifts!r}")
        self.act_dim, self.alpha, self.sigma_min, self.sigma_max = act_dim, alpha, sigma_min, sigma_max
        mask = (torch.arange(act_dim) + 1) % 2.0  # 1, 0, 1, 0, ...
        masks = [mask, 1 - mask, mask, 1 - mask]  # 2 blocks x 2 couplings
        self.couplings = nn.ModuleList([CouplingLayer(obs_dim, act_dim, m, coupling == "affine") for m in masks])
        self.sigma_net = MLP(obs_dim, 64, act_dim, nn.init.zeros_)  # hypernetwork (b)
        self.shifts = nn.ModuleList([MLP(obs_dim, 256, 1, nn.init.zeros_) for _ in range(num_shifts)])  # b1, b2
        self.flatten()

    def flatten(self):
        """Makes all parameters views of one new vector (P,), `self.vector`. Returns self."""
        self.vector = torch.cat([param.detach().flatten() for param in self.parameters()])
        for param, view in zip(self.parameters(), self.views(self.vector).values()):
            param.data = view
        return self

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)  # to(device) and the like separate the parameters
        return self if next(self.parameters()).data_ptr() == self.vector.data_ptr() else self.flatten()

    def __setstate__(self, state):
        super().__setstate__(state)
        self.flatten()  # so do copies

    def views(self, vector, prefix=""):
        """{prefix + name: parameter} with the values of a vector (P,), as `functional_call` takes them."""
        named = dict(self.named_parameters())
        pieces = vector.split([param.numel() for param in named.values()])
        return {prefix + name: piece.view(named[name].shape) for name, piece in zip(named, pieces)}

    def log_sigma(self, obs):
        """Log of the linear layer's diagonal, in [sigma_min, sigma_max]: (B, S) -> (B, A)."""
        return self.sigma_min + 0.5 * (self.sigma_max - self.sigma_min) * (torch.tanh(self.sigma_net(obs)) + 1)

    def shift(self, obs):
        """alpha * b_k(s) of learnable reward shifting (Sec. 3.2), zero without: (B, S) -> (B, max(1, num_shifts))."""
        if len(self.shifts) == 0:
            return obs.new_zeros(len(obs), 1)
        return self.alpha * torch.cat([b(obs) for b in self.shifts], dim=1)

    def dropout_masks(self, batch):
        """Draws the masks of dropout 0.1 for `batch` rows: (couplings, hypernetworks, hidden layers 2, batch, 64)."""
        shape = (len(self.couplings), 2 if self.couplings[0].log_scale is not None else 1, 2, batch, 64)
        device = self.couplings[0].mask.device
        # SPEED: one draw of 16 random bits a unit for all masks: 0.14 ms a step, compiled nn.Dropout 1.3 ms
        bits = torch.empty(math.prod(shape) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
        dropped = round(0.1 * 2**16)
        masks = torch.empty(shape, device=device)
        torch.ge(bits.view(torch.int16).view(shape), dropped - 2**15, out=masks)
        return masks.div_(1 - dropped / 2**16)

    @staticmethod
    def pre_tanh(act):
        """u with tanh(u) = act, for actions that come from elsewhere; the paper's code keeps them 1e-5 from +-1."""
        return torch.atanh(act.clamp(-1 + 1e-5, 1 - 1e-5))

    def inverse(self, obs, u, dropout=None):
        """Non-linear layers, u (B, A) -> sigma(s) * z (B, A), log prod_{i in S_n} |det J_i(a,s)| (B,), tanh's too."""
        # d atanh(a)/da = 1/(1-a^2), and -log(1 - tanh(u)^2) = 2 log cosh(u), written so as not to overflow
        log_det = 2 * (u + nn.functional.softplus(-2 * u) - math.log(2)).sum(dim=1)
        for i, layer in reversed(list(enumerate(self.couplings))):
            u, layer_log_det = layer.inverse(u, obs) if dropout is None else layer.inverse(u, obs, dropout[i])
            log_det = log_det + layer_log_det
        return u, log_det

    def get_q(self, obs, u, dropout=None):
        """Q_b(s,a) = Q(s,a) + b_k(s), a = tanh(u), in one pass: (B, S), (B, A) -> (B, max(1, num_shifts)).

        dropout: masks of `dropout_masks(B)`, or None for no dropout.
        """
        scaled_z, log_det = self.inverse(obs, u, dropout)
        log_p_z = -0.5 * (scaled_z / self.log_sigma(obs).exp()).square().sum(dim=1)  # without p_z's constant
        q = self.alpha * (log_p_z + log_det)  # Eq. 8
        return q[:, None] + self.shift(obs)  # Sec. 3.2

    def get_v(self, obs):
        """V_b(s) = V(s) + b_k(s), not clipped: (B, S) -> (B, max(1, num_shifts)). Evaluates no coupling layer."""
        log_det = -self.log_sigma(obs).sum(dim=1)  # of z = u / sigma(s)
        v = self.alpha * (0.5 * self.act_dim * math.log(2 * math.pi) - log_det)  # Eq. 8, with p_z's constant
        return v[:, None] + self.shift(obs)  # Sec. 3.2

    def log_prob(self, obs, u):
        """log pi(a|s) = (Q(s,a) - V(s)) / alpha, a = tanh(u), in which the shifts cancel: (B, S), (B, A) -> (B,)."""
        scaled_z, log_det = self.inverse(obs, u)
        log_sigma = self.log_sigma(obs)
        log_p_z = -0.5 * (scaled_z / log_sigma.exp()).square().sum(dim=1) - 0.5 * self.act_dim * math.log(2 * math.pi)
        return log_p_z + log_det - log_sigma.sum(dim=1)

    def forward(self, obs, z):
        """Sampling direction: (B, S), z (B, A) -> u (B, A), the action before tanh."""
        u = self.log_sigma(obs).exp() * z
        for layer in self.couplings:
            u = layer(u, obs)
        return u

    def draw(self, obs, deterministic=False):
        """u of an action a = tanh(u) ~ pi(.|s), by one forward pass: (B, S) -> (B, A).

        deterministic: the forward pass of z = 0 (Sec. 3.3). With additive couplings that is the mode of the density of
        u, so tanh(u) is not quite argmax_a Q(s,a), in which tanh's log-determinant counts too.
        """
        z = obs.new_zeros(len(obs), self.act_dim)
        return self(obs, z if deterministic else torch.randn_like(z))

    def act(self, obs, deterministic=False):
        """An action as the environment takes it: (B, S) -> act (B, A). See `draw`."""
        return torch.tanh(self.draw(obs, deterministic))

    def sample(self, obs, deterministic=False):
        """An action and the log-density of that very action: (B, S) -> act (B, A), log_prob (B,)."""
        u = self.draw(obs, deterministic)
        return torch.tanh(u), self.log_prob(obs, u)


class RunningNormalizer(nn.Module):
    """(x - mean) / std, clipped to [-5, 5], by the running moments of all it was updated with. (B, dim) -> (B, dim).

    The moments are float64: after 1e8 observations float32 could no longer count them.
    """

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64))

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
        """An action for raw observations: (B, S) -> (B, A) in [-1,1]. See FlowPolicy.act."""
        return self.policy.act(self.normalizer(obs), deterministic)

    @torch.no_grad()
    def draw(self, obs):
        """An action before tanh for raw observations: (B, S) -> (B, A). See FlowPolicy.draw."""
        return self.policy.draw(self.normalizer(obs))


class Transitions(NamedTuple):
    """A batch, float32: obs, next_obs (B, S), act (B, A; as stored: here before tanh), reward, terminated (B, 1)."""

    obs: torch.Tensor
    next_obs: torch.Tensor
    act: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor


class VectorReplayBuffer:
    """Uniform replay memory: one preallocated ring on `device`, written and drawn without host synchronisation."""

    def __init__(self, capacity, obs_dim, act_dim, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        self.capacity = capacity
        # on the CPU the memory is taken only as it fills; the last row takes what is not to be stored
        self.rows = torch.empty(capacity + 1, sum(self.widths), device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # transitions ever

    def add(self, obs, next_obs, act, reward, terminated, valid):
        """Stores the transitions (N, ...) for which valid (N,) is true; the oldest make room."""
        rows = torch.cat([obs, next_obs, act, reward[:, None], terminated[:, None].float()], dim=1)
        slots = (self.count + valid.cumsum(0) - 1) % self.capacity
        self.rows[torch.where(valid, slots, torch.full_like(slots, self.capacity))] = rows
        self.count += valid.sum()

    def sample(self, batch_size):
        """Draws Transitions uniformly with replacement."""
        draws = torch.rand(batch_size, dtype=torch.float64, device=self.rows.device)
        rows = self.rows[(draws * self.count.clamp(max=self.capacity)).long()]
        return Transitions(*rows.split(self.widths, dim=1))

    @property
    def added(self):
        """Transitions ever, as an int (synchronises)."""
        return int(self.count)

    @property
    def size(self):
        """Transitions that can be drawn, as an int (synchronises)."""
        return min(self.added, self.capacity)

    def get_rows(self, first, stop):
        """The rows of transitions number `first` to `stop` - 1, counted from the run's start: (stop - first, width)."""
        slots = torch.arange(first, stop, device=self.rows.device) % self.capacity
        return self.rows[slots].cpu().numpy()

    def set_rows(self, first, rows):
        """Puts rows (n, width) where those of transitions number `first` to first + n - 1 lie."""
        slots = torch.arange(first, first + len(rows), device=self.rows.device) % self.capacity
        self.rows[slots] = torch.from_numpy(rows).to(self.rows.device)
        self.count.fill_(first + len(rows))


class EpisodeStatistics:
    """Undiscounted returns and lengths of finished episodes, on the device; the last 100 are read when logged."""

    def __init__(self, num_envs, device):
        self.running = torch.zeros(num_envs, 2, dtype=torch.float64, device=device)  # return and length so far
        self.ring = torch.zeros(num_envs + 101, 2, dtype=torch.float64, device=device)  # the last row is not read
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, reward, done, valid):
        """Takes in a step of all environments, (N,) each; where `valid` is false it belongs to no episode."""
        self.running += torch.stack([reward.double(), torch.ones_like(reward, dtype=torch.float64)], 1) * valid[:, None]
        done = done & valid
        slots = (self.count + done.cumsum(0) - 1) % (len(self.ring) - 1)
        self.ring[torch.where(done, slots, torch.full_like(slots, len(self.ring) - 1))] = self.running
        self.count += done.sum()
        self.running *= ~done[:, None]

    def last(self):
        """Returns and lengths of the last 100 or fewer episodes, as an array (n, 2) (synchronises)."""
        stop = int(self.count)
        slots = torch.arange(max(0, stop - 100), stop, device=self.ring.device) % (len(self.ring) - 1)
        return self.ring[slots].cpu().numpy()


class SoftQLoss(nn.Module):
    """The one loss of MEow (Eq. 9), summed over the shifts: a module, so that `functional_call` can set parameters."""

    def __init__(self, policy, target):
        super().__init__()
        self.policy, self.target = policy, target

    def forward(self, data, gamma, dropout=None):
        """Transitions -> the loss () and Q (B, max(1, num_shifts)). dropout: masks for the Q of the loss alone."""
        with torch.no_grad():
            v_clip = self.target.get_v(data.next_obs).min(dim=1, keepdim=True).values  # SCDQ: V + min(b1, b2), Sec. 3.2
            target_q = data.reward + gamma * (1 - data.terminated) * v_clip  # only termination cuts the bootstrap
        q = self.policy.get_q(data.obs, data.act, dropout)  # data.act: before tanh
        return 0.5 * (q - target_q).square().sum(dim=1).mean(), q  # Eq. 9


class Adam:
    """Adam (Kingma & Ba 2015) on a vector (P,): torch.optim.Adam's numbers, but torch.compile can trace it."""

    def __init__(self, vector, lr):
        self.vector, self.lr = vector, lr
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(vector), torch.zeros_like(vector)
        self.betas = torch.tensor([0.9, 0.999], dtype=torch.float64, device=vector.device)
        self.beta_powers = torch.ones_like(self.betas)

    def step(self, grad):
        """Moves the vector, given the gradient (P,) at it."""
        # SPEED: -3%; compiled, betas**steps is computed anew for each 16 numbers. The clamp: no slow denormal numbers
        self.beta_powers.mul_(self.betas).clamp_(min=1e-300)
        bias1, bias2 = (1 - self.beta_powers).to(grad.dtype)
        self.exp_avg.lerp_(grad, 1 - 0.9)
        self.exp_avg_sq.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
        self.vector.sub_(self.lr / bias1 * self.exp_avg / (self.exp_avg_sq.sqrt() * bias2.rsqrt() + 1e-8))


def update(soft_q_loss, optimizer, data, gamma, tau, max_grad_norm, dropout):
    """A gradient step on Eq. 9 and a Polyak step. Returns the loss, Q (B, max(1, num_shifts)) and the gradient norm.

    soft_q_loss: SoftQLoss. optimizer: Adam of its policy's vector. dropout: masks of `dropout_masks(B)`, or None.
    Raises ValueError if the optimizer is another vector's, as after moving or copying the policy.
    SPEED: gradient, clipping, Adam and Polyak average are each one pass over a vector: 0.3 ms, 1.7 ms for 72 tensors.
    """
    policy, target = soft_q_loss.policy, soft_q_loss.target
    if optimizer.vector is not policy.vector:
        raise ValueError("make the optimizer, Adam(policy.vector, lr), after moving or copying the policy")
    vector = policy.vector.detach().requires_grad_()
    parameters = {**policy.views(vector, "policy."), **target.views(target.vector, "target.")}
    loss, q = functional_call(soft_q_loss, parameters, (data, gamma, dropout))  # Eq. 9
    (grad,) = torch.autograd.grad(loss, vector)

    with torch.no_grad():
        grad_norm = torch.linalg.vector_norm(grad)
        optimizer.step(grad * (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        target.vector.lerp_(policy.vector, tau)  # target <- (1 - tau) * target + tau * policy
    return loss.detach(), q.detach(), grad_norm


def compile_or_eager(args, step, soft_q_loss, data, *inputs):
    """Returns `step`, compiled for the CPU if that works here. It takes `update`'s arguments, and `inputs` after them.

    Compiled, it is for the run's settings and the memory layout of `data` (Transitions) and `inputs` alone.
    SPEED: on Hopper-v4, with the action, 2.7 ms, eager 8.9 ms.
    """
    print("compiling the learning step: about a minute, seconds where cached", flush=True)
    start_time = time.time()
    policy, target = copy.deepcopy((soft_q_loss.policy, soft_q_loss.target))  # the first step is none of the run's
    try:
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad becomes a part of the one graph
        options = {"cpp_wrapper": True}  # SPEED: -6%
        options["cpp.enable_floating_point_contract_flag"] = "fast"  # SPEED: -3%, by fused multiply-adds
        options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe  # SPEED: -5%; a run changes no setting
        compiled = torch.compile(step, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options)
        with torch.random.fork_rng():
            dropout = policy.dropout_masks(args.batch_size)
        rates = args.gamma, args.tau, args.max_grad_norm
        compiled(SoftQLoss(policy, target), Adam(policy.vector, args.learning_rate), data, *rates, dropout, *inputs)
    except (RuntimeError, AttributeError, TypeError) as error:  # no compiler; the last two: an older PyTorch
        print(f"--compile: running eager, for compiling failed ({str(error).partition(chr(10))[0]})", flush=True)
        return step
    print(f"compiled in {time.time() - start_time:.0f} s, which no speed below counts", flush=True)
    return compiled


class CudaGraph:
    """`step`, a function of obs (B, S), captured as one CUDA graph and replayed: one launch instead of hundreds.

    generators: the random streams that it draws from, but for CUDA's own. The first three calls run as they are, which
    warms up what cannot be captured. SPEED: Hopper-v4 at 564 steps/s on an H100, at 68 without on another.
    """

    def __init__(self, step, generators=()):
        self.step, self.generators, self.calls = step, generators, 0

    def __call__(self, obs):
        self.calls += 1
        if self.calls == 1:
            self.obs, self.stream = obs.clone(), torch.cuda.Stream()
        self.obs.copy_(obs)
        if self.calls <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.outputs = self.step(self.obs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return self.outputs
        if self.calls == 4:
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph):
                self.outputs = self.step(self.obs)
        self.graph.replay()
        return self.outputs


def random_streams():
    """The states of the global random streams, as plain data: python, numpy, torch, and CUDA where there is one."""
    name, key, *rest = np.random.get_state()
    streams = {"python": random.getstate(), "numpy": (name, key.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        streams["cuda"] = torch.cuda.get_rng_state()
    return streams


def set_random_streams(streams):
    """Puts the global random streams into states of `random_streams`."""
    random.setstate(streams["python"])
    np.random.set_state(streams["numpy"])
    torch.set_rng_state(streams["torch"])
    if "cuda" in streams and torch.cuda.is_available():
        torch.cuda.set_rng_state(streams["cuda"])


def write_atomically(files):
    """Writes files, {path: bytes}, each whole or as it was: temporary files, flush, fsync, and all renames at the end.

    Raises OSError if that fails, as on a full disk, before any rename.
    """
    try:
        for path, content in files.items():
            with open(f"{path}.tmp", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for path in files:
            Path(f"{path}.tmp").unlink(missing_ok=True)  # its part of a full disk
        raise
    for path in files:
        os.replace(f"{path}.tmp", path)
    if os.name == "posix":  # the renames themselves must reach the disk too
        folder = os.open(Path(path).parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def tensors_to_bytes(state):
    """What torch.save writes of plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getbuffer()


class Checkpoints:
    """The checkpoints in a folder: step_N_C.pt has all of a run but its replay buffer, which is in replay_A_B.npy.

    A replay file has the rows that came between two checkpoints (transitions number A to B - 1) and never changes, so
    a checkpoint writes what is new only. The newest two checkpoints are kept, with the replay files that they need.
    C is the CRC-32 of the file; those of the replay files are in it. Nothing is unpickled but tensors and plain data
    (weights_only, allow_pickle=False): a checkpoint cannot run code.
    """

    FORMAT = 3

    def __init__(self, folder):
        self.folder = Path(folder)
        self.replay_files, self.names = {}, set()  # of the newest one: {name: [A, B, CRC-32]}; all its files

    def save(self, step, state, rb):
        """Writes a checkpoint of plain data and a replay buffer. Raises OSError if that fails: the older ones stay."""
        self.folder.mkdir(exist_ok=True)
        oldest = rb.added - rb.size
        replay_files = {name: file for name, file in self.replay_files.items() if file[1] > oldest}
        if not all((self.folder / name).exists() for name in replay_files):
            replay_files = {}  # somebody deleted them: all is written anew
        first = max([oldest, *(stop for _, stop, _ in replay_files.values())])
        rows_a_file = 2**28 // (4 * rb.rows.shape[1])  # 256 MB, of which two copies are in memory
        written = []
        try:
            for start in range(first, rb.added, rows_a_file):
                stop, rows = min(start + rows_a_file, rb.added), io.BytesIO()
                np.save(rows, rb.get_rows(start, stop), allow_pickle=False)
                written.append(f"replay_{start:012d}_{stop:012d}.npy")
                replay_files[written[-1]] = [start, stop, zlib.crc32(rows.getbuffer())]
                write_atomically({self.folder / written[-1]: rows.getbuffer()})
            state = {**state, "format": self.FORMAT, "step": step, "replay_files": replay_files}
            content = tensors_to_bytes(state)
            step_name = f"step_{step:012d}_{zlib.crc32(content):08x}.pt"
            write_atomically({self.folder / step_name: content})
        except OSError:
            for name in written:
                (self.folder / name).unlink(missing_ok=True)  # its part of a full disk
            raise
        for path in self.folder.iterdir():
            if path.name not in {step_name, *replay_files, *self.names}:
                path.unlink()
        self.replay_files, self.names = replay_files, {step_name, *replay_files}

    def load(self, rb=None):
        """The newest whole checkpoint: fills `rb` and returns the rest, or without `rb` the rest alone.

        Says so if it is not the newest of all. Raises UsageError if there is none, or none that can be used.
        """
        paths, damages = sorted(self.folder.glob("step_*.pt"), reverse=True), []
        if not paths:
            raise UsageError(f"no checkpoint in {self.folder.parent}: --resume must name the folder of a run with one")
        for path in paths:
            try:
                state = self.read(path, rb)
            except (OSError, ValueError, LookupError, RuntimeError, pickle.PickleError) as error:
                damages.append(f"{path} cannot be used ({type(error).__name__}: {error})".partition("\n")[0])
                continue
            for damage in damages if rb else []:
                print(f"{damage}; going on from {path}", flush=True)
            self.replay_files = state["replay_files"]
            self.names = {path.name, *self.replay_files}
            return state
        raise UsageError(f"--resume must name the folder of a run with a whole checkpoint: {'; '.join(damages)}")

    def read(self, path, rb):
        content = path.read_bytes()
        if f"{zlib.crc32(content):08x}" != path.stem.rpartition("_")[2]:
            raise ValueError("its checksum is not that of its name")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["format"] != self.FORMAT:
            raise ValueError(f"it has format {state['format']}, this script reads {self.FORMAT}; its own can go on")
        for name, (first, _, checksum) in state["replay_files"].items() if rb else []:
            content = (self.folder / name).read_bytes()
            if zlib.crc32(content) != checksum:
                raise ValueError(f"{name} is damaged")
            rb.set_rows(first, np.load(io.BytesIO(content), allow_pickle=False))
        return state


def save_model(path, module, about):
    """Writes a module's state dict to PATH.pt, and `about` (a dict) with that file's SHA-256 to PATH.json."""
    content = tensors_to_bytes({name: tensor.cpu() for name, tensor in module.state_dict().items()})
    about = json.dumps(dict(about, sha256=hashlib.sha256(content).hexdigest()), indent=2)
    write_atomically({f"{path}.pt": content, f"{path}.json": about.encode()})


def load_model(path):
    """What `save_model` wrote, from a .pt file or a run's folder: the state dict on the CPU, and the dict about it.

    Raises UsageError if there is none, if a file is damaged or if the two are not of one save.
    """
    path = Path(path)
    if path.is_dir():
        best, path = path / "model_best.pt", path / "model.pt"
        if best.exists() and not path.exists():
            raise UsageError(f"--evaluate: there is no {path}, for that run has not ended: its best so far is {best}")
    try:
        content, stories = path.read_bytes(), [path.with_suffix(".json"), path.with_suffix(".json.tmp")]
        for story in stories if stories[1].exists() else stories[:1]:  # .tmp: killed between the two renames
            about = json.loads(story.read_text())
            if hashlib.sha256(content).hexdigest() == about["sha256"]:
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), about
    except (OSError, ValueError, LookupError, pickle.PickleError) as error:
        raise UsageError(f"--evaluate: {path} must be a model with its .json, or a run's folder: {error}") from error
    raise UsageError(f"--evaluate: {path} must be the file that its .json tells of, its SHA-256 is another")


def load_agent(path):
    """The Agent of a .pt file or of a run's folder, on the CPU, and the dict about it. Raises as `load_model`."""
    state, about = load_model(path)
    agent = Agent(about["network"])
    agent.load_state_dict(state)
    return agent, about


class StopSignals:
    """Notes the first Ctrl-C (SIGINT) or SIGTERM in `number`, for a run to end in order; the second kills as ever."""

    def __init__(self):
        self.number, self.handlers = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self.note)

    def note(self, number, frame):
        self.number = number
        self.restore()
        os.write(2, b"\nstopping: a checkpoint is written first (once more: at once, without)\n")  # print may be busy

    def restore(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


class TrainResult(NamedTuple):
    """What `train` returns: the agent, the folder runs/NAME, and [(vector step, mean return or nan), ...]."""

    agent: Agent
    run_dir: str
    returns: list


def versions_here():
    """{name: version} of what decides a run's numbers."""
    versions = {"numpy": np.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    for name in ("isaacgymenvs", "mujoco"):
        if name in sys.modules:
            versions[name] = getattr(sys.modules[name], "__version__", "unknown")
    return versions


def check_versions(before, now):
    """Tells if versions ({name: version}) changed since a run's checkpoint. Raises UsageError for another MuJoCo."""
    old, new = (versions.get("mujoco") for versions in (before, now))
    if old and new and old != new:  # one curve must be of one simulator
        raise UsageError(f"--resume needs mujoco {old}, as that run had, got {new}: contacts differ between versions")
    if before != now:
        print(f"not to the bit as before: versions were {before}, are {now}", flush=True)


def make_run_dir(args):
    """Makes the folder runs/NAME of a new run. Raises UsageError if it cannot be written."""
    while True:
        run_dir = Path("runs") / f"{args.task}__{args.exp_name}__{args.seed}__{int(time.time())}"
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            time.sleep(1)  # another run of this seed began in the same second
        except OSError as error:
            raise UsageError(f"the folder {run_dir} (from --task and --exp-name) must be writable: {error}") from error


def lock_run(run_dir, stack):
    """Takes the folder for this process, until it ends in whatever way. Raises UsageError if another one has it."""
    if os.name == "posix":
        import fcntl

        file = stack.enter_context(open(run_dir / "lock", "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"--resume must name a run on which no process works, one works on {run_dir}") from error
        except OSError as error:
            print(f"{run_dir} cannot be locked ({error}): let no other process resume it meanwhile", flush=True)


def start_logging(args, config, run_dir, state, stack):
    """Opens config.json, returns.csv, the TensorBoard logs and the W&B run of a folder. `stack` closes them.

    state: of the checkpoint that the run goes on from, or None: what was logged after it is taken back.
    Returns the SummaryWriter, a function that logs (step, seconds, mean return, its std, episodes) and W&B's run id.
    """
    if state:
        check_versions(state["versions"], config["versions"])
    wandb_id = state and state["wandb_id"]
    if args.track:
        import wandb

        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_dir.resolve().name}
        if wandb_id:
            names.update(id=wandb_id, resume="allow")
        try:
            names["config"] = {**config["args"], **config}
            wandb_id = wandb.init(**names, sync_tensorboard=True, save_code=True).id
        except Exception as error:  # no key, no network, bad WANDB_* variables: each its own class
            if state is None:
                (run_dir / "lock").unlink(missing_ok=True)
                run_dir.rmdir()
            raise UsageError(f"--track needs a W&B login, or WANDB_MODE=offline: {error}") from error
        stack.push(lambda exc_type, *_: wandb.finish(exit_code=int(exc_type is not None)))
    write_atomically({run_dir / "config.json": json.dumps(config, indent=2).encode()})

    if state:
        for path in run_dir.glob("events.out.tfevents.*"):
            if path.name in state["events"]:
                os.truncate(path, min(path.stat().st_size, state["events"][path.name]))
            else:
                path.unlink()
    # purge_step: a TensorBoard that is open meanwhile forgets what was taken back
    writer = SummaryWriter(run_dir, purge_step=state["step"] + 1 if state else None)
    stack.callback(writer.close)
    if not state:
        table = "\n".join(f"|{key}|{value}|" for key, value in {**config["args"], **config["versions"]}.items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")

    lines = ["step,seconds,mean,std,episodes\n"]
    lines += [",".join(map(str, row)) + "\n" for row in (state["returns"] if state else [])]
    write_atomically({run_dir / "returns.csv": "".join(lines).encode()})
    file = stack.enter_context(open(run_dir / "returns.csv", "a"))

    def log_returns(*row):
        file.write(",".join(map(str, row)) + "\n")
        file.flush()

    return writer, log_returns, wandb_id


# What a resumed run may change: how long it runs, and what changes none of its numbers but by rounding.
MAY_CHANGE = {"total_vector_steps", "checkpoint_frequency", "save_model", "track", "wandb_project_name", "wandb_entity"}
MAY_CHANGE |= {"cuda", "cuda_graph", "compile", "compile_min_vector_steps", "torch_threads", "torch_deterministic"}
MAY_CHANGE |= {"resume", "evaluate", "eval_episodes", "stochastic"}


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError if there is none."""
    if args.resume is not None:
        settings = Checkpoints(Path(args.resume) / "checkpoints").load()["args"]
    else:
        settings = {**load_model(args.evaluate)[1]["args"], "track": False}
    return Args(**{**settings, "resume": args.resume, "evaluate": args.evaluate})


def check_unchanged(args, stored, flag, may_change):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names, but for names in `may_change`."""
    for name, value in stored.items():
        if name not in may_change and getattr(args, name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} must stay {value} with {flag}, as in that run, got {getattr(args, name)}"
            )


def to_cpu(value):
    """A copy of nested lists, tuples and dicts in which every tensor is on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu().clone()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([to_cpu(item) for item in value])
    return value


def train(args):
    """Trains MEow as `args` says and writes runs/NAME. Returns a TrainResult.

    Raises UsageError before any work for bad input, FloatingPointError if the run diverges, OSError if a log cannot be
    written, and SystemExit (128 + signal) after the checkpoint that Ctrl-C or SIGTERM ask for.
    """
    check_args(args)
    device = torch.device("cuda:0" if torch.cuda.is_available() and args.cuda else "cpu")
    if args.resume is not None:
        stored = Checkpoints(Path(args.resume) / "checkpoints").load()
        check_unchanged(args, stored["args"], "--resume", MAY_CHANGE)
        if args.total_vector_steps < stored["step"]:
            raise UsageError(f"--total-vector-steps must be at least {stored['step']:,}, which that run has done")
        if stored["device"] != str(device):  # their random streams differ
            raise UsageError(f"--resume needs the device {stored['device']} as before, here it is {device}")

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    torch.set_num_threads(args.torch_threads)
    use_onednn(device)

    # env setup
    env = make_env(args, args.num_envs, device)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    capacity = args.buffer_steps * args.num_envs
    gigabytes = 4e-9 * capacity * (2 * obs_dim + act_dim + 2)
    free = (torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available) / 1e9
    if gigabytes > free:
        raise UsageError(
            f"--buffer-steps {args.buffer_steps:,} needs {gigabytes:,.1f} GB for {args.num_envs:,} environments, "
            f"at most the {free:,.1f} GB that are free on {device} are allowed"
        )
    rb = VectorReplayBuffer(capacity, obs_dim, act_dim, device)

    with contextlib.ExitStack() as stack:
        run_dir = make_run_dir(args) if args.resume is None else Path(args.resume)
        lock_run(run_dir, stack)
        checkpoints, state = Checkpoints(run_dir / "checkpoints"), None
        if args.resume is not None:
            state = checkpoints.load(rb)

        settings = {**asdict(args), "resume": None}
        resumed_at = [*state["resumed_at"], state["step"]] if state else []
        config = {"args": settings, "versions": versions_here(), "resumed_at": resumed_at}
        writer, log_returns, wandb_id = start_logging(args, config, run_dir, state, stack)
        print(f"{run_dir}\n{describe_settings(args)}", flush=True)

        stop = StopSignals()
        stack.callback(stop.restore)
        network = {"obs_dim": obs_dim, "act_dim": act_dim, "alpha": args.alpha, "sigma_min": args.sigma_min}
        network.update(sigma_max=args.sigma_max, coupling=args.coupling, num_shifts=args.num_shifts)
        agent = Agent(network).to(device)
        policy, normalizer = agent.policy, agent.normalizer
        target = FlowPolicy(**network).to(device)
        target.load_state_dict(policy.state_dict())
        target.requires_grad_(False)
        soft_q_loss, optimizer = SoftQLoss(policy, target), Adam(policy.vector, args.learning_rate)
        statistics = EpisodeStatistics(args.num_envs, device)
        finite = torch.ones((), dtype=torch.bool, device=device)  # of all numbers so far: read when logging

        def normalized(data):
            return data._replace(obs=normalizer(data.obs), next_obs=normalizer(data.next_obs))

        first_step = state["step"] if state else 0
        learn = update
        long_enough = args.total_vector_steps >= max(args.compile_min_vector_steps, first_step + 1)
        if args.compile and device.type == "cpu" and long_enough:
            data = torch.zeros(args.batch_size, sum(rb.widths)).split(rb.widths, dim=1)
            learn = compile_or_eager(args, update, soft_q_loss, normalized(Transitions(*data)))

        def draw_learn_and_act(obs):
            """A step but for the simulator: raw observations (N, S) -> u (N, A), the batch, Q, loss and norm."""
            data = rb.sample(args.batch_size)
            if args.normalize_samples:
                normalizer.update(torch.cat([data.obs, data.next_obs]))
            data = normalized(data)
            dropout, rates = policy.dropout_masks(args.batch_size), (args.gamma, args.tau, args.max_grad_norm)
            loss, q, grad_norm = learn(soft_q_loss, optimizer, data, *rates, dropout)
            finite.logical_and_(torch.isfinite(loss + grad_norm))
            return agent.draw(obs), data, q, loss, grad_norm

        if device.type == "cuda" and args.cuda_graph:
            draw_learn_and_act = CudaGraph(draw_learn_and_act)

        obs = env.reset()["obs"].clone()
        done = torch.ones(args.num_envs, dtype=torch.bool, device=device)  # the first step is no step of an episode
        u = None  # the actions before tanh (N, A), once they come with the update before them
        returns, seconds_before, best_return = [], 0.0, -math.inf
        learning_state = {
            "policy": policy.vector,
            "target": target.vector,
            "exp_avg": optimizer.exp_avg,
            "exp_avg_sq": optimizer.exp_avg_sq,
            "beta_powers": optimizer.beta_powers,
            "running": statistics.running,
            "ring": statistics.ring,
            "episodes": statistics.count,
            **{f"normalizer_{name}": tensor for name, tensor in normalizer.named_buffers()},
        }
        restorable = hasattr(env, "get_state") and hasattr(env, "set_state")
        if not restorable:
            print(f"{args.make}: no get_state and set_state, so a resumed run begins with new episodes", flush=True)
        if state:
            seconds_before, best_return = state["seconds"], state["best_return"]
            returns = state["returns"]
            for name, tensor in learning_state.items():
                tensor.copy_(state["learning"][name])
            if restorable:
                env.set_state(state["env"])
                obs, done = state["obs"].to(device), state["done"].to(device)
                u = None if state["u"] is None else state["u"].to(device)
            else:
                statistics.running.zero_()
            set_random_streams(state["random"])
        start_time = time.time() - seconds_before
        bar = {"unit": "vector step", "dynamic_ncols": True, "mininterval": 1.0, "miniters": 1}
        progress = stack.enter_context(tqdm(total=args.total_vector_steps, initial=first_step, **bar))

        def say(text):
            progress.write(text, file=sys.stdout)
            sys.stdout.flush()  # a log file shows it now too

        def check_finite(step):
            if not bool(finite):
                raise FloatingPointError(
                    "an observation, action, reward, the loss or its gradient is not finite after the last log or "
                    f"checkpoint before vector step {step:,}: a smaller --learning-rate or larger --alpha may help"
                )

        def write(what, function, *arguments):
            """Calls a function that writes files. Returns whether there was room for them."""
            try:
                function(*arguments)
            except OSError as error:  # a full disk must not end a run: the next time there may be room
                say(f"the {what} could not be written ({error}); what was written before is as it was")
                return False
            return True

        def save(kind, step):
            """Writes model.pt (kind "last") or model_best.pt ("best")."""
            check_finite(step)
            about = {"kind": kind, "run": run_dir.resolve().name, "step": step, "network": network, "args": settings}
            name = "model" if kind == "last" else "model_best"
            save_model(run_dir / name, agent, {**about, "versions": versions_here()})

        def log(step):
            """One line of returns.csv. The only place, with checkpoints, where the host waits for the device."""
            nonlocal best_return
            check_finite(step)
            episodes = statistics.last()
            mean, std = (episodes[:, 0].mean(), episodes[:, 0].std()) if len(episodes) else (math.nan, math.nan)
            seconds = time.time() - start_time
            returns.append((step, round(seconds, 1), float(mean), float(std), len(episodes)))
            log_returns(*returns[-1])
            scalars = {"charts/SPS": int(step * args.num_envs / seconds)}
            if len(episodes):
                scalars.update({"charts/episodic_return": mean, "charts/episodic_length": episodes[:, 1].mean()})
            if learned:
                _, data, q, loss, grad_norm = learned
                with torch.no_grad():  # Fig. 1: logs of the products of the Jacobian determinants
                    scalars["flow/log_det_nonlinear"] = policy.inverse(data.obs, data.act)[1].mean()
                    scalars["flow/log_det_linear"] = -policy.log_sigma(data.obs).sum(dim=1).mean()
                scalars.update({f"losses/qf{k + 1}_values": q_k for k, q_k in enumerate(q.mean(dim=0))})
                scalars.update({"losses/qf_loss": loss, "losses/grad_norm": grad_norm})
            for name, value in scalars.items():
                writer.add_scalar(name, float(value), step)
            say(f"vector step {step:,}: return {mean:.1f} +- {std:.1f} of the last {len(episodes)} episodes")
            is_best = len(episodes) == 100 and mean > best_return
            if args.save_model and is_best and write("best model", save, "best", step):
                best_return = float(mean)

        def checkpoint(step):
            check_finite(step)
            writer.flush()
            about = {"args": settings, "versions": versions_here(), "device": str(device), "resumed_at": resumed_at}
            logs = {"returns": returns, "seconds": time.time() - start_time, "best_return": best_return}
            logs["events"] = {path.name: path.stat().st_size for path in run_dir.glob("events.out.*")}
            world = {"env": env.get_state() if restorable else None, "obs": obs, "done": done, "u": u}
            streams = {"random": random_streams(), "wandb_id": wandb_id}
            checkpoints.save(step, to_cpu({**about, **logs, **world, **streams, "learning": learning_state}), rb)

        # TRY NOT TO MODIFY: start the game
        learned = None
        for step in range(first_step, args.total_vector_steps):
            if step < args.random_steps:
                u = policy.pre_tanh(2 * torch.rand(args.num_envs, act_dim, device=device) - 1)
            elif u is None:  # the later ones come with the update before them
                u = agent.draw(obs)

            # Algorithm 1: step the environments; what comes back is the simulator's own memory, so it is copied
            spurious = done  # after its last step an environment resets in the next one, which is no step of an episode
            next_obs, reward, done, extras = env.step(torch.tanh(u))
            next_obs, reward, done = next_obs["obs"].clone(), reward.clone(), done != 0
            terminated = done if args.timeouts_terminate else done & ~extras["time_outs"]  # a time limit does not cut

            # Algorithm 1: store (s, a, r, s'), the action before tanh
            finite.logical_and_(torch.isfinite(next_obs).all() & torch.isfinite(reward + u.sum(dim=1)).all())
            valid = torch.ones_like(done) if args.keep_spurious else ~spurious
            stored_u = policy.pre_tanh(torch.tanh(u)) if args.clamp_actions else u
            rb.add(obs, next_obs, stored_u, reward, terminated, valid)
            statistics.add(reward, done, ~spurious)
            if not args.normalize_samples:
                normalizer.update(next_obs)
            obs, u = next_obs, None

            # Algorithm 1: one gradient step on Eq. 9, one step of the target and the next actions
            if step >= args.learning_starts:
                learned = draw_learn_and_act(obs)
                u = learned[0]
            progress.update()

            steps_done, ends = step + 1, step + 1 == args.total_vector_steps
            stopped_by = 0 if ends else stop.number  # read once: a signal may come at any moment
            if ends or steps_done % args.log_frequency == 0:
                log(steps_done)
            if args.save_model and stopped_by:
                write("model", save, "last", steps_done)
            if ends or stopped_by or steps_done % args.checkpoint_frequency == 0:
                written = write("checkpoint", checkpoint, steps_done)
            if stopped_by:
                how = "go on" if written else "go on from the newest checkpoint, if there is one,"
                script = os.path.basename(__file__)
                say(f"stopped at vector step {steps_done:,}; {how} with: python {script} --resume {run_dir}")
                sys.exit(128 + stopped_by)
        if args.save_model:
            write("model", save, "last", args.total_vector_steps)
        say(f"finished: {run_dir} (look at it with `tensorboard --logdir runs`)")
    return TrainResult(agent, str(run_dir), [(row[0], row[2]) for row in returns])


def play(args):
    """Plays --eval-episodes episodes at once with the model of --evaluate. Prints and returns their returns.

    Raises UsageError for bad input.
    """
    check_args(args)
    torch.set_num_threads(args.torch_threads)
    agent, about = load_agent(args.evaluate)
    check_unchanged(args, about["args"], "--evaluate", {*MAY_CHANGE, "seed"})
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda:0" if torch.cuda.is_available() and args.cuda else "cpu")
    use_onednn(device)
    env, agent = make_env(args, args.eval_episodes, device), agent.to(device)
    print(f"{args.evaluate}: {about['kind']} model of {args.task}, after {about['step']:,} vector steps", flush=True)
    obs = env.reset()["obs"].clone()
    spurious = torch.ones(args.eval_episodes, dtype=torch.bool, device=device)
    running, returns = spurious.clone(), torch.zeros(args.eval_episodes, dtype=torch.float64, device=device)
    while bool(running.any()):
        obs, reward, done, _ = env.step(agent.act(obs, deterministic=not args.stochastic))
        obs, done = obs["obs"].clone(), done != 0
        returns += reward * (running & ~spurious)
        running &= ~(done & ~spurious)
        spurious = done
    returns = returns.cpu().numpy()
    if not np.isfinite(returns).all():
        raise FloatingPointError("--evaluate: a return is not finite: the model or the simulator has diverged")
    for i, episodic_return in enumerate(returns):
        print(f"episode {i}: {episodic_return:.1f}")
    print(
        f"{len(returns)} {'stochastic' if args.stochastic else 'deterministic'} episodes: mean {returns.mean():.1f}, "
        f"std {returns.std():.1f}, min {returns.min():.1f}, max {returns.max():.1f}"
    )
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop."""
    args = tyro.cli(Args)
    try:
        if args.resume is not None or args.evaluate is not None:
            args = tyro.cli(Args, default=stored_args(args))  # flags win over what that run had
        (play if args.evaluate else train)(args)
    except (UsageError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        advice = "; --resume goes on from the newest checkpoint" if args.evaluate is None else ""
        print(f"{error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
