"""Draws runs: a panel per environment, a colour per system, and the paper's curves in black.

    python benchmark/tools/plot.py --runs runs/benchmark/paper --env-ids Hopper-v4 Ant-v4 --systems meow sac --output a

A system is a run's --exp-name, a repetition its --seed; a folder named NAME_seed_N directly above config.json is seed N
of the system NAME instead. Thin lines are returns as they were evaluated. Thick ones are smoothed as the paper's are:
from 3 seeds on their mean, on the steps that they all have (a mean over fewer and fewer seeds jumps), shaded from the
lowest seed to the highest; of fewer seeds a line each. Runs that do not compare are refused: see `check_comparable`.
Lines and files that are damaged are named and left out.
"""

import functools
import itertools
import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

RETURN = "eval/episodic_return"  # the key that is read from evaluations.csv or returns.csv
INFERENCE = {True: "deterministic", False: "stochastic"}
LOGS = "events.out.tfevents.*"  # TensorBoard's files in a run's folder, for the other keys
PAPER = Path(__file__).parents[1] / "paper"  # curves of 5 seeds, read off the pictures and smoothed there
PEERS = Path(__file__).parents[1] / "peers" / "mujoco.csv"  # means of raw results that other people publish
MISREAD = [
    ("Ant", "MEow", 590_000, 650_000),  # the line's sample in the picture's legend was read instead
    ("Ant", "SAC", 590_000, 650_000),
    ("Humanoid-v4", "TD3", 700_000, 5_000_000),  # the curve lies under others
]
PAPER_NAMES = {"meow": "MEow", "meow_continuous_action": "MEow", "meow_isaacgym": "MEow"}
PAPER_NAMES |= {"sac": "SAC", "td3": "TD3", "ddpg": "DDPG", "ppo": "PPO", "sql": "SQL"}
SMOOTHING = 0.6  # the weight of the paper's exponential average, estimated from how its curves recover from dips
# Okabe and Ito's colours without black, which is the paper's, and yellow
COLORS = ["#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7"]
DASHES = {"MEow": (4, 2), "SAC": (1, 1), "TD3": (4, 1, 1, 1), "DDPG": (8, 2), "PPO": (2, 3), "SQL": (8, 1, 1, 1, 1, 1)}
PEER_LINES = {"SAC": "-", "SimbaV2": "-.", "FlashSAC": ":"}
LABELS = {
    RETURN: "undiscounted return",
    "charts/episodic_return": "return of training episodes",
    "flow/log_det_nonlinear": r"$\log_{10} \prod_{i \in S_n} |\det J_i|$",
    "flow/log_det_linear": r"$\log_{10} \prod_{i \in S_l} |\det J_i|$",
}
matplotlib.rcParams |= {"font.size": 12, "legend.fontsize": 11, "legend.title_fontsize": 11, "legend.handlelength": 2.5}
matplotlib.rcParams["legend.frameon"] = False
matplotlib.rcParams["svg.hashsalt"] = "meow"  # the same runs give the same file


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Exit code 2."""


@dataclass(kw_only=True)
class Inputs:
    """What to read: the flags that plot.py and report.py share."""

    runs: tuple[Path, ...] = ()
    """folders, searched at any depth for a config.json beside an evaluations.csv or returns.csv"""
    env_ids: tuple[str, ...] = ()
    """environments or tasks to take, in this order (none: all)"""
    systems: tuple[str, ...] = ()
    """systems to take, in this order (none: all)"""
    max_steps: float = math.inf
    """leave out what came after this step, so that a long run stands beside shorter ones"""


@dataclass(kw_only=True)
class Args(Inputs):
    output: Path
    """the pictures to write, OUTPUT.png and OUTPUT.svg"""
    key: tuple[str, ...] = (RETURN,)
    """what to draw, a panel each (others than the return are read from logs or scalars.csv, and averaged)"""
    peers: tuple[str, ...] = ()
    """other people's algorithms to draw beside the return, of benchmark/peers/mujoco.csv"""
    export_scalars: bool = False
    """write these averages to scalars.csv in each folder with logs, small enough to be committed"""


def say_left_out(text):
    print(f"left out, {text}", file=sys.stderr)


def read_table(path, columns):
    """Columns of a CSV file, {name: type}. Names damaged lines, which `pd.read_csv` does not."""
    with path.open(errors="replace") as file:
        names = file.readline().strip().split(",")
        lines = file.readlines()
    if not set(columns) <= set(names):
        say_left_out(f"damaged: {path}, line 1: it must have the columns {', '.join(columns)}")
        lines = []
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            if not line.endswith("\n"):
                raise ValueError("it is cut off: its last number may look whole and be wrong")
            cells = dict(zip(names, line.split(","), strict=True))
            rows.append([kind(cells[name]) for name, kind in columns.items()])
        except ValueError as error:
            say_left_out(f"damaged: {path}, line {number}: {error}")
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


@functools.cache
def read_scalars(folder):
    """A table (step, key, value) of a run's logs, or else of its scalars.csv, or else empty."""
    columns = {"step": int, "key": str, "value": float}
    logs = sorted(folder.glob(LOGS))
    table = folder / "scalars.csv"
    if table.exists() and not logs:
        return read_table(table, columns)
    # imported here: it takes seconds, and returns are drawn without it
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

    rows = []
    for path in logs:
        reader = pywrap_tensorflow.PyRecordReader_New(str(path))
        try:
            while True:
                reader.GetNext()
                event = Event.FromString(reader.record())
                if event.session_log.status == SessionLog.START:
                    # a run that resumes logs again what came after its checkpoint
                    rows = [row for row in rows if row[0] < event.step]
                for scalar in event.summary.value:
                    rows.append([event.step, scalar.tag, scalar.simple_value])
        except errors.OutOfRangeError:
            continue  # the file's end
        except errors.DataLossError as error:
            say_left_out(f"damaged: the rest of a log, {error.message}")
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def read_config(table):
    """What the config.json beside a table of returns tells of the run; None if it is damaged."""
    path = table.with_name("config.json")
    evaluated = table.name == "evaluations.csv"
    try:
        config = json.loads(path.read_text())
        args = config["args"]
        parallel = "task" in args
        run = {
            "table": table,
            "env": args["task" if parallel else "env_id"].rpartition(":")[2],
            "system": args["exp_name"],
            "seed": args["seed"],
            "paper": PAPER_NAMES.get(args["exp_name"]),
            "unit": "vector steps" if parallel else "environment steps",
            "every": args["log_frequency" if parallel else "eval_frequency"],
            "average": f"{args['eval_episodes']} episodes" if evaluated else "last 100 training episodes",
            "inference": INFERENCE[args["eval_deterministic"]] if evaluated else None,
            "mujoco": config["versions"].get("mujoco"),
        }
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        say_left_out(f"damaged: {path}: {error!r}")
        return None
    named = re.fullmatch(r"(.+)_seed_(\d+)", path.resolve().parent.name)
    if named:
        run["system"], run["seed"] = named[1], int(named[2])
    return run


def find_runs(args):
    """A table of the runs that args (Inputs) names, a row each, by environment, system and seed."""
    rows = {}
    for root in args.runs:
        tables = [*root.rglob("evaluations.csv"), *root.rglob("returns.csv")]
        if not tables:
            raise UsageError(f"--runs {root} must contain an evaluations.csv or returns.csv")
        for table in tables:
            # run.py renames a run that died before its first checkpoint, and starts again
            if not table.parent.name.startswith("abandoned_"):
                rows[table.resolve()] = read_config(table)  # folders that overlap are no second run
    rows = [row for row in rows.values() if row is not None]
    if not rows:
        raise UsageError("--runs must be given, with at least one config.json that is not damaged")
    runs = pd.DataFrame(rows).sort_values(["env", "system", "seed"])
    runs = choose(runs, "system", args.systems, "--systems")
    runs = choose(runs, "env", args.env_ids, "--env-ids")
    check_comparable(runs)
    return runs


def choose(table, column, names, flag):
    """The rows with these names in a column, in the order of the names; without names all."""
    known = table[column].unique()
    for name in names:
        if name not in known:
            raise UsageError(f"{flag} must be among {', '.join(known)}, got {name}")
    return pd.concat([table[table[column] == name] for name in names or known])


def check_comparable(runs):
    """Raises UsageError for runs that must not stand in one figure or table. What is not known is skipped.
    Returns changed between MuJoCo's versions, with the contacts. Two systems may differ in their inference (Fig. 7).
    """
    runs = runs.assign(figure="one figure", name=runs.env + " " + runs.system + " " + runs.seed.astype(str))
    for column, group in ("mujoco", "figure"), ("average", "env"), ("inference", "system"), ("table", "name"):
        for name, own in runs.dropna(subset=column).groupby(group):
            differ = own.drop_duplicates(column)
            if len(differ) > 1:
                first, second, *_ = differ[column].astype(str) + " in " + differ.table.astype(str)
                raise UsageError(f"--runs must have one {column} in {name}, got {first} and {second}")


def load_points(args, keys=(RETURN,)):
    """A table of all points (step, value, key and the columns of their run) of the runs that args (Inputs) names."""
    tables = []
    for key, run in itertools.product(keys, find_runs(args).to_dict("records")):
        if key == RETURN:
            points = read_table(run["table"], {"step": int, "mean": float})
            points = points.rename(columns={"mean": "value"}).drop_duplicates("step", keep="last")
        else:
            every = run["every"]
            run = run | {"average": f"means over {every:,} steps"}
            points = read_scalars(run["table"].parent)
            points = points[(points.key == key) & np.isfinite(points.value)]
            # over bins, because seeds log some keys at different steps
            points = points.groupby(points.step // every * every + every // 2).value.mean().reset_index()
        # a parallel task has no mean until its first episodes end
        points = points[np.isfinite(points.value) & (points.step <= args.max_steps)]
        if points.empty:
            say_left_out(f"no point of {key} yet: {run['table'].parent}")
        tables.append(points.assign(key=key, **run))
    points = pd.concat(tables, ignore_index=True)
    if points.empty:
        raise UsageError(f"--runs must have a point of {' or '.join(keys)} up to --max-steps {args.max_steps:g}")
    return points


def on_common_steps(points):
    """The values at the steps that all runs have: a row per step, a column per run."""
    return points.pivot(index="step", columns="table", values="value").dropna()


@functools.cache
def paper_curves():
    """A table of the paper's curves, without what was misread or not read at all."""
    curves = pd.concat(map(pd.read_csv, sorted(PAPER.glob("*.csv"))))
    for env, algorithm, first, last in MISREAD:
        curve = (curves.env == env) & (curves.algorithm == algorithm)
        curves = curves[~(curve & curves.step.between(first, last))]
    return curves.dropna(subset="return")


def draw_system(axes, points, color, label):
    """One system's runs in one panel. Returns the ends of two seeds' lines."""
    for _, run in points.groupby("seed"):
        axes.plot(run.step, run.value, color=color, linewidth=0.6, alpha=0.45)
    if RETURN in set(points.key):
        # as TensorBoard's: what came k points before has weight SMOOTHING ** k
        smooth = points.groupby("seed").value.transform(lambda values: values.ewm(alpha=1 - SMOOTHING).mean())
        points = points.assign(value=smooth)
    style = {"color": color, "linewidth": 2}
    ends = []
    if points.seed.nunique() == 2:
        for line, (seed, run) in zip("-:", points.groupby("seed"), strict=True):
            axes.plot(run.step, run.value, label=label, linestyle=line, **style)
            ends.append((run.value.iloc[-1], run.step.iloc[-1], f"seed {seed}", color))
            label = None  # the legend has one line per system
        return ends
    values = on_common_steps(points)
    axes.plot(values.index, values.mean(axis=1), label=label, **style)
    if len(values.columns) > 2:
        band = {"color": color, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), **band)
    return ends


def draw_panel(axes, points, colors, labels, peers):
    """One key in one environment: the systems, the paper's curves of them, and other people's."""
    env = points.env.iloc[0]
    last = 1.02 * points.step.max()
    ends = []  # (y, x, text, color)
    for system, own in points.groupby("system", sort=False):
        ends += draw_system(axes, own, colors[system], labels[system])
    if RETURN in set(points.key):
        curves = paper_curves()
        curves = curves[(curves.env == env) & (curves.step <= last) & curves.algorithm.isin(points.paper)]
        for name, curve in curves.groupby("algorithm"):
            style = {"linestyle": (0, DASHES[name]), "label": f"the paper's {name} (5 seeds)"}
            axes.plot(curve.step, curve["return"], color="black", linewidth=1.4, **style)
            axes.fill_between(curve.step, curve.low, curve.high, color="black", alpha=0.12, linewidth=0)
        peers = peers[(peers.env == env) & (peers.step <= last)]
        for name, curve in peers.groupby("algorithm", sort=False):
            axes.plot(curve.step, curve["return"], PEER_LINES[name], color="0.45", linewidth=1)
            ends.append((curve["return"].iloc[-1], curve.step.iloc[-1], name, "0.3"))
    axes.set(title=env, xlabel=points.unit.iloc[0], xlim=(0, last))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.grid(alpha=0.3)
    # each text stands right of its line's end, or above that where another text stands
    low, high = axes.get_ylim()
    free = low
    style = {"textcoords": "offset points", "va": "center", "fontsize": 10.5}
    for y, x, text, color in sorted(ends):
        y = max(y, free)
        free = y + 0.075 * (high - low)
        axes.annotate(text, (x, y), (4, 0), color=color, annotation_clip=False, **style)


def label_of(system, points):
    """A system's text in the legend, such as 'meow (1-3 seeds)'."""
    own = points[points.system == system]
    numbers = own.groupby("env").seed.nunique()
    text = f"{numbers.max()} seeds"
    if numbers.max() == 1:
        text = "1 seed"
    elif numbers.min() < numbers.max():
        text = f"{numbers.min()}-{text}"
    if "stochastic" in set(own.inference):
        text += ", stochastic"
    name = system if points.system.nunique() > 1 else "this code"
    return f"{name} ({text})"


def notes_on(points, papers, peers):
    """What a figure has to say once: what its runs share, and how it draws them."""
    about = [f"mujoco {version}" for version in points.mujoco.dropna().unique()]
    about += sorted(points.average.unique())
    inferences = points.inference.dropna().unique()
    if len(inferences) == 1:
        about += list(inferences)
    lines = [", ".join(about)]
    if RETURN in set(points.key):
        lines.append("thick: smoothed, thin: not smoothed")
    if points.groupby(["env", "system"]).seed.nunique().max() > 2:
        lines.append("3 seeds or more: mean, lowest to highest")
    if papers:
        lines.append("the paper's: mean, 95% band")
    if not peers.empty:
        seeds = (peers.algorithm + " " + peers.seeds.astype(str)).unique()
        lines.append(f"grey: others' means ({', '.join(seeds)} seeds)")
    return lines


def draw(points, systems, peers, path):
    """Writes path.png and path.svg with a panel per key and environment."""
    panels = list(points.groupby(["key", "env"], sort=False))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (6, 4.8) if len(panels) == 1 else (3.6 * columns, 3.1 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    colors = dict(zip(systems, itertools.cycle(COLORS)))
    labels = {system: label_of(system, points) for system in systems}
    lines = {}
    for i, ((key, _), panel) in enumerate(panels):
        axes = grid.flat[i]
        draw_panel(axes, panel, colors, labels, peers)
        handles, texts = axes.get_legend_handles_labels()
        lines |= dict(zip(texts, handles, strict=True))
        if i % columns == 0 or points.key.nunique() > 1:
            axes.set_ylabel(LABELS.get(key, key))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    spare = len(panels) < grid.size
    width = 42 if spare else 24 + 30 * columns
    notes = [textwrap.fill(note, width) for note in notes_on(points, len(lines) > len(systems), peers)]
    legend = {"handles": lines.values(), "labels": lines.keys(), "title": "\n".join(notes)}
    if spare:
        grid.flat[-1].legend(loc="center", alignment="left", **legend).set_in_layout(False)
    else:
        figure.legend(loc="outside lower center", ncols=min(len(lines), 1 + columns), **legend)
    figure.savefig(f"{path}.png", dpi=130)
    figure.savefig(f"{path}.svg", metadata={"Date": None})


def main(args):
    """Writes the pictures. Raises UsageError for bad input."""
    if args.export_scalars and set(args.key) == {RETURN}:
        raise UsageError(f"--export-scalars must come with a --key other than {RETURN}")
    peers = choose(pd.read_csv(PEERS), "algorithm", args.peers, "--peers")
    peers = peers[peers.algorithm.isin(args.peers)]  # without names none
    points = load_points(args, args.key)
    if args.export_scalars:
        for table, own in points[points.key != RETURN].groupby("table"):
            if any(table.parent.glob(LOGS)):
                path = table.with_name("scalars.csv")
                own[["step", "key", "value"]].to_csv(path, index=False, float_format="%.7g")
    # the logs are natural, those of the figure to base 10
    points.loc[points.key.str.startswith("flow/log_det"), "value"] /= math.log(10)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(points, args.systems or sorted(points.system.unique()), peers, args.output)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
