"""The multi-goal task (Fig. 2): its rules, and that a trained policy reaches all four goals from the centre."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fig2_multigoal import GaussianActor, fit_actor, sample_trajectories

from benchmark.multigoal import GOALS, MultiGoalEnv
from meow_continuous_action import Args, load_policy, train

SCRIPT = Path(__file__).parents[1] / "benchmark" / "tools" / "fig2_multigoal.py"
PAPER = {"gamma": 0.9, "tau": 0.0005, "alpha": 2.5, "sigma_min": -2.0, "sigma_max": 1.0}


def test_the_rules_of_the_task():
    env = MultiGoalEnv()
    starts = np.array([env.reset(seed=seed)[0] for seed in range(500)])
    assert abs(starts.mean()) < 0.01 and starts.std() == pytest.approx(0.1, abs=0.01)
    env.position = np.array([3.0, 0.5])
    obs, reward, terminated, truncated, _ = env.step(np.array([1.0, -0.5]))
    assert obs.tolist() == [4.0, 0.0] and not terminated and not truncated  # at distance 1, not within it
    assert reward == pytest.approx(-30 * 1.25 - 1.0)
    _, reward, terminated, _, _ = env.step(np.array([0.5, 0.0]))
    assert terminated and reward == pytest.approx(-30 * 0.25 - 0.25 + 10)
    env.position = np.array([-6.5, 6.8])
    obs, reward, _, _, _ = env.step(np.array([-1.0, 1.0]))
    assert obs.tolist() == [-7.0, 7.0] and reward == pytest.approx(-60 - (4 + 49))
    assert sorted(map(tuple, GOALS.tolist())) == [(-5, 0), (0, -5), (0, 5), (5, 0)]


def test_sacs_actor_has_the_density_it_says_and_fits_a_gaussian_q():
    """For Q = alpha * log pi of such an actor the fit is that actor, and Q - alpha * log pi is V = 0 everywhere."""
    torch.manual_seed(0)
    actor, alpha = GaussianActor(2).requires_grad_(False), 0.5
    actor.mean.copy_(torch.tensor([0.3, -0.5])), actor.log_std.copy_(torch.tensor([-0.7, -1.5]))
    normal = torch.distributions.Normal(actor.mean, actor.log_std.exp())
    density = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    u, log_prob = actor.sample(1000)
    assert torch.allclose(log_prob, density.log_prob(torch.tanh(u)).sum(dim=1), atol=1e-3)
    fitted = fit_actor(lambda u: alpha * density.log_prob(torch.tanh(u)).sum(dim=1), 2, alpha)
    assert torch.allclose(fitted.mean, actor.mean, atol=0.03)
    assert torch.allclose(fitted.log_std, actor.log_std, atol=0.03)


def test_all_four_goals_are_reached_from_the_centre_and_the_figure_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = {"total_timesteps": 6_000, "learning_starts": 1_000, "eval_frequency": 6_000, "eval_episodes": 1}
    _, run = train(Args(env_id="benchmark.multigoal:MultiGoal-v0", **PAPER, **steps))
    torch.manual_seed(0)
    reached = [goal for _, goal in sample_trajectories(load_policy(run.dir)[0], 200)]
    assert {0, 1, 2, 3} <= set(reached) and reached.count(None) < 10
    command = [sys.executable, SCRIPT, "--run", run.dir, "--output", "fig2"]
    command += ["--trajectories", "10", "--max-samples", "1000", "--repeats", "20"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = {"fig2a.png", "fig2b.png", "trajectories.csv", "errors.csv"}
    assert {path.name for path in Path("fig2").iterdir()} == names
    errors = {line.split(":")[0]: line for line in result.stdout.splitlines()}
    last = {name: float(line.rsplit(", ", 1)[1].split()[0]) for name, line in errors.items() if "M=1,000" in line}
    assert last["MEow's own policy"] < 1e-3 < min(last["SQL"], last["SAC"])  # exact, and not so
    assert last["SAC"] < 5  # of an actor that was fitted
