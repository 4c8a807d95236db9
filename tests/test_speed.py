"""benchmark/tools: speed.py, operations.py and checkpoint_cost.py report what ran; how fast decides nothing here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import speed
from torch.utils.flop_counter import FlopCounterMode

import meow_continuous_action as meow

TOOLS = Path(speed.__file__).parent
# prints CleanRL's lines, and the seconds between two of them as a check of the turns: 0.05, whatever else ran meanwhile
PEER = """
import time
for step in range(0, 100_000, 10):
    time.sleep(0.05)
    print(f"global_step={step}, episodic_return=1")
"""


def run(script, *flags, **settings):
    command = [sys.executable, str(TOOLS / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def test_speed_measures_ours_and_a_peer_in_turns(tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    result = run(
        "speed.py",
        *["--env-id", "Pendulum-v1", "--first-step", "100", "--last-step", "600"],
        *["--options=--no-compile --learning-starts 50 --eval-episodes 1 --batch-size 32", "--slice-seconds", "1.5"],
        *["--peers", f"cd {tmp_path} && {sys.executable} peer.py"],
    )
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if "|" in line]
    ours, peer = rows[2:4]
    assert ours[0] == "ours" and ours[3] == "1.00" and float(ours[1]) > 0
    assert "peer.py" in peer[0] and float(peer[1]) > 0
    assert float(peer[3]) == pytest.approx(float(peer[1]) / float(ours[1]), rel=0.02, abs=0.05)
    assert 0 < float(peer[1]) < 250  # no more than the 200 of its sleeps: paused, it is not timed
    parts = {row[0]: float(row[1]) for row in rows[6:]}
    assert {"update", "action", "environment", "buffer", "dropout masks", "evaluation"} <= set(parts)
    assert min(parts.values()) > 0
    assert sum(ms for name, ms in parts.items() if name != "whole") == pytest.approx(parts["whole"], abs=0.01)
    assert re.search(r"take [\d.]+ ms \(\d+ updates/s\): \d+% of our update", result.stdout)


def test_speed_says_when_a_peer_fails():
    flags = ["--env-id", "Pendulum-v1", "--slice-seconds", "1", "--first-step", "10", "--options=--no-compile"]
    result = run("speed.py", *flags, "--peers", "echo no such file; exit 3")
    assert result.returncode == 1
    assert "ended before it was measured" in result.stderr and "no such file" in result.stderr


@pytest.mark.parametrize(
    "flags", [["--first-step", "20000"], ["--slice-seconds", "0"], ["--seeds", "0"], ["--threads", "0"]]
)
def test_speed_refuses_what_it_cannot_measure(flags):
    result = run("speed.py", *flags)
    assert result.returncode == 2 and f"error: {flags[0]} must be" in result.stderr


def test_matrix_products_are_those_of_an_update():
    """Counted by PyTorch's own counter of floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        factors = speed.matrix_products(meow.FlowPolicy(11, 3, 0.25), 256)
    assert counter.get_total_flops() == sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in factors) > 1e7


def test_operations_prints_times_and_the_profilers_table():
    result = run("operations.py", "--no-compile", "--repeats", "1", "--profile", "1", "--batch-size", "8")
    assert result.returncode == 0, result.stderr
    assert "| update |" in result.stdout and "aten::mm" in result.stdout


def test_checkpoint_cost_counts_the_bytes_of_a_checkpoint(tmp_path):
    flags = ["--env-ids", "Pendulum-v1", "--transitions", "2000", "100000", "--every", "1000", "--repeats", "1"]
    result = run("checkpoint_cost.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    short, long = ([float(x.replace(",", "")) for x in line.split("|")[3:7]] for line in result.stdout.splitlines()[2:])
    assert short[1] == long[1]  # a checkpoint writes what is new
    assert long[2] - short[2] == pytest.approx(98 * 1000 * 9 * 4e-6, rel=0.1)  # of 9 float32 numbers per transition
    assert list(tmp_path.iterdir()) == []
