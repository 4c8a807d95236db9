"""benchmark/tools: speed.py and operations.py report what ran; how fast decides nothing here."""

import subprocess
import sys
from pathlib import Path

import operations
import pytest
from torch.utils.flop_counter import FlopCounterMode

TOOLS = Path(operations.__file__).parent
# prints CleanRL's lines, and the seconds between two of them as a check of the turns: 0.05, whatever else ran meanwhile
PEER = """
import time
for step in range(0, 100_000, 10):
    time.sleep(0.05)
    print(f"global_step={step}, episodic_return=1")
"""


def run(script, *flags):
    return subprocess.run([sys.executable, str(TOOLS / script), *flags], capture_output=True, text=True)


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
    assert ours[0] == "ours" and ours[4] == "1.00" and float(ours[1]) > 0
    assert "peer.py" in peer[0] and float(peer[1]) * float(peer[2]) == pytest.approx(1000, rel=0.01)
    assert float(peer[4]) == pytest.approx(float(peer[1]) / float(ours[1]), rel=0.02, abs=0.05)
    assert 0 < float(peer[1]) < 250  # no more than the 200 of its sleeps: paused, it is not timed
    parts = {row[0]: float(row[1]) for row in rows[6:]}
    products = parts["matrix products of an update alone"]
    assert len(parts) == 7 and 0 < products < parts["update"] and min(parts.values()) > 0


def test_speed_says_when_a_peer_fails():
    flags = ["--env-id", "Pendulum-v1", "--slice-seconds", "1", "--first-step", "10", "--options=--no-compile"]
    result = run("speed.py", *flags, "--peers", "echo no such file; exit 3")
    assert result.returncode == 1
    assert "ended before it was measured" in result.stderr and "no such file" in result.stderr


@pytest.mark.parametrize("flags", [["--first-step", "20000"], ["--slice-seconds", "0"]])
def test_speed_refuses_what_it_cannot_measure(flags):
    result = run("speed.py", *flags)
    assert result.returncode == 2 and flags[0] in result.stderr


def test_matrix_products_are_those_of_an_update():
    parts = operations.make_parts(operations.Args(env_id="Pendulum-v1", compile=False))
    with FlopCounterMode(display=False) as update:
        parts["update"]()
    with FlopCounterMode(display=False) as alone:
        parts["matrix products of an update alone"]()
    assert update.get_total_flops() == alone.get_total_flops() > 1e7


def test_operations_prints_times_and_the_profilers_table():
    flags = ["--env-id", "Pendulum-v1", "--no-compile", "--batch-size", "8", "--steps", "1"]
    result = run("operations.py", *flags, "--profile", "1", "--rows", "200")
    assert result.returncode == 0, result.stderr
    assert "| update |" in result.stdout and "aten::mm " in result.stdout
