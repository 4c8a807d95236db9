"""Speed of the whole loop of meow_continuous_action.py, in turns with commands that print steps.

    python benchmark/tools/speed.py --env-id Hopper-v4
    python benchmark/tools/speed.py --peers "cd C && C/venv/bin/python cleanrl/sac_continuous_action.py"
    git worktree add /tmp/before 3d52f94    # to compare two commits
    taskset -c 0 python benchmark/tools/speed.py --peers "cd /tmp/before && python meow_continuous_action.py"

Once every process is past --first-step they take turns, until the slowest has reached --last-step:
while one runs, the others are stopped (SIGSTOP), so that all meet the same noise of the machine.
Evaluations are counted; what a process does before its first step, as compiling does, is not. On a
CPU operations.py then times the parts of our step. Prints Markdown.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import operations
import torch
import tyro

SCRIPT = Path(__file__).resolve().parents[2] / "meow_continuous_action.py"
STEPS = re.compile(r"global_step=(\d+)|(\d+)/\d+ \[")  # CleanRL's lines and progress bars such as ours


@dataclass
class Args:
    env_id: str = "Hopper-v4"  # the environment of our run
    peers: tuple[str, ...] = ()  # shell commands to measure against, long enough, which print STEPS
    first_step: int = 10_000  # counting begins when every process has passed this step
    last_step: int = 20_000  # it ends when every one has reached this step
    slice_seconds: float = 20.0  # length of a turn; longer than the time between two prints
    threads: int = 1  # CPU threads of every process
    options: str = ""  # more flags for our run, as in --options="--no-compile --batch-size 512"


class Process:
    """A command, stopped at its start. Notes the steps it prints with the seconds it has run."""

    def __init__(self, name, command, folder, threads):
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        settings = {"cwd": folder, "env": os.environ | variables, "start_new_session": True}
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        self.name, self.output, self.points = name, "", []
        self.child = subprocess.Popen(command, **settings)
        self.seconds, self.resumed = 0.0, time.perf_counter()
        self.last = (0.0, 0)  # seconds for which it had run, and the newest step it had printed then
        threading.Thread(target=self.read, daemon=True).start()
        self.pause()

    def read(self):
        for line in self.child.stdout:  # universal newlines: the progress bar's \r ends a line too
            self.output = self.output[-2000:] + line
            for found in STEPS.finditer(line):
                step = int(found[1] or found[2])
                if step > self.last[1]:
                    self.last = (self.seconds + time.perf_counter() - self.resumed, step)

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.child.pid, number)

    def pause(self):
        self.send(signal.SIGSTOP)
        now = time.perf_counter()
        self.seconds, self.resumed = self.seconds + now - self.resumed, now  # a line may still be read
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.name} ended before it was measured:\n{self.output}")

    def turn(self, seconds):
        self.resumed = time.perf_counter()
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.pause()
        print(f"{self.name}: step {self.last[1]:,}", file=sys.stderr, flush=True)

    def speed(self, first, last):
        """Steps/s between two points."""
        (begin, first_step), (end, last_step) = self.points[first], self.points[last]
        return (last_step - first_step) / max(end - begin, 1e-9)


def take_turns(processes, args):
    """Lets the processes run in turns, and notes where each stands after each round."""
    for process in processes:
        while process.last[1] < args.first_step:
            process.turn(args.slice_seconds)
        process.points.append(process.last)
    while min(process.last[1] for process in processes) < args.last_step:
        for process in processes:
            process.turn(args.slice_seconds)
            process.points.append(process.last)


def main(args):
    """Prints the tables. Raises RuntimeError if a process ends too early."""
    if args.first_step >= args.last_step or args.slice_seconds <= 0:
        raise ValueError("--first-step must be below --last-step, and --slice-seconds above 0")
    flags = ["--env-id", args.env_id, "--torch-threads", str(args.threads), *shlex.split(args.options)]
    endless = ["--total-timesteps", str(100 * args.last_step)]  # it is killed before
    commands = {"ours": [sys.executable, str(SCRIPT), *flags, *endless]}
    for peer in args.peers:
        commands[f"`{peer}`"] = ["bash", "-c", peer]
    processes = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name, command in commands.items():
            process = Process(name, command, folder if name == "ours" else ".", args.threads)
            stack.callback(process.child.wait)
            stack.callback(process.send, signal.SIGKILL)  # before that
            processes.append(process)
        take_turns(processes, args)

    print(f"\n{args.env_id}, steps {args.first_step:,} to {args.last_step:,}, {args.threads} thread(s) per process\n")
    print("| | env steps/s | ms per step | slowest to fastest slice | ratio to ours |\n|-|-|-|-|-|")
    for process in processes:
        speed, ours = process.speed(0, -1), processes[0].speed(0, -1)
        slices = [process.speed(i, i + 1) for i in range(len(process.points) - 1)]
        cells = f"{1e3 / speed:.2f} | {min(slices):.1f} to {max(slices):.1f} | {speed / ours:.2f}"
        print(f"| {process.name} | {speed:.1f} | {cells} |")
    if not torch.cuda.is_available():  # there the host does not wait for the device
        operations.main(tyro.cli(operations.Args, args=flags))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
