"""Draws runs: one panel per environment, one colour and marker per system, over the paper's curves of the same systems.

    pip install -r requirements.txt -r benchmark/requirements.txt
    python benchmark/tools/plot.py --runs benchmark/results/Hopper-v4 --output benchmark/results/Hopper-v4/curve
    python benchmark/tools/plot.py --runs runs/benchmark/paper --env-ids Hopper-v4 Ant-v4 --systems meow sac --output a
    python benchmark/tools/plot.py --runs runs/benchmark/paper --systems meow_affine meow_affine_no_lrs --output fig1 \
        --key flow/log_det_nonlinear flow/log_det_linear

Writes OUTPUT.png and .svg (over steps), and OUTPUT_hours.png and .svg (over wall-clock time) where runs have times.

A system is a run's --exp-name, a repetition its --seed; a folder named NAME_seed_N directly above config.json is seed N
of the system NAME instead. Each seed is a thin line; from 3 seeds on their mean is a thick one, on the steps that they
all have (a mean over fewer and fewer seeds jumps), from 5 on with a 95% confidence interval (Student's t over the
seeds, which for fewer is as wide as the axes). Runs that do not compare are refused: see `check_comparable`. Lines and
files that are damaged are named and left out.
"""

import csv
import functools
import itertools
import json
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

RETURN = "eval/episodic_return"  # the key that is read from evaluations.csv or returns.csv, without TensorBoard
ENV_STEPS, VECTOR_STEPS, WANDB_STEPS = "environment steps", "vector steps", "steps as W&B counts them"
PAPER = Path(__file__).parents[1] / "paper"  # mean curves of 5 seeds, read off the pictures and smoothed there
PEERS = Path(__file__).parents[1] / "peers" / "mujoco.csv"  # means of raw results that other people publish
# Steps where the reading took the line's sample in the picture's legend for the curve: flat, far from both sides.
MISREAD = {("Hopper-v4", "MEow"): (885_000, 975_000)}
MISREAD |= {("Ant", "MEow"): (590_000, 650_000), ("Ant", "SAC"): (590_000, 650_000)}
# Where the curve lies under others it was read as one low constant, with jumps of 2,000 where it shows.
MISREAD |= {("Humanoid-v4", "TD3"): (700_000, 5_000_000)}
PAPER_NAMES = {"meow": "MEow", "meow_continuous_action": "MEow", "meow_isaacgym": "MEow"}
PAPER_NAMES |= {name.lower(): name for name in ("SAC", "TD3", "DDPG", "PPO", "SQL")}

# Okabe and Ito's colours without black and yellow, dark and light in turn. With 11 markers no pair of 66 comes twice.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.7}  # without colour a marker is told from its line by this
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
LABELS = {
    RETURN: "undiscounted return",
    "charts/episodic_return": "return of training episodes",
    "flow/log_det_nonlinear": r"$\log_{10} \prod_{i \in S_n} |\det J_i|$",
    "flow/log_det_linear": r"$\log_{10} \prod_{i \in S_l} |\det J_i|$",
}


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Exit code 2."""


@dataclass(kw_only=True)
class Inputs:
    """What to read: the flags that plot.py and report.py share."""

    runs: tuple[Path, ...] = ()
    """folders, searched at any depth for runs: a config.json beside an evaluations.csv or returns.csv"""
    wandb_csv: tuple[Path, ...] = ()
    """CSV files exported from Weights and Biases, with the x axis set to global_step"""
    env_ids: tuple[str, ...] = ()
    """environments or tasks to take, in this order (none: all)"""
    systems: tuple[str, ...] = ()
    """systems to take, in this order (none: all)"""
    max_steps: int | None = None
    """leave out what came after this step, so that a longer run stands beside shorter ones as one of their length"""


@dataclass(kw_only=True)
class Args(Inputs):
    output: Path
    """the pictures to write, without suffix"""
    key: tuple[str, ...] = (RETURN,)
    """what to draw, a panel each: other keys are read from the run's TensorBoard logs, or else its scalars.csv"""
    every: int | None = None
    """keys other than the return are averaged over so many steps (None: those between two evaluations of the run)"""
    peers: tuple[str, ...] = ()
    """other people's algorithms to draw beside the return, among those of benchmark/peers/mujoco.csv"""
    export_scalars: bool = False
    """write these averages to scalars.csv in each folder with TensorBoard logs, small enough to be committed"""


@dataclass
class Run:
    """One curve. steps, seconds (NaN where unknown) and returns are arrays (T,), by rising step."""

    env: str
    system: str
    seed: int
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray  # mean over the episodes of an evaluation, or the values of another key
    config: dict  # config.json; empty for W&B exports, which have none
    path: Path
    unit: str  # of the steps
    averaged: str  # what a return is the mean of

    @property
    def paper_name(self):
        """The paper's name of this system, or None: by --exp-name, whatever the folder is called."""
        if self.unit == WANDB_STEPS:  # its curve goes over other steps
            return None
        return PAPER_NAMES.get(self.config.get("args", {}).get("exp_name", self.system))

    @property
    def mujoco(self):
        """MuJoCo's version, or None if the run has none or it is not known."""
        return self.config.get("versions", {}).get("mujoco")

    @property
    def eval_episodes(self):
        """Episodes of an evaluation; None if that is not known or, in a parallel task, there was none."""
        return self.config.get("args", {}).get("eval_episodes") if self.unit == ENV_STEPS else None

    @property
    def inference(self):
        """How the evaluation acted: deterministic or stochastic; None if that is not known or, as above, none was."""
        deterministic = self.config.get("args", {}).get("eval_deterministic") if self.unit == ENV_STEPS else None
        return {True: "deterministic", False: "stochastic"}.get(deterministic)


@functools.cache
def say_damaged(text):
    """Says on stderr, once, what is left out because it is damaged."""
    print(f"left out, damaged: {text}", file=sys.stderr)


def read_csv(path, columns):
    """The rows of a CSV file as tuples, without those that are damaged. columns: {name: function of a cell's text}."""
    with open(path, errors="replace") as file:
        names, *lines = [*csv.reader([file.readline()]), *file]
    if not columns.keys() <= set(names):
        say_damaged(f"{path}, line 1: it must have the columns {', '.join(columns)}")
        return []
    rows, errors = [], []
    for number, line in enumerate(lines, start=2):
        try:
            (cells,) = csv.reader([line])
            if len(cells) != len(names) or not line.endswith(("\n", '"')):  # a cut number looks like a whole one
                raise ValueError("it is cut off, or has other cells than line 1")
            cells = dict(zip(names, cells, strict=True))
            rows.append(tuple(convert(cells[name]) for name, convert in columns.items()))
        except (csv.Error, ValueError) as error:
            errors.append(f"{path}, line {number}: {error}")
    if errors:
        say_damaged(errors[0] + f", and {len(errors) - 1} more lines" * (len(errors) > 1))
    return rows


def number_if_any(cell):
    """The number in a cell, NaN if it is empty."""
    return float(cell or "nan")


def load_run(folder):
    """The Run in a folder, None if its config.json is damaged."""
    has_evaluations = (folder / "evaluations.csv").exists()
    table = folder / ("evaluations.csv" if has_evaluations else "returns.csv")
    try:
        config = json.loads((folder / "config.json").read_text())
        args = config["args"]
        env = args["env_id"] if has_evaluations else args["task"]
        named = re.fullmatch(r"(.+)_seed_(\d+)", folder.resolve().name)
        system, seed = (named[1], int(named[2])) if named else (args["exp_name"], args["seed"])
        mean_of = f"{args['eval_episodes']} episodes" if has_evaluations else "last 100 training episodes"
    except (KeyError, TypeError, ValueError) as error:
        say_damaged(f"{folder}/config.json: {error!r}")
        return None
    rows = read_csv(table, dict.fromkeys(("step", "seconds", "mean"), float))
    rows = {step: (seconds, mean) for step, seconds, mean in rows}
    # a parallel task has no mean (NaN) until its first episodes end
    points = np.array([(step, *row) for step, row in sorted(rows.items()) if math.isfinite(row[1])]).reshape(-1, 3)
    unit = ENV_STEPS if has_evaluations else VECTOR_STEPS
    return Run(env.rpartition(":")[2], system, seed, *points.T, config, folder, unit, mean_of)


def load_wandb_csv(path, key):
    """The runs in a CSV exported from W&B: columns `global_step` or `Step`, then `RUN_NAME - KEY` for each run.

    Twins of each column that W&B adds, `...__MIN` and `...__MAX`, are left. `Step` is W&B's own count, for runs that it
    reads from TensorBoard that of the logged points: a unit of its own, which compares with no other.
    """
    try:
        with open(path, errors="replace") as file:
            (columns,) = csv.reader([file.readline()])
    except OSError as error:
        raise UsageError(f"--wandb-csv {path} must be a CSV file that can be read: {error}") from error
    axis = next((name for name in ("global_step", "Step") if name in columns), None)
    names = [column.removesuffix(f" - {key}") for column in columns if column.endswith(f" - {key}")]
    if axis is None or not names:
        raise UsageError(f"--wandb-csv {path} must have a column global_step or Step and columns 'RUN_NAME - {key}'")
    runs = []
    for name in names:
        parts = re.fullmatch(r"(.+?)__(.+)__(\d+)__\d+", name)
        if not parts:
            raise UsageError(f"--wandb-csv {path}: runs must be named ENV__EXP_NAME__SEED__TIME, one is named {name}")
        env = parts[1].rpartition(":")[2]
        unit = ENV_STEPS if re.search(r"-v\d+$", env) else VECTOR_STEPS  # tasks have no version
        rows = read_csv(path, {axis: float, f"{name} - {key}": number_if_any})
        values = {step: value for step, value in rows if not math.isnan(value)}
        steps, values = np.array(sorted(values.items())).reshape(-1, 2).T
        unit = unit if axis == "global_step" else WANDB_STEPS
        where = Path(f"{path}: {name}")
        runs.append(Run(env, parts[2], int(parts[3]), steps, steps * np.nan, values, {}, where, unit, "W&B export"))
    return runs


@functools.cache
def read_scalars(folder):
    """{key: [(step, value), ...]} from a folder's TensorBoard logs, or else from its scalars.csv, or else empty."""
    if any(folder.glob("events.out.tfevents.*")):
        # imported here: it takes seconds, and returns are drawn without it
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

        # the accumulator leaves a file at its first damaged record and does not say so
        for path in folder.glob("events.out.tfevents.*"):
            reader = pywrap_tensorflow.PyRecordReader_New(str(path))
            for record in itertools.count(1):
                try:
                    reader.GetNext()
                except errors.OutOfRangeError:
                    break
                except errors.DataLossError as error:
                    say_damaged(f"{path}, from record {record} on: {error.message}")
                    break
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all points, not a random sample
        events.Reload()
        return {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}
    scalars = defaultdict(list)
    if (folder / "scalars.csv").exists():
        for key, *point in read_csv(folder / "scalars.csv", {"key": str, "step": float, "value": float}):
            scalars[key].append(tuple(point))
    return scalars


def points_of(run, key):
    """[(step, value), ...] of a key other than the return. A W&B export has nothing else."""
    return read_scalars(run.path).get(key, []) if run.config else zip(run.steps, run.returns, strict=True)


def with_means(run, points, every):
    """The run with, in place of its returns, the means of [(step, value), ...] over bins of `every` steps.

    Bins, because seeds log some keys at different steps. None: the steps between two evaluations of the run. A mean
    stands at the middle of its bin, so that averaging again changes nothing.
    """
    settings = run.config.get("args", {})
    every = every or settings.get("eval_frequency") or settings.get("log_frequency") or 10_000
    bins = defaultdict(list)
    for step, value in points:
        if math.isfinite(value):
            bins[step // every].append(value)
    steps = (np.array(sorted(bins)) + 0.5) * every
    means = np.array([np.mean(bins[number]) for number in sorted(bins)])
    return replace(run, steps=steps, returns=means, seconds=steps * np.nan, averaged=f"means over {every:,} steps")


def up_to(run, max_steps):
    """The run without its points after a step."""
    kept = run.steps <= max_steps
    return replace(run, steps=run.steps[kept], seconds=run.seconds[kept], returns=run.returns[kept])


def load_runs(args, key=RETURN, every=None):
    """The list of Runs that args (Inputs) names, with the values of `key`, by environment, system and seed.

    Raises UsageError if there are none or they do not compare. Says on stderr which runs have no point yet.
    """
    if not args.runs and not args.wandb_csv:
        raise UsageError("--runs or --wandb-csv must be given")
    if args.max_steps is not None and args.max_steps < 1:
        raise UsageError(f"--max-steps must be an integer of at least 1, got {args.max_steps}")
    runs, folders = [], {}
    for root in args.runs:
        found = [path.parent for path in sorted(root.rglob("config.json"))]
        found = [path for path in found if (path / "evaluations.csv").exists() or (path / "returns.csv").exists()]
        # run.py renames a run that died before its first checkpoint, and starts again
        found = [path for path in found if not path.name.startswith("abandoned_")]
        if not found:
            raise UsageError(f"--runs {root} must contain a config.json beside an evaluations.csv or returns.csv")
        folders |= {folder.resolve(): folder for folder in found}  # folders that overlap are no second run
    runs += [run for folder in folders.values() if (run := load_run(folder))]
    runs += [run for path in args.wandb_csv for run in load_wandb_csv(path, key)]
    runs.sort(key=lambda run: (run.env, run.system, run.seed))
    for flag, names, field in (("--systems", args.systems, "system"), ("--env-ids", args.env_ids, "env")):
        groups = grouped(runs, field)
        for name in names:
            if name not in groups:
                raise UsageError(f"{flag} must be among those of the runs ({', '.join(groups)}), got {name}")
        runs = [run for name in names or groups for run in groups[name]]
    check_comparable(runs)
    if key != RETURN:  # only now: a run's logs are large
        runs = [with_means(run, points_of(run, key), every) for run in runs]
    if args.max_steps is not None:
        runs = [up_to(run, args.max_steps) for run in runs]
    for run in runs:
        if not len(run.steps):
            print(f"left out, no point of {key} yet: {run.path}", file=sys.stderr)
    runs = [run for run in runs if len(run.steps)]
    if not runs:
        raise UsageError(f"--runs must have at least one point of {key}")
    return runs


def check_comparable(runs):
    """Raises UsageError for runs that must not stand in one figure or table. What an export does not tell is skipped.

    MuJoCo's version must be one, because its contacts, and so the returns, changed between versions; in one environment
    the unit of steps and the episodes of an evaluation; under one name of a system the kind of inference (two systems
    may differ in it: Fig. 7). An environment, system and seed must be there once.
    """
    seen = {}
    for run in runs:
        where = (run.env, run.system, run.seed)
        if where in seen:
            raise UsageError(f"--runs must have {' '.join(map(str, where))} once, got {seen[where]} and {run.path}")
        seen[where] = run.path
        for what, value in [
            ("one mujoco version", run.mujoco),
            (f"one unit of steps in {run.env}", run.unit),
            (f"one eval_episodes in {run.env}", run.eval_episodes),
            (f"one eval_deterministic under the name {run.system}", run.inference),
        ]:
            if value is None:
                continue
            other, path = seen.setdefault(what, (value, run.path))
            if other != value:
                raise UsageError(f"--runs must share {what}, got {other} in {path} and {value} in {run.path}")


def grouped(runs, *fields):
    """{value of the field, or tuple of them: [Run, ...]}, in the order of the runs."""
    groups = defaultdict(list)
    for run in runs:
        values = tuple(getattr(run, field) for field in fields)
        groups[values if len(fields) > 1 else values[0]].append(run)
    return dict(groups)


def count_seeds(n):
    """'1 seed', '5 seeds'."""
    return f"{n} seed{'s' * (n != 1)}"


def on_common_steps(runs):
    """The T steps that all n runs have: steps (T,), returns (n, T), seconds (n, T)."""
    steps = np.array(sorted(set.intersection(*(set(run.steps) for run in runs))))
    places = [np.searchsorted(run.steps, steps) for run in runs]
    returns = np.stack([run.returns[place] for run, place in zip(runs, places, strict=True)])
    return steps, returns, np.stack([run.seconds[place] for run, place in zip(runs, places, strict=True)])


def mean_and_ci(values):
    """values (n, T), n > 1: the mean (T,) and the half-width (T,) of its 95% interval by Student's t over the n."""
    n = len(values)
    half_width = scipy.stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return values.mean(axis=0), half_width


@functools.cache
def paper_curves():
    """{(env, algorithm): (steps (T,), returns (T,))}, without the points that were not read off the picture."""
    points = defaultdict(list)
    for path in sorted(PAPER.glob("*.csv")):
        columns = {"env": str, "algorithm": str, "step": float, "return": number_if_any}
        for *name, step, mean in read_csv(path, columns):
            first, last = MISREAD.get(tuple(name), (math.inf, 0))
            if not math.isnan(mean) and not first <= step <= last:
                points[tuple(name)].append((step, mean))
    return {name: tuple(np.array(sorted(curve)).T) for name, curve in points.items()}


@functools.cache
def peer_curves():
    """{(env, algorithm): (number of seeds, steps (T,), mean returns (T,))} of other people's runs."""
    points = defaultdict(list)
    for *name, seeds, step, mean in read_csv(
        PEERS, {"env": str, "algorithm": str, "seeds": int, "step": float, "return": float}
    ):
        points[tuple(name)].append((seeds, step, mean))
    return {name: (curve[0][0], *np.array(curve).T[1:]) for name, curve in points.items()}


def draw_system(axes, runs, style, in_hours):
    """One system's runs in one panel. style: color and marker."""

    def line(steps, seconds, values, **style):
        x = seconds / 3600 if in_hours else steps
        gap = max(1, len(x) // 6)  # few markers, and not those of two systems on one another
        markers = (3 * MARKERS.index(style["marker"]) % gap, gap)
        axes.plot(x, values, **({**EDGE, "linewidth": 0.9, "markersize": 5, "markevery": markers} | style))
        return x

    steps, returns, seconds = on_common_steps(runs)
    averaged = len(runs) >= 3 and len(steps)
    for run in runs:
        line(run.steps, run.seconds, run.returns, **style, **({"alpha": 0.45, "markevery": []} if averaged else {}))
    if averaged:
        mean, half_width = mean_and_ci(returns)
        x = line(steps, seconds.mean(axis=0), mean, linewidth=1.8, markersize=7, **style)
    if averaged and len(runs) >= 5:
        axes.fill_between(x, mean - half_width, mean + half_width, color=style["color"], alpha=0.2, linewidth=0)


def draw_paper(axes, env, runs, styles):
    """The paper's curves of the runs' systems, as far as the runs go. Returns {algorithm: handle for the legend}."""
    handles = {}
    for name, own in grouped(runs, "paper_name").items():
        if (env, name) in paper_curves():
            systems = list(grouped(own, "system"))
            style = styles[systems[0]] if len(systems) == 1 else {"color": "black"}  # black: several systems' curve
            style = style | {"linestyle": (0, (4, 2)), "linewidth": 1.3, "markersize": 5, "markerfacecolor": "white"}
            steps, returns = paper_curves()[env, name]
            drawn = steps <= 1.02 * max(run.steps[-1] for run in runs)
            axes.plot(steps[drawn], returns[drawn], markevery=max(1, drawn.sum() // 7), **style)
            handles[name] = Line2D([], [], label=f"{name}, paper (5 seeds)", **style)
    return handles


def draw_peers(axes, env, peers, last):
    """Thin grey lines up to the last step. Returns {label: handle for the legend}."""
    handles = {}
    for name, line in zip(peers, itertools.cycle(("-", "-.", ":"))):
        if (env, name) in peer_curves():
            seeds, steps, returns = peer_curves()[env, name]
            style = {"color": "0.35", "linewidth": 1.0, "linestyle": line}
            axes.plot(steps[steps <= last], returns[steps <= last], **style)
            label = f"{name}, others' runs ({count_seeds(seeds)})"
            handles[label] = Line2D([], [], label=label, **style)
    return handles


def draw_panel(axes, env, key, runs, styles, peers, in_hours):
    """All systems' runs in one environment, the paper's curves of them and peers'. Returns the latter's handles."""
    for system, own in grouped(runs, "system").items():
        draw_system(axes, own, styles[system], in_hours)
    handles = {}
    if key == RETURN and not in_hours:
        handles |= draw_paper(axes, env, runs, styles)
        handles |= draw_peers(axes, env, peers, 1.02 * max(run.steps[-1] for run in runs))

    about = sorted({f"mujoco {run.mujoco}" for run in runs if run.mujoco}) + sorted({run.averaged for run in runs})
    inferences = {run.inference for run in runs} - {None}
    about += inferences if key == RETURN and len(inferences) == 1 else ()
    axes.set_title(env, fontsize=11, pad=18)
    axes.text(0.5, 1.03, ", ".join(about), transform=axes.transAxes, ha="center", fontsize=8)
    axes.set_xlabel("wall-clock hours" if in_hours else runs[0].unit)
    axes.set_ylabel(LABELS.get(key, key))
    axes.set_xlim(left=0)
    if not in_hours:
        axes.set_xlim(right=1.02 * max(run.steps[-1] for run in runs))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    # the lines decide the limits: the band can be several times as high as they are
    heights = np.concatenate([line.get_ydata() for line in axes.lines])
    margin = 0.05 * np.ptp(heights) or 1
    axes.set_ylim(heights.min() - margin, heights.max() + margin)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.grid(alpha=0.3)
    return handles


def draw(panels, systems, peers, path, in_hours=False):
    """Writes path.png and path.svg. panels: {(env, key): [Run, ...]}; systems: those of the runs, in their order."""
    envs = {env for env, _ in panels}
    columns = min(3, len(envs) if len(envs) > 1 else len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (7.4, 5) if len(panels) == 1 else (4.3 * columns, 3.3 * rows + 0.8)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    styles = {s: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, s in enumerate(systems)}
    other_handles = {}
    for axes, ((env, key), runs) in zip(grid.flat, panels.items(), strict=False):
        other_handles |= draw_panel(axes, env, key, runs, styles, peers, in_hours)
    for axes in grid.flat[len(panels) :]:
        axes.remove()

    all_runs, handles = [run for runs in panels.values() for run in runs], []
    mixed = len({run.inference for run in all_runs} - {None}) > 1
    for system, runs in sorted(grouped(all_runs, "system").items(), key=lambda item: systems.index(item[0])):
        numbers = sorted({len(grouped(own, "seed")) for own in grouped(runs, "env").values()})
        seeds = f"{numbers[0]}-{numbers[-1]} seeds" if numbers[1:] else count_seeds(numbers[0])
        sampled = ", stochastic" if mixed and runs[0].inference == "stochastic" else ""
        label = f"{system} ({seeds}{sampled})"
        handles.append(Line2D([], [], markersize=7, label=label, **EDGE, **styles[system]))
    handles += other_handles.values()
    title = "thin: single seeds; thick: mean of 3 or more, of 5 or more with 95% CI (Student's t)"
    title += "; dashed: the paper's means, smoothed" if other_handles.keys() & {*PAPER_NAMES.values()} else ""
    title += "; deterministic evaluation if it does not say stochastic" if mixed else ""
    ncols = math.ceil(len(handles) / math.ceil(len(handles) / (2 + columns)))  # full rows
    form = {"title": title, "title_fontsize": 8, "fontsize": 9, "handlelength": 3, "ncols": ncols, "frameon": False}
    figure.legend(handles=handles, loc="outside lower center", **form)
    with plt.rc_context({"svg.hashsalt": "meow"}):  # this and no date in it: the same runs give the same file
        figure.savefig(f"{path}.png", dpi=130)
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    plt.close(figure)


def write_scalars(folder, keys, every):
    """Writes a folder's scalars.csv, if it has the TensorBoard logs to make it of."""
    if any(folder.glob("events.out.tfevents.*")):
        lines = ["step,key,value\n"]
        for key in keys:
            run = with_means(load_run(folder), read_scalars(folder).get(key, []), every)
            lines += [f"{step:.10g},{key},{x:.7g}\n" for step, x in zip(run.steps, run.returns, strict=True)]
        (folder / "scalars.csv").write_text("".join(lines))


def main(args):
    """Writes the pictures. Raises UsageError for bad input."""
    if args.every is not None and args.every < 1:
        raise UsageError(f"--every must be an integer of at least 1, got {args.every}")
    scalars = [key for key in args.key if key != RETURN]
    if args.export_scalars and not scalars:
        raise UsageError(f"--export-scalars must come with a --key other than {RETURN}")
    if unknown := set(args.peers) - {name for _, name in peer_curves()}:
        names = ", ".join(sorted({name for _, name in peer_curves()}))
        raise UsageError(f"--peers must be among {names}, got {', '.join(unknown)}")
    panels = {}
    for key in args.key:
        for env, runs in grouped(load_runs(args, key, args.every), "env").items():
            if key.startswith("flow/log_det"):  # the logs are natural
                runs = [replace(run, returns=run.returns / math.log(10)) for run in runs]
            panels[env, key] = runs
    if args.export_scalars:
        for folder in {run.path for runs in panels.values() for run in runs}:
            write_scalars(folder, scalars, args.every)

    path = args.output.with_suffix("") if args.output.suffix in (".png", ".svg") else args.output
    path.parent.mkdir(parents=True, exist_ok=True)
    systems = list(args.systems) or sorted({run.system for runs in panels.values() for run in runs})
    draw(panels, systems, args.peers, path)
    timed = {where: [run for run in runs if np.isfinite(run.seconds).all()] for where, runs in panels.items()}
    timed = {where: runs for where, runs in timed.items() if runs}
    if timed:
        draw(timed, systems, args.peers, f"{path}_hours", in_hours=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
