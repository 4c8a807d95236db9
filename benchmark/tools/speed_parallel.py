"""Speed of meow_isaacgym.py's loop by the number of environments, and where a vector step goes (Python 3.8 or newer).

    python benchmark/tools/speed_parallel.py
    python benchmark/tools/speed_parallel.py --make isaacgymenvs:make --task Ant --num-envs 4096

Runs the script in one process per size, waits for the device after every part so that each part's time is its own,
and prints Markdown.
"""

import collections
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_isaacgym as meow  # noqa: E402, I001  it must come before torch
import torch  # noqa: E402
import tyro  # noqa: E402


@dataclass
class Args:
    make: str = "benchmark.simulators.mujoco:make"  # the simulator, as meow_isaacgym.py takes it
    task: str = "AntMujoco"  # the task
    num_envs: Tuple[int, ...] = (128, 512, 4096)  # sizes to measure
    steps: int = 100  # learning vector steps to time, after as many that are not timed
    threads: int = 1  # CPU threads of PyTorch and of the simulator


def measure(args, num_envs):
    """Trains for a while; returns the median milliseconds that a learning vector step spends in each part."""
    times = collections.defaultdict(list)

    def wait():
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def timed(name, function):
        def wrapper(*arguments, **settings):
            wait()
            start = time.perf_counter()
            result = function(*arguments, **settings)
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
            return result

        return wrapper

    settings = {"make": args.make, "task": args.task, "num_envs": num_envs, "torch_threads": args.threads}
    settings.update(random_steps=10, learning_starts=20, total_vector_steps=20 + 2 * args.steps)
    settings.update(buffer_steps=1_000, log_frequency=10**9, checkpoint_frequency=10**9)
    make_env, accelerated, marks = meow.make_env, meow.accelerated, []

    def make_timed_env(*arguments):
        env, first = make_env(*arguments)
        env.step = timed("simulator", env.step)
        return env, first

    def timed_accelerated(settings, device, steps):
        update, forward = accelerated(settings, device, 20_000)  # compiled, however short the run
        return timed("update", update), timed("action", forward)

    def marked_range(*bounds, **_):
        for step in range(*bounds):
            wait()
            marks.append(time.perf_counter())
            yield step

    meow.make_env, meow.accelerated, meow.trange = make_timed_env, timed_accelerated, marked_range
    meow.VectorReplayBuffer.add = timed("buffer", meow.VectorReplayBuffer.add)
    meow.VectorReplayBuffer.sample = timed("buffer, sampling", meow.VectorReplayBuffer.sample)
    meow.dropout_masks = timed("dropout masks", meow.dropout_masks)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)  # of this process, which ends here
        meow.train(meow.Args(**settings))
        os.chdir("/")
    whole = torch.tensor(marks[-args.steps :]).double().diff().median().item() * 1e3
    parts = {name: torch.tensor(spent[-args.steps :]).median().item() for name, spent in times.items()}
    return {**parts, "rest": whole - sum(parts.values()), "whole": whole}


def main(args):
    """Prints the table."""
    print(f"{args.task} by {args.make}, {args.threads} thread(s)\n")
    for i, num_envs in enumerate(args.num_envs):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # one simulation per process
            parts = pool.apply(measure, (args, num_envs))
        names = [name for name in parts if name != "whole"]
        if i == 0:
            print(f"| environments | vector steps/s | env steps/s | {' | '.join(f'{name}, ms' for name in names)} |")
            print("|-" * (3 + len(names)) + "|")
        rate = 1e3 / parts["whole"]
        cells = " | ".join(f"{parts[name]:.2f}" for name in names)
        print(f"| {num_envs:,} | {rate:.1f} | {rate * num_envs:,.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
