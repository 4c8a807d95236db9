"""Draws runs: one panel per environment, one colour per system, and in black the paper's curves of the same systems.

    pip install -r requirements.txt -r benchmark/requirements.txt
    python benchmark/tools/plot.py --runs benchmark/results/Hopper-v4 --output benchmark/results/Hopper-v4/curve
    python benchmark/tools/plot.py --runs runs/benchmark/paper --env-ids Hopper-v4 Ant-v4 --systems meow sac --output a
    python benchmark/tools/plot.py --runs runs/benchmark/paper --systems meow_affine meow_affine_no_lrs --output fig1 \
        --key flow/log_det_nonlinear flow/log_det_linear

Writes OUTPUT.png and .svg (over steps), and OUTPUT_hours.png and .svg (over wall-clock time) where runs have times.

A system is a run's --exp-name, a repetition its --seed; a folder named NAME_seed_N directly above config.json is seed N
of the system NAME instead. Thin lines are returns as they were evaluated. Thick ones are smoothed as the paper's are:
from 3 seeds on their mean, on the steps that they all have (a mean over fewer and fewer seeds jumps), shaded from the
lowest seed to the highest; of fewer seeds a line each. Runs that do not compare are refused: see `check_comparable`.
Lines and files that are damaged are named and left out.
"""

import csv
import functools
import itertools
import json
import math
import re
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

RETURN = "eval/episodic_return"  # the key that is read from evaluations.csv or returns.csv, without TensorBoard
ENV_STEPS, VECTOR_STEPS = "environment steps", "vector steps"
PAPER = Path(__file__).parents[1] / "paper"  # curves of 5 seeds, read off the pictures and smoothed there
PEERS = Path(__file__).parents[1] / "peers" / "mujoco.csv"  # means of raw results that other people publish
# Steps where the reading took the line's sample in the picture's legend for the curve: flat, far from both sides.
MISREAD = {("Ant", "MEow"): (590_000, 650_000), ("Ant", "SAC"): (590_000, 650_000)}
# Where the curve lies under others it was read as one low constant, with jumps of 2,000 where it shows.
MISREAD |= {("Humanoid-v4", "TD3"): (700_000, 5_000_000)}
PAPER_NAMES = {"meow": "MEow", "meow_continuous_action": "MEow", "meow_isaacgym": "MEow"}
PAPER_NAMES |= {name.lower(): name for name in ("SAC", "TD3", "DDPG", "PPO", "SQL")}

# Okabe and Ito's colours without black, which is the paper's, and yellow.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
DASHES = {"MEow": (4, 2), "SAC": (1, 1), "TD3": (4, 1, 1, 1), "DDPG": (8, 2), "PPO": (2, 3), "SQL": (8, 1, 1, 1, 1, 1)}
SMOOTHING = 0.6  # the weight of the paper's exponential average, estimated from how its curves recover from dips
LABELS = {
    RETURN: "undiscounted return",
    "charts/episodic_return": "return of training episodes",
    "flow/log_det_nonlinear": r"$\log_{10} \prod_{i \in S_n} |\det J_i|$",
    "flow/log_det_linear": r"$\log_{10} \prod_{i \in S_l} |\det J_i|$",
}


plt.rcParams |= {"font.size": 12, "svg.hashsalt": "meow"}  # the salt: the same runs give the same file


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Exit code 2."""


@dataclass(kw_only=True)
class Inputs:
    """What to read: the flags that plot.py and report.py share."""

    runs: tuple[Path, ...] = ()
    """folders, searched at any depth for runs: a config.json beside an evaluations.csv or returns.csv"""
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
    config: dict  # config.json
    path: Path
    unit: str  # of the steps
    averaged: str  # what a return is the mean of

    @property
    def paper_name(self):
        """The paper's name of this system, or None: by --exp-name, whatever the folder is called."""
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


def load_run(folder):
    """The Run in a folder, None if its config.json is damaged."""
    has_evaluations = (folder / "evaluations.csv").exists()
    table = folder / ("evaluations.csv" if has_evaluations else "returns.csv")
    try:
        config = json.loads((folder / "config.json").read_text())
        args = config["args"]
        parallel = "task" in args
        env = args["task"] if parallel else args["env_id"]
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
    unit = VECTOR_STEPS if parallel else ENV_STEPS
    return Run(env.rpartition(":")[2], system, seed, *points.T, config, folder, unit, mean_of)


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
    if not args.runs:
        raise UsageError("--runs must be given")
    if args.max_steps is not None and args.max_steps < 1:
        raise UsageError(f"--max-steps must be an integer of at least 1, got {args.max_steps}")
    folders = {}
    for root in args.runs:
        found = [path.parent for path in sorted(root.rglob("config.json"))]
        found = [path for path in found if (path / "evaluations.csv").exists() or (path / "returns.csv").exists()]
        # run.py renames a run that died before its first checkpoint, and starts again
        found = [path for path in found if not path.name.startswith("abandoned_")]
        if not found:
            raise UsageError(f"--runs {root} must contain a config.json beside an evaluations.csv or returns.csv")
        folders |= {folder.resolve(): folder for folder in found}  # folders that overlap are no second run
    runs = [run for folder in folders.values() if (run := load_run(folder))]
    runs.sort(key=lambda run: (run.env, run.system, run.seed))
    for flag, names, field in (("--systems", args.systems, "system"), ("--env-ids", args.env_ids, "env")):
        groups = grouped(runs, field)
        for name in names:
            if name not in groups:
                raise UsageError(f"{flag} must be among those of the runs ({', '.join(groups)}), got {name}")
        runs = [run for name in names or groups for run in groups[name]]
    check_comparable(runs)
    if key != RETURN:  # only now: a run's logs are large
        runs = [with_means(run, read_scalars(run.path).get(key, []), every) for run in runs]
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
    """Raises UsageError for runs that must not stand in one figure or table. What is not known is skipped.

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


def smoothed(values, weight=SMOOTHING):
    """The exponential average of values (T,), as TensorBoard's: what came k points before has weight ** k."""
    weights = weight ** np.arange(len(values))
    return np.convolve(values, weights)[: len(values)] / np.cumsum(weights)


@functools.cache
def paper_curves():
    """{(env, algorithm): array (4, T)} of steps, mean returns and the 95% band around them (NaN where it was not read).

    Without the points that were not read off the picture.
    """
    points = defaultdict(list)
    for path in sorted(PAPER.glob("*.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            name = row["env"], row["algorithm"]
            point = [float(row.get(column) or "nan") for column in ("step", "return", "low", "high")]
            first, last = MISREAD.get(name, (math.inf, 0))
            if not math.isnan(point[1]) and not first <= point[0] <= last:
                points[name].append(point)
    return {name: np.array(sorted(curve)).T for name, curve in points.items()}


@functools.cache
def peer_curves():
    """{(env, algorithm): (number of seeds, steps (T,), mean returns (T,))} of other people's runs."""
    points = defaultdict(list)
    for row in csv.DictReader(PEERS.read_text().splitlines()):
        points[row["env"], row["algorithm"]].append([float(row[column]) for column in ("seeds", "step", "return")])
    return {name: (int(curve[0][0]), *np.array(curve).T[1:]) for name, curve in points.items()}


def draw_system(axes, runs, color, weight, in_hours):
    """One system's runs in one panel. Returns the ends of two seeds' lines, for `name_ends`."""

    def x_axis(steps, seconds):
        return seconds / 3600 if in_hours else steps

    for run in runs:
        axes.plot(x_axis(run.steps, run.seconds), run.returns, color=color, linewidth=0.6, alpha=0.45)
    runs = [replace(run, returns=smoothed(run.returns, weight)) for run in runs]
    groups = [runs] if len(runs) >= 3 else [[run] for run in runs]
    for line, group in zip(("-", ":"), groups, strict=False):
        steps, returns, seconds = on_common_steps(group)
        x = x_axis(steps, seconds.mean(axis=0))
        axes.plot(x, returns.mean(axis=0), color=color, linewidth=2, linestyle=line)
        if len(group) > 1:
            axes.fill_between(x, returns.min(axis=0), returns.max(axis=0), color=color, alpha=0.2, linewidth=0)
    if len(runs) != 2:
        return []
    return [(run.returns[-1], x_axis(run.steps, run.seconds)[-1], f"seed {run.seed}", color) for run in runs]


def draw_paper(axes, env, runs):
    """The paper's curves of the runs' systems, as far as the runs go. Returns {label: handle for the legend}."""
    handles = {}
    for name in grouped(runs, "paper_name"):
        if (env, name) in paper_curves():
            style = {"color": "black", "linestyle": (0, DASHES[name]), "linewidth": 1.4}
            curve = paper_curves()[env, name]
            steps, means, low, high = curve[:, curve[0] <= 1.02 * max(run.steps[-1] for run in runs)]
            axes.plot(steps, means, **style)
            axes.fill_between(steps, low, high, color="black", alpha=0.12, linewidth=0)
            label = f"the paper's {name} (5 seeds)"
            handles[label] = Line2D([], [], label=label, **style)
    return handles


def draw_peers(axes, env, peers, last):
    """Thin grey lines up to the last step. Returns their ends, for `name_ends`."""
    ends = []
    for name, line in zip(peers, itertools.cycle(("-", "-.", ":"))):
        if (env, name) in peer_curves():
            _, steps, returns = peer_curves()[env, name]
            steps = steps[steps <= last]
            axes.plot(steps, returns[: len(steps)], color="0.45", linewidth=1, linestyle=line)
            ends.append((returns[len(steps) - 1], steps[-1], name, "0.3"))
    return ends


def name_ends(axes, ends):
    """Writes each text of (y, x, text, color) right of its line's end, or above that where another text stands."""
    low, high = axes.get_ylim()
    free = low
    for y, x, text, color in sorted(ends):
        y = max(y, free)
        free = y + 0.075 * (high - low)
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, (x, y), color=color, fontsize=10.5, **place)


def draw_panel(axes, env, key, runs, colors, peers, in_hours):
    """All systems' runs in one environment, the paper's curves of them and peers'. Returns the paper's handles."""
    ends, handles = [], {}
    for system, own in grouped(runs, "system").items():
        ends += draw_system(axes, own, colors[system], SMOOTHING if key == RETURN else 0, in_hours)
    last = 1.02 * max(run.steps[-1] for run in runs)
    if key == RETURN and not in_hours:
        handles = draw_paper(axes, env, runs)
        ends += draw_peers(axes, env, peers, last)
    axes.set_title(env)
    axes.set_xlabel("wall-clock hours" if in_hours else runs[0].unit)
    axes.set_xlim(0, None if in_hours else last)
    if not in_hours:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.grid(alpha=0.3)
    name_ends(axes, ends)
    return handles


def system_handles(runs, systems, colors):
    """A line of the legend for each system."""
    handles = []
    for system, own in sorted(grouped(runs, "system").items(), key=lambda item: systems.index(item[0])):
        numbers = sorted({len(grouped(some, "seed")) for some in grouped(own, "env").values()})
        seeds = f"{numbers[0]}-{numbers[-1]} seeds" if numbers[1:] else count_seeds(numbers[0])
        sampled = ", stochastic" if own[0].inference == "stochastic" else ""
        name = system if len(systems) > 1 else "this code"
        handles.append(Line2D([], [], label=f"{name} ({seeds}{sampled})", color=colors[system], linewidth=2))
    return handles


def notes_on(runs, smooth, papers, peers):
    """What a figure has to say once: what its runs share, and how it draws them."""
    about = sorted({f"mujoco {run.mujoco}" for run in runs if run.mujoco}) + sorted({run.averaged for run in runs})
    inferences = {run.inference for run in runs} - {None}
    about += inferences if len(inferences) == 1 else ()
    lines = [", ".join(about)] + ["thick: smoothed, thin: not smoothed"] * smooth
    if max(len(grouped(own, "seed")) for own in grouped(runs, "env", "system").values()) > 2:
        lines.append("3 seeds or more: mean, lowest to highest")
    lines += ["the paper's: mean, 95% band"] * papers
    seeds = {name: number for (_, name), (number, *_) in peer_curves().items()}
    others = ", ".join(f"{name} {seeds[name]}" for name in peers)
    return lines + [f"grey: others' means ({others} seeds)"] * bool(peers)


def draw(panels, systems, peers, path, in_hours=False):
    """Writes path.png and path.svg. panels: {(env, key): [Run, ...]}; systems: those of the runs, in their order."""
    keys = {key for _, key in panels}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (6, 4.8) if len(panels) == 1 else (3.6 * columns, 3.1 * rows + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    colors = dict(zip(systems, itertools.cycle(COLORS)))
    papers = {}
    for i, ((env, key), runs) in enumerate(panels.items()):
        papers |= draw_panel(grid.flat[i], env, key, runs, colors, peers, in_hours)
        if i % columns == 0 or len(keys) > 1:
            grid.flat[i].set_ylabel(LABELS.get(key, key))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()

    runs = [run for runs in panels.values() for run in runs]
    spare = len(panels) < grid.size
    form = {"title_fontsize": 11, "fontsize": 11, "handlelength": 2.5, "frameon": False}
    form["handles"] = [*system_handles(runs, systems, colors), *papers.values()]
    notes = notes_on(runs, RETURN in keys, bool(papers), peers)
    form["title"] = "\n".join(textwrap.fill(note, 42 if spare else 24 + 30 * columns) for note in notes)
    if spare:
        grid.flat[-1].legend(loc="center", alignment="left", **form).set_in_layout(False)
    else:
        figure.legend(loc="outside lower center", ncols=min(len(form["handles"]), 1 + columns), **form)
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
