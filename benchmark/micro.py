"""Where the time of a learning step on the CPU goes: update and action of meow_continuous_action.py on random data.

    python benchmark/micro.py --obs-dim 11 --act-dim 3            # Hopper-v4; Humanoid-v4: 376 and 17
    python benchmark/micro.py --no-compile

Prints milliseconds (median and range of --repeats rounds, in which what is measured takes turns) and the profiler's
table of --profile steps, operation by operation; compiled code is one row a kernel.
"""

import statistics
import time
from dataclasses import dataclass

import torch
import tyro
from speed import meow, milliseconds_of_products  # speed.py finds the script in the folder above
from torch.profiler import ProfilerActivity, profile


@dataclass
class Args:
    obs_dim: int = 11
    """numbers in an observation"""
    act_dim: int = 3
    """numbers in an action"""
    batch_size: int = 256
    """transitions in an update"""
    compile: bool = True
    """compile the step, as a training run of 20,000 steps does"""
    threads: int = 1
    """CPU threads"""
    repeats: int = 20
    """rounds of 10 calls"""
    profile: int = 20
    """steps under the profiler"""
    rows: int = 30
    """rows of the profiler's table"""


def main(args):
    """Prints the times and the profiler's table."""
    torch.set_num_threads(args.threads)
    meow.keep_freed_memory()
    meow.use_onednn(torch.device("cpu"))
    torch._inductor.config.cpp.enable_kernel_profile = True  # names the compiled kernels
    settings = meow.Args(batch_size=args.batch_size)
    policy, target = (meow.FlowPolicy(args.obs_dim, args.act_dim, 0.25) for _ in range(2))
    target.requires_grad_(False)
    rb = meow.ReplayBuffer(100_000, args.obs_dim, args.act_dim)
    rb.rows.uniform_(-0.9, 0.9)
    rb.filled.fill_(len(rb.rows))
    soft_q_loss, optimizer = meow.SoftQLoss(policy, target), meow.Adam(policy.vector, settings.learning_rate)
    rates = settings.gamma, settings.tau, settings.max_grad_norm
    data, dropout = rb.sample(args.batch_size), policy.dropout_masks(args.batch_size)
    obs, z = data.obs[:1].clone(), torch.randn(1, args.act_dim)
    step = meow.learn_and_act
    if args.compile:
        step = meow.compile_or_eager(settings, step, soft_q_loss, data, obs, z)

    def act():
        with torch.no_grad():
            return policy(obs, z)

    def whole():
        data, dropout = rb.sample(args.batch_size), policy.dropout_masks(args.batch_size)
        return step(soft_q_loss, optimizer, data, *rates, dropout, obs, z)

    parts = {
        "batch from the buffer": lambda: rb.sample(args.batch_size),
        "dropout masks": lambda: policy.dropout_masks(args.batch_size),
        "update and action": lambda: step(soft_q_loss, optimizer, data, *rates, dropout, obs, z),
        "all three": whole,
        "an action alone, eager": act,
    }
    times = {name: [] for name in parts}
    for _ in range(args.repeats):
        for name, function in parts.items():
            start = time.perf_counter()
            for _ in range(10):
                function()
            times[name].append(1e3 * (time.perf_counter() - start) / 10)
    print("| | ms, median | fastest | slowest |\n|-|-|-|-|")
    for name, ms in times.items():
        print(f"| {name} | {statistics.median(ms):.3f} | {min(ms):.3f} | {max(ms):.3f} |")
    print(f"| matrix products of an update alone | {milliseconds_of_products(policy, args.batch_size):.3f} | | |")

    with profile(activities=[ProfilerActivity.CPU]) as log:
        for _ in range(args.profile):
            whole()
    print(log.key_averages().table(sort_by="self_cpu_time_total", row_limit=args.rows))


if __name__ == "__main__":
    main(tyro.cli(Args))
