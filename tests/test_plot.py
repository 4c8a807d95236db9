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


def drawn_lines(runs, in_hours=False, weight=0):
    """[(x, y, line width), ...] of one system, corners of its bands, and the texts at its ends."""
    _, axes = plt.subplots()
    ends = plot.draw_system(axes, runs, "black", weight, in_hours)
    plt.close("all")
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth()) for line in axes.lines]
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    return lines, bands, [text for _, _, text, _ in ends]


# Reading


def test_a_run_without_evaluations_is_read_by_its_training_returns(tmp_path):
    write_run(tmp_path / "run", [1.0, 2.0], env="Robot-v0", eval_episodes=0)
    table = (tmp_path / "run" / "evaluations.csv").read_text().replace("return_0", "episodes")
    (tmp_path / "run" / "returns.csv").write_text(table)
    (tmp_path / "run" / "evaluations.csv").unlink()
    (run,) = load(tmp_path)
    assert (run.env, run.unit, run.averaged) == ("Robot-v0", plot.ENV_STEPS, "last 100 training episodes")
    assert run.returns.tolist() == [1.0, 2.0]


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
    for script, flags in (("plot.py", ["--output", "out"]), ("report.py", [])):
        command = [sys.executable, str(TOOLS / script), "--runs", "runs", *flags]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0 and f"runs/other/{file}" in result.stderr and where in result.stderr
    assert "| seed 1 |" in result.stdout and (tmp_path / "out.png").exists()


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
    labels.remove("the paper's MEow (5 seeds)")
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
        ({"runs": ()}, "--runs must be given"),
        ({"env_ids": ("Ant-v4",)}, r"--env-ids must be among those of the runs \(Hopper-v4\), got Ant-v4"),
        ({"systems": ("meow", "sac")}, r"--systems must be among those of the runs \(meow\), got sac"),
        ({"every": 0}, "--every must be"),
        ({"max_steps": 0}, "--max-steps must be"),
        ({"export_scalars": True}, "--export-scalars must come with a --key"),
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
    paths = tuple(map(Path, flags.pop("runs")))
    with pytest.raises(plot.UsageError, match=named):
        plot.main(plot.Args(runs=paths, output=Path("out/curve"), **flags))
    assert not Path("out").exists()


@pytest.mark.parametrize("script, flags", [("plot.py", ["--output", "out"]), ("report.py", [])])
def test_bad_input_is_one_sentence_and_exit_code_2(script, flags, tmp_path):
    command = [sys.executable, str(TOOLS / script), "--runs", "none", *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and "--runs none must" in result.stderr and result.stderr.count("\n") == 1


# Curves


def test_smoothing_is_an_exponential_average_without_bias_to_the_first_value():
    assert list(plot.smoothed(np.array([5.0, 5.0, 5.0]), 0.6)) == pytest.approx([5, 5, 5])
    assert list(plot.smoothed(np.array([1.0, 2.0, 4.0]), 0.5)) == [1, 2.5 / 1.5, 5.25 / 1.75]
    assert list(plot.smoothed(np.array([1.0, 2.0, 4.0]), 0)) == [1, 2, 4]


def test_three_seeds_are_thin_under_their_mean_which_ends_at_the_shortest(tmp_path):
    for seed, returns in ((1, [0, 10, 20, 30]), (2, [3, 13]), (3, [6, 16, 26])):
        write_run(tmp_path / f"{seed}", returns, seed=seed)
    (*seeds, mean), (band,), texts = drawn_lines(load(tmp_path))
    assert [line[1] for line in seeds] == [[0, 10, 20, 30], [3, 13], [6, 16, 26]] and not texts
    assert mean[:2] == ([0, 10_000], [3, 13]) and all(line[2] < mean[2] for line in seeds)
    assert {tuple(corner) for corner in band} == {(0, 0), (0, 6), (10_000, 10), (10_000, 16)}  # lowest to highest
    (*_, mean), _, _ = drawn_lines(load(tmp_path), in_hours=True)
    assert mean[0] == [0, 0.01]


def test_mean_and_band_are_of_the_smoothed_seeds(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"{seed}", [0, 3 * seed], seed=seed)
    (first, *_, mean), (band,), _ = drawn_lines(load(tmp_path), weight=0.5)
    assert first[1] == [0, 3] and mean[1] == [0, 4]  # 6 of weight 1 and 0 of weight 0.5
    assert band[:, 1].max() == 6


def test_the_mean_is_over_the_steps_that_all_seeds_have(tmp_path):
    for seed, steps in ((1, [0, 5, 10]), (2, [0, 4, 10]), (3, [0, 10, 12])):
        write_run(tmp_path / f"{seed}", [seed, 2 * seed, 3 * seed], seed=seed, steps=steps)
    (*_, mean), *_ = drawn_lines(load(tmp_path))
    assert mean[:2] == ([0, 10], [2, (9 * 0 + 3 + 6 + 6) / 3])


def test_other_peoples_means_are_lines_up_to_the_runs_last_step_and_named_at_their_ends(tmp_path):
    _, axes = plt.subplots()
    ends = plot.draw_peers(axes, "Hopper-v4", ("SAC", "FlashSAC"), 250_000)
    assert [(x, text) for _, x, text, _ in ends] == [(200_000, "SAC"), (200_000, "FlashSAC")]
    assert [line.get_xdata()[-1] for line in axes.lines] == [200_000, 200_000]
    plt.close("all")
    runs = [write_run(tmp_path / "a", [1, 2])]
    note = plot.notes_on(load(*runs), True, True, ("SAC", "FlashSAC"))[-1]
    assert note == "grey: others' means (SAC 10, FlashSAC 5 seeds)"
    with pytest.raises(plot.UsageError, match="--peers must be among FlashSAC, SAC, SimbaV2, got typo"):
        draw(tmp_path / "curve", *runs, peers=("typo",))


def test_texts_at_lines_ends_do_not_touch():
    _, axes = plt.subplots()
    axes.set_ylim(0, 100)
    plot.name_ends(axes, [(50, 1, "b", "red"), (49, 1, "a", "red"), (90, 1, "c", "red")])
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    plt.close("all")
    assert heights["a"] == 49 and heights["c"] == 90 and 56 < heights["b"] < 58


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_seeds_are_a_line_each_without_band(number, tmp_path):
    for seed in range(number):
        write_run(tmp_path / f"{seed}", [seed, seed + 1], seed=seed)
    lines, bands, texts = drawn_lines(load(tmp_path))
    assert [line[1] for line in lines] == 2 * [[seed, seed + 1] for seed in range(number)] and not bands
    assert texts == (["seed 0", "seed 1"] if number == 2 else [])


def test_the_papers_curves_are_those_of_the_systems(tmp_path):
    write_run(tmp_path / "a", [1, 2, 3, 4])
    write_run(tmp_path / "b", [1, 2], "sac")
    write_run(tmp_path / "c", [1, 2], "meow_vanilla")
    _, axes = plt.subplots()
    runs = load(tmp_path)
    assert list(plot.draw_paper(axes, "Hopper-v4", runs)) == ["the paper's MEow (5 seeds)", "the paper's SAC (5 seeds)"]
    assert list(axes.lines[0].get_xdata()) == [10_000, 20_000, 30_000]  # as far as the runs go
    assert {line.get_color() for line in axes.lines} == {"black"}
    assert plot.draw_paper(axes, "Hopper-v5", runs) == {}
    plt.close("all")


def test_the_papers_band_is_around_its_mean():
    for (env, name), (steps, means, low, high) in plot.paper_curves().items():
        if name == "MEow" and env.endswith("-v4"):
            assert np.all(low <= means) and np.all(means <= high) and np.all(np.diff(steps) == 10_000), env
    steps, _, low, high = plot.paper_curves()["HalfCheetah-v4", "MEow"]
    half = (high - low)[steps == 1_000_000] / 2
    assert half == pytest.approx(528, rel=0.05)  # read off the picture once more, by hand


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


def test_paper_value_over_steps():
    assert report.paper_value("Hopper-v4", "MEow", [150_000]) == 1376.3
    assert report.paper_value("Hopper-v4", "MEow", [150_000, 155_000]) == pytest.approx(1376.3 + (1585.9 - 1376.3) / 4)
    middle = report.paper_value("Hopper-v4", "DDPG", [37_500])  # 45,000 and 60,000 could not be read
    first, last = (report.paper_value("Hopper-v4", "DDPG", [step]) for step in (30_000, 75_000))
    assert middle == pytest.approx(first + (last - first) / 6)
    assert report.paper_value("Hopper-v4", "DDPG", [0, 75_000]) is None  # 0 was not read
    assert report.paper_value("Hopper-v4", "MEow", [1_500_001]) is None
    assert report.paper_value("Hopper-v5", "MEow", [10_000]) is None
    assert report.paper_value("Hopper-v4", None, [10_000]) is None
    assert report.paper_value("Anymal", "SAC", [1_000_000]) == 11.18


def test_misread_points_of_the_papers_curves_are_left_out():
    # the file has the line's sample in the legend there
    assert report.paper_value("Ant", "SAC", [620_000]) > 7000
    assert report.paper_value("Humanoid-v4", "TD3", [1_000_000]) is None  # 79.7, the same to the digit at 65 points


def test_interquartile_mean():
    assert report.iqm(np.array([8.0, 1, 7, 2, 6, 3, 5, 4])) == 4.5  # of 3, 4, 5, 6
    assert report.iqm(np.array([100.0, 0, 1, 2, 3])) == 2  # of 1, 2, 3
    assert report.iqm(np.array([1.0, 2, 6])) == 3


def test_bootstrap_interval():
    # drawn within each environment, every draw has the mean 0.5; drawn from all together they would not
    assert report.iqm_interval([np.zeros(2), np.ones(2)], 999) == (0.5, 0.5)
    low, high = report.iqm_interval([np.array([1.0, 2, 3, 4, 5])])
    assert 1 <= low < 2.5 and 3.5 < high <= 5
    scores = np.arange(20.0) ** 2
    assert report.iqm_interval([scores], 99) == report.iqm_interval([scores], 99)
    # of 2 seeds a draw is low, middle or high with 1/4, 1/2, 1/4: both ends are in the 95%
    assert report.iqm_interval([np.array([1.0, 2])]) == (1, 2)


def test_summary_is_the_mean_of_the_last_ten_evaluations_that_all_seeds_have(tmp_path, capsys):
    write_run(tmp_path / "1", [0] * 2 + [100] * 9 + [200, 9_000], seed=1)  # the last one is not among the other's
    write_run(tmp_path / "2", [0] * 2 + [300] * 10, seed=2)
    write_run(tmp_path / "own", [5, 6], "own", env="Own-v0")
    report.main(report.Args(runs=(tmp_path,), summary=True))
    paper = report.paper_value("Hopper-v4", "MEow", range(20_000, 110_001, 10_000))
    assert capsys.readouterr().out.strip().splitlines()[2:] == [
        f"| Hopper-v4 | 20k to 110k | 2 | 205 | 110 to 300 | {paper:.0f} | {205 / paper - 1:+.1%} |",
        "| Own-v0 | 0 to 10k | 1 | 5.5 |  |  |  |",
    ]


def test_summary_of_several_environments_has_the_interquartile_mean(tmp_path):
    for env in ("Hopper-v4", "Ant-v4"):
        steps = [10_000, 20_000]
        paper = report.paper_value(env, "MEow", steps)
        for seed, share in ((1, 0.1), (2, 0.3), (3, 0.5)):
            share += 0.1 * (env == "Ant-v4")
            write_run(tmp_path / f"{seed}_{env}", 2 * [share * paper], seed=seed, env=env, steps=steps)
    text = report.summary(load(tmp_path)).splitlines()[-1]
    mean, low, high = map(float, re.findall(r"0\.\d+", text))
    assert mean == 0.35  # 0.1, 0.2, 0.3, 0.4, 0.5, 0.6 without the first and the last
    assert 0.1 < low < 0.35 < high < 0.6
    write_run(tmp_path / "single", [1, 2], env="Walker2d-v4", steps=[20_000, 30_000])
    assert "Interquartile" not in report.summary(load(tmp_path))  # of one seed no draw differs


def test_origins(tmp_path, capsys):
    write_task_run(tmp_path / "Anymal/meow/seed_1/runs/Anymal__meow__1__5", [0, 10])
    write_run(tmp_path / "Hopper-v4/sac/seed_1", [0, 10], "sac")
    write_run(tmp_path / "Hopper-v4/sac/seed_2", [0, 10], "sac", 2)
    job = {"commit": "abc1234", "hardware": {"cpu": "EPYC", "cores": 2, "gpus": ["H200"]}}
    (tmp_path / "Anymal/meow/seed_1/job.json").write_text(json.dumps(job))
    for seed in (1, 2):
        job = {"commit": f"1bcdef{34 * '0'}-dirty"}
        (tmp_path / f"Hopper-v4/sac/seed_{seed}/job.json").write_text(json.dumps(job))
    assert report.origins(load(tmp_path)).splitlines()[2:] == [
        "| `abc1234` | Anymal meow 1 |",
        "| `1bcdef0-dirty` | Hopper-v4 sac 1, Hopper-v4 sac 2 |",
        "",
        "- EPYC, 2 cores, H200, torch 2.0.0",
        "- mujoco 3.4.0",
    ]
    (tmp_path / "Hopper-v4/sac/seed_1/job.json").write_text("")
    assert "| `` | Hopper-v4 sac 1 |" in report.origins(load(tmp_path))
    assert "Hopper-v4/sac/seed_1/job.json" in capsys.readouterr().err


def test_tables_of_pages(tmp_path):
    for seed, returns in ((1, [100, 900, 500]), (2, [200, 300])):
        write_run(tmp_path / f"runs/meow/{seed}", returns, seed=seed)
    (tmp_path / "table.csv").write_text('a,b\n"1,000",2\n')
    flags = f"--runs {tmp_path}/runs/meow --steps 10000 20000 30000"
    text = f"# Page\n<!-- report.py {flags} -->\nold\n<!-- end -->\nText\n"
    text += f"<!-- report.py --csv\n{tmp_path}/table.csv -->\n<!-- end -->\nlast"
    page = tmp_path / "page.md"
    page.write_text(text)
    for _ in range(2):  # the second time nothing changes
        report.main(report.Args(pages=(page,)))
        before, curves, between, copied, after = re.split(
            r"<!-- (?:report.*?|end) -->", page.read_text(), flags=re.DOTALL
        )
        assert (before, between, after) == ("# Page\n", "\nText\n", "\nlast")
        paper = [report.number(report.paper_value("Hopper-v4", "MEow", [step])) for step in (10_000, 20_000)]
        assert curves.strip().splitlines() == [
            "| run | 10k | 20k | last ten |",
            "| --- | --- | --- | --- |",
            "| seed 1 | 900 | 500 | 500 |",
            "| seed 2 | 300 |  | 250 |",
            "| mean of 2 | 600 |  | 375 |",  # of 0 and 10,000
            f"| the paper's MEow | {paper[0]} | {paper[1]} |  |",  # it has no 0
        ]
        assert copied.strip().splitlines() == ["| a | b |", "| --- | --- |", "| 1,000 | 2 |"]


def test_a_table_of_several_systems_and_environments_names_them(tmp_path):
    for env in ("Hopper-v4", "Own-v0"):
        for system, seed in (("meow", 1), ("meow", 2), ("sac", 1)):
            write_run(tmp_path / f"{env}/{system}/{seed}", [0, seed], system, seed, env)
    text = report.curves(load(tmp_path), [10_000])
    assert re.findall(r"^\| (\w.*?) \|", text, re.M) == [
        "run",
        *("Hopper-v4 meow seed 1", "Hopper-v4 meow seed 2", "Hopper-v4 meow mean of 2", "Hopper-v4 sac seed 1"),
        "the paper's MEow on Hopper-v4",  # its SAC was not read before 15,000
        *("Own-v0 meow seed 1", "Own-v0 meow seed 2", "Own-v0 meow mean of 2", "Own-v0 sac seed 1"),
    ]
    assert report.curves(load(tmp_path, env_ids=("Own-v0",)), [10_000]).splitlines()[2].startswith("| meow seed 1 |")
