# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#   "gymnasium[mujoco]==1.4.0",
#   "moviepy==2.2.1",
#   "mujoco==3.4.0",
#   "numpy==2.4.6",
#   "psutil==7.2.2",
#   "tensorboard==2.21.0",
#   "torch==2.13.0",
#   "tqdm==4.70.1",
#   "tyro==1.0.17",
#   "wandb==0.31.0",
# ]
# ///
"""MEow: maximum entropy RL via an energy-based normalizing flow, in one file (NeurIPS 2024, arXiv 2405.13629).

    python meow_continuous_action.py --env-id Humanoid-v4           # the paper's settings for that environment
    python meow_continuous_action.py --env-id Hopper-v4 --seed 2 --track
    python meow_continuous_action.py --env-id Hopper-v4 --num-shifts 0    # ablation: 0 vanilla, 1 +LRS, 2 +LRS & SCDQ
    python meow_continuous_action.py --resume runs/NAME             # goes on with an interrupted run (CPU: to the bit)
    python meow_continuous_action.py --evaluate runs/NAME           # plays episodes with what was learnt

One conditional flow is the soft Q-function, the exact soft value and the sampler at once. Its inverse pass
g(a|s) = z has non-linear layers S_n (tanh and couplings) and one linear layer S_l (a diagonal scale of the state):

    Q(s,a) =  alpha * log( p_z(g(a|s)) * prod_{i in S_n} |det J_i(a,s)| )                                   (Eq. 8)
    V(s)   = -alpha * log( prod_{i in S_l} |det J_i(s)| )  =  alpha * log integral exp(Q(s,a)/alpha) da     (Eq. 8)
    pi(a|s) = exp((Q(s,a) - V(s)) / alpha),  drawn by running the flow forward from z ~ N(0, I)
    loss   =  E[ 1/2 * (Q(s,a) - (r + gamma * (1 - terminated) * V_target(s')))^2 ]                         (Eq. 9)

(p_z's constant, alpha * A/2 * log(2 pi), is counted in V: the policy is the same and both move by one constant.)

Expected (paper, mean return of 10 greedy episodes): Hopper-v4 1,390 at 150k steps, 3,490 at 1.5M; Humanoid-v4 5,620 at
1.25M, 6,810 at 5M. Every run writes TensorBoard logs, config.json, evaluations.csv, the learnt networks (model.pt,
model_best.pt) and checkpoints to runs/NAME.

Where this file departs from the authors' code (the README says why): both shifts are regressed in one pass of the flow
(theirs: two, on a doubled batch), V never runs a coupling layer, the log-probability of a sample is the density of that
very action, actions are stored before tanh (theirs: after, clamped), a non-finite loss stops the run, and there is no
temperature-tuning switch (theirs has no effect).
"""

import contextlib
import copy
import ctypes
import difflib
import hashlib
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
import warnings
import zlib
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
import psutil
import torch
import torch.nn as nn
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

PAPER_MUJOCO = "3.4.0"  # the newest wheel whose contacts are those of the paper's 2.3.7; 3.5.0 changed them

# Table A3 and the authors' launch settings. A row holds only what differs from the shared defaults.
SHARED_SETTINGS = {
    "total_timesteps": 1_500_000,
    "learning_starts": 5_000,
    "alpha": 0.25,
    "tau": 0.005,
    "sigma_min": -5.0,
    "sigma_max": -0.3,
}
PAPER_SETTINGS = {
    "Hopper-v4": {},
    "HalfCheetah-v4": {"learning_starts": 10_000, "tau": 0.003, "sigma_max": 2.0},
    "Walker2d-v4": {"total_timesteps": 4_000_000, "learning_starts": 10_000, "alpha": 0.1},
    "Ant-v4": {"total_timesteps": 4_000_000, "alpha": 0.05, "tau": 0.0001},
    "Humanoid-v4": {"total_timesteps": 5_000_000, "alpha": 0.125, "tau": 0.0005},
}


def paper_row(env_id):
    """The name of `env_id`'s row in PAPER_SETTINGS, whatever its module and version, or None if it has none."""
    row = re.sub(r"(-v\d+)?$", "-v4", env_id.rpartition(":")[2], count=1)
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
    """use a CUDA device where there is one"""
    compile: bool = True
    """on the CPU: compile the update and the action (about a minute once, then seconds); eager where that fails"""
    compile_min_timesteps: int = 20_000
    """runs with fewer timesteps stay eager: they would not win the time to compile back"""
    cuda_graph: bool = True
    """on CUDA: replay the buffer's draw, update and action as one captured graph"""
    torch_threads: int = 1
    """threads of PyTorch on the CPU: 1 is best for runs side by side, one a core; more help one run alone a little"""
    track: bool = False
    """track this experiment with Weights and Biases (offline: set WANDB_MODE=offline)"""
    wandb_project_name: str = "meow"
    """the wandb's project name"""
    wandb_entity: str | None = None
    """the entity (team) of wandb's project"""
    capture_video: bool = False
    """write videos of training episodes 0, 1, 8, 27, ... and every 1000th to `videos/NAME`"""

    # What a run leaves, and what can be done with it
    save_model: bool = True
    """write the networks: `model.pt` at the end, `model_best.pt` at each evaluation that is the best so far"""
    checkpoint_frequency: int | None = None
    """environment steps between two checkpoints, of which the newest two are kept (None: --eval-frequency)"""
    resume: str | None = None
    """the folder of a run to go on with, from its newest checkpoint; the settings are the run's own"""
    evaluate: str | None = None
    """a run's folder (its model.pt) or a model file: play --eval-episodes episodes, print the returns, train nothing"""
    stochastic: bool = False
    """with --evaluate: sample the policy instead of acting deterministically"""

    # Evaluation (the paper's protocol)
    eval_frequency: int = 10_000
    """environment steps between two evaluations; there is one at step 0 and one at the end too"""
    eval_episodes: int = 10
    """episodes of an evaluation, reset with seeds 0, 1, 2, ..."""
    eval_deterministic: bool = True
    """act by the flow's forward pass of z = 0 (Sec. 3.3), or else sample the policy (Fig. 7)"""

    # Algorithm specific arguments
    env_id: str = "Hopper-v4"
    """the environment id of the task"""
    total_timesteps: int | None = None
    """total timesteps of the experiments (Fig. 3; None: the paper's for --env-id)"""
    buffer_size: int = 1_000_000
    """the replay memory buffer size (Table A1)"""
    batch_size: int = 256
    """the batch size of sample from the replay memory (Table A1)"""
    learning_starts: int | None = None
    """timestep to start learning; uniform actions before (authors' launch settings; None: theirs for --env-id)"""
    learning_rate: float = 1e-3
    """the learning rate of Adam, the one optimizer (Table A1)"""
    max_grad_norm: float = 30.0
    """the maximum norm for the gradient clipping (Table A1)"""
    gamma: float = 0.99
    """the discount factor gamma (Table A1)"""
    tau: float | None = None
    """target smoothing coefficient of the Polyak average (Table A3; None: the paper's for --env-id)"""
    alpha: float | None = None
    """temperature of pi = exp((Q - V) / alpha), weight of the entropy (Table A3; None: the paper's for --env-id)"""
    sigma_min: float | None = None
    """lower bound of log sigma(s), the linear layer's scale (Table A3; None: the paper's for --env-id)"""
    sigma_max: float | None = None
    """upper bound of log sigma(s) (Table A3; None: the paper's for --env-id)"""
    coupling: Literal["additive", "affine"] = "additive"
    """kind of the non-linear layers (Fig. A1); only additive ones have the mode at z = 0, before tanh (Sec. 3.3)"""
    num_shifts: Literal[0, 1, 2] = 2
    """learnable reward shifts (Sec. 3.2, Fig. 6): 0 vanilla, 1 +LRS, 2 +LRS & SCDQ"""

    def __post_init__(self):
        settings = SHARED_SETTINGS | PAPER_SETTINGS.get(paper_row(self.env_id), {})
        for name, value in settings.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.checkpoint_frequency is None:
            self.checkpoint_frequency = self.eval_frequency


def describe_settings(args):
    """One line a setting of the paper's table: what the run resolved it to and where that comes from."""
    row = paper_row(args.env_id)
    if row is None:
        lines = [f"{args.env_id} is not in the paper: settings not given as flags are the shared defaults"]
    else:
        lines = [f"{args.env_id}: the paper's settings for {row}, flags win"]
    for name, default in SHARED_SETTINGS.items():
        table, value = PAPER_SETTINGS.get(row, {}).get(name, default), getattr(args, name)
        lines.append(f"  {name} = {value:,}" + ("" if value == table else f" (set by you; the table has {table:,})"))
    if mujoco.__version__ != PAPER_MUJOCO:
        lines.append(
            f"mujoco {mujoco.__version__} is not {PAPER_MUJOCO}: contacts differ between versions, "
            "so returns on the v4 environments do not compare with the paper's"
        )
    return "\n".join(lines)


def keep_freed_memory():
    """Tells glibc to keep freed memory in the process instead of giving it back after every step.

    SPEED: an eager step of Hopper-v4 has 2 page faults, else 40 to 90; compiled or not, -10% time at best.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**30)
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**25)


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

    counts = ("total_timesteps", "buffer_size", "batch_size", "eval_frequency", "eval_episodes", "torch_threads")
    counts += ("checkpoint_frequency",)
    for names, allowed, is_allowed in [
        (counts, "an integer of at least 1", integer(1)),
        (("learning_starts", "compile_min_timesteps"), "an integer of at least 0", integer(0)),
        (("seed",), "an integer from 0 to 2**32 - 1", integer(0, 2**32 - 1)),
        (("learning_rate", "max_grad_norm", "alpha"), "a finite number above 0", lambda x: 0 < x < math.inf),
        (("tau",), "above 0 and at most 1", lambda x: 0 < x <= 1),
        (("gamma",), "between 0 and 1", lambda x: 0 <= x <= 1),
        (("sigma_min", "sigma_max"), "a finite number", math.isfinite),
        (("coupling",), "additive or affine", lambda x: x in ("additive", "affine")),
        (("num_shifts",), "0, 1 or 2", lambda x: x in (0, 1, 2)),
        (("exp_name",), "a name without /", lambda x: "/" not in x),
    ]:
        for name in names:
            if not is_allowed(getattr(args, name)):
                raise UsageError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(args, name)}")
    for low, high in [("sigma_min", "sigma_max"), ("learning_starts", "total_timesteps")]:
        if getattr(args, low) >= getattr(args, high):
            flags = f"--{low.replace('_', '-')} must be below --{high.replace('_', '-')}"
            raise UsageError(f"{flags}, got {getattr(args, low)} and {getattr(args, high)}")
    if args.buffer_size < args.batch_size:
        raise UsageError(f"--buffer-size must be at least --batch-size, got {args.buffer_size} and {args.batch_size}")
    if args.resume is not None and args.evaluate is not None:
        raise UsageError("--resume and --evaluate must not be given together: one trains, the other only plays")
    if args.stochastic and args.evaluate is None:
        raise UsageError("--stochastic is allowed with --evaluate only; in training it is --no-eval-deterministic")


def check_env(args):
    """Builds the environment once. Returns (obs_dim, act_dim); raises UsageError for a task MEow cannot run on."""
    try:
        env = make_env(args.env_id, args.seed, 0, False, "")()
    except (gym.error.Error, ImportError) as error:
        reason = str(error)
        if isinstance(error, gym.error.UnregisteredEnv):
            names = ", ".join(difflib.get_close_matches(args.env_id, gym.registry, n=3, cutoff=0))
            reason = f"it is not registered; the closest names are {names}"
        raise UsageError(f"--env-id {args.env_id} cannot be made here: {reason}") from error
    obs_space, act_space = env.observation_space, env.action_space
    env.close()
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        raise UsageError(f"--env-id {args.env_id} must have observations that are a 1-D Box, it has {obs_space}")
    obs_dim, act_dim = obs_space.shape[0], act_space.shape[0]
    gigabytes = args.buffer_size * ReplayBuffer.row_width(obs_dim, act_dim) * 4 / 1e9
    free = psutil.virtual_memory().available / 1e9
    if gigabytes > free:
        raise UsageError(
            f"--buffer-size {args.buffer_size:,} needs {gigabytes:,.1f} GB of memory for {args.env_id}, "
            f"at most the {free:,.1f} GB that are free are allowed"
        )
    if args.capture_video:
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default renderer needs a display
        try:
            os.makedirs("videos", exist_ok=True)
            env = gym.make(args.env_id, render_mode="rgb_array")
            env.reset()
            env.render()
            env.close()
        except Exception as error:  # every renderer fails in its own way
            raise UsageError(
                f"--capture-video must be able to write videos/ and to render {args.env_id}, which failed ({error}); "
                "MuJoCo without a display needs MUJOCO_GL=egl or MUJOCO_GL=osmesa and that library"
            ) from error
    return obs_dim, act_dim


def make_env(env_id, seed, idx, capture_video, run_name):
    """A thunk that makes the environment with actions in [-1,1]^A, rescaled to its own bounds (Humanoid's are +-0.4).

    The thunk raises UsageError if the action space is not a bounded 1-D Box.
    """

    def thunk():
        if capture_video and idx == 0:
            env = gym.make(env_id, render_mode="rgb_array")
            renderer = getattr(env.unwrapped, "mujoco_renderer", None)
            if renderer is not None:  # gymnasium 1.4 films from where the body started; the model's camera follows it
                renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
            env = gym.wrappers.RecordVideo(env, f"videos/{run_name}")
        else:
            env = gym.make(env_id)
        space = env.action_space
        is_vector = isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1
        if not (is_vector and space.is_bounded()):
            env.close()
            raise UsageError(f"--env-id {env_id} must have actions in a bounded 1-D Box of floats, it has {space}")
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env = gym.wrappers.RescaleAction(env, -1.0, 1.0)
        env.action_space.seed(seed)
        return env

    return thunk


class NotPlain(TypeError):
    """A value that `plain` cannot put into plain data."""


def plain(value):
    """A copy of `value` made of what torch.load(weights_only=True) reads: numbers, text, tensors, lists, tuples, dicts.

    An array becomes a tensor, a random stream (also a gym.Space's) the dict of its state, MuJoCo's data the dict of
    its time and arrays (qpos, qvel, act, qacc_warmstart and all that follows from them). Raises NotPlain for others.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return value.cpu().clone()
    if isinstance(value, gym.Space):
        return plain(value.np_random)
    if isinstance(value, np.random.Generator):
        return plain(value.bit_generator.state)
    if isinstance(value, mujoco.MjData):
        names = [name for name in dir(value) if isinstance(getattr(value, name), np.ndarray)]
        return {name: plain(getattr(value, name)) for name in ["time", *names]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, deque):
        return [plain(item) for item in value]
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    raise NotPlain(type(value).__name__)


def unplain(saved, old=None):
    """The value whose `plain` copy is `saved`. If it replaces a random stream or MuJoCo's data, `old`, that is set.

    A tensor becomes an array, unless `old` is a tensor.
    """
    if isinstance(old, gym.Space):
        unplain(saved, old.np_random)
        return old
    if isinstance(old, np.random.Generator):
        old.bit_generator.state = unplain(saved)
        return old
    if isinstance(old, mujoco.MjData):
        old.time = saved["time"]
        for name in saved.keys() - {"time"}:
            array = getattr(old, name)
            if array.shape == saved[name].shape:  # not so for contacts and constraints, which the next step makes anew
                array[...] = saved[name].numpy()
        return old
    if isinstance(old, torch.Tensor):
        return saved.clone().to(old.device)
    if isinstance(saved, torch.Tensor):
        return saved.numpy().copy()[()]  # [()]: a scalar where it has no dimension
    if isinstance(saved, dict):
        return {key: unplain(item) for key, item in saved.items()}
    if isinstance(saved, (list, tuple)):
        items = [unplain(item) for item in saved]
        return deque(items, old.maxlen) if isinstance(old, deque) else type(saved)(items)
    return saved


def env_layers(env):
    """An environment, or a vector environment of one, with each wrapper down to the task: {name and number: object}."""
    layers, numbers = {}, Counter()
    while True:
        name = type(env).__name__
        layers[f"{name} {numbers[name]}"] = env
        numbers[name] += 1
        if isinstance(env, SyncVectorEnv):
            env = env.envs[0]
        elif env is not env.unwrapped:
            env = env.env
        else:
            return layers


# A video goes on without what it had so far, and where and whether there is one may change.
NOT_SAVED = {"recorded_frames", "render_history", "video_folder", "render_mode"}


def get_env_state(env):
    """The plain attributes of all `env_layers`: simulator, elapsed steps, episode statistics, random streams."""
    state = {}
    for name, layer in env_layers(env).items():
        state[name] = {}
        for key in vars(layer).keys() - NOT_SAVED:
            with contextlib.suppress(TypeError, ValueError):  # what is not plain, or has no tensor of its type
                state[name][key] = plain(vars(layer)[key])
    return state


def set_env_state(env, state):
    """Puts a state of `get_env_state` into another environment of the same make, which was reset before."""
    for name, layer in env_layers(env).items():
        for key, saved in state.get(name, {}).items():
            setattr(layer, key, unplain(saved, getattr(layer, key, None)))
        if isinstance(layer, gym.wrappers.RecordVideo):
            layer.recorded_frames.clear()  # of the reset before


def make_envs(args, run_name="", capture_video=False):
    """The training environment, reset and seeded: a SyncVectorEnv of one, and its first observation (1, S)."""
    thunks = [make_env(args.env_id, args.seed, 0, capture_video, run_name)]
    envs = SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.action_space.seed(args.seed)
    return envs, envs.reset(seed=args.seed)[0]


def env_state_is_whole(args):
    """Whether an environment given another's `get_env_state` goes on exactly as that one: tried for 40 steps."""
    (first, _), (second, _) = make_envs(args), make_envs(replace(args, seed=args.seed ^ 1))
    try:
        for _ in range(20):
            first.step(first.action_space.sample())
        set_env_state(second, get_env_state(first))
        streams, seen = random_streams(), []
        for envs in (first, second):
            set_random_streams(streams)
            seen += [envs.step(envs.action_space.sample())[:4] for _ in range(20)] + [envs.reset()[:1]]
            seen += [envs.step(envs.action_space.sample())[:4] for _ in range(20)]
    except Exception:  # with another's state an environment may fail in any way
        return False
    finally:
        first.close(), second.close()
    half = len(seen) // 2
    pairs = [pair for one, other in zip(seen[:half], seen[half:]) for pair in zip(one, other)]
    return all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


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


class Transitions(NamedTuple):
    """A batch, float32: obs, next_obs (B, S), act (B, A; as stored: here before tanh), reward, terminated (B, 1)."""

    obs: torch.Tensor
    next_obs: torch.Tensor
    act: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor


class ReplayBuffer:
    """Uniform replay memory on `device`, one row a transition, so that a batch is one gather; its own random stream."""

    def __init__(self, capacity, obs_dim, act_dim, seed=0, device="cpu"):
        self.widths = (obs_dim, obs_dim, act_dim, 1, 1)
        # on the CPU the memory is taken only as it fills
        self.rows = torch.empty(capacity, self.row_width(obs_dim, act_dim), device=device)
        self.added = 0  # transitions ever
        self.filled = torch.zeros((), dtype=torch.float64, device=device)  # size, where a CUDA graph can read it
        self.generator = torch.Generator(device).manual_seed(seed)

    @staticmethod
    def row_width(obs_dim, act_dim):
        """float32 numbers a transition takes."""
        return 2 * obs_dim + act_dim + 2

    @property
    def size(self):
        """Transitions that can be drawn."""
        return min(self.added, len(self.rows))

    def add(self, obs, next_obs, act, reward, terminated):
        """Stores one transition (arrays (S,), (S,), (A,) and two numbers); the oldest makes room.

        Raises FloatingPointError if a number of it is not finite in float32.
        """
        row = np.concatenate([obs, next_obs, act, [reward, terminated]], dtype=np.float32)
        if not np.isfinite(row).all():
            raise FloatingPointError("an observation, action or reward is not finite")
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1
        self.filled.fill_(self.size)

    def get_rows(self, first, stop):
        """The rows of transitions number `first` to `stop` - 1, counted from the run's start: (stop - first, width)."""
        return self.rows[torch.arange(first, stop) % len(self.rows)].cpu().numpy()

    def set_rows(self, first, rows):
        """Puts rows (n, width) where those of transitions number `first` to first + n - 1 lie."""
        self.rows[torch.arange(first, first + len(rows)) % len(self.rows)] = torch.from_numpy(rows).to(self.rows.device)
        self.added = first + len(rows)
        self.filled.fill_(self.size)

    def sample(self, batch_size, device="cpu"):
        """Draws Transitions uniformly with replacement."""
        draws = torch.rand(batch_size, dtype=torch.float64, generator=self.generator, device=self.rows.device)
        rows = self.rows[(draws * self.filled).long()].to(device)
        return Transitions(*rows.split(self.widths, dim=1))


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


def learn_and_act(soft_q_loss, optimizer, data, gamma, tau, max_grad_norm, dropout, obs, z):
    """Algorithm 1: an `update` and the next action at obs (1, S), made from the noise z (1, A).

    Returns Q (B, max(1, num_shifts)), and the action before tanh (A,), the loss and the gradient norm as one vector.
    """
    loss, q, grad_norm = update(soft_q_loss, optimizer, data, gamma, tau, max_grad_norm, dropout)
    with torch.no_grad():
        policy = soft_q_loss.policy
        u = functional_call(policy, policy.views(policy.vector), (obs, z))
        return q, torch.cat([u[0], loss[None], grad_norm[None]])


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


def evaluate(policy, envs, deterministic=True):
    """The paper's evaluation: plays one episode in each of `envs` (seeds 0, 1, 2, ...), without dropout.

    Returns the undiscounted returns (len(envs),). Draws from no random stream of the caller. The environments must
    end their episodes. Raises FloatingPointError if one of the numbers they return is not finite.
    """
    device = next(policy.parameters()).device
    returns = np.zeros(len(envs))
    running = np.arange(len(envs))
    obs = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        while len(running) > 0:
            batch = torch.as_tensor(obs[running], dtype=torch.float32, device=device)
            actions = policy.act(batch, deterministic).cpu().numpy()
            done = np.zeros(len(running), dtype=bool)
            for k, i in enumerate(running):
                obs[i], reward, terminated, truncated, _ = envs[i].step(actions[k])
                returns[i] += reward
                done[k] = terminated or truncated
            if not (np.isfinite(obs).all() and np.isfinite(returns).all()):
                raise FloatingPointError("an observation or reward of the evaluation is not finite")
            running = running[~done]
    return returns


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


def load_policy(path):
    """The FlowPolicy of a .pt file or of a run's folder, on the CPU, and the dict about it. Raises as `load_model`."""
    state, about = load_model(path)
    policy = FlowPolicy(**about["network"])
    policy.load_state_dict(state)
    return policy, about


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
    """What `train` returns: the policy, the folder runs/NAME, and [(step, returns (eval_episodes,)), ...]."""

    policy: FlowPolicy
    run_dir: str
    evaluations: list


def versions_here():
    """{name: version} of what decides a run's numbers."""
    return {m.__name__: str(m.__version__) for m in (gym, mujoco, np, torch)} | {"python": platform.python_version()}


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
        run_dir = Path("runs") / f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            time.sleep(1)  # another run of this seed began in the same second
        except OSError as error:
            raise UsageError(
                f"the folder {run_dir} (from --env-id and --exp-name) must be writable: {error}"
            ) from error


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
    """Opens config.json, evaluations.csv, the TensorBoard logs and the W&B run of a folder. `stack` closes them.

    state: of the checkpoint that the run goes on from, or None: what was logged after it is taken back.
    Returns the SummaryWriter, a function that logs one evaluation (step, seconds, returns) and the id of the W&B run.
    """
    if state:
        check_versions(state["versions"], config["versions"])
    wandb_id = state and state["wandb_id"]
    if args.track:
        import wandb

        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_dir.resolve().name}
        names |= {"id": wandb_id, "resume": "allow"} if wandb_id else {}
        try:
            wandb_id = wandb.init(**names, sync_tensorboard=True, save_code=True, config=config["args"] | config).id
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
    writer = stack.enter_context(SummaryWriter(run_dir, purge_step=state["step"] + 1 if state else None))
    if not state:
        table = "\n".join(f"|{key}|{value}|" for key, value in (config["args"] | config["versions"]).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")

    def csv_line(step, seconds, returns):
        return ",".join(map(str, [step, f"{seconds:.1f}", returns.mean(), returns.std(), *returns])) + "\n"

    lines = [",".join(["step", "seconds", "mean", "std", *(f"return_{i}" for i in range(args.eval_episodes))]) + "\n"]
    for step, seconds, returns in state["evaluations"] if state else []:
        lines.append(csv_line(step, seconds, returns.numpy()))
    write_atomically({run_dir / "evaluations.csv": "".join(lines).encode()})
    file = stack.enter_context(open(run_dir / "evaluations.csv", "a"))

    def log_evaluation(step, seconds, returns):
        file.write(csv_line(step, seconds, returns))
        file.flush()
        writer.add_scalar("eval/episodic_return", returns.mean(), step)
        writer.add_scalar("eval/episodic_return_std", returns.std(), step)

    return writer, log_evaluation, wandb_id


# What a resumed run may change: how long it runs, and what changes none of its numbers but by rounding.
MAY_CHANGE = {"total_timesteps", "checkpoint_frequency", "save_model", "track", "wandb_project_name", "wandb_entity"}
MAY_CHANGE |= {"capture_video", "cuda", "cuda_graph", "compile", "compile_min_timesteps"}
MAY_CHANGE |= {"torch_threads", "torch_deterministic"}
MAY_CHANGE |= {"resume", "evaluate", "stochastic"}


def stored_args(args):
    """The settings of the run that --resume or --evaluate name. Raises UsageError if there is none."""
    if args.resume is not None:
        settings = Checkpoints(Path(args.resume) / "checkpoints").load()["args"]
    else:
        settings = {**load_model(args.evaluate)[1]["args"], "track": False, "capture_video": False}
    return Args(**{**settings, "resume": args.resume, "evaluate": args.evaluate})


def check_unchanged(args, stored, flag, may_change):
    """Raises UsageError if `args` are not `stored`, of the run that `flag` names, but for names in `may_change`."""
    for name, value in stored.items():
        if name not in may_change and getattr(args, name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} must stay {value} with {flag}, as in that run, got {getattr(args, name)}"
            )


def train(args):
    """Trains MEow as `args` says (the paper's Algorithm 1) and writes runs/NAME. Returns a TrainResult.

    Raises UsageError before any work for bad input, FloatingPointError if the run diverges, OSError if a log cannot be
    written, and SystemExit (128 + signal) after the checkpoint that Ctrl-C or SIGTERM ask for.
    """
    check_args(args)
    if args.resume is not None:
        check_unchanged(args, asdict(stored_args(args)), "--resume", MAY_CHANGE)
    obs_dim, act_dim = check_env(args)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    rb_bytes = 4 * args.buffer_size * ReplayBuffer.row_width(obs_dim, act_dim)
    rb_on_gpu = device.type == "cuda" and 2 * rb_bytes < torch.cuda.mem_get_info()[0]  # half is for the rest
    rb = ReplayBuffer(args.buffer_size, obs_dim, act_dim, args.seed, device if rb_on_gpu else "cpu")
    devices = [device.type, rb.rows.device.type]
    with contextlib.ExitStack() as stack:
        run_dir = make_run_dir(args) if args.resume is None else Path(args.resume)
        lock_run(run_dir, stack)
        checkpoints, state = Checkpoints(run_dir / "checkpoints"), None
        if args.resume is not None:
            state = checkpoints.load(rb)
            if args.total_timesteps < state["step"]:
                raise UsageError(f"--total-timesteps must be at least {state['step']:,}, which that run has done")
            if state["devices"] != devices:  # their random streams differ
                raise UsageError(
                    f"--resume needs networks and buffer on {state['devices']}, here they are on {devices}"
                )

        settings = asdict(args) | {"resume": None}
        resumed_at = [*state["resumed_at"], state["step"]] if state else []
        config = {"args": settings, "versions": versions_here(), "resumed_at": resumed_at}
        writer, log_evaluation, wandb_id = start_logging(args, config, run_dir, state, stack)
        print(f"{run_dir}\n{describe_settings(args)}", flush=True)

        stop = StopSignals()
        stack.callback(stop.restore)
        env_state_saved = env_state_is_whole(args)
        if not env_state_saved:
            print(f"{args.env_id}: its state cannot be saved, so a resumed run begins with a new episode", flush=True)

        # TRY NOT TO MODIFY: seeding
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        torch.backends.cudnn.deterministic = args.torch_deterministic

        torch.set_num_threads(args.torch_threads)
        keep_freed_memory()
        use_onednn(device)

        # env setup
        envs, obs = make_envs(args, run_dir.resolve().name, args.capture_video)
        stack.callback(envs.close)
        eval_envs = [make_env(args.env_id, i, i, False, run_dir.resolve().name)() for i in range(args.eval_episodes)]
        for env in eval_envs:
            stack.callback(env.close)

        network = {"obs_dim": obs_dim, "act_dim": act_dim, "alpha": args.alpha, "sigma_min": args.sigma_min}
        network |= {"sigma_max": args.sigma_max, "coupling": args.coupling, "num_shifts": args.num_shifts}
        policy, target = (FlowPolicy(**network).to(device) for _ in range(2))
        target.load_state_dict(policy.state_dict())
        target.requires_grad_(False)
        soft_q_loss, optimizer = SoftQLoss(policy, target), Adam(policy.vector, args.learning_rate)
        learn_step = learn_and_act
        first_step = state["step"] if state else 0
        long_enough = args.total_timesteps >= max(args.compile_min_timesteps, first_step + 1)
        if args.compile and device.type == "cpu" and long_enough:
            data = Transitions(*torch.zeros(args.batch_size, sum(rb.widths)).split(rb.widths, dim=1))
            inputs = torch.zeros(1, obs_dim), torch.zeros(1, act_dim)
            learn_step = compile_or_eager(args, learn_and_act, soft_q_loss, data, *inputs)

        def draw_learn_and_act(obs):
            """All of a learning step but the environment: (1, S) -> the batch, its Q, [u, loss, gradient norm]."""
            data, dropout = rb.sample(args.batch_size, device), policy.dropout_masks(args.batch_size)
            rates, z = (args.gamma, args.tau, args.max_grad_norm), torch.randn(1, act_dim, device=device)
            return data, *learn_step(soft_q_loss, optimizer, data, *rates, dropout, obs, z)

        if device.type == "cuda" and args.cuda_graph and not rb_on_gpu:
            print("--buffer-size: the replay buffer does not fit on the GPU, so --cuda-graph does nothing: a slow run")
        if rb_on_gpu and args.cuda_graph:
            draw_learn_and_act = CudaGraph(draw_learn_and_act, [rb.generator])

        u = None  # the actions before tanh (1, A), once they come with the update before them
        evaluations, seconds_before, best_return = [], 0.0, -math.inf
        learning_state = {
            "policy": policy.vector,
            "target": target.vector,
            "exp_avg": optimizer.exp_avg,
            "exp_avg_sq": optimizer.exp_avg_sq,
            "beta_powers": optimizer.beta_powers,
        }
        if state:
            seconds_before, best_return = state["seconds"], state["best_return"]
            evaluations = [(step, seconds, returns.numpy()) for step, seconds, returns in state["evaluations"]]
            for name, tensor in learning_state.items():
                tensor.copy_(state["learning"][name])
            rb.generator.set_state(state["rb_stream"])
            unplain(state["action_space"], envs.action_space)
            if env_state_saved:
                for env in eval_envs:
                    env.reset(seed=args.seed)
                for env, env_state in zip([envs, *eval_envs], state["envs"]):
                    set_env_state(env, env_state)
                obs, u = unplain(state["obs"]), unplain(state["u"])
            else:
                obs, _ = envs.reset(seed=(args.seed + first_step) % 2**32)
            set_random_streams(state["random"])
        start_time = time.time() - seconds_before
        bar = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "miniters": 1}  # 1: learning steps are slower
        progress = stack.enter_context(tqdm(total=args.total_timesteps, initial=first_step, **bar))

        def say(text):
            progress.write(text, file=sys.stdout)
            sys.stdout.flush()  # a log file shows it now too

        def evaluate_and_log(step):
            nonlocal best_return
            returns = evaluate(policy, eval_envs, args.eval_deterministic)
            evaluations.append((step, time.time() - start_time, returns))
            log_evaluation(*evaluations[-1])
            say(f"step {step:,}: eval return {returns.mean():.1f} +- {returns.std():.1f}")
            if args.save_model and returns.mean() > best_return and write("best model", save, "best", step):
                best_return = float(returns.mean())

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
            about = {"kind": kind, "run": run_dir.resolve().name, "step": step, "network": network, "args": settings}
            about |= {"evaluation": {"step": evaluations[-1][0], "returns": evaluations[-1][2].tolist()}}
            name = "model" if kind == "last" else "model_best"
            save_model(run_dir / name, policy, about | {"versions": versions_here()})

        def checkpoint(step):
            writer.flush()
            about = {"args": settings, "versions": versions_here(), "devices": devices, "resumed_at": resumed_at}
            logs = {"evaluations": evaluations, "seconds": time.time() - start_time, "best_return": best_return}
            logs |= {"events": {path.name: path.stat().st_size for path in run_dir.glob("events.out.*")}}
            streams = {"random": random_streams(), "rb_stream": rb.generator.get_state()}
            world = {"envs": [get_env_state(env) for env in (envs, *eval_envs)], "obs": obs, "u": u}
            world["action_space"] = envs.action_space
            state = about | logs | {"wandb_id": wandb_id} | streams | world | {"learning": learning_state}
            checkpoints.save(step, plain(state), rb)

        # TRY NOT TO MODIFY: start the game
        global_step = first_step
        try:
            if not state:
                evaluate_and_log(0)
            for global_step in range(first_step, args.total_timesteps):
                if global_step < args.learning_starts:
                    u = policy.pre_tanh(torch.from_numpy(envs.action_space.sample())).numpy()
                elif u is None:  # the later ones come with the update before them
                    with torch.no_grad():
                        u = policy.draw(torch.as_tensor(obs, dtype=torch.float32, device=device)).cpu().numpy()

                # Algorithm 1: step the environment; the last observation of an episode is in `final_obs`
                next_obs, rewards, terminations, truncations, infos = envs.step(np.tanh(u))
                done = terminations[0] or truncations[0]
                real_next_obs = infos["final_obs"][0] if done else next_obs[0]
                if done:
                    episode = infos["final_info"]["episode"]
                    writer.add_scalar("charts/episodic_return", episode["r"][0], global_step)
                    writer.add_scalar("charts/episodic_length", episode["l"][0], global_step)
                    progress.set_postfix_str(f"return {episode['r'][0]:.1f}", refresh=False)

                # Algorithm 1: store (s, a, r, s'), the action before tanh
                rb.add(obs[0], real_next_obs, u[0], rewards[0], terminations[0])
                obs, u = next_obs, None  # CRUCIAL step easy to overlook

                # Algorithm 1: one gradient step on Eq. 9, one step of the target and the next action
                if global_step > args.learning_starts:
                    data, q, numbers = draw_learn_and_act(torch.as_tensor(obs, dtype=torch.float32, device=device))
                    numbers = numbers.cpu().numpy()
                    u, (loss, grad_norm) = numbers[None, :act_dim], numbers[act_dim:]
                    if not np.isfinite(loss + grad_norm):
                        raise FloatingPointError("the loss or its gradient is not finite")

                    if global_step % 100 == 0:
                        with torch.no_grad():  # Fig. 1: logs of the products of the Jacobian determinants
                            log_det_nonlinear = policy.inverse(data.obs, data.act)[1].mean()
                            log_det_linear = -policy.log_sigma(data.obs).sum(dim=1).mean()
                        scalars = {f"losses/qf{k + 1}_values": q_k for k, q_k in enumerate(q.mean(dim=0))}
                        scalars |= {"losses/qf_loss": loss, "losses/grad_norm": grad_norm}
                        scalars |= {"flow/log_det_nonlinear": log_det_nonlinear, "flow/log_det_linear": log_det_linear}
                        scalars |= {"charts/SPS": int(global_step / (time.time() - start_time))}
                        for name, value in scalars.items():
                            writer.add_scalar(name, float(value), global_step)
                progress.update()

                steps_done, ends = global_step + 1, global_step + 1 == args.total_timesteps
                stopped_by = 0 if ends else stop.number  # read once: a signal may come at any moment
                if ends or steps_done % args.eval_frequency == 0:
                    evaluate_and_log(steps_done)
                if args.save_model and stopped_by:
                    write("model", save, "last", steps_done)
                if ends or stopped_by or steps_done % args.checkpoint_frequency == 0:
                    written = write("checkpoint", checkpoint, steps_done)
                if stopped_by:
                    how = "go on" if written else "go on from the newest checkpoint, if there is one,"
                    script = os.path.basename(__file__)
                    say(f"stopped at step {steps_done:,}; {how} with: python {script} --resume {run_dir}")
                    sys.exit(128 + stopped_by)
            if args.save_model:
                write("model", save, "last", args.total_timesteps)
        except FloatingPointError as error:
            advice = "try a smaller --learning-rate or --max-grad-norm, or a larger --alpha"
            if global_step <= args.learning_starts:
                advice = "nothing was learnt yet, so look at the environment and at --sigma-min and --sigma-max"
            raise FloatingPointError(f"{error} at step {global_step:,}: {advice}") from None
        say(f"finished: {run_dir} (look at it with `tensorboard --logdir runs`)")
    return TrainResult(policy, str(run_dir), [(step, returns) for step, _, returns in evaluations])


def play(args):
    """Plays --eval-episodes episodes with the model of --evaluate and prints their returns, which it returns too.

    Raises UsageError for bad input.
    """
    check_args(args)
    torch.set_num_threads(args.torch_threads)
    use_onednn(torch.device("cpu"))  # as in training: the same model plays the same episodes
    policy, about = load_policy(args.evaluate)
    check_unchanged(args, about["args"], "--evaluate", {*MAY_CHANGE, "eval_episodes"})
    check_env(replace(args, buffer_size=0))
    deterministic, run_name = not args.stochastic, f"{about['run']}-{about['kind']}-eval"
    print(f"{args.evaluate}: {about['kind']} model of {args.env_id}, after {about['step']:,} steps", flush=True)
    if about["versions"]["mujoco"] != mujoco.__version__:
        print(f"it was trained with mujoco {about['versions']['mujoco']}, here is {mujoco.__version__}", flush=True)
    envs = [make_env(args.env_id, i, i, args.capture_video, run_name)() for i in range(args.eval_episodes)]
    with contextlib.ExitStack() as stack:
        for env in envs:
            stack.callback(env.close)
        returns = evaluate(policy, envs, deterministic)
    for seed, episodic_return in enumerate(returns):
        print(f"episode {seed}: {episodic_return:.1f}")
    print(
        f"{len(returns)} {'deterministic' if deterministic else 'stochastic'} episodes: mean {returns.mean():.1f}, "
        f"std {returns.std():.1f}, min {returns.min():.1f}, max {returns.max():.1f}"
    )
    if args.capture_video:
        print(f"video of episode 0: videos/{run_name}")
    return returns


def main():
    """The command line. Returns the exit code: 0, 2 for bad input, 1 where a run had to stop."""
    warnings.filterwarnings("ignore", module="gymnasium")  # that v4 is not v5 is the point here
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
