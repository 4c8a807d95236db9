"""Fig. 2 from a model of the multi-goal task: the learnt V with trajectories, and errors of estimates of V.

    python benchmark/tools/fig2_multigoal.py --run runs/NAME --output benchmark/results/MultiGoal-v0

Writes fig2a.png, fig2b.png and their data (trajectories.csv, errors.csv).
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.multigoal import GOALS, MultiGoalEnv
from meow_continuous_action import load_policy


@dataclass
class Args:
    run: Path  # the run's folder, or a model file
    output: Path  # the folder to write
    trajectories: int = 100  # sampled from the centre
    max_samples: int = 100_000  # largest M of the estimates
    repeats: int = 200  # estimates for each M; 300,000 / M where that is fewer, at least 10
    seed: int = 1  # of the trajectories and estimates


@torch.no_grad()
def sample_trajectories(policy, number):
    """Plays episodes from the centre with sampled actions: [(positions (T, 2), index of the goal or None)]."""
    env, trajectories = MultiGoalEnv(), []
    for seed in range(number):
        obs, _ = env.reset(seed=seed)
        positions, reached = [env.position], False
        while not reached and len(positions) <= 1_000:
            action = policy.act(torch.as_tensor(obs[None]))[0].numpy()
            obs, _, reached, _, _ = env.step(action)
            positions.append(env.position)
        goal = int(np.linalg.norm(env.position - GOALS, axis=1).argmin()) if reached else None
        trajectories.append((np.array(positions), goal))
    return trajectories


def sample_gaussian(mean, log_std, number):
    """SAC's actor at one state: u (number, A) of actions tanh(u), and log-densities (number,) of these."""
    normal = torch.distributions.Normal(mean, log_std.exp())
    u = normal.rsample((number,))
    log_det = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
    return u, (normal.log_prob(u) - log_det).sum(dim=1)


def fit_gaussian(q_of, act_dim, alpha):
    """The mean and log of the deviation (A,) to which SAC's loss E[alpha * log pi - Q] leads."""
    mean, log_std = torch.zeros(act_dim).requires_grad_(), torch.full((act_dim,), -1.0).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_std], lr=1e-2)
    for _ in range(1_000):
        u, log_prob = sample_gaussian(mean, log_std, 256)
        loss = (alpha * log_prob - q_of(u)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return mean.detach(), log_std.detach()


def estimation_errors(policy, args):
    """Mean absolute errors of Monte Carlo estimates of V at the centre: {name: [(M, error), ...]}, and V."""
    obs, alpha, act_dim = torch.zeros(1, 2), policy.alpha, policy.act_dim

    def q_of(u):
        return policy.get_q(obs.expand(len(u), -1), u)[:, 0]

    mean, log_std = fit_gaussian(q_of, act_dim, alpha)

    def sql(number):  # importance sampling from the uniform density 1 / 2^A
        u = policy.pre_tanh(2 * torch.rand(number, act_dim) - 1)
        return alpha * (torch.logsumexp(q_of(u) / alpha, 0) - math.log(number) + act_dim * math.log(2))

    def sac(number):
        u, log_prob = sample_gaussian(mean, log_std, number)
        return (q_of(u) - alpha * log_prob).mean()

    def meow(number):  # the same, with MEow's own policy: every single sample is V
        states = obs.expand(number, -1)
        u = policy.draw(states)
        return (q_of(u) - alpha * policy.log_prob(states, u)).mean()

    estimators = {"SQL: uniform proposal": sql, "SAC: fitted Gaussian actor": sac, "MEow's own policy": meow}
    errors = {name: [] for name in estimators}
    exact = policy.get_v(obs)[0, 0].item()  # Eq. 8
    for number in (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000):
        if number > args.max_samples:
            break
        repeats = max(10, min(args.repeats, 300_000 // number))
        for name, estimate in estimators.items():
            estimates = torch.stack([estimate(number) for _ in range(repeats)])
            errors[name].append((number, (estimates - exact).abs().mean().item()))
    return errors, exact


def draw_values(policy, trajectories, file):
    """Fig. 2a: contour of V with the goals and the trajectories."""
    grid = torch.linspace(-7, 7, 141)
    values = policy.get_v(torch.cartesian_prod(grid, grid)).min(dim=1).values.view(141, 141).T  # [y, x]
    figure, axes = plt.subplots(figsize=(4.4, 3.7), layout="constrained")
    contours = axes.contourf(grid, grid, values, levels=25, cmap="cividis")
    figure.colorbar(contours, label="soft value V(s)", format="%.0f")
    counts = [0] * len(GOALS)
    for positions, goal in trajectories:
        axes.plot(*positions.T, color="white", linewidth=0.6, alpha=0.6)
        if goal is not None:
            counts[goal] += 1
    axes.scatter(*GOALS.T, marker="*", s=160, color="white", edgecolor="black", zorder=3)
    box = {"facecolor": "white", "linewidth": 0, "pad": 2}
    for (x, y), count in zip(GOALS, counts, strict=True):
        axes.text(1.24 * x, 1.24 * y, count, ha="center", va="center", bbox=box)
    axes.set_title(f"{len(trajectories)} trajectories, counted by goal", fontsize=12)
    axes.set(xlim=(-7, 7), ylim=(-7, 7), xticks=[-5, 0, 5], yticks=[-5, 0, 5])
    figure.savefig(file, dpi=130)


def draw_errors(errors, exact, file):
    """Fig. 2b: error over the number of samples."""
    figure, axes = plt.subplots(figsize=(4.8, 4), layout="constrained")
    for (name, points), style in zip(errors.items(), ("o-", "s--", "^:"), strict=True):
        axes.semilogx(*zip(*points, strict=True), style, label=name)
    axes.set_yscale("symlog", linthresh=1e-6)  # MEow's errors can be 0
    axes.set(ylim=(-2e-7, None), xlabel="number of samples M", ylabel=f"mean |estimate - V|, V = {exact:.1f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", fontsize=11)
    figure.savefig(file, dpi=130)


def main(args):
    """Writes the pictures and their data into args.output."""
    plt.switch_backend("agg")
    plt.rcParams["font.size"] = 12
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    policy, about = load_policy(args.run)
    policy.requires_grad_(False)
    if "MultiGoal" not in about["args"]["env_id"]:
        raise ValueError(f"--run must name a run on MultiGoal-v0, not on {about['args']['env_id']}")
    args.output.mkdir(parents=True, exist_ok=True)
    trajectories = sample_trajectories(policy, args.trajectories)
    draw_values(policy, trajectories, args.output / "fig2a.png")
    with open(args.output / "trajectories.csv", "w") as file:
        print("trajectory,goal,x,y", file=file)
        for i, (positions, goal) in enumerate(trajectories):
            for x, y in positions:
                print(f"{i},{goal},{x:.4f},{y:.4f}", file=file)

    errors, exact = estimation_errors(policy, args)
    draw_errors(errors, exact, args.output / "fig2b.png")
    with open(args.output / "errors.csv", "w") as file:
        print("estimator,samples,mean_absolute_error", file=file)
        for name, points in errors.items():
            for number, error in points:
                print(f"{name},{number},{error:.6g}", file=file)
            print(f"{name}: error {error:.3g} with {number:,} samples")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
