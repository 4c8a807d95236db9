"""Where the time of a learning step on the CPU goes: update and action of meow_continuous_action.py on random data.

    python benchmark/tools/operations.py --obs-dim 11 --act-dim 3            # Hopper-v4; Humanoid-v4: 376 and 17
    python benchmark/tools/operations.py --no-compile

Prints milliseconds (median and range of --repeats rounds, in which what is measured takes turns) and the profiler's
table of --profile steps, operation by operation; compiled code is one row per kernel.
"""

import contextlib
import copy
import statistics
import timeit
from dataclasses import dataclass

import torch
import tyro
from speed import meow, milliseconds_of_products  # speed.py finds the script in the top folder
from torch.profiler import ProfilerActivity, profile


@dataclass
class Args:
    obs_dim: int = 11  # numbers in an observation
    act_dim: int = 3  # numbers in an action
    batch_size: int = 256  # transitions per update
    compile: bool = True  # compile the step, as a training run of 20,000 steps does
    threads: int = 1  # CPU threads
    repeats: int = 20  # rounds of 10 calls
    profile: int = 20  # steps under the profiler
    rows: int = 30  # rows of the profiler's table


def main(args):
    """Prints the times and the profiler's table."""
    settings = meow.Args(batch_size=args.batch_size, cuda=False, torch_threads=args.threads, compile=args.compile)
    device = torch.device("cpu")
    meow.set_up_torch(settings, device, contextlib.ExitStack())
    torch._inductor.config.cpp.enable_kernel_profile = True  # names the compiled kernels
    policy = meow.flatten(meow.FlowPolicy(args.obs_dim, args.act_dim, settings.alpha))
    target = meow.flatten(copy.deepcopy(policy)).requires_grad_(False)
    optimizer = meow.Adam(policy.vector, settings.learning_rate)
    rb = meow.ReplayBuffer(100_000, args.obs_dim, args.act_dim)
    rb.set_rows(0, torch.empty_like(rb.rows).uniform_(-0.9, 0.9))
    update, forward = meow.accelerated(settings, device, settings.total_timesteps)
    rates = settings.gamma, settings.tau, settings.max_grad_norm
    data, dropout = rb.sample(args.batch_size), meow.dropout_masks(policy, args.batch_size)
    obs, z = data.obs[:1].clone(), torch.randn(1, args.act_dim)

    def sample():
        return rb.sample(args.batch_size)

    def draw_masks():
        return meow.dropout_masks(policy, args.batch_size)

    @torch.no_grad()
    def act():
        return forward(policy, obs, z)

    def update_alone():
        update(policy, target, optimizer, data, *rates, dropout)

    def step():
        act()
        update(policy, target, optimizer, sample(), *rates, draw_masks())

    step()  # compiles
    parts = {"action": act, "batch from the buffer": sample, "dropout masks": draw_masks, "update": update_alone}
    parts["all four"] = step
    milliseconds = {name: [] for name in parts}
    for _ in range(args.repeats):
        for name, part in parts.items():
            milliseconds[name].append(100 * timeit.timeit(part, number=10))
    print("| | ms, median | fastest | slowest |\n|-|-|-|-|")
    for name, ms in milliseconds.items():
        print(f"| {name} | {statistics.median(ms):.3f} | {min(ms):.3f} | {max(ms):.3f} |")
    print(f"| matrix products of an update alone | {milliseconds_of_products(policy, args.batch_size):.3f} | | |")

    with profile(activities=[ProfilerActivity.CPU]) as log:
        for _ in range(args.profile):
            step()
    print(log.key_averages().table(sort_by="self_cpu_time_total", row_limit=args.rows))


if __name__ == "__main__":
    main(tyro.cli(Args))
