"""tools/plot.py and report.py: numbers against hand calculations, what is refused, pictures that do not change."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3
import pandas as pd
import plot
import pytest
import report
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

TOOLS = Path(plot.__file__).parent


def write_run(
    folder, returns, system="meow", seed=1, env="Hopper-v4", mujoco="3.4.0", steps=None, table="evaluations", **settings
):
    """A run's folder: an evaluation every 10,000 steps, or at `steps`."""
    folder.mkdir(parents=True)
    args = {"exp_name": system, "seed": seed, "env_id": env, "eval_frequency": 100}
    args |= {"eval_episodes": 10, "eval_deterministic": True}
    (folder / "config.json").write_text(json.dumps({"args": args | settings, "versions": {"mujoco": mujoco}}))
    steps = steps or range(0, 10_000 * len(returns), 10_000)
    rows = [f"{step},0.1,{x},1,{x}\n" for step, x in zip(steps, returns, strict=True)]
    (folder / f"{table}.csv").write_text("step,seconds,mean,std,return_0\n" + "".join(rows))
    return folder


def write_log(folder, key, points, **settings):
    with SummaryWriter(folder, **settings) as writer:
        for step, value in points:
            writer.add_scalar(key, value, step)


def load(*roots, key=plot.RETURN, **flags):
    return plot.load_points(plot.Inputs(runs=roots, **flags), [key])


def draw(output, *roots, **flags):
    """Writes the picture. Returns the texts in it: matplotlib writes each as a comment beside its outlines."""
    plot.main(plot.Args(runs=roots, output=output, **flags))
    return set(re.findall("<!-- (.*?) -->", Path(f"{output}.svg").read_text()))


def draw_panel(points, peers=()):
    axes = Figure().subplots()
    curves = pd.read_csv(plot.PEERS)
    names = dict.fromkeys(points.system, "red")
    plot.draw_panel(axes, points, names, names, curves[curves.algorithm.isin(peers)])
    return axes


def lines(axes, width):
    """[[steps, values], ...] of the lines of this width: 0.6 as evaluated, 2 smoothed, 1.4 the paper's, 1 others'."""
    return [line.get_data() for line in axes.lines if line.get_linewidth() == width]


def test_runs_are_found_in_both_layouts(tmp_path, monkeypatch):
    write_run(tmp_path / "bench/Hopper-v4/sac/seed_2/runs/Hopper-v4__sac__2__17", [1], "sac", 2)
    write_run(tmp_path / "bench/Hopper-v4/sac/seed_2/abandoned_Hopper-v4__sac__2__16", [8], "sac", 2)
    write_run(tmp_path / "bench/MultiGoal-v0/meow/seed_1", [3], env="benchmark.multigoal:MultiGoal-v0")
    write_run(tmp_path / "old/one_graph_seed_7", [5])
    monkeypatch.chdir(tmp_path)
    points = load(Path("old"), tmp_path, tmp_path / "bench")  # folders that overlap are read once
    assert points[["env", "system", "seed", "paper", "value"]].to_numpy().tolist() == [
        ["Hopper-v4", "one_graph", 7, "MEow", 5],
        ["Hopper-v4", "sac", 2, "SAC", 1],
        ["MultiGoal-v0", "meow", 1, "MEow", 3],
    ]


def test_a_run_without_evaluations_is_drawn_by_its_training_returns(tmp_path):
    robot = {"env": "Robot-v0", "eval_episodes": 0}
    task = {"task": "Robot-v0", "log_frequency": 1000}
    for settings, unit in ((robot, "environment steps"), (task, "vector steps")):
        write_run(tmp_path / unit, ["nan", 10, 20], table="returns", **settings)  # no episode has ended at first
        points = load(tmp_path / unit)
        assert list(points.step) == [10_000, 20_000] and list(points.value) == [10, 20]
        texts = draw(tmp_path / "curve", tmp_path / unit)
        assert {"Robot-v0", unit, "mujoco 3.4.0, last 100 training episodes"} <= texts


@pytest.mark.parametrize(
    "file, damage, where, kept",
    [
        ("evaluations.csv", lambda table: table[:-2], ", line 4", [1, 2]),  # 30 is cut to 3
        ("evaluations.csv", lambda table: table.replace(b",2,", b",2x,"), ", line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b",2,1", b",2"), ", line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b"2,1,2\n2", b"2"), ", line 3", [1]),  # two in one line
        ("evaluations.csv", lambda table: table.replace(b",2,", b'\0\xff"\n'), ", line 3", [1, 30]),
        ("evaluations.csv", lambda table: table.replace(b"mean", b"men"), ", line 1", []),
        ("evaluations.csv", lambda table: b"", ", line 1", []),
        ("config.json", lambda config: config[:-9], "", []),
        ("config.json", lambda config: b"[]", "", []),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_read(file, damage, where, kept, tmp_path, capsys):
    write_run(tmp_path / "whole", [1, 2, 30])
    path = write_run(tmp_path / "other", [1, 2, 30], seed=2) / file
    path.write_bytes(damage(path.read_bytes()))
    assert list(load(tmp_path).value) == [1, 2, 30, *kept]
    assert f"left out, damaged: {path}{where}: " in capsys.readouterr().err


def test_the_scripts_draw_the_same_twice_go_on_after_damage_and_refuse_in_one_sentence(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"runs/{seed}", [seed, 5, 7 + seed], seed=seed)
    (write_run(tmp_path / "runs/4", [1], "sac") / "evaluations.csv").write_text("step,mean\n0,1\n1,x\n")
    draw(tmp_path / "again", tmp_path / "runs")
    for script, *flags in (["plot.py", "--output", "out"], ["report.py"]):
        command = [sys.executable, str(TOOLS / script), *flags, "--runs"]
        result = subprocess.run([*command, "runs"], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0 and "runs/4/evaluations.csv, line 3: " in result.stderr
        refused = subprocess.run([*command, "none"], capture_output=True, text=True, cwd=tmp_path)
        assert refused.returncode == 2 and "--runs none must" in refused.stderr and refused.stderr.count("\n") == 1
    assert "| meow seed 1 |" in result.stdout
    assert (tmp_path / "out.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert imageio.v3.imread(tmp_path / "out.png").std() > 10


def test_scalars_from_logs_and_from_their_export(tmp_path):
    for seed, steps in ((1, (30, 80, 130)), (2, (20, 90, 110))):
        folder = write_run(tmp_path / f"runs/{seed}", [1, 2], seed=seed)
        write_log(folder, "flow/log_det_nonlinear", [(step, seed * step) for step in steps])
        write_log(folder, "other", [(step, 5) for step in steps])
    points = load(tmp_path, key="flow/log_det_nonlinear")
    assert list(points.step) == [50, 150, 50, 150] and list(points.value) == [55, 130, 110, 220]
    flags = {"key": ("flow/log_det_nonlinear", "other")}
    texts = draw(tmp_path / "a", tmp_path / "runs", export_scalars=True, **flags)
    assert "mujoco 3.4.0, means over 100 steps, deterministic" in texts and "thick" not in str(texts)
    assert (folder / "scalars.csv").read_text().splitlines()[:2] == ["step,key,value", "50,flow/log_det_nonlinear,110"]

    for log in tmp_path.glob("runs/*/events*"):
        log.unlink()
    plot.read_scalars.cache_clear()
    draw(tmp_path / "b", tmp_path / "runs", **flags)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("damage", [lambda log: log[:-3], lambda log: log[:-9] + bytes([log[-9] ^ 1]) + log[-8:]])
def test_a_damaged_log_is_named_and_what_a_resumed_run_logs_again_counts_once(damage, tmp_path, capsys):
    folder = write_run(tmp_path / "a", [1, 2])
    write_log(folder, "other", [(50, 1), (150, 7), (170, 9), (250, 9)])
    (path,) = folder.glob("events*")
    path.write_bytes(damage(path.read_bytes()))
    assert list(load(tmp_path, key="other").value) == [1, 8]
    errors = capsys.readouterr().err
    assert f"left out, damaged: the rest of a log, {path} " in errors and errors.count("\n") == 1
    write_log(folder, "other", [(160, 3)], filename_suffix="resumed", purge_step=101)
    plot.read_scalars.cache_clear()
    assert list(load(tmp_path, key="other").value) == [1, 3]


def test_scalars_are_read_of_the_chosen_runs_alone(tmp_path, capsys):
    """All figures' runs share a folder, and their logs would not fit into memory."""
    for system, value in (("meow", 3), ("sac", "")):
        path = write_run(tmp_path / system, [1, 2], system=system) / "scalars.csv"
        path.write_text(f"step,key,value\n50,other,{value}\n")
    assert list(load(tmp_path, key="other", systems=("meow",)).value) == [3]
    assert "sac/scalars.csv" not in capsys.readouterr().err
    assert list(load(tmp_path, key="other").system) == ["meow"]
    errors = capsys.readouterr().err
    assert "sac/scalars.csv, line 2" in errors and f"left out, no point of other yet: {tmp_path}/sac\n" in errors


def test_scalars_are_averaged_and_log_determinants_drawn_to_base_10(tmp_path, monkeypatch):
    write_run(tmp_path / "a", [1, 2], table="returns", task="Anymal", log_frequency=10)
    rows = f"1,a,1\n9,a,2\n10,a,3\n11,a,inf\n5,flow/log_det_linear,{3 * math.log(10)}\n"
    (tmp_path / "a/scalars.csv").write_text("step,key,value\n" + rows)
    drawn = []
    monkeypatch.setattr(plot, "draw", lambda points, *_: drawn.extend(zip(points.step, points.value, strict=True)))
    plot.main(plot.Args(runs=(tmp_path,), output=tmp_path / "b", key=("a", "flow/log_det_linear")))
    assert drawn == [(5, 1.5), (15, 3), (5, pytest.approx(3))]


@pytest.mark.parametrize(
    "other, named",
    [
        ({"mujoco": "3.5.0", "env": "Ant-v4"}, "one mujoco in one figure, got 3.[45].0 in"),
        ({"eval_episodes": 5}, "one average in Hopper-v4, got 10 episodes in"),
        ({"eval_deterministic": False, "env": "Ant-v4"}, "one inference in meow, got stochastic in"),
        ({"seed": 1}, "one table in Hopper-v4 meow 1, got "),
    ],
)
def test_refuses_runs_that_do_not_compare(other, named, tmp_path):
    paths = write_run(tmp_path / "a", [1, 2]), write_run(tmp_path / "b", [1, 2], **({"seed": 2} | other))
    with pytest.raises(plot.UsageError, match=named) as error:
        load(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


@pytest.mark.parametrize(
    "flags, named",
    [
        ({"runs": ()}, "--runs must be given"),
        ({"runs": (Path("damaged"),)}, "--runs must be given, with at least one config.json that is not damaged"),
        ({"env_ids": ("Ant-v4",)}, "--env-ids must be among Hopper-v4, got Ant-v4"),
        ({"systems": ("meow", "sac")}, "--systems must be among meow, got sac"),
        ({"peers": ("typo",)}, "--peers must be among .*FlashSAC.*, got typo"),
        ({"max_steps": -1}, "--runs must have a point of eval/episodic_return up to --max-steps -1"),
        ({"export_scalars": True}, "--export-scalars must come with a --key"),
        ({"key": ("other",)}, "--runs must have a point of other"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(flags, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [1, 2])
    (write_run(tmp_path / "damaged", [1, 2]) / "config.json").write_text("{}")
    with pytest.raises(plot.UsageError, match=named):
        plot.main(plot.Args(**{"runs": (Path("a"),), "output": Path("out/curve")} | flags))
    assert not Path("out").exists()


def test_three_seeds_are_thin_under_the_mean_of_them_smoothed_on_the_steps_that_all_have(tmp_path):
    write_run(tmp_path / "1", [0, 1.6, 99], seed=1)
    write_run(tmp_path / "2", [0, 3.2], seed=2)
    write_run(tmp_path / "3", [0, 0, 5.88], seed=3, steps=[0, 5000, 10_000])
    axes = draw_panel(load(tmp_path))
    assert [list(values) for _, values in lines(axes, 0.6)] == [[0, 1.6, 99], [0, 3.2], [0, 0, 5.88]]
    # 1.6 / (1 + 0.6) = 1, 3.2 / (1 + 0.6) = 2 and 5.88 / (1 + 0.6 + 0.36) = 3
    ((steps, means),) = lines(axes, 2)
    assert list(steps) == [0, 10_000] and list(means) == [0, pytest.approx(2)]
    corners = axes.collections[0].get_paths()[0].vertices
    assert sorted({y for x, y in corners.tolist() if x == 10_000}) == pytest.approx([1, 3])
    assert axes.get_xlim() == (0, 1.02 * 20_000)
    assert list(load(tmp_path, max_steps=10_000).step) == [0, 10_000, 0, 10_000, 0, 5000, 10_000]


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_seeds_are_a_smoothed_line_each_without_band(number, tmp_path):
    for seed in range(number):
        write_run(tmp_path / f"{seed}", [0, 1.6, 0], system="own", seed=seed)
    axes = draw_panel(load(tmp_path))
    expected = [0, 1, pytest.approx(0.96 / 1.96)]
    assert [list(values) for _, values in lines(axes, 2)] == number * [expected] and not axes.collections
    texts = {text.get_text(): text.xy[1] for text in axes.texts}
    assert list(texts) == (["seed 0", "seed 1"] if number == 2 else [])
    assert number == 1 or texts["seed 1"] - texts["seed 0"] > 0.1  # one above the other


def test_the_papers_curves_and_other_peoples_end_with_the_runs(tmp_path):
    write_run(tmp_path / "a", [1, 2], steps=[0, 250_000])
    write_run(tmp_path / "b", [1, 2], "sac")
    write_run(tmp_path / "c", [1, 2], "meow_vanilla")
    axes = draw_panel(load(tmp_path), ("SAC", "FlashSAC"))
    assert [(steps[0], steps[-1]) for steps, _ in lines(axes, 1.4)] == [(10_000, 250_000), (15_000, 255_000)]
    band = axes.collections[0].get_paths()[0].vertices.tolist()
    assert [10_000, 127.8] in band and [10_000, 192.7] in band
    assert {text.get_text(): text.xy[0] for text in axes.texts} == {"SAC": 200_000, "FlashSAC": 200_000}
    assert [steps[-1] for steps, _ in lines(axes, 1)] == [200_000, 200_000]
    assert not lines(draw_panel(load(tmp_path, systems=("meow_vanilla",))), 1.4)


def test_the_legend_tells_what_is_drawn(tmp_path):
    write_run(tmp_path / "a", [1, 2])
    for seed in (1, 2):
        write_run(tmp_path / f"b{seed}", [1, 2], "meow_stochastic", seed, eval_deterministic=False)
        write_run(tmp_path / f"c{seed}", [1, 2], "meow", seed, env="Ant-v4")
    texts = draw(tmp_path / "curve", tmp_path, peers=("SAC", "FlashSAC"))
    assert {"meow (1-2 seeds)", "meow_stochastic (2 seeds, stochastic)", "mujoco 3.4.0, 10 episodes"} <= texts
    assert {"the paper's MEow (5 seeds)", "the paper's: mean, 95% band", "10k"} <= texts
    assert "grey: others' means (SAC 10, FlashSAC 5 seeds)" in texts
    texts = draw(tmp_path / "one", tmp_path / "a")
    assert {"this code (1 seed)", "mujoco 3.4.0, 10 episodes, deterministic"} <= texts


def test_the_papers_band_is_around_its_mean():
    curves = plot.paper_curves().dropna()
    assert (curves.low <= curves["return"]).all() and (curves["return"] <= curves.high).all()
    assert set(curves.groupby("env").step.diff().dropna()) == {10_000}
    point = curves[(curves.env == "HalfCheetah-v4") & (curves.step == 1_000_000)].iloc[0]
    assert (point.high - point.low) / 2 == pytest.approx(528, rel=0.05)  # read off the picture once more, by hand


@pytest.mark.parametrize(
    "env, algorithm, steps, value",
    [
        ("Hopper-v4", "MEow", [150_000], 1376.3),
        ("Hopper-v4", "MEow", [150_000, 155_000], 1376.3 + (1585.9 - 1376.3) / 4),
        ("Hopper-v4", "DDPG", [37_500], 168.4 + (485.8 - 168.4) / 6),  # 45,000 and 60,000 could not be read
        ("Hopper-v4", "DDPG", [0, 75_000], math.nan),  # 0 was not read
        ("Hopper-v4", "MEow", [1_500_001], math.nan),
        ("Anymal", "SAC", [1_000_000], 11.18),
        ("Ant", "SAC", [620_000], 7154.95),  # the file has the line's sample in the legend there
        ("Humanoid-v4", "TD3", [1_000_000], math.nan),  # misread: 79.7, the same to the digit at 65 points
    ],
)
def test_paper_value_over_steps(env, algorithm, steps, value):
    assert report.paper_value(env, algorithm, steps) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "hopper, ant, text",
    [
        # of six scores the lowest and the highest are cut; the interval is that of draws within each environment
        ((0.1, 0.3, 0.5), (0.2, 0.4, 0.6), "**0.35** (95% stratified bootstrap: 0.20 to 0.50)."),
        ((0, 1, 2), (3, 5, 10), "**2.75** (95% stratified bootstrap: 1.75 to 5.50)."),
        ((100, 0), (1, 2, 3), "**2.00** (95% stratified bootstrap: 0.67 to 35.33)."),  # also of five
        ((0.5,), (0.5, 0.7), "| 1 | 123 |  | 246 | -50.0% |"),  # of one seed no draw differs
    ],
)
def test_the_interquartile_mean_over_environments_and_its_interval(hopper, ant, text, tmp_path):
    for env, shares in (("Hopper-v4", hopper), ("Ant-v4", ant)):
        paper = report.paper_value(env, "MEow", [20_000, 30_000])
        for seed, share in enumerate(shares):
            write_run(tmp_path / f"{env}{seed}", 2 * [share * paper], "meow", seed, env, steps=[20_000, 30_000])
    assert report.summary(load(tmp_path)).endswith(text)


def test_summary_is_the_mean_of_the_last_ten_evaluations_that_all_seeds_have(tmp_path, capsys):
    write_run(tmp_path / "1", [0] * 2 + [100] * 9 + [200, 9_000], seed=1)  # the last one is not among the other's
    write_run(tmp_path / "2", [0] * 2 + [300] * 10, seed=2)
    write_run(tmp_path / "own", [5, 6], "own", env="Own-v0")
    report.main(report.Args(runs=(tmp_path,), summary=True))
    paper = report.paper_value("Hopper-v4", "MEow", range(20_000, 110_001, 10_000))
    assert capsys.readouterr().out.strip().splitlines()[2:] == [
        f"| Hopper-v4 | 20k to 110k | 2 | 205 | 110 to 300 | {paper:.0f} | {205 / paper - 1:+.1%} |",
        "| Own-v0 | 0k to 10k | 1 | 5.5 |  |  |  |",
    ]


def test_origins(tmp_path, capsys):
    for seed, gpus in ((1, ["H200"]), (2, []), (3, []), (4, [])):
        folder = tmp_path / f"sac/seed_{seed}"
        write_run(folder / "runs/NAME" if seed == 1 else folder, [0], "sac", seed)
        job = {"commit": f"{seed // 2}bcdef{34 * '0'}-dirty", "hardware": {"cpu": "EPYC", "cores": 2, "gpus": gpus}}
        (folder / "job.json").write_text(json.dumps(job) if seed < 4 else "")
    report.main(report.Args(runs=(tmp_path,), origins=True))
    output = capsys.readouterr()
    assert output.out.splitlines()[2:] == [
        "| `0bcdef0-dirty` | Hopper-v4 sac 1 |",
        "| `1bcdef0-dirty` | Hopper-v4 sac 2, Hopper-v4 sac 3 |",
        "| `` | Hopper-v4 sac 4 |",
        "",
        "- EPYC, 2 cores, H200, mujoco 3.4.0",
        "- EPYC, 2 cores, no GPU, mujoco 3.4.0",
        "- mujoco 3.4.0",
    ]
    assert "sac/seed_4/job.json" in output.err


PAGE = """# Page
<!-- report.py --runs runs/m* --steps 10000 20000 30000 -->

| run | 10k | 20k | last ten |
| --- | --- | --- | --- |
| seed 1 | 900 | 500 | 500 |
| seed 2 | 300 |  | 250 |
| mean of 2 | 600 |  | 375 |
| the paper's MEow | 163 | 194 |  |

<!-- end -->
Text
<!-- report.py --csv
table.csv -->

| a | b |
| --- | --- |
| 1,000 | 2 |

<!-- end -->
last"""


def test_tables_of_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, returns in ((1, [100, 900, 500]), (2, [200, 300])):
        write_run(tmp_path / f"runs/meow/{seed}", returns, seed=seed)
    Path("table.csv").write_text('a,b\n"1,000",2\n')
    page = Path("page.md")
    page.write_text(re.sub(r"\n\n\|.*?\|\n\n", "\nold\n", PAGE, flags=re.DOTALL))
    for _ in range(2):  # the second time nothing changes
        report.main(report.Args(pages=(page,)))
        assert page.read_text() == PAGE


def test_a_table_names_systems_and_environments_in_the_order_given(tmp_path):
    for env in ("Hopper-v4", "Own-v0"):
        for system, seed in (("meow", 1), ("meow", 2), ("sac", 1)):
            write_run(tmp_path / f"{env}/{system}/{seed}", [0, seed], system, seed, env)
    points = load(tmp_path, env_ids=("Own-v0", "Hopper-v4"), systems=("sac", "meow"))
    assert re.findall(r"^\| (\w.*?) \|", report.curves(points, [10_000]), re.M) == [
        "run",
        *("Own-v0 sac seed 1", "Own-v0 meow seed 1", "Own-v0 meow seed 2", "Own-v0 meow mean of 2"),
        *("Hopper-v4 sac seed 1", "Hopper-v4 meow seed 1", "Hopper-v4 meow seed 2", "Hopper-v4 meow mean of 2"),
        "the paper's MEow on Hopper-v4",  # its SAC was not read before 15,000
    ]
