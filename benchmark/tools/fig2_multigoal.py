"""Fig. 2 from a model trained on the multi-goal task: the learnt V with trajectories, and Monte Carlo estimates of V.

    python benchmark/tools/fig2_multigoal.py --run runs/NAME --output benchmark/results/MultiGoal-v0

Writes fig2a.png, fig2b.png and their data (trajectories.csv, errors.csv).
"""

import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn as nn
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.multigoal import GOALS, MultiGoalEnv  # noqa: E402
from meow_continuous_action import UsageError, load_policy  # noqa: E402

plt.rcParams["font.size"] = 12


@dataclass
class Args:
    run: Path
    """the run's folder, or a model file"""
    output: Path
    """the folder to write"""
    trajectories: int = 100
    """sampled from the centre"""
    max_samples: int = 100_000
    """largest M of the estimates"""
    repeats: int = 200
    """estimates for each M, of whose absolute errors the mean is drawn; 300,000 / M where that is fewer, at least 10"""
    seed: int = 1
    """of the trajectories and estimates"""


@torch.no_grad()
def sample_trajectories(policy, number):
    """Plays `number` episodes from the centre with sampled actions: a list of (positions (T, 2), index of the goal)."""
    trajectories = []
    for seed in range(number):
        env = MultiGoalEnv()
        obs, _ = env.reset(seed=seed)
        positions, reached = [env.position], False
        while not reached and len(positions) <= 1_000:
            action = policy.act(torch.as_tensor(obs[None]))[0].numpy()
            obs, _, reached, _, _ = env.step(action)
            positions.append(env.position)
        distances = np.linalg.norm(positions[-1] - GOALS, axis=1)
        trajectories.append((np.array(positions), int(distances.argmin()) if reached else None))
    return trajectories


class GaussianActor(nn.Module):
    """SAC's actor at one state: a = tanh(mean + std * noise)."""

    def __init__(self, act_dim):
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.zeros(act_dim)), nn.Parameter(torch.full((act_dim,), -1.0))

    def sample(self, number):
        """u (number, A) of actions tanh(u), and the log-densities (number,) of these."""
        normal = torch.distributions.Normal(self.mean, self.log_std.exp())
        u = normal.rsample((number,))
        log_det = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return u, (normal.log_prob(u) - log_det).sum(dim=1)


def fit_actor(q_of, act_dim, alpha, steps=2_000):
    """The Gaussian actor that SAC's loss E[alpha * log pi - Q] leads to."""
    actor = GaussianActor(act_dim)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    for _ in range(steps):
        u, log_prob = actor.sample(256)
        loss = (alpha * log_prob - q_of(u)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return actor


def estimation_errors(policy, args):
    """Mean absolute errors of Monte Carlo estimates of V at the centre: {name: [(M, error), ...]}."""
    obs, alpha, act_dim = torch.zeros(1, 2), policy.alpha, policy.act_dim
    exact = policy.get_v(obs)[0, 0].item()  # Eq. 8

    def q_of(u):
        return policy.get_q(obs.expand(len(u), -1), u)[:, 0]

    actor = fit_actor(q_of, act_dim, alpha)

    @torch.no_grad()
    def sql(number):  # importance sampling from the uniform density 1 / 2^A
        u = policy.pre_tanh(2 * torch.rand(number, act_dim) - 1)
        return alpha * (torch.logsumexp(q_of(u) / alpha, 0) - math.log(number) + act_dim * math.log(2)).item()

    @torch.no_grad()
    def sac(number):
        u, log_prob = actor.sample(number)
        return (q_of(u) - alpha * log_prob).mean().item()

    @torch.no_grad()
    def meow(number):  # the same, with MEow's own policy: every single sample is V
        states = obs.expand(number, -1)
        u = policy.draw(states)
        return (q_of(u) - alpha * policy.log_prob(states, u)).mean().item()

    estimators = {"SQL: uniform proposal": sql, "SAC: fitted Gaussian actor": sac, "MEow's own policy": meow}
    errors = {name: [] for name in estimators}
    numbers = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
    for number in filter(lambda number: number <= args.max_samples, numbers):
        repeats = max(10, min(args.repeats, 300_000 // number))
        for name, estimate in estimators.items():
            errors[name].append((number, np.mean([abs(estimate(number) - exact) for _ in range(repeats)])))
    return errors, exact


def draw_values(policy, trajectories, path):
    """Fig. 2a: contour of V with the goals and the trajectories."""
    grid = np.linspace(-7, 7, 141, dtype=np.float32)
    points = torch.as_tensor(np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2))
    with torch.no_grad():
        values = policy.get_v(points).min(dim=1).values.reshape(len(grid), len(grid)).numpy()
    figure, axes = plt.subplots(figsize=(4.4, 3.7), layout="constrained")
    contours = axes.contourf(grid, grid, values, levels=25, cmap="cividis")
    figure.colorbar(contours, label="soft value V(s)", format="%.0f")
    for positions, _ in trajectories:
        axes.plot(*positions.T, color="white", linewidth=0.6, alpha=0.6)
    axes.scatter(*GOALS.T, marker="*", s=160, color="white", edgecolor="black", zorder=3)
    box = {"facecolor": "white", "linewidth": 0, "pad": 2}
    for i, (x, y) in enumerate(GOALS):
        reached = sum(goal == i for _, goal in trajectories)
        axes.text(1.24 * x, 1.24 * y, reached, ha="center", va="center", bbox=box)
    axes.set_title(f"{len(trajectories)} trajectories, counted by goal", fontsize=12)
    axes.set_xticks([-5, 0, 5]), axes.set_yticks([-5, 0, 5])
    axes.set_xlim(-7, 7), axes.set_ylim(-7, 7)
    figure.savefig(path, dpi=130)


def draw_errors(errors, exact, path):
    """Fig. 2b: error over the number of samples."""
    figure, axes = plt.subplots(figsize=(4.8, 4), layout="constrained")
    for (name, points), style in zip(errors.items(), ("o-", "s--", "^:"), strict=True):
        axes.semilogx(*zip(*points, strict=True), style, label=name)
    axes.set_yscale("symlog", linthresh=1e-6)  # MEow's errors can be 0
    axes.set_ylim(-2e-7)
    axes.set_xlabel("number of samples M")
    axes.set_ylabel(f"mean |estimate - V|, V = {exact:.1f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", fontsize=11)
    figure.savefig(path, dpi=130)


def main(args):
    """Writes the pictures and their data into args.output."""
    torch.manual_seed(args.seed)
    policy, about = load_policy(args.run)
    if "MultiGoal" not in about["args"]["env_id"]:
        raise UsageError(f"--run must name a run on benchmark.multigoal:MultiGoal-v0, not on {about['args']['env_id']}")
    args.output.mkdir(parents=True, exist_ok=True)
    trajectories = sample_trajectories(policy, args.trajectories)
    with open(args.output / "trajectories.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trajectory", "goal", "x", "y"])
        for i, (positions, goal) in enumerate(trajectories):
            rows.writerows([i, goal, f"{x:.4f}", f"{y:.4f}"] for x, y in positions)
    draw_values(policy, trajectories, args.output / "fig2a.png")
    errors, exact = estimation_errors(policy, args)
    with open(args.output / "errors.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["estimator", "samples", "mean_absolute_error"])
        rows.writerows([name, number, f"{error:.6g}"] for name, points in errors.items() for number, error in points)
    draw_errors(errors, exact, args.output / "fig2b.png")
    for name, points in errors.items():
        print(f"{name}: " + ", ".join(f"{error:.3g} (M={number:,})" for number, error in points))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, OSError) as error:
        sys.exit(f"error: {error}")
