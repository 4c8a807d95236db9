"""tools/plot.py and report.py: numbers against hand calculations, what is refused, pictures that do not change."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import imageio.v3
import matplotlib.pyplot as plt
import numpy as np
import plot
import pytest
import report
from torch.utils.tensorboard import SummaryWriter

TOOLS = Path(plot.__file__).parent


def write_run(folder, returns, system="meow", seed=1, env="Hopper-v4", mujoco="3.4.0", steps=None, **settings):
    """A run's folder: an evaluation every 10,000 steps, 36 s apart, or at `steps`."""
    folder.mkdir(parents=True)
    args = {"exp_name": system, "seed": seed, "env_id": env, "eval_episodes": 10, "eval_deterministic": True}
    (folder / "config.json").write_text(json.dumps({"args": args | settings, "versions": {"mujoco": mujoco}}))
    steps = steps or [10_000 * i for i in range(len(returns))]
    rows = [f"{step},{step * 36e-4},{x},1,{x}\n" for step, x in zip(steps, returns, strict=True)]
    (folder / "evaluations.csv").write_text("step,seconds,mean,std,return_0\n" + "".join(rows))
    return folder


def write_task_run(folder, returns, **settings):
    """A run of meow_isaacgym.py: a line of returns.csv every 1,000 vector steps, 36 s apart."""
    folder.mkdir(parents=True)
    args = {"exp_name": "meow", "seed": 1, "task": "Anymal", "eval_episodes": 10, "num_envs": 128}
    (folder / "config.json").write_text(json.dumps({"args": args | settings, "versions": {"torch": "2.0.0"}}))
    rows = [f"{1000 * (i + 1)},{36 * (i + 1)},{x},1,100\n" for i, x in enumerate(returns)]
    (folder / "returns.csv").write_text("step,seconds,mean,std,episodes\n" + "".join(rows))


def load(*roots, key=plot.RETURN, every=None, **flags):
    return plot.load_runs(plot.Inputs(runs=roots, **flags), key, every)


def draw(output, *roots, **flags):
    plot.main(plot.Args(runs=roots, output=output, **flags))


def drawn_lines(runs, in_hours=False):
    """[(x, y, line width), ...] of one system."""
    _, axes = plt.subplots()
    plot.draw_system(axes, runs, {"color": "black", "marker": "o"}, in_hours)
    plt.close("all")
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth()) for line in axes.lines]
    return lines, [band.get_paths()[0].vertices for band in axes.collections]


def markdown_cells(text, title, system):
    """The cells of a system's row in the table under a title, by column."""
    lines = text.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (row,) = [row for row in table[2:] if row[0] == system]
    return dict(zip(table[0], row, strict=True))


# Reading


def test_runs_are_found_in_both_layouts(tmp_path, monkeypatch):
    write_run(tmp_path / "bench/Hopper-v4/sac/seed_2/runs/Hopper-v4__sac__2__17", [1, 2], "sac", 2)
    write_run(tmp_path / "bench/Hopper-v4/sac/seed_2/abandoned_Hopper-v4__sac__2__16", [8, 9], "sac", 2)
    write_run(tmp_path / "bench/MultiGoal-v0/meow/seed_1", [3, 4], env="benchmark.multigoal:MultiGoal-v0")
    write_run(tmp_path / "old/one_graph_seed_7", [5, 6])
    monkeypatch.chdir(tmp_path)
    runs = load(Path("old"), tmp_path, tmp_path / "bench")  # folders that overlap are read once
    found = [(run.env, run.system, run.seed, list(run.returns)) for run in runs]
    assert found == [
        ("Hopper-v4", "one_graph", 7, [5, 6]),
        ("Hopper-v4", "sac", 2, [1, 2]),
        ("MultiGoal-v0", "meow", 1, [3, 4]),
    ]
    assert [run.paper_name for run in runs] == ["MEow", "SAC", "MEow"]
    assert list(runs[0].steps) == [0, 10_000] and list(runs[0].seconds) == [0, 36]


def test_returns_of_a_parallel_task(tmp_path):
    write_task_run(tmp_path / "a", ["nan", 10, 20])
    (run,) = load(tmp_path)
    assert (run.env, run.unit, run.inference) == ("Anymal", "vector steps", None)
    assert list(run.steps) == [2000, 3000] and list(run.returns) == [10, 20]


def test_environments_and_systems_are_taken_in_the_order_given(tmp_path):
    for system in ("a", "b", "c"):
        for env in ("Ant-v4", "Hopper-v4"):
            write_run(tmp_path / env / system, [1], system, env=env)
    runs = load(tmp_path, env_ids=("Hopper-v4", "Ant-v4"), systems=("c", "a"))
    found = [(run.env, run.system) for run in runs]
    assert found == [("Hopper-v4", "c"), ("Hopper-v4", "a"), ("Ant-v4", "c"), ("Ant-v4", "a")]


def test_a_run_without_evaluation_is_left_out_and_named(tmp_path, capsys):
    write_run(tmp_path / "begun", [], seed=2)
    with pytest.raises(plot.UsageError, match="at least one point"):
        load(tmp_path)
    write_run(tmp_path / "whole", [1])
    assert [run.seed for run in load(tmp_path)] == [1]
    assert str(tmp_path / "begun") in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, damage, where, kept",
    [
        ("evaluations.csv", lambda table: table[:-2], "line 4", [1, 2]),  # 30 is cut to 3
        ("evaluations.csv", lambda table: table[:-6], "line 4", [1, 2]),
        ("evaluations.csv", lambda table: table.replace(b",2,", b",2x,"), "line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b",2,1", b",2"), "line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b"2,1,2\n2", b"2"), "line 3", [1]),  # two in one line
        ("evaluations.csv", lambda table: table.replace(b",2,", b'\0\xff"\n'), "line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b"mean", b"men"), "line 1", []),
        ("evaluations.csv", lambda table: b"", "line 1", []),
        ("config.json", lambda config: config[:-9], "config.json", []),
        ("config.json", lambda config: b"", "config.json", []),
        ("config.json", lambda config: b"[]", "config.json", []),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_drawn(file, damage, where, kept, tmp_path, capsys):
    write_run(tmp_path / "runs/whole", [1, 2, 30])
    path = write_run(tmp_path / "runs/other", [1, 2, 30], seed=2) / file
    path.write_bytes(damage(path.read_bytes()))
    runs = {run.seed: list(run.returns) for run in load(tmp_path / "runs")}
    assert runs == {1: [1, 2, 30]} | ({2: kept} if kept else {})
    errors = capsys.readouterr().err
    assert str(path) in errors and where in errors and errors.count("left out, damaged: ") == 1
    for script in ("plot.py", "report.py"):
        command = [sys.executable, str(TOOLS / script), "--runs", "runs", "--output", "out"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0 and f"runs/other/{file}" in result.stderr and where in result.stderr
    assert (tmp_path / "out").exists() and (tmp_path / "out.png").exists()


WANDB_CSV = """\
"global_step","Hopper-v4__my__exp__3__17 - eval/episodic_return","Hopper-v4__my__exp__3__17 - \
eval/episodic_return__MIN","Hopper-v4__my__exp__3__17 - eval/episodic_return__MAX","b.c:Ant-v4__sac__1__18 - \
eval/episodic_return","b.c:Ant-v4__sac__1__18 - eval/episodic_return__MIN"
"0","5.5","-1","-1","","9"
"10000","7","-1","-1","8","9"
"20000","NaN","-1","-1","","9"
"""


def test_wandb_csv(tmp_path):
    (tmp_path / "export.csv").write_text(WANDB_CSV)
    ant, hopper = load(wandb_csv=(tmp_path / "export.csv",))
    assert (hopper.env, hopper.system, hopper.seed) == ("Hopper-v4", "my__exp", 3)
    assert list(hopper.steps) == [0, 10_000] and list(hopper.returns) == [5.5, 7]
    assert (ant.env, ant.system, list(ant.steps), list(ant.returns)) == ("Ant-v4", "sac", [10_000], [8])
    draw(tmp_path / "curve", wandb_csv=(tmp_path / "export.csv",))
    assert not (tmp_path / "curve_hours.png").exists()  # an export has no times


def test_a_damaged_line_of_a_wandb_csv_is_named(tmp_path, capsys):
    (tmp_path / "export.csv").write_text(WANDB_CSV.replace('"5.5"', '"5..5"')[:-20] + '"30000","7')
    (ant, hopper) = load(wandb_csv=(tmp_path / "export.csv",))
    assert list(hopper.steps) == list(ant.steps) == [10_000]
    assert "export.csv, line 2: " in capsys.readouterr().err


def test_wandbs_own_step_compares_with_no_other(tmp_path):
    (tmp_path / "export.csv").write_text(WANDB_CSV.replace("global_step", "Step"))
    assert {run.unit for run in load(wandb_csv=(tmp_path / "export.csv",))} == {plot.WANDB_STEPS}
    assert {run.paper_name for run in load(wandb_csv=(tmp_path / "export.csv",))} == {None}
    with pytest.raises(plot.UsageError, match="global_step"):
        report.main(report.Args(wandb_csv=(tmp_path / "export.csv",), output=tmp_path / "REPORT.md"))
    with pytest.raises(plot.UsageError, match="one unit of steps in Hopper-v4"):
        load(write_run(tmp_path / "a", [1, 2]), wandb_csv=(tmp_path / "export.csv",))


@pytest.mark.parametrize(
    "text, named",
    [
        ("global_step,name - losses/qf_loss\n0,1\n", "columns 'RUN_NAME - eval/episodic_return'"),
        ("time,Hopper-v4__meow__1__2 - eval/episodic_return\n0,1\n", "global_step or Step"),
        ("Step,graceful-sun-3 - eval/episodic_return\n0,1\n", "one is named graceful-sun-3"),
        ("Step,Hopper-v4__meow__1__2 - eval/episodic_return\n0,one\n", "at least one point"),
        ("", "global_step or Step"),
    ],
)
def test_wandb_csv_that_is_none(text, named, tmp_path):
    (tmp_path / "export.csv").write_text(text)
    with pytest.raises(plot.UsageError, match=named):
        load(wandb_csv=(tmp_path / "export.csv",))


def test_scalars_from_tensorboard_and_from_their_export(tmp_path):
    for seed, steps in ((1, (30, 80, 130)), (2, (20, 90, 110))):
        folder = write_run(tmp_path / f"runs/{seed}", [1, 2], seed=seed)
        with SummaryWriter(folder) as writer:
            for step in steps:
                writer.add_scalar("flow/log_det_nonlinear", step * seed, step)
                writer.add_scalar("other", 5, step)
    first, second = load(tmp_path, key="flow/log_det_nonlinear", every=100)
    assert list(first.steps) == list(second.steps) == [50, 150]
    assert list(first.returns) == [55, 130] and list(second.returns) == [110, 220]
    assert [run.averaged for run in (first, second)] == 2 * ["means over 100 steps"]
    flags = {"key": ("flow/log_det_nonlinear", "other"), "every": 100}
    draw(tmp_path / "a", tmp_path / "runs", export_scalars=True, **flags)
    assert (folder / "scalars.csv").read_text().splitlines()[:2] == ["step,key,value", "50,flow/log_det_nonlinear,110"]

    for path in tmp_path.glob("runs/*/events*"):
        path.unlink()
    plot.read_scalars.cache_clear()
    draw(tmp_path / "b", tmp_path / "runs", **flags)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert not (tmp_path / "a_hours.svg").exists()
    with pytest.raises(plot.UsageError, match="at least one point of losses/qf_loss"):
        load(tmp_path, key="losses/qf_loss")


@pytest.mark.parametrize("damage", [lambda log: log[:-3], lambda log: log[:-9] + bytes([log[-9] ^ 1]) + log[-8:]])
def test_a_damaged_tensorboard_log_is_named_and_the_rest_is_drawn(damage, tmp_path, capsys):
    folder = write_run(tmp_path / "a", [1, 2])
    with SummaryWriter(folder) as writer:
        for step in (50, 150, 250):
            writer.add_scalar("other", step, step)
    (path,) = folder.glob("events*")
    path.write_bytes(damage(path.read_bytes()))
    (run,) = load(tmp_path, key="other", every=100)
    assert list(run.returns) == [50, 150]
    errors = capsys.readouterr().err
    assert f"{path}, from record 4 on" in errors and errors.count("\n") == 1


def test_scalars_are_read_of_the_chosen_runs_alone(tmp_path, capsys):
    """All figures' runs share a folder, and their logs would not fit into memory."""
    for system, text in (("meow", "step,key,value\n50,other,3\n"), ("sac", "step,key,value\n50,other,\n")):
        (write_run(tmp_path / system, [1, 2], system=system) / "scalars.csv").write_text(text)
    (run,) = load(tmp_path, key="other", systems=("meow",))
    assert list(run.returns) == [3]
    assert "sac/scalars.csv" not in capsys.readouterr().err
    assert load(tmp_path, key="other")[0].system == "meow"
    assert "sac/scalars.csv, line 2" in capsys.readouterr().err


def test_log_determinants_are_drawn_to_base_10(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "a", [1])
    (folder / "scalars.csv").write_text(f"step,key,value\n50,flow/log_det_linear,{3 * math.log(10)}\n50,other,3\n")
    seen = {}
    monkeypatch.setattr(plot, "draw", lambda panels, *_, **__: seen.update(panels))
    draw(tmp_path / "b", folder, key=("flow/log_det_linear", "other"))
    assert {key: list(runs[0].returns) for (_, key), runs in seen.items()} == {
        "flow/log_det_linear": [pytest.approx(3)],
        "other": [3],
    }


def test_scalars_are_averaged_between_two_evaluations(tmp_path):
    write_task_run(tmp_path / "a", [1, 2], log_frequency=10)
    (tmp_path / "a/scalars.csv").write_text("step,key,value\n1,other,1\n9,other,2\n10,other,3\n11,other,inf\n")
    (run,) = load(tmp_path, key="other")
    assert list(run.steps) == [5, 15] and list(run.returns) == [1.5, 3]


# What does not compare


@pytest.mark.parametrize(
    "other, named",
    [
        ({"mujoco": "3.5.0"}, "one mujoco version, got 3.4.0"),
        ({"mujoco": "3.5.0", "env": "Ant-v4"}, "one mujoco version"),
        ({"eval_episodes": 5}, "one eval_episodes in Hopper-v4, got 10 in"),
        ({"eval_deterministic": False}, "one eval_deterministic under the name meow"),
        ({"eval_deterministic": False, "env": "Ant-v4"}, "one eval_deterministic under the name meow"),
        ({"seed": 1}, "Hopper-v4 meow 1 once, got "),
    ],
)
def test_refuses_runs_that_do_not_compare(other, named, tmp_path):
    paths = write_run(tmp_path / "a", [1, 2]), write_run(tmp_path / "b", [1, 2], **({"seed": 2} | other))
    with pytest.raises(plot.UsageError, match=named) as error:
        load(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_inference_may_differ_between_systems_and_the_legend_says_so(tmp_path, monkeypatch):
    write_run(tmp_path / "a", [1, 2])
    write_run(tmp_path / "b", [1, 2], "meow_stochastic", 1, eval_deterministic=False)
    write_run(tmp_path / "c", [1, 2], "meow_stochastic", 2, eval_deterministic=False)
    labels = []
    monkeypatch.setattr(plot, "Line2D", lambda *_, label, **__: labels.append(label) or plt.Line2D([], []))
    draw(tmp_path / "curve", tmp_path)
    labels.remove("MEow, paper (5 seeds)")
    assert labels == 2 * ["meow (1 seed)", "meow_stochastic (2 seeds, stochastic)"]  # over steps, over hours


def test_max_steps_leaves_out_what_came_later(tmp_path):
    write_run(tmp_path / "long_seed_1", [1, 2, 3, 4])
    write_run(tmp_path / "short_seed_1", [5, 6])
    long, short = load(tmp_path, max_steps=10_000)
    assert list(long.steps) == list(short.steps) == [0, 10_000]
    assert list(long.returns) == [1, 2] and len(long.seconds) == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        ({"runs": ("none",)}, "--runs none must contain"),
        ({"runs": ()}, "--runs or --wandb-csv"),
        ({"env_ids": ("Ant-v4",)}, r"--env-ids must be among those of the runs \(Hopper-v4\), got Ant-v4"),
        ({"systems": ("meow", "sac")}, r"--systems must be among those of the runs \(meow\), got sac"),
        ({"every": 0}, "--every must be"),
        ({"max_steps": 0}, "--max-steps must be"),
        ({"export_scalars": True}, "--export-scalars must come with a --key"),
        ({"wandb_csv": ("none.csv",)}, "none.csv must be a CSV file"),
        ({"runs": ("damaged",)}, "--runs must have at least one point"),
        ({"runs": ("scalars",), "key": ("other",)}, "--runs must have at least one point of other"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(flags, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [1, 2])
    (write_run(tmp_path / "damaged", [1, 2]) / "config.json").write_text("{}")
    (write_run(tmp_path / "scalars", [1, 2]) / "scalars.csv").write_text("step,key,value\n1,other,\n")
    flags = {"runs": ("a",)} | flags
    paths = {name: tuple(map(Path, flags.pop(name, ()))) for name in ("runs", "wandb_csv")}
    with pytest.raises(plot.UsageError, match=named):
        plot.main(plot.Args(output=Path("out/curve"), **paths, **flags))
    assert not Path("out").exists()


@pytest.mark.parametrize("script", ["plot.py", "report.py"])
def test_bad_input_is_one_sentence_and_exit_code_2(script, tmp_path):
    command = [sys.executable, str(TOOLS / script), "--runs", "none", "--output", "out"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and "--runs none must" in result.stderr and result.stderr.count("\n") == 1


# Curves


def test_mean_and_interval():
    mean, half_width = plot.mean_and_ci(np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    assert list(mean) == [2, 4]
    assert half_width == pytest.approx([4.302653 / math.sqrt(3), 0], rel=1e-6)  # t(0.975; 2 degrees), s = 1


def test_three_seeds_are_thin_under_their_mean_which_ends_at_the_shortest(tmp_path):
    for seed, returns in ((1, [0, 10, 20, 30]), (2, [3, 13]), (3, [6, 16, 26])):
        write_run(tmp_path / f"{seed}", returns, seed=seed)
    (*seeds, mean), bands = drawn_lines(load(tmp_path))
    assert [line[1] for line in seeds] == [[0, 10, 20, 30], [3, 13], [6, 16, 26]] and not bands
    assert mean[:2] == ([0, 10_000], [3, 13]) and all(line[2] < mean[2] for line in seeds)
    lines, _ = drawn_lines(load(tmp_path), in_hours=True)
    assert lines[-1][0] == [0, 0.01]


def test_five_seeds_have_a_band(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"{seed}", [seed, seed + 10], seed=seed)
    _, (band,) = drawn_lines(load(tmp_path))
    assert band[:, 1].max() == pytest.approx(12 + 2.776445 * math.sqrt(2.5 / 5)) and band[:, 0].max() == 10_000


def test_the_mean_is_over_the_steps_that_all_seeds_have(tmp_path):
    for seed, steps in ((1, [0, 5, 10]), (2, [0, 4, 10]), (3, [0, 10, 12])):
        write_run(tmp_path / f"{seed}", [seed, 2 * seed, 3 * seed], seed=seed, steps=steps)
    (*_, mean), _ = drawn_lines(load(tmp_path))
    assert mean[:2] == ([0, 10], [2, (9 * 0 + 3 + 6 + 6) / 3])


def test_other_peoples_means_are_lines_up_to_the_runs_last_step_and_named_in_the_legend(tmp_path):
    _, axes = plt.subplots()
    labels = list(plot.draw_peers(axes, "Hopper-v4", ("SAC", "FlashSAC"), 250_000))
    assert labels == ["SAC, others' runs (10 seeds)", "FlashSAC, others' runs (5 seeds)"]
    assert [line.get_xdata()[-1] for line in axes.lines] == [200_000, 200_000]
    with pytest.raises(plot.UsageError, match="--peers must be among FlashSAC, SAC, SimbaV2, got typo"):
        draw(tmp_path / "curve", tmp_path, peers=("typo",))


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_seeds_are_thin_lines_without_band(number, tmp_path):
    for seed in range(number):
        write_run(tmp_path / f"{seed}", [seed, seed + 1], seed=seed)
    lines, bands = drawn_lines(load(tmp_path))
    assert [line[1] for line in lines] == [[seed, seed + 1] for seed in range(number)] and not bands
    assert all(line[2] < 1 for line in lines)


def test_the_papers_curves_are_those_of_the_systems(tmp_path):
    write_run(tmp_path / "a", [1, 2, 3, 4])
    write_run(tmp_path / "b", [1, 2], "sac")
    write_run(tmp_path / "c", [1, 2], "meow_vanilla")
    _, axes = plt.subplots()
    runs = load(tmp_path)
    styles = {run.system: {"color": "red", "marker": "o"} for run in runs}
    assert list(plot.draw_paper(axes, "Hopper-v4", runs, styles)) == ["MEow", "SAC"]
    assert list(axes.lines[0].get_xdata()) == [0, 15_000, 30_000]  # as far as the runs go
    assert plot.draw_paper(axes, "Hopper-v5", runs, styles) == {}
    plt.close("all")


def test_pictures_are_whole_and_drawn_twice_the_same(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"runs/{seed}", [seed, 5, 7 + seed], seed=seed)
        write_run(tmp_path / f"runs/{seed}_ant", [seed, 5, 7], "sac", seed, "Ant-v4")
    draw(tmp_path / "a.png", tmp_path / "runs")
    command = [sys.executable, str(TOOLS / "plot.py"), "--runs", "runs", "--output", "b"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("", "_hours"):
        assert imageio.v3.imread(tmp_path / f"a{name}.png").std() > 10
        assert xml.etree.ElementTree.parse(tmp_path / f"a{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / f"a{name}.svg").read_bytes() == (tmp_path / f"b{name}.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.png", "a.svg", "a_hours.png", "a_hours.svg"]


# Tables


def test_paper_value_at_a_step():
    assert report.paper_value("Hopper-v4", "MEow", 150_000) == 1394.1
    middle = report.paper_value("Hopper-v4", "DDPG", 37_500)  # 45,000 and 60,000 could not be read
    first, last = (report.paper_value("Hopper-v4", "DDPG", step) for step in (30_000, 75_000))
    assert middle == pytest.approx(first + (last - first) / 6)
    assert report.paper_value("Hopper-v4", "DDPG", 0) is None  # not read
    assert report.paper_value("Hopper-v4", "MEow", 1_500_000) == 3494.8
    assert report.paper_value("Hopper-v4", "MEow", 1_500_001) is None
    assert report.paper_value("Hopper-v5", "MEow", 10_000) is None
    assert report.paper_value("Hopper-v4", None, 10_000) is None
    assert report.paper_value("Anymal", "SAC", 1_000_000) == 11.18


def test_misread_points_of_the_papers_curves_are_left_out():
    # the file has 380.6 there: the line's sample in the legend
    assert 3363 < report.paper_value("Hopper-v4", "MEow", 930_000) < 3463
    assert report.paper_value("Ant", "SAC", 620_000) > 7000
    assert report.paper_value("Humanoid-v4", "TD3", 1_000_000) is None  # 79.7, the same to the digit at 65 points


def test_interquartile_mean():
    assert report.iqm(np.array([8.0, 1, 7, 2, 6, 3, 5, 4])) == 4.5  # of 3, 4, 5, 6
    assert report.iqm(np.array([100.0, 0, 1, 2, 3])) == 2  # of 1, 2, 3
    assert report.iqm(np.array([1.0, 2, 6])) == 3


def test_bootstrap_interval():
    assert report.iqm_interval([np.array([1.0, 2]), np.array([1.0])], 99) is None
    # drawn within each environment, every draw has the mean 0.5; drawn from all together they would not
    assert report.iqm_interval([np.zeros(2), np.ones(2)], 999) == (0.5, 0.5)
    low, high = report.iqm_interval([np.array([1.0, 2, 3, 4, 5])], 9_999)
    assert 1 <= low < 2.5 and 3.5 < high <= 5
    scores = np.arange(20.0) ** 2
    assert report.iqm_interval([scores], 99) == report.iqm_interval([scores], 99)
    # of 2 seeds a draw is low, middle or high with 1/4, 1/2, 1/4: both ends are in the 95%
    assert report.iqm_interval([np.array([1.0, 2])], 9_999) == (1, 2)


def make_report(root, **flags):
    report.main(report.Args(runs=(root,), output=root / "REPORT.md", **flags))
    return (root / "REPORT.md").read_text()


def test_report(tmp_path):
    write_run(tmp_path / "1", [100, 900, 500, 2000], seed=1)
    write_run(tmp_path / "2", [100, 200, 300], seed=2)
    write_run(tmp_path / "3", [100, 200, 1000], seed=3)
    write_run(tmp_path / "4", [-50, 20], "vanilla", env="Ant-v4", mujoco="3.4.0")
    text = make_report(tmp_path)
    paper = report.number(report.paper_value("Hopper-v4", "MEow", 20_000))
    assert markdown_cells(text, "Last evaluation", "meow") == {
        "system": "meow",
        "Ant-v4": "",
        "Hopper-v4": f"600 (3 seeds, 20k); paper {paper}",  # of 500, 300, 1000
    }
    assert markdown_cells(text, "Last evaluation", "vanilla")["Ant-v4"] == "20.0 (1 seed, 10k)"
    best = markdown_cells(text, "Best evaluation", "meow")["Hopper-v4"]
    assert best == f"733 (3 seeds, 20k); paper {paper}"  # of 900, 300, 1000, not of the 2000 later on
    iqm = "Interquartile mean of the last evaluations"
    assert markdown_cells(text, iqm, "meow")["Hopper-v4"] == f"600, 300 to 1,000 (3 seeds, 20k); paper {paper}"
    assert markdown_cells(text, iqm, "vanilla") == {
        "system": "vanilla",
        "Ant-v4": "20.0, no interval (1 seed, 10k)",
        "Hopper-v4": "",
    }
    assert "## All environments" in text and "None yet." in text
    assert "| Hopper-v4 | meow | 0.02 (3 seeds, 20k) | 278 |" in text  # 72 s
    assert make_report(tmp_path) == text
    assert "meow" not in make_report(tmp_path, systems=("vanilla",)).partition("## Last")[2]


def test_report_of_several_environments(tmp_path):
    hopper, ant = (plot.paper_curves()[env, "MEow"][1][-1] for env in ("Hopper-v4", "Ant-v4"))
    for seed, share in ((1, 0.1), (2, 0.3), (3, 0.5)):
        write_run(tmp_path / f"{seed}", [0, share * hopper], seed=seed)
        write_run(tmp_path / f"{seed}_ant", [0, (share + 0.1) * ant], seed=seed, env="Ant-v4")
        write_run(tmp_path / f"{seed}_own", [0, 1e6], seed=seed, env="Own-v0")  # not in the paper
    write_run(tmp_path / "sac", [0, hopper], "sac")
    write_run(tmp_path / "sac_ant", [0, ant], "sac", env="Ant-v4")
    text = make_report(tmp_path)
    row = markdown_cells(text, "All environments", "meow")
    assert row["IQM"] == "0.350"  # 0.1, 0.2, 0.3, 0.4, 0.5, 0.6 without the first and the last
    assert row["environments"] == "Ant-v4 (3 seeds, 10k), Hopper-v4 (3 seeds, 10k)"
    low, high = map(float, row["95% interval"].split(" to "))
    assert 0.1 < low < 0.35 < high < 0.6
    row = markdown_cells(text, "All environments", "sac")
    assert row["IQM"] == "1.000" and row["95% interval"] == "no interval (1 seed)"


def test_report_of_a_parallel_task_and_of_where_runs_come_from(tmp_path, capsys):
    write_task_run(tmp_path / "Anymal/meow/seed_1/runs/Anymal__meow__1__5", [0, 10])
    write_run(tmp_path / "Hopper-v4/sac/seed_1", [0, 10], "sac")
    job = {"commit": "abc1234", "hardware": {"cpu": "EPYC", "cores": 2, "gpus": ["H200"]}}
    (tmp_path / "Anymal/meow/seed_1/job.json").write_text(json.dumps(job))
    (tmp_path / "Hopper-v4/sac/seed_1/job.json").write_text(json.dumps({"commit": "def5678"}))
    text = make_report(tmp_path)
    assert "| Anymal | meow | 0.02 (1 seed, 2k) | 3,556 |" in text  # 2,000 vector steps of 128 in 72 s
    assert "| Anymal meow 1 | abc1234 | EPYC, 2 cores, H200 | torch 2.0.0 |" in text
    assert "| Hopper-v4 sac 1 | def5678 |  | mujoco 3.4.0 |" in text
    (tmp_path / "Hopper-v4/sac/seed_1/job.json").write_text("")
    assert "| Hopper-v4 sac 1 |  |  | mujoco 3.4.0 |" in make_report(tmp_path)
    assert "Hopper-v4/sac/seed_1/job.json" in capsys.readouterr().err


def test_tables_of_pages(tmp_path):
    for seed, returns in ((1, [100, 900, 500]), (2, [200, 300])):
        write_run(tmp_path / f"runs/meow/{seed}", returns, seed=seed)
        (tmp_path / f"runs/meow/{seed}/job.json").write_text(
            json.dumps({"command": f"python x.py --seed {seed} --a 1", "commit": f"{seed}bcdef{34 * '0'}-dirty"})
        )
    write_run(tmp_path / "runs/own", [5, 6], "own", env="Own-v0")
    flags = f"--runs {tmp_path}/runs/meow --steps 10000 20000 30000"
    text = f"# Page\n<!-- report.py {flags} -->\nold\n<!-- end -->\nText\n"
    text += f"<!-- report.py --summary\n--runs {tmp_path}/runs -->\n<!-- end -->\nlast"
    (tmp_path / "page.md").write_text(text)
    for _ in range(2):  # the second time nothing changes
        make_report(tmp_path, pages=(tmp_path / "page.md",))
        before, curves, between, summary, after = re.split(
            r"<!-- (?:report.*?|end) -->", (tmp_path / "page.md").read_text(), flags=re.DOTALL
        )
        assert (before, between, after) == ("# Page\n", "\nText\n", "\nlast")
        paper = [report.number(report.paper_value("Hopper-v4", "MEow", step)) for step in (10_000, 20_000)]
        assert curves.strip().splitlines() == [
            "| run | 10k | 20k | best |",
            "| --- | --- | --- | --- |",
            "| seed 1 | 900 | 500 | 900 (10k) |",
            "| seed 2 | 300 |  | 300 (10k) |",
            "| mean of 2 | 600 |  |  |",
            f"| the paper's MEow | {paper[0]} | {paper[1]} |  |",
            "",
            "- `python x.py --a 1` at `1bcdef0-dirty` (seed 1), `2bcdef0-dirty` (seed 2)",
            "- mujoco 3.4.0",
        ]
        assert summary.strip().splitlines()[2:] == [
            f"| Hopper-v4 | 10k | 2 | 600 | 300 to 900 | {paper[0]} |",
            "| Own-v0 | 10k | 1 | 6.0 |  |  |",
        ]


def test_a_pages_table_of_several_systems_and_environments_names_them(tmp_path):
    for env in ("Hopper-v4", "Own-v0"):
        for system, seed in (("meow", 1), ("meow", 2), ("sac", 1)):
            write_run(tmp_path / f"{env}/{system}/{seed}", [0, seed], system, seed, env)
    text = report.curves(load(tmp_path), [10_000])
    assert re.findall(r"^\| (\w.*?) \|", text, re.M) == [
        "run",
        *("Hopper-v4 meow, seed 1", "Hopper-v4 meow, seed 2", "Hopper-v4 meow, mean of 2", "Hopper-v4 sac, seed 1"),
        *("the paper's MEow on Hopper-v4", "the paper's SAC on Hopper-v4"),
        *("Own-v0 meow, seed 1", "Own-v0 meow, seed 2", "Own-v0 meow, mean of 2", "Own-v0 sac, seed 1"),
    ]
    assert report.curves(load(tmp_path, env_ids=("Own-v0",)), [10_000]).splitlines()[2].startswith("| meow, seed 1 |")
