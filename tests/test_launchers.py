"""The launchers of benchmark/: their command lines are the paper's experiments, and each one ends in its figure."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parent.parent
LAUNCHERS = sorted(path.name for path in (ROOT / "benchmark").glob("fig*.sh"))


def launch(name, *options, cwd=ROOT, **env):
    bin_dir = str(Path(sys.executable).parent)  # the `python` of the launchers
    env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | env
    command = ["bash", str(cwd / "benchmark" / name), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def command_lines(name):
    """The command lines in a launcher, as lists of words."""
    text = (ROOT / "benchmark" / name).read_text()
    return [shlex.split(line) for line in re.findall(r'"(python (?!benchmark/fig).*?)"', text)]


def test_every_figure_has_its_launcher():
    names = "1_jacobian 2_multigoal 3_mujoco 4_isaacgym 4_mujoco_tasks 6_ablation 7_deterministic A1_affine"
    names += " A2_actor_critic A3_tau A4_sac_lrs"
    assert LAUNCHERS == sorted(f"fig{name}.sh" for name in names.split())
    assert all(os.access(ROOT / "benchmark" / name, os.X_OK) for name in LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_command_lines_parse_and_spell_out_what_the_scripts_take_from_the_papers_tables(name):
    lines = command_lines(name)
    assert lines
    # what an experiment is about
    free = {"exp_name", "make", "coupling", "num_shifts", "lrs", "eval_deterministic"}
    free |= {"tau"} if name == "figA3_tau.sh" else set()
    for _, script, *flags in lines:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        args = tyro.cli(module.Args, args=flags)
        what = ("--env-id", "--task", "--algo", "--critic", "--actor")
        least = [word for i in range(len(flags)) if flags[i] in what for word in flags[i : i + 2]]
        defaults = vars(tyro.cli(module.Args, args=least))
        if "MultiGoal" not in flags[flags.index(least[0]) + 1]:  # a task that is in no script's table
            assert {key for key, value in vars(args).items() if value != defaults[key]} <= free, flags


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_smoke_run_ends_in_the_figure(name, smoke_repository):
    options = ("--smoke", "--workers", "2")
    result = launch(name, *options, cwd=smoke_repository, PYTHONPATH=str(ROOT / "tests" / "standin"))
    assert result.returncode == 0, result.stdout + result.stderr
    figure = re.findall(r"^figure: (\S+\.png)", result.stdout, re.M)[-1]
    assert (smoke_repository / figure).stat().st_size > 5_000


def test_what_is_finished_is_skipped(smoke_repository):
    for again in (False, True):
        result = launch("figA1_affine.sh", "--smoke", cwd=smoke_repository)
        assert result.returncode == 0, result.stderr
        if again:
            assert "2 jobs in runs/benchmark/smoke: 0 to run, 0 to resume, 2 to skip" in result.stdout


@pytest.mark.parametrize(
    "options, words",
    [
        (["--seeds", "0"], "--seeds must be an integer of at least 1, got 0"),
        (["--workers"], "--workers must be an integer of at least 1, got nothing"),
        (["--quick", "--steps", "50000"], "--steps and --quick must not be given together"),
        (["--env-id", "Nothing-v4"], "--env-id must be an environment or task of fig6_ablation.sh, got Nothing-v4"),
        (["--env-id"], "--env-id must be followed by an environment or task"),
        (["--env-id", "0.25"], "--env-id must be an environment or task of fig6_ablation.sh, got 0.25"),
        (["--steps", "100"], "--steps must be above 10000, got 100"),
        (["--smoke", "--", "--output", "x"], "--output and --only-job are set by fig6_ablation.sh itself"),
        (["--fast"], "--fast is not an option of fig6_ablation.sh"),
    ],
)
def test_bad_options_are_refused(options, words):
    result = launch("fig6_ablation.sh", *options)
    assert result.returncode == 2 and words in result.stderr


def test_a_dry_run_prints_the_jobs_and_makes_nothing(smoke_repository):
    before = sorted(smoke_repository.glob("runs/benchmark/*"))
    result = launch("fig6_ablation.sh", "--quick", "--env-id", "Ant-v4", "--dry-run", cwd=smoke_repository)
    assert result.returncode == 0, result.stderr
    for system in ("meow_vanilla", "meow_lrs", "meow"):
        assert f"Ant-v4/{system}/seed_1" in result.stdout
    assert "Hopper" not in result.stdout and "seed_2" not in result.stdout
    assert sorted(smoke_repository.glob("runs/benchmark/*")) == before


@pytest.fixture(scope="session")
def smoke_repository(tmp_path_factory):
    """A copy of the repository's files, where launchers may write runs/."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "benchmark", folder / "benchmark", ignore=shutil.ignore_patterns("results", "__pycache__"))
    for name in ("meow_continuous_action.py", "meow_isaacgym.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_results_are_drawn_and_reported_from_the_committed_files_by_one_command(tmp_path):
    shutil.copytree(ROOT / "benchmark", tmp_path / "benchmark", ignore=shutil.ignore_patterns("__pycache__", "*.svg"))
    shutil.copy(ROOT / "meow_continuous_action.py", tmp_path)
    report = tmp_path / "benchmark" / "results" / "REPORT.md"
    committed = report.read_text()
    report.unlink()
    result = launch("results.sh", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert report.read_text() == committed
    figures = {path.relative_to(tmp_path).with_suffix(".png") for path in tmp_path.rglob("results/**/*.svg")}
    assert figures and all((ROOT / figure).exists() for figure in figures)


def test_collect_copies_what_a_report_needs_of_each_run(smoke_repository):
    job = smoke_repository / "runs" / "benchmark" / "collected" / "Some-v4" / "meow" / "seed_3"
    (job / "runs" / "NAME" / "checkpoints").mkdir(parents=True)
    (job / "job.json").write_text("job")
    for name in ("config.json", "evaluations.csv", "checkpoints/step.pt"):
        (job / "runs" / "NAME" / name).write_text(name)
    result = launch("collect.sh", str(job.parents[2]), cwd=smoke_repository)
    assert result.returncode == 0, result.stderr
    copied = smoke_repository / "benchmark" / "results" / "Some-v4" / "meow" / "seed_3"
    assert {path.name: path.read_text() for path in copied.iterdir()} == {
        "job.json": "job",
        "config.json": "config.json",
        "evaluations.csv": "evaluations.csv",
    }
