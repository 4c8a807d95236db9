"""Where the time of a learning step of meow_continuous_action.py on the CPU goes.

    python benchmark/tools/operations.py --env-id Humanoid-v4
    python benchmark/tools/operations.py --no-compile --profile 20    # and operation by operation

Takes the flags of the script. Runs the parts of its loop one after the other, with a clock between
them, and prints their median times, beside the matrix products that no update can avoid.
"""

import contextlib
import copy
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_continuous_action as meow


@dataclass
class Args(meow.Args):
    steps: int = 500  # learning steps to time
    profile: int = 0  # and as many under PyTorch's profiler; compiled code is one row per kernel
    rows: int = 30  # of the profiler's table


class MatrixProducts(TorchDispatchMode):
    """Records the factors of all matrix products: [((n, k), (k, m)), ...]."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.factors.append(args[-2:])
        return func(*args, **(kwargs or {}))


def make_parts(args):
    """{name: function}: the parts of a learning step, and the matrix products of its update."""
    env = meow.make_env(args.env_id)
    obs, _ = env.reset(seed=args.seed)
    action = env.action_space.sample()
    network = {"coupling": args.coupling, "num_shifts": args.num_shifts}
    policy = meow.flatten(meow.FlowPolicy(len(obs), len(action), args.alpha, **network))
    target = meow.flatten(copy.deepcopy(policy)).requires_grad_(False)
    optimizer = meow.Adam(policy.vector, args.learning_rate)
    rb = meow.ReplayBuffer(100_000, len(obs), len(action))
    for _ in range(100_000):
        rb.add(obs, obs, action, 0.0, False)
    settings = args.gamma, args.tau, args.max_grad_norm
    data, dropout = rb.sample(args.batch_size), meow.dropout_masks(policy, args.batch_size)
    with MatrixProducts() as products:
        meow.update(policy, target, optimizer, data, *settings, dropout)
    update, forward = meow.accelerated(args, torch.device("cpu"), 20_000)  # compiled, as in long runs

    def act():
        with torch.no_grad():
            forward(policy, torch.from_numpy(obs[None]), torch.randn(1, len(action)))

    def step():
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    def multiply():
        for a, b in products.factors:
            torch.mm(a, b)

    return {
        "action": act,
        "environment": step,
        "buffer, storing": lambda: rb.add(obs, obs, action, 0.0, False),
        "buffer, sampling": lambda: rb.sample(args.batch_size),
        "dropout masks": lambda: meow.dropout_masks(policy, args.batch_size),
        "update": lambda: update(policy, target, optimizer, data, *settings, dropout),
        "matrix products of an update alone": multiply,
    }


def main(args):
    """Prints the table, and the profiler's."""
    meow.set_up_torch(args, torch.device("cpu"), contextlib.ExitStack())
    torch._inductor.config.cpp.enable_kernel_profile = True  # names the compiled kernels
    parts = make_parts(args)
    times = {name: [] for name in parts}
    for _ in range(args.steps + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            times[name].append(1e3 * (time.perf_counter() - start))
    print(f"\n| part of a learning step on {args.env_id} | ms, median of {args.steps} |\n|-|-|")
    for name, milliseconds in times.items():
        print(f"| {name} | {statistics.median(milliseconds[1:]):.3f} |")  # the first compiles
    if args.profile > 0:
        del parts["matrix products of an update alone"]
        with profile(activities=[ProfilerActivity.CPU]) as log:
            for _ in range(args.profile):
                for part in parts.values():
                    part()
        print(log.key_averages().table(sort_by="self_cpu_time_total", row_limit=args.rows))


if __name__ == "__main__":
    main(tyro.cli(Args))
