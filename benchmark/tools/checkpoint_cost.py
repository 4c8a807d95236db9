"""What a checkpoint of meow_continuous_action.py costs: seconds and bytes, by environment and replay buffer size.

    python benchmark/tools/checkpoint_cost.py
    python benchmark/tools/checkpoint_cost.py --env-ids Hopper-v4 --transitions 1000000

A short run of the script gives the state; the buffer is filled with random rows, with a checkpoint every --every rows
as in a run. The last ones are timed, and so is what `--resume` reads. Prints Markdown.
"""

import contextlib
import statistics
import sys
import tempfile
import time
import timeit
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import meow_continuous_action as meow  # noqa: E402


@dataclass
class Args:
    env_ids: tuple[str, ...] = ("Hopper-v4", "Humanoid-v4")  # environments, which decide the sizes
    transitions: tuple[int, ...] = (100_000, 1_000_000)  # transitions in the replay buffer
    every: int = 10_000  # transitions between two checkpoints
    repeats: int = 5  # how many are timed; the median is printed


def measure(env_id, transitions, args):
    """Seconds of a checkpoint, its new bytes, all bytes, and seconds to load it."""
    settings = {"env_id": env_id, "total_timesteps": 400, "learning_starts": 300, "eval_episodes": 1}
    with contextlib.redirect_stdout(sys.stderr):
        _, run = meow.train(meow.Args(**settings))
    run.rb = rb = meow.ReplayBuffer(transitions, *run.rb.widths[1:3])
    learned, env_state, seconds = run.state["learned"], run.state["env"], []
    run.state["replay"] = []
    while rb.added < transitions:
        rb.set_rows(rb.added, torch.rand(min(args.every, transitions - rb.added), rb.rows.shape[1]))
        start = time.perf_counter()
        run.checkpoint(rb.added, learned, env=env_state)
        seconds.append(time.perf_counter() - start)
    first, stop = run.state["replay"][-1]
    sizes = {path.name: path.stat().st_size for path in run.dir.glob("*.pt") if "model" not in path.name}
    new = sizes["checkpoint.pt"] + sizes[f"replay_{first}_{stop}.pt"]
    loads = timeit.repeat(lambda: run.load_checkpoint(transitions), number=1, repeat=args.repeats)
    return statistics.median(seconds[-args.repeats :]), new, sum(sizes.values()), statistics.median(loads)


def main(args):
    """Prints the table."""
    print(f"| environment | transitions | checkpoint every {args.every:,}: s | MB written | MB on disk | load: s |")
    print("|-|-|-|-|-|-|")
    for env_id in args.env_ids:
        for transitions in args.transitions:
            with tempfile.TemporaryDirectory(dir=".") as folder, contextlib.chdir(folder):
                seconds, new, whole, load = measure(env_id, transitions, args)
            cells = f"{seconds:.3f} | {new / 1e6:.1f} | {whole / 1e6:,.1f} | {load:.2f}"
            print(f"| {env_id} | {transitions:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
