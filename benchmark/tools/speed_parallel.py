"""Speed of meow_isaacgym.py's loop, and where a vector step goes (Python 3.8 or newer).

    for n in 128 512 4096; do python benchmark/tools/speed_parallel.py --num-envs $n; done
    python benchmark/tools/speed_parallel.py --make isaacgymenvs:make --task Ant --num-envs 4096

Trains for a while, waits for the device before and after each part so that each part's time is its
own, and prints medians in Markdown.
"""

import collections
import contextlib
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_isaacgym as meow  # noqa: I001  it must come before torch
import numpy as np
import torch
import tyro


@dataclass
class Args:
    make: str = "benchmark.simulators.mujoco:make"  # the simulator, as meow_isaacgym.py takes it
    task: str = "AntMujoco"  # the task
    num_envs: int = 512  # environments
    steps: int = 100  # learning vector steps to time, after as many that are not timed
    threads: int = 1  # CPU threads of PyTorch and of the simulator


def train_timed(settings):
    """Trains; returns {part: the milliseconds of each of its calls}, and when each update began."""
    times, updates = collections.defaultdict(list), []
    make_env, accelerated = meow.make_env, meow.accelerated

    def now():
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    def timed(name, function):
        def wrapper(*arguments, **options):
            start = now()
            result = function(*arguments, **options)
            times[name].append(now() - start)
            if name == "update":
                updates.append(start)
            return result

        return wrapper

    def make_timed_env(*arguments):
        env, first = make_env(*arguments)
        env.step = timed("simulator", env.step)
        return env, first

    def timed_accelerated(args, device, steps):
        update, forward = accelerated(args, device, 20_000)  # compiled, however short the run
        return timed("update", update), timed("action", forward)

    meow.make_env, meow.accelerated = make_timed_env, timed_accelerated
    meow.dropout_masks = timed("dropout masks", meow.dropout_masks)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        meow.train(settings)
        os.chdir("/")
    return times, updates


def main(args):
    """Prints the table."""
    settings = meow.Args(make=args.make, task=args.task, num_envs=args.num_envs, torch_threads=args.threads)
    settings.random_steps, settings.learning_starts, settings.buffer_steps = 10, 20, 1_000
    settings.total_vector_steps = 21 + 2 * args.steps
    settings.log_frequency = settings.checkpoint_frequency = 10**9
    times, updates = train_timed(settings)
    rest = whole = statistics.median(np.diff(updates)[-args.steps :])
    print(f"{args.num_envs:,} environments of {args.task} by {args.make}, {args.threads} thread(s)")
    print(f"{1e3 / whole:.1f} vector steps/s, {1e3 / whole * args.num_envs:,.0f} env steps/s\n")
    print("| part of a vector step | ms, median |\n|-|-|")
    for name, calls in times.items():
        milliseconds = statistics.median(calls[-args.steps :])
        rest -= milliseconds
        print(f"| {name} | {milliseconds:.2f} |")
    print(f"| the rest | {rest:.2f} |\n| whole | {whole:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Args))
