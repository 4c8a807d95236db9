"""Draws the evaluation curves of runs over the paper's curves of the same environment.

    pip install -r benchmark/requirements.txt
    python benchmark/plot.py --runs benchmark/results/Hopper-v4/seed_* --output benchmark/results/Hopper-v4/curve.png

Refuses runs whose returns do not compare: of several environments, MuJoCo versions or ways to evaluate.
"""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

PAPER_CURVES = Path(__file__).parent / "paper" / "fig3_mujoco_curves.csv"  # read off the paper's Fig. 3, smoothed there


@dataclass
class Args:
    runs: list[Path]
    """folders with the config.json and evaluations.csv of a run"""
    output: Path
    """the PNG to write"""


def load(run):
    """One run: (config, evaluation rows as dicts of float)."""
    config = json.loads((run / "config.json").read_text())
    with open(run / "evaluations.csv") as file:
        return config, [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def shared(configs, group, name):
    """The value of a setting that all runs share. Raises ValueError if they differ."""
    values = {config[group][name] for config in configs}
    if len(values) > 1:
        raise ValueError(f"--runs must share one {name}, got {', '.join(sorted(map(str, values)))}")
    return values.pop()


def main(args):
    """Writes args.output. Raises ValueError for runs that do not compare, OSError for missing files."""
    runs = [load(run) for run in args.runs]
    configs = [config for config, _ in runs]
    env_id = shared(configs, "args", "env_id")
    mujoco = shared(configs, "versions", "mujoco")
    episodes = shared(configs, "args", "eval_episodes")
    inference = "deterministic" if shared(configs, "args", "eval_deterministic") else "stochastic"

    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    for run, (_, rows) in zip(args.runs, runs, strict=True):
        steps, means, stds = ([row[key] for row in rows] for key in ("step", "mean", "std"))
        (line,) = axes.plot(steps, means, linewidth=1.2, label=f"MEow, this code, {run.name.replace('_', ' ')}")
        low, high = zip(*[(mean - std, mean + std) for mean, std in zip(means, stds, strict=True)], strict=True)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlim(0, 1.02 * max(rows[-1]["step"] for _, rows in runs))
    with open(PAPER_CURVES) as file:
        paper = [row for row in csv.DictReader(file) if row["env"] == env_id and row["return"]]
    for algorithm, color in (("MEow", "black"), ("SAC", "gray")):
        curve = [(float(row["step"]), float(row["return"])) for row in paper if row["algorithm"] == algorithm]
        if curve:
            label = f"{algorithm}, paper (5 seeds, smoothed)"
            axes.plot(*zip(*curve, strict=True), color=color, linestyle="--", label=label)
    axes.set_title(f"{env_id}, mujoco {mujoco}: {episodes} {inference} episodes, band +-1 std over them", fontsize=10)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("undiscounted return")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
