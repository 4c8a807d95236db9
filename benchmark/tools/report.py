"""Writes tables of runs as Markdown: prints one, or writes those of pages anew.

    python benchmark/tools/report.py --runs runs/benchmark/paper --summary
    python benchmark/tools/report.py --pages README.md benchmark/RESULTS.md

Runs are found and refused as in plot.py. The statistic is the mean of the last ten evaluations on the steps that all
seeds of a system have, beside the paper's curve over the same steps: one evaluation scatters, and the paper's curves
are smoothed. A page's table stands between <!-- report.py FLAGS --> and <!-- end -->.
"""

import glob
import json
import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plot
import tyro
from scipy import stats


@dataclass(kw_only=True)
class Args(plot.Inputs):
    """One row per seed, their mean and the paper's mean, at some steps and over the last ten."""

    steps: tuple[int, ...] = (100_000, 200_000, 500_000, 1_000_000, 1_500_000, 4_000_000, 5_000_000)
    """the columns, as far as the runs go"""
    summary: bool = False  # one row per environment instead, with the interquartile mean over all of them
    origins: bool = False  # instead, which commit made which run, on what
    csv: Path | None = None  # this file's rows instead of runs
    pages: tuple[Path, ...] = ()  # Markdown files whose tables are written anew, each with flags of its own


def iqm(*samples, axis=-1):
    """Interquartile mean of all scores: a quarter of them, rounded down, is cut at either end."""
    return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def paper_value(env, algorithm, steps):
    """The mean of the paper's curve over steps, NaN where it does not have them all."""
    curve = plot.paper_curves().query("env == @env and algorithm == @algorithm")
    if curve.empty:
        return math.nan
    return np.interp(steps, curve.step, curve["return"], left=math.nan, right=math.nan).mean()


def number(x):
    """A return as text: 3,371 or 48.6."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}"


def count(step):
    """A number of steps as text: 470k or 1.5M."""
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k"


def table(frame):
    """A DataFrame of texts as a Markdown table."""
    rows = [list(frame), ["---"] * len(frame.columns), *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def origins(runs):
    """The table of which commit made which run, and below it hardware and versions, once each."""
    runs = runs.assign(commit="", names=runs.env + " " + runs.system + " " + runs.seed.astype(str))
    for i, path in runs.table.items():
        versions = json.loads(path.with_name("config.json").read_text())["versions"]
        machine = sorted(map(" ".join, versions.items()))
        # beside what collect.sh copied, or else where run.py wrote it
        for job in [*path.parent.glob("job.json"), *path.parents[2].glob("job.json")]:
            try:
                about = json.loads(job.read_text())
                runs.loc[i, "commit"] = re.sub("([0-9a-f]{7})[0-9a-f]{33}", r"\1", about["commit"])
                hardware = about["hardware"]
                machine = [hardware["cpu"], f"{hardware['cores']} cores", *(hardware["gpus"] or ["no GPU"]), *machine]
            except (KeyError, TypeError, ValueError) as error:
                plot.say_left_out(f"damaged: {job}: {error!r}")
        runs.loc[i, "machine"] = "- " + ", ".join(machine)
    commits = runs.groupby("`" + runs.commit + "`", sort=False).names.agg(", ".join).reset_index()
    commits.columns = ["commit", "environment, system and seed"]
    return "\n".join([table(commits), "", *runs.machine.unique()])


def curves(points, steps):
    """The table of the seeds' returns at steps. A cell is empty where a run has no evaluation."""
    steps = sorted(set(steps) & set(points.step))
    titles = [column for column in ("env", "system") if points[column].nunique() > 1]
    rows = {}

    def add(points, title):
        returns = plot.on_common_steps(points).mean(axis=1)
        title = " ".join([*points[titles].iloc[0], title])
        rows[title] = [*returns.reindex(steps), returns.tail(10).mean()]

    for env, in_env in points.groupby("env", sort=False):
        for _, own in in_env.groupby("system", sort=False):
            seeds = own.groupby("seed")
            for seed, run in seeds:
                add(run, f"seed {seed}")
            if len(seeds) > 1:
                add(own, f"mean of {len(seeds)}")
        for paper, own in in_env.groupby("paper", sort=False):
            last_ten = plot.on_common_steps(own).index[-10:]
            title = f"the paper's {paper}" + f" on {env}" * ("env" in titles)
            rows[title] = [paper_value(env, paper, when) for when in (*steps, last_ten)]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[*map(count, steps), "last ten"]).dropna(how="all")
    return table(frame.map(number, na_action="ignore").fillna("").rename_axis("run").reset_index())


def summary(points):
    """The table with one row per environment, and the interquartile mean over them."""
    rows, ratios = [], []
    for (env, _), own in points.groupby(["env", "system"], sort=False):
        last_ten = plot.on_common_steps(own).tail(10)
        means = last_ten.mean()
        paper = paper_value(env, own.paper.iloc[0], last_ten.index)
        spread, against = "", ["", ""]
        if len(means) > 1:
            spread = f"{number(means.min())} to {number(means.max())}"
        if not math.isnan(paper):
            against = [number(paper), f"{means.mean() / paper - 1:+.1%}"]
            ratios.append(means / paper)
        steps = f"{count(last_ten.index[0])} to {count(last_ten.index[-1])}"
        rows.append([env, steps, str(len(means)), number(means.mean()), spread, *against])
    header = ["environment", "steps", "seeds", "mean", "lowest to highest", "the paper's mean", "difference"]
    text = table(pd.DataFrame(rows, columns=header))
    if len(ratios) > 1 and min(map(len, ratios)) > 1:
        # stratified, for it draws within each environment, where one seed alone could not vary
        rng = np.random.default_rng(0)
        low, high = stats.bootstrap(ratios, iqm, method="percentile", rng=rng).confidence_interval
        text += "\n\nInterquartile mean, over environments and seeds, of the return divided by the paper's:"
        text += f"\n**{iqm(*ratios):.2f}** (95% stratified bootstrap: {low:.2f} to {high:.2f})."
    return text


def write(args):
    """The text that flags ask for."""
    if args.csv:
        return table(pd.read_csv(args.csv, dtype=str, keep_default_na=False))
    if args.origins:
        return origins(plot.find_runs(args))
    points = plot.load_points(args)
    return summary(points) if args.summary else curves(points, args.steps)


def rewrite(match):
    """A page's table, written anew. match: of the comments before and behind it."""
    words = []
    for word in shlex.split(match[2]):
        words += sorted(glob.glob(word)) or [word]
    return f"{match[1]}\n\n{write(tyro.cli(Args, args=words))}\n\n<!-- end -->"


def main(args):
    """Prints the table, or writes the pages. Raises UsageError for bad input."""
    if not args.pages:
        print(write(args))
    for page in args.pages:
        comments = r"(<!-- report\.py (.*?) -->)\n.*?<!-- end -->"
        page.write_text(re.sub(comments, rewrite, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (plot.UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
