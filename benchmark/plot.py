"""Draws evaluation curves of finished or running runs over the paper's curve of the same environment.

    pip install -r benchmark/requirements.txt
    python benchmark/plot.py --runs benchmark/results/Hopper-v4/seed_* --output benchmark/results/Hopper-v4/curve.png

Refuses runs of different environments or MuJoCo versions: their returns do not compare.
"""

import csv
import json
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


def one_value(configs, name, get):
    """The value that all runs share; exits with a sentence if they differ."""
    values = {get(config) for config in configs}
    if len(values) > 1:
        raise SystemExit(f"error: --runs must share one {name}, got {', '.join(sorted(values))}")
    return values.pop()


def main(args):
    """Writes args.output."""
    configs = [json.loads((run / "config.json").read_text()) for run in args.runs]
    env_id = one_value(configs, "environment", lambda config: config["args"]["env_id"])
    mujoco = one_value(configs, "mujoco version", lambda config: config["versions"]["mujoco"])

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    last_step = 0
    for run, config in zip(args.runs, configs, strict=True):
        with open(run / "evaluations.csv") as file:
            rows = list(csv.DictReader(file))
        steps, means, stds = ([float(row[key]) for row in rows] for key in ("step", "mean", "std"))
        last_step = max(last_step, steps[-1])
        (line,) = axes.plot(steps, means, linewidth=1.2, label=f"MEow, this code, seed {config['args']['seed']}")
        low, high = zip(*[(mean - std, mean + std) for mean, std in zip(means, stds, strict=True)], strict=True)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    with open(PAPER_CURVES) as file:
        paper = [row for row in csv.DictReader(file) if row["env"] == env_id and row["return"]]
    for algorithm, color in (("MEow", "black"), ("SAC", "gray")):
        curve = [(float(row["step"]), float(row["return"])) for row in paper if row["algorithm"] == algorithm]
        axes.plot(
            *zip(*curve, strict=True), color=color, linestyle="--", label=f"{algorithm}, paper (5 seeds, smoothed)"
        )
    axes.set_xlim(0, 1.05 * last_step)
    axes.set_title(f"{env_id}, mujoco {mujoco}: mean of 10 greedy episodes, band +-1 std over them", fontsize=10)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("undiscounted return")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Args))
