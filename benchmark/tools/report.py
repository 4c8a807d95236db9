"""Writes tables of runs as Markdown: prints one, or writes those of pages anew.

    python benchmark/tools/report.py --runs runs/benchmark/paper --summary
    python benchmark/tools/report.py --pages README.md benchmark/RESULTS.md

What a system is, where runs are looked for and which are refused is as in plot.py. The statistic is the mean of the
last ten evaluations on the steps that all seeds of a system have, beside the paper's curve over the same steps: one
evaluation scatters, and the paper's curves are smoothed. Nothing is extrapolated.

A page's table stands between a comment that has its flags and an end, and only what is between them changes:

    <!-- report.py --runs benchmark/results/Hopper-v4 --systems meow sac -->
    <!-- end -->
"""

import csv
import glob
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plot
import scipy.stats
import tyro


@dataclass(kw_only=True)
class Table(plot.Inputs):
    """One row per seed, their mean and the paper's mean, at some steps and over the last ten evaluations."""

    steps: tuple[int, ...] = tuple(1000 * k for k in (100, 200, 400, 600, 800, 1000, 1500, 2000, 3000, 4000, 5000))
    """the columns, as far as the runs go"""
    summary: bool = False
    """one row per environment instead, with the interquartile mean over all of them"""
    origins: bool = False
    """instead, which commit made which run, on what"""
    csv: Path | None = None
    """this file's rows instead of runs"""


@dataclass(kw_only=True)
class Args(Table):
    pages: tuple[Path, ...] = ()
    """Markdown files whose tables are written anew, each with flags of its own"""


def last_ten(runs):
    """The last ten steps that all n seeds of a system have, and the mean of each seed's returns there (n,)."""
    steps, returns, _ = plot.on_common_steps(runs)
    return steps[-10:], returns[:, -10:].mean(axis=1)


def iqm(scores, axis=-1):
    """Interquartile mean: the lowest and the highest quarter, each rounded down to whole scores, are cut."""
    return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def iqm_interval(samples, resamples=9_999):
    """95% interval (low, high) of the IQM of all scores. samples: [(n_i,), ...], the seeds of each environment.

    A stratified percentile bootstrap: `scipy.stats.bootstrap` draws within each sample by itself.
    """

    def statistic(*drawn, axis):
        return iqm(np.concatenate(drawn, axis=axis), axis)

    settings = {"method": "percentile", "n_resamples": resamples, "rng": np.random.default_rng(0)}
    return tuple(scipy.stats.bootstrap(samples, statistic, **settings).confidence_interval)


def paper_value(env, algorithm, steps):
    """The mean of the paper's curve over steps, linear between its points; None where it does not have them all."""
    curve = plot.paper_curves().get((env, algorithm))
    if curve is None or not curve[0][0] <= min(steps) <= max(steps) <= curve[0][-1]:
        return None
    return float(np.interp(steps, *curve[:2]).mean())


def number(x):
    """A return as text: 3,371 or 48.6."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}"


def count(step):
    """A number of steps as text: 470k or 1.5M."""
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step >= 1e3 else f"{step:g}"


def table(header, rows):
    """A Markdown table, or a sentence where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) if rows else "None yet."


def origin(run):
    """(commit, hardware and versions) from config.json and job.json, beside it or above runs/."""
    places = [run.path / "job.json", run.path.parent.parent / "job.json"]
    path, job = next(filter(Path.exists, places), None), {}
    try:
        job = dict(json.loads(path.read_text())) if path else {}
    except (TypeError, ValueError) as error:
        plot.say_damaged(f"{path}: {error}")
    machine = []
    if hardware := job.get("hardware"):
        machine = [hardware["cpu"], f"{hardware['cores']} cores", *(hardware["gpus"] or ["no GPU"])]
    machine += [f"{name} {version}" for name, version in sorted(run.config.get("versions", {}).items())]
    return re.sub("([0-9a-f]{7})[0-9a-f]{33}", r"\1", job.get("commit", "")), ", ".join(machine)


def origins(runs):
    """The table of which commit made which run, and below it hardware and versions, once each."""
    commits, machines = {}, {}
    for run in runs:
        commit, machine = origin(run)
        commits.setdefault(commit, []).append(f"{run.env} {run.system} {run.seed}")
        machines[machine] = f"- {machine}"
    rows = [[f"`{commit}`", ", ".join(names)] for commit, names in commits.items()]
    return "\n".join([table(["commit", "environment, system and seed"], rows), "", *machines.values()])


def curves(runs, steps):
    """The table of the seeds' returns at steps. A cell is empty where a run has no evaluation."""
    steps = [step for step in steps if any(step in run.steps for run in runs)]
    varied = [field for field in ("env", "system") if len(plot.grouped(runs, field)) > 1]

    def row(own, what):
        title = " ".join([*(getattr(own[0], field) for field in varied), what])
        common, returns, _ = plot.on_common_steps(own)
        means = dict(zip(common, returns.mean(axis=0), strict=True))
        cells = [number(means[step]) if step in means else "" for step in steps]
        return [title, *cells, number(last_ten(own)[1].mean())]

    rows = []
    for env, in_env in plot.grouped(runs, "env").items():
        for own in plot.grouped(in_env, "system").values():
            rows += [row([run], f"seed {run.seed}") for run in own]
            rows += [row(own, f"mean of {len(own)}")] * (len(own) > 1)
        for paper, own in plot.grouped(in_env, "paper_name").items():
            values = [paper_value(env, paper, when) for when in (*([step] for step in steps), last_ten(own)[0])]
            if any(values):
                title = f"the paper's {paper}" + f" on {env}" * ("env" in varied)
                rows.append([title, *("" if value is None else number(value) for value in values)])
    return table(["run", *map(count, steps), "last ten"], rows)


def summary(runs):
    """The table with one row per environment, and the interquartile mean over them."""
    rows, ratios = [], []
    for (env, _), own in plot.grouped(runs, "env", "system").items():
        steps, means = last_ten(own)
        paper = paper_value(env, own[0].paper_name, steps)
        against = ["", ""] if paper is None else [number(paper), f"{means.mean() / paper - 1:+.1%}"]
        ratios += [] if paper is None else [means / paper]
        spread = f"{number(means.min())} to {number(means.max())}" if len(own) > 1 else ""
        where = f"{count(steps[0])} to {count(steps[-1])}"
        rows.append([env, where, str(len(own)), number(means.mean()), spread, *against])
    header = ["environment", "steps", "seeds", "mean", "lowest to highest", "the paper's mean", "difference"]
    text = table(header, rows)
    if len(ratios) > 1 and min(map(len, ratios)) > 1:
        low, high = iqm_interval(ratios)
        text += "\n\nInterquartile mean, over environments and seeds, of the return divided by the paper's:"
        text += f"\n**{iqm(np.concatenate(ratios)):.2f}** (95% stratified bootstrap: {low:.2f} to {high:.2f})."
    return text


def write(args):
    """The text that a Table asks for."""
    if args.csv:
        header, *rows = csv.reader(args.csv.read_text().splitlines())
        return table(header, rows)
    runs = plot.load_runs(args)
    if args.origins:
        return origins(runs)
    return summary(runs) if args.summary else curves(runs, args.steps)


def fill(text):
    """A page's text with its tables written anew."""

    def written(match):
        words = [path for word in shlex.split(match[2]) for path in sorted(glob.glob(word)) or [word]]
        return f"{match[1]}\n\n{write(tyro.cli(Table, args=words))}\n\n<!-- end -->"

    return re.sub(r"(<!-- report\.py (.*?) -->)\n.*?<!-- end -->", written, text, flags=re.DOTALL)


def main(args):
    """Prints the table, or writes the pages. Raises UsageError for bad input."""
    if not args.pages:
        print(write(args))
    for page in args.pages:
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (plot.UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
