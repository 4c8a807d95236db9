"""What a checkpoint of meow_continuous_action.py costs: seconds and bytes, by environment and replay buffer size.

    python benchmark/checkpoints.py
    python benchmark/checkpoints.py --env-ids Hopper-v4 --transitions 1000000

A short run of the script gives the state; the buffer is filled with random rows up to --every before the wanted size
and checkpointed, then filled up, and the second checkpoint, as it comes in a run, is timed. Prints Markdown.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import meow_continuous_action as meow  # noqa: E402


@dataclass
class Args:
    env_ids: tuple[str, ...] = ("Hopper-v4", "Humanoid-v4")
    """environments, which decide the sizes"""
    transitions: tuple[int, ...] = (100_000, 1_000_000)
    """transitions in the replay buffer"""
    every: int = 10_000
    """transitions between two checkpoints"""
    repeats: int = 5
    """how often each is timed; the median is printed"""


def measure(env_id, transitions, args, folder):
    """Seconds of a checkpoint, its new bytes, all bytes, and seconds to load it, in a folder that does not exist."""
    flags = {"total_timesteps": 400, "learning_starts": 300, "eval_episodes": 1}
    with contextlib.redirect_stdout(sys.stderr):
        run_dir = Path(meow.train(meow.Args(env_id=env_id, **flags)).run_dir)
    state = meow.Checkpoints(run_dir / "checkpoints").load(small := buffer(run_dir, 400))
    width = small.rows.shape[1]
    rb = buffer(run_dir, transitions)
    random = np.random.default_rng(0)
    first = transitions - args.every
    rb.set_rows(0, random.standard_normal((first, width), dtype=np.float32))
    checkpoints = meow.Checkpoints(folder)
    checkpoints.save(first, state, rb)
    rb.set_rows(first, random.standard_normal((args.every, width), dtype=np.float32))
    before = set(folder.iterdir())
    replay_files, seconds, loads = checkpoints.replay_files, [], []
    for _ in range(args.repeats):
        checkpoints.replay_files = replay_files  # so that each writes the same
        start = time.perf_counter()
        checkpoints.save(transitions, state, rb)
        seconds.append(time.perf_counter() - start)
    new = sum(path.stat().st_size for path in set(folder.iterdir()) - before)
    for _ in range(args.repeats):
        start = time.perf_counter()
        meow.Checkpoints(folder).load(rb)
        loads.append(time.perf_counter() - start)
    whole = sum(path.stat().st_size for path in folder.iterdir())
    return statistics.median(seconds), new, whole, statistics.median(loads)


def buffer(run_dir, capacity):
    """An empty ReplayBuffer of a run's widths."""
    policy, _ = meow.load_policy(run_dir)
    return meow.ReplayBuffer(capacity, policy.sigma_net[0].in_features, policy.act_dim)


def main(args):
    """Prints the table. Raises ValueError for sizes that do not fit together."""
    if min(args.transitions) <= args.every:
        raise ValueError(f"--transitions must be above --every, got {min(args.transitions)} and {args.every}")
    print(f"| environment | transitions | checkpoint every {args.every:,}: s | MB written | MB on disk | load: s |")
    print("|-|-|-|-|-|-|")
    for env_id in args.env_ids:
        for transitions in args.transitions:
            with tempfile.TemporaryDirectory(dir=".") as folder, contextlib.chdir(folder):
                seconds, new, whole, load = measure(env_id, transitions, args, Path("checkpoints"))
            print(
                f"| {env_id} | {transitions:,} | {seconds:.3f} | {new / 1e6:.1f} | {whole / 1e6:,.1f} | {load:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
