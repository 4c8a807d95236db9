"""benchmark/plot.py draws runs that compare and refuses those that do not."""

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3
import pytest

PLOT = Path(__file__).parent.parent / "benchmark" / "plot.py"


def write_run(path, args=(), mujoco="3.4.0"):
    path.mkdir()
    settings = {"env_id": "Hopper-v4", "seed": 1, "eval_episodes": 10, "eval_deterministic": True} | dict(args)
    (path / "config.json").write_text(json.dumps({"args": settings, "versions": {"mujoco": mujoco}}))
    (path / "evaluations.csv").write_text("step,seconds,mean,std,return_0\n0,0.1,20,3,20\n10000,60,300,9,300\n")
    return path


def plot(runs, output):
    command = [sys.executable, str(PLOT), "--runs", *map(str, runs), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True)


def test_draws_runs_that_compare(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", {"seed": 2})]
    result = plot(runs, tmp_path / "curve.png")
    assert result.returncode == 0, result.stderr
    assert imageio.v3.imread(tmp_path / "curve.png").std() > 10


@pytest.mark.parametrize(
    "other, named",
    [
        ({"mujoco": "3.5.0"}, "mujoco"),
        ({"args": {"env_id": "Ant-v4"}}, "env_id"),
        ({"args": {"eval_deterministic": False}}, "eval_deterministic"),
        ({"args": {"eval_episodes": 5}}, "eval_episodes"),
    ],
)
def test_refuses_runs_that_do_not_compare(other, named, tmp_path):
    result = plot([write_run(tmp_path / "a"), write_run(tmp_path / "b", **other)], tmp_path / "curve.png")
    assert result.returncode == 2 and f"must share one {named}" in result.stderr
    assert not (tmp_path / "curve.png").exists()


def test_says_which_file_is_missing(tmp_path):
    result = plot([tmp_path / "none"], tmp_path / "curve.png")
    assert result.returncode == 2 and "config.json" in result.stderr and "Traceback" not in result.stderr
