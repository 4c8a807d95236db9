"""Speed of the whole loop of meow_continuous_action.py, alone or in turns with any command that prints its steps.

    python benchmark/tools/speed.py --env-id Hopper-v4
    python benchmark/tools/speed.py --env-id Hopper-v4 --seeds 2
    python benchmark/tools/speed.py --peers "cd C && PYTHONPATH=. C/venv/bin/python cleanrl/sac_continuous_action.py"

Once every process is past --first-step they take turns, until the slowest has reached --last-step: while one runs, the
others are stopped (SIGSTOP), so that all meet the same noise of the machine. Evaluations are counted; what a process
does before its first step, as compiling does, is not. Then a run of ours in this process is timed part by part, beside
the matrix products that no update can avoid. Prints Markdown.

Against the script of another commit, here 3d52f94, on one core:

    git worktree add /tmp/before 3d52f94
    taskset -c 0 python benchmark/tools/speed.py --env-id Hopper-v4 --first-step 6000 --last-step 12000 \\
        --slice-seconds 8 --peers "cd /tmp/before && python meow_continuous_action.py --env-id Hopper-v4"

On CUDA (A and L: the absolute paths of the authors' repository and of LeanRL's, each with an environment of its own in
venv; LeanRL's was not run so far):

    pytest tests/test_cuda.py
    python benchmark/tools/speed.py --first-step 20000 --last-step 30000 --slice-seconds 5 --peers \\
        "cd A/cleanrl/cleanrl && A/venv/bin/python meow_continuous_action.py --env-id Hopper-v4 --description runs/A" \\
        "cd L/leanrl && WANDB_MODE=disabled L/venv/bin/python sac_continuous_action_torchcompile.py \\
        --env-id Hopper-v4 --compile --cudagraphs"
"""

import collections
import contextlib
import copy
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import meow_continuous_action as meow  # noqa: E402  the line above lets Python find it

STEPS = re.compile(r"global_step=(\d+)|(\d+)/\d+ \[")  # CleanRL's lines and progress bars such as ours


@dataclass
class Args:
    env_id: str = "Hopper-v4"  # the environment of our run
    peers: tuple[str, ...] = ()  # shell commands to measure against, long enough; see STEPS for what they must print
    seeds: int = 1  # 2 or more also measures so many runs of ours side by side
    first_step: int = 10_000  # counting begins when every process has passed this step
    last_step: int = 20_000  # it ends when every one has reached this step; the run timed part by part ends here too
    slice_seconds: float = 20.0  # length of a turn; longer than the time between two prints
    threads: int = 1  # CPU threads of every process
    options: str = ""  # more flags for our run, as in --options="--no-compile --batch-size 512"


class Process:
    """A command, started stopped, whose printed steps are noted with the seconds for which it has run."""

    def __init__(self, command, folder, threads):
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        settings = {"cwd": folder, "env": os.environ | variables, "start_new_session": True}
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        self.child = subprocess.Popen(command, **settings)
        self.clock, self.resumed, self.output = 0.0, time.perf_counter(), ""
        self.last = (0.0, 0)  # seconds for which the process had run, and the newest step it had printed then
        threading.Thread(target=self.read, daemon=True).start()
        self.pause()

    def read(self):
        for line in self.child.stdout:  # universal newlines: the progress bar's \r ends a line too
            self.output = self.output[-2000:] + line
            for found in STEPS.finditer(line):
                step = int(found[1] or found[2])
                if step > self.last[1]:
                    self.last = (self.clock + time.perf_counter() - self.resumed, step)

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.child.pid, number)

    def resume(self):
        self.resumed = time.perf_counter()
        self.send(signal.SIGCONT)

    def pause(self):
        self.send(signal.SIGSTOP)
        now = time.perf_counter()
        self.clock, self.resumed = self.clock + now - self.resumed, now  # a line may still be read
        if self.child.poll() is not None:
            raise RuntimeError(f"{shlex.join(self.child.args)} ended before it was measured:\n{self.output}")

    def kill(self):
        self.send(signal.SIGKILL)
        self.child.wait()


def take_turns(groups, args):
    """{name: [Process]} -> {name: (env steps/s of all its processes, those of each slice)}."""

    def turn(name):
        for process in groups[name]:
            process.resume()
        time.sleep(args.slice_seconds)
        for process in groups[name]:
            process.pause()
        print(f"{name}: step {groups[name][0].last[1]:,}", file=sys.stderr, flush=True)

    processes = [process for group in groups.values() for process in group]
    for name, group in groups.items():
        while min(process.last[1] for process in group) < args.first_step:
            turn(name)
    points = {process: [process.last] for process in processes}
    while min(process.last[1] for process in processes) < args.last_step:
        for name in groups:
            turn(name)
        for process in processes:
            points[process].append(process.last)

    def speed(group, first, last):
        spans = [(points[process][first], points[process][last]) for process in group]
        return sum((stop[1] - start[1]) / (stop[0] - start[0]) for start, stop in spans if stop[0] > start[0])

    slices = len(points[processes[0]]) - 1
    return {name: (speed(g, 0, -1), [speed(g, i, i + 1) for i in range(slices)]) for name, g in groups.items()}


class MatrixProducts(TorchDispatchMode):
    """Records the factors of all matrix products."""

    factors = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.factors += (args[-2:],)
        return func(*args, **(kwargs or {}))


def matrix_products(policy, batch_size):
    """The factors of all matrix products of one update: [((n, k), (k, m)), ...]."""
    policy = meow.flatten(copy.deepcopy(policy))
    target = meow.flatten(copy.deepcopy(policy)).requires_grad_(False)
    rb = meow.ReplayBuffer(batch_size, policy.sigma_net[0].in_features, policy.act_dim)
    rb.set_rows(0, torch.rand_like(rb.rows))
    data, dropout = rb.sample(batch_size), meow.dropout_masks(policy, batch_size)
    with MatrixProducts() as products:
        meow.update(policy, target, meow.Adam(policy.vector, 1e-3), data, 0.99, 0.005, 30.0, dropout)
    return products.factors


def milliseconds_of_products(policy, batch_size, repeats=200):
    """Median time of one update's matrix products in PyTorch, alone and one after the other."""
    factors, times = matrix_products(policy, batch_size), []
    for _ in range(repeats):
        start = time.perf_counter()
        for a, b in factors:
            torch.mm(a, b)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


# What a learning step consists of, besides update and action
PARTS = [
    (meow.Episodes, "step", "environment"),
    (meow.ReplayBuffer, "add", "buffer"),
    (meow.ReplayBuffer, "sample", "buffer"),
    (meow, "dropout_masks", "dropout masks"),
    (meow, "evaluate", "evaluation"),
    (meow.SummaryWriter, "add_scalar", "logging"),
]


def breakdown(args):
    """Trains in this process. Returns the milliseconds a learning step spends in each part, and the products' time."""
    spent, learning, running, accelerated = collections.Counter(), [], [], meow.accelerated

    def timed(function, part):
        def wrapper(*arguments, **settings):
            if running:  # a part of another one
                return function(*arguments, **settings)
            running.append(part)
            start = time.perf_counter()
            result = function(*arguments, **settings)
            spent[part] += time.perf_counter() - start
            running.clear()
            if part == "update" and not learning:  # the first action and the first update compile
                spent.clear()
                learning.append(time.perf_counter())
            return result

        return wrapper

    def timed_accelerated(settings, device, steps):
        update, forward = accelerated(settings, device, max(steps, 20_000))  # compiled, however short the run
        return timed(update, "update"), timed(forward, "action")

    run = tyro.cli(meow.Args, args=our_flags(args, 1, args.last_step))
    with contextlib.ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        stack.enter_context(patch.object(meow, "accelerated", timed_accelerated))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        policy, _ = meow.train(run)
        end = time.perf_counter()
    steps = run.total_timesteps - run.learning_starts - 1  # the first is at --learning-starts + 1, and not counted
    parts = {name: 1e3 * seconds / steps for name, seconds in spent.items()}
    parts["rest of the loop"] = 1e3 * (end - learning[0]) / steps - sum(parts.values())
    return parts, milliseconds_of_products(policy, run.batch_size)


def our_flags(args, seed, total_timesteps):
    flags = ["--env-id", args.env_id, "--seed", str(seed), "--total-timesteps", str(total_timesteps)]
    return [*flags, "--torch-threads", str(args.threads), *shlex.split(args.options)]


def main(args):
    """Prints the tables. Raises RuntimeError if a process ends too early."""
    if args.first_step >= args.last_step:
        raise ValueError(f"--first-step must be below --last-step, got {args.first_step} and {args.last_step}")
    for name in ("slice_seconds", "seeds", "threads"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        def start(command, cwd):
            process = Process(command, cwd, args.threads)
            stack.callback(process.kill)
            return process

        def ours(seed):
            flags = our_flags(args, seed, 100 * args.last_step)  # it is killed before
            return start([sys.executable, str(ROOT / "meow_continuous_action.py"), *flags], folder)

        groups = {"ours": [ours(1)]}
        if args.seeds > 1:
            groups[f"ours, {args.seeds} side by side"] = [ours(seed) for seed in range(2, 2 + args.seeds)]
        groups |= {f"`{command}`": [start(["bash", "-c", command], ".")] for command in args.peers}
        speeds = take_turns(groups, args)

    print(f"\n{args.env_id}, steps {args.first_step:,} to {args.last_step:,}, {args.threads} thread(s) per process\n")
    print("| | env steps/s | slowest to fastest slice | ratio to ours |\n|-|-|-|-|")
    for name, (speed, slices) in speeds.items():
        print(f"| {name} | {speed:.1f} | {min(slices):.1f} to {max(slices):.1f} | {speed / speeds['ours'][0]:.2f} |")

    if torch.cuda.is_available():
        return print("\nOn CUDA the host does not wait for the device, so this script cannot time the parts of a step.")
    parts, products = breakdown(args)
    total = sum(parts.values())
    print("\n| part of a learning step of ours | ms | share |\n|-|-|-|")
    for name, ms in [*sorted(parts.items(), key=lambda part: -part[1]), ("whole", total)]:
        print(f"| {name} | {ms:.3f} | {ms / total:.0%} |")
    print(
        f"\nThe matrix products of an update alone take {products:.2f} ms ({1e3 / products:.0f} updates/s): "
        f"{products / parts['update']:.0%} of our update, {products / total:.0%} of our step."
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
