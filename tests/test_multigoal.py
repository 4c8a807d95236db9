"""The multi-goal task (Fig. 2): its rules, and that a trained policy reaches all four goals from the centre."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fig2_multigoal import fit_gaussian, sample_gaussian

from benchmark.multigoal import GOALS, MultiGoalEnv

ROOT = Path(__file__).parents[1]


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
    mean, log_std, alpha = torch.tensor([0.3, -0.5]), torch.tensor([-0.7, -1.5]), 0.5
    normal = torch.distributions.Normal(mean, log_std.exp())
    density = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    u, log_prob = sample_gaussian(mean, log_std, 1000)
    assert torch.allclose(log_prob, density.log_prob(torch.tanh(u)).sum(dim=1), atol=1e-3)
    fitted = fit_gaussian(lambda u: alpha * density.log_prob(torch.tanh(u)).sum(dim=1), 2, alpha)
    assert torch.allclose(fitted[0], mean, atol=0.03) and torch.allclose(fitted[1], log_std, atol=0.03)


def run(script, *flags, cwd):
    result = subprocess.run([sys.executable, ROOT / script, *flags], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_four_goals_are_reached_from_the_centre_and_the_figure_is_drawn(tmp_path):
    """With the paper's settings, more random steps and fewer updates. Of seed 1: other seeds may miss a goal."""
    flags = ["--env-id=benchmark.multigoal:MultiGoal-v0", "--gamma=0.9", "--tau=0.0005", "--alpha=2.5"]
    flags += ["--sigma-min=-2", "--sigma-max=1", "--learning-starts=5000", "--total-timesteps=6200"]
    run("meow_continuous_action.py", *flags, "--eval-frequency=6200", "--eval-episodes=1", cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    flags = ["--run", folder, "--output", "fig2", "--max-samples", "1000", "--repeats", "20"]
    errors = run("benchmark/tools/fig2_multigoal.py", *flags, cwd=tmp_path)
    names = {"fig2a.png", "fig2b.png", "trajectories.csv", "errors.csv"}
    assert {path.name for path in (tmp_path / "fig2").iterdir()} == names
    lines = (tmp_path / "fig2/trajectories.csv").read_text().splitlines()[1:]
    goals = list(dict(line.split(",")[:2] for line in lines).values())
    assert len(goals) == 100 and {"0", "1", "2", "3"} <= set(goals) and goals.count("None") < 5
    sql, sac, meow = (float(line.split("error ")[1].split()[0]) for line in errors.splitlines())
    assert meow < 1e-3 < min(sql, sac) and sac < 5  # exact, and not so; of an actor that was fitted
