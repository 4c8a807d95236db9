"""benchmark/tools/film_mujoco_task.py plays the episode that it tells of, and films it where MuJoCo can render."""

import subprocess
import sys
from pathlib import Path

import imageio.v3
import pytest
import torch
from film_mujoco_task import play

import meow_isaacgym
from benchmark.simulators.mujoco import make

SCRIPT = Path(__file__).parent.parent / "benchmark" / "tools" / "film_mujoco_task.py"


@pytest.fixture
def model(tmp_path):
    """A model of an untrained policy, which stands still or falls."""
    torch.manual_seed(0)
    about = {"network": {"obs_dim": 36, "act_dim": 8, "alpha": 0.1}, "step": 7, "args": {"task": "AntMujoco"}}
    state = meow_isaacgym.Agent(about["network"]).state_dict()
    meow_isaacgym.save_file(tmp_path / "model.pt", {"about": about, "state_dict": state})
    return tmp_path / "model.pt"


def film(model, output):
    command = [sys.executable, str(SCRIPT), "--run", str(model), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_return_is_that_of_the_one_episode(model):
    agent = meow_isaacgym.load_agent(model)[0]
    total, states = play(agent, make(seed=3, task="AntMujoco", num_envs=1, sim_device="cpu", rl_device="cpu"))
    env = make(seed=3, task="AntMujoco", num_envs=1, sim_device="cpu", rl_device="cpu")
    obs, expected, steps, done = env.step(torch.zeros(1, 8))[0]["obs"], 0.0, 0, False
    while not done:
        obs, reward, done, _ = env.step(agent.act(obs, deterministic=True))
        obs, expected, steps = obs["obs"], expected + reward.item(), steps + 1
    assert (total, len(states)) == (expected, steps)


def test_it_films_or_says_why_not(model, tmp_path):
    result = film(model, tmp_path / "ant.gif")
    assert "model after 7 vector steps: return " in result.stdout
    if result.returncode == 2:  # a machine without OpenGL
        assert "MUJOCO_GL must be egl or osmesa" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        pictures = imageio.v3.imread(tmp_path / "ant.gif")
        assert pictures.shape[1:3] == (160, 240) and pictures.std() > 10


def test_models_of_other_simulators_are_refused(model, tmp_path):
    content = torch.load(model)
    content["about"]["args"]["task"] = "Ant"
    meow_isaacgym.save_file(model, content)
    result = film(model, tmp_path / "ant.gif")
    assert result.returncode == 2
    assert "--run must name a run on a task of benchmark/simulators/mujoco.py" in result.stderr
