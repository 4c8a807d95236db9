"""Writes the tables of runs as Markdown: last and best evaluations, interquartile means, wall-clock times, origins.

    python benchmark/tools/report.py --runs benchmark/results --output benchmark/results/REPORT.md --pages README.md

What a system is, where runs are looked for and which are refused is as in plot.py. Nothing is extrapolated: a system's
numbers are at the last step that all its seeds have, and the paper's beside them are at that same step.

The tables of other pages (--pages) are written anew: each stands between a comment that has its flags (`Table`) and an
end, and only what is between them changes:

    <!-- report.py --runs benchmark/results/Hopper-v4 --systems meow sac -->
    <!-- end -->
"""

import csv
import glob
import json
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plot
import scipy.stats
import tyro

COMMAND, COMMIT, HARDWARE, VERSIONS = range(4)  # what `origin` returns

TEXT = """# Benchmark results

Written by `benchmark/tools/report.py`. A cell says of how many seeds and at which step it is: the last step that all
seeds of that system have there (a vector step is one in each of a task's environments). Beside it stands the paper's
value at that step, where the paper has that system: a mean of 5 seeds, smoothed, read off its picture (about 1% error)
and interpolated between the points read. A cell without runs is empty.

## Last evaluation

The mean over seeds of the evaluation at that step. In a parallel task there is no evaluation: the mean return of the
last 100 training episodes, with sampled actions, stands for it here and below.

{last}

## Best evaluation

The mean over seeds of each seed's best evaluation up to that step. It is above what the policy does on the whole, the
more the oftener it is evaluated, and so above the paper's value, which is no best.

{best}

## Interquartile mean of the last evaluations

Without the lowest and the highest quarter of the seeds (rounded down: nothing is cut of fewer than 4), with its 95%
bootstrap interval ({resamples:,} resamples of the seeds, percentiles), which is too narrow for few seeds.

{iqm}

## All environments

For systems in several of the paper's environments: the interquartile mean, over all seeds of all these environments, of
the last evaluation divided by the last value of the paper's MEow there (its whole curve, however long the runs here
are). 95% stratified bootstrap interval: seeds are drawn again within each environment.

{aggregate}

## Wall-clock time

Mean hours up to that step, and environment steps per second, where a vector step counts once for each of its
environments. Pauses and other work on the machine are in both.

{times}

## Where the runs come from

{origins}
"""


@dataclass(kw_only=True)
class Args(plot.Inputs):
    output: Path
    """the Markdown file to write"""
    pages: tuple[Path, ...] = ()
    """Markdown files whose tables are written anew"""


@dataclass(kw_only=True)
class Table(plot.Inputs):
    """A table of a page: one row per seed, their mean and the paper's mean, and a line on where the runs come from."""

    steps: tuple[int, ...] = tuple(1000 * k for k in (100, 200, 400, 600, 800, 1000, 1500, 2000, 3000, 4000, 5000))
    """the columns, as far as the runs go"""
    summary: bool = False
    """one row per environment instead, at the last step that all its seeds have"""
    csv: Path | None = None
    """this file's rows instead of runs"""


def last_and_best(runs):
    """At the last step that all n seeds of a system have: (step, returns (n,), best returns up to there (n,))."""
    steps, returns, _ = plot.on_common_steps(runs)
    return steps[-1], returns[:, -1], np.array([run.returns[run.steps <= steps[-1]].max() for run in runs])


def iqm(scores, axis=-1):
    """Interquartile mean: the lowest and the highest quarter, each rounded down to whole scores, are cut."""
    return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def iqm_interval(samples, resamples):
    """95% interval (low, high) of the IQM of all scores. samples: [(n_i,), ...], the seeds of each environment.

    A stratified percentile bootstrap: `scipy.stats.bootstrap` draws within each sample by itself. None where an
    environment has 1 seed: there is nothing to draw from.
    """
    if min(map(len, samples)) < 2:
        return None

    def statistic(*drawn, axis):
        return iqm(np.concatenate(drawn, axis=axis), axis)

    settings = {"method": "percentile", "n_resamples": resamples, "rng": np.random.default_rng(0)}
    return tuple(scipy.stats.bootstrap(samples, statistic, **settings).confidence_interval)


def paper_value(env, algorithm, step):
    """The paper's mean return at a step, linear between the points of its curve; None where it has none."""
    steps, returns = plot.paper_curves().get((env, algorithm), ([np.inf], [0]))
    return float(np.interp(step, steps, returns)) if steps[0] <= step <= steps[-1] else None


def number(x):
    """A return as text: 3,371 or 48.6."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}"


def count(step):
    """A number of steps as text: 470k or 1.5M."""
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step >= 1e3 else f"{step:g}"


def about(runs, step):
    """How many seeds and steps, as text: (1 seed, 470k)."""
    return f"({plot.count_seeds(len(runs))}, {count(step)})"


def table(header, rows):
    """A Markdown table, or a sentence where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) if rows else "None yet."


def aggregate_rows(groups, systems, resamples):
    """A row for each system that has runs in several of the paper's environments."""
    rows = []
    for system in systems:
        samples, where = [], []
        for (env, other), runs in groups.items():
            if other == system and (env, "MEow") in plot.paper_curves():
                step, returns, _ = last_and_best(runs)
                samples.append(returns / plot.paper_curves()[env, "MEow"][1][-1])
                where.append(f"{env} {about(runs, step)}")
        if len(samples) > 1:
            interval = iqm_interval(samples, resamples)
            text = "no interval (1 seed)" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
            rows.append([system, f"{iqm(np.concatenate(samples)):.3f}", text, ", ".join(where)])
    return rows


def time_row(env, system, runs):
    """Hours and speed of a system in an environment; empty cells where the runs have no times."""
    steps, _, seconds = plot.on_common_steps(runs)
    hours = seconds[:, -1].mean() / 3600
    num_envs = runs[0].config["args"]["num_envs"] if runs[0].unit == plot.VECTOR_STEPS and runs[0].config else 1
    numbers = [f"{hours:.2f} {about(runs, steps[-1])}", f"{steps[-1] * num_envs / hours / 3600:,.0f}"]
    return [env, system, *(numbers if hours > 0 else ["", ""])]  # NaN is not above 0


def names(runs):
    """Hopper-v4 meow 1, 2; Hopper-v4 sac 1"""
    groups = plot.grouped(runs, "env", "system").items()
    return "; ".join(f"{env} {system} {', '.join(str(run.seed) for run in own)}" for (env, system), own in groups)


def origin(run):
    """(command without seed, commit, hardware, versions) from config.json and job.json, beside it or above runs/."""
    places = [run.path / "job.json", run.path.parent.parent / "job.json"]
    path, job = next(filter(Path.exists, places), None), {}
    try:
        job = dict(json.loads(path.read_text())) if path else {}
    except (TypeError, ValueError) as error:
        plot.say_damaged(f"{path}: {error}")
    hardware = job.get("hardware") or {}
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in run.config.get("versions", {}).items())
    command, commit = re.sub(r" --seed \d+", "", job.get("command", "")), job.get("commit", "")
    return command, commit, f"{hardware['cpu']}, {hardware['cores']} cores, {gpus}" if hardware else "", versions


def origins(runs, *fields):
    """{(the fields of origin(run)): [Run, ...]}"""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(origin(run)[field] for field in fields), []).append(run)
    return groups


def footer(runs, name):
    """A list: the commands with the commits they ran at, hardware and versions. name(runs) is how to call some runs."""
    items = []
    for (command,), own in origins(runs, COMMAND).items():
        commits = ", ".join(f"`{commit}` ({name(at)})" for (commit,), at in origins(own, COMMIT).items())
        commits = re.sub("([0-9a-f]{7})[0-9a-f]{33}", r"\1", commits)
        items += [f"`{command}` at {commits}"] if command else []
    places = origins(runs, HARDWARE, VERSIONS)
    for place, own in places.items():
        items.append((f"{name(own)}: " if len(places) > 1 else "") + "; ".join(filter(None, place)))
    wrap = {"width": 118, "initial_indent": "- ", "subsequent_indent": "  "}
    return "\n".join(textwrap.fill(item, break_on_hyphens=False, break_long_words=False, **wrap) for item in items)


def curves(runs, steps):
    """The table of the seeds' returns at steps, and its footer. A cell is empty where a run has no evaluation."""
    steps = [step for step in steps if any(step in run.steps for run in runs)]
    varied = [field for field in ("env", "system") if len(plot.grouped(runs, field)) > 1]

    def name(own, what=None):
        """Hopper-v4 meow, seeds 1, 2; of environment and system only what differs in the table."""
        texts = []
        for some in plot.grouped(own, "env", "system").values():
            where = " ".join(getattr(some[0], field) for field in varied)
            seeds = f"seed{'s' * (len(some) > 1)} {', '.join(str(run.seed) for run in some)}"
            texts.append(f"{where}, {what or seeds}".removeprefix(", "))
        return "; ".join(texts)

    def row(title, points, best=""):
        return [title, *("" if points.get(step) is None else number(points[step]) for step in steps), best]

    rows = []
    for env, in_env in plot.grouped(runs, "env").items():
        for own in plot.grouped(in_env, "system").values():
            for run in own:
                at = run.returns.argmax()
                best = f"{number(run.returns[at])} ({count(run.steps[at])})"
                rows.append(row(name([run]), dict(zip(run.steps, run.returns, strict=True)), best))
            common, returns, _ = plot.on_common_steps(own)
            if len(own) > 1 and set(common) & set(steps):
                means = dict(zip(common, returns.mean(axis=0), strict=True))
                rows.append(row(name(own, f"mean of {len(own)}"), means))
        for paper in plot.grouped(in_env, "paper_name"):
            if (env, paper) in plot.paper_curves():
                title = f"the paper's {paper}" + f" on {env}" * ("env" in varied)
                rows.append(row(title, {step: paper_value(env, paper, step) for step in steps}))
    return f"{table(['run', *map(count, steps), 'best'], rows)}\n\n{footer(runs, name)}"


def summary(runs):
    """The table of a page with one row per environment."""
    rows = []
    for (env, _), own in plot.grouped(runs, "env", "system").items():
        step, last, _ = last_and_best(own)
        spread = f"{number(last.min())} to {number(last.max())}" if len(own) > 1 else ""
        paper = paper_value(env, own[0].paper_name, step)
        paper = "" if paper is None else number(paper)
        rows.append([env, count(step), str(len(own)), number(last.mean()), spread, paper])
    return table(["environment", "steps", "seeds", "mean", "lowest to highest", "the paper's mean"], rows)


def fill(text):
    """A page's text with its tables written anew."""

    def write(match):
        words = [path for word in shlex.split(match[2]) for path in sorted(glob.glob(word)) or [word]]
        args = tyro.cli(Table, args=words)
        if args.csv:
            header, *rows = csv.reader(args.csv.read_text().splitlines())
            written = table(header, rows)
        else:
            runs = plot.load_runs(args)
            written = summary(runs) if args.summary else curves(runs, args.steps)
        return f"{match[1]}\n\n{written}\n\n<!-- end -->"

    return re.sub(r"(<!-- report\.py (.*?) -->)\n.*?<!-- end -->", write, text, flags=re.DOTALL)


def report(runs, systems, resamples=9_999):
    """The Markdown text for a list of Runs. systems: those of the runs, in the order of the rows."""
    groups = plot.grouped(runs, "env", "system")
    groups = {where: own for where, own in groups.items() if len(plot.on_common_steps(own)[0])}
    envs = list(plot.grouped(runs, "env"))

    def matrix(value):
        """A row per system, a column per environment. value: (last returns, best returns) of the seeds -> text."""
        rows = [[system] + [""] * len(envs) for system in systems]
        for (env, system), own in groups.items():
            step, *returns = last_and_best(own)
            cell, paper = f"{value(*returns)} {about(own, step)}", paper_value(env, own[0].paper_name, step)
            cell += "" if paper is None else f"; paper {number(paper)}"
            rows[systems.index(system)][1 + envs.index(env)] = cell
        return table(["system", *envs], rows)

    def iqm_text(last, _):
        interval = iqm_interval([last], resamples)
        return f"{number(iqm(last))}, " + (" to ".join(map(number, interval)) if interval else "no interval")

    return TEXT.format(
        last=matrix(lambda last, _: number(last.mean())),
        best=matrix(lambda _, best: number(best.mean())),
        iqm=matrix(iqm_text),
        resamples=resamples,
        aggregate=table(["system", "IQM", "95% interval", "environments"], aggregate_rows(groups, systems, resamples)),
        times=table(
            ["environment", "system", "hours", "environment steps/s"],
            [time_row(*where, own) for where, own in groups.items()],
        ),
        origins=table(
            ["environment, system, seeds", "commit", "hardware", "versions"],
            [[names(own), *where] for where, own in origins(runs, COMMIT, HARDWARE, VERSIONS).items()],
        ),
    )


def main(args):
    """Writes the report. Raises UsageError for bad input."""
    runs = plot.load_runs(args)
    for run in runs:
        if run.unit == plot.WANDB_STEPS:
            raise plot.UsageError(f"--wandb-csv must be exported with global_step as its x axis, {run.path} has Step")
    text = report(runs, list(args.systems) or sorted(plot.grouped(runs, "system")))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text)
    for page in args.pages:
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (plot.UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
