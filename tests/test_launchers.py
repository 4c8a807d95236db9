"""The launchers of benchmark/: their command lines are the paper's experiments, and each one ends in its figure."""

import functools
import importlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

ROOT = Path(__file__).parent.parent
LAUNCHERS = sorted(path.name for path in (ROOT / "benchmark").glob("fig*.sh"))


def launch(name, *options, cwd=ROOT, **env):
    bin_dir = str(Path(sys.executable).parent)  # the `python` of the launchers
    env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | env
    command = ["bash", str(cwd / "benchmark" / name), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@functools.cache
def jobs_of(name):
    """{(environment, system): (script's module, its Args)} of the jobs that a launcher would run with one seed."""
    result = launch(name, "--seeds", "1", "--dry-run")
    assert result.returncode == 0, result.stderr
    jobs = {}
    for env, system, command in re.findall(r"^\w+ +(\S+)/(\S+)/seed_1  (python .*)$", result.stdout, re.M):
        _, script, *flags = shlex.split(command)
        module = importlib.import_module(Path(script).stem)
        jobs[env, system] = module, tyro.cli(module.Args, args=flags)
    assert f"{len(jobs)} jobs in runs/benchmark/paper: " in result.stdout
    return jobs


MEOW = {"num_shifts": 2, "coupling": "additive", "eval_deterministic": True}
# What a system's name promises. All other settings are the scripts' own, from the paper's tables.
MEANING = {
    "meow": MEOW,
    "meow_vanilla": MEOW | {"num_shifts": 0},
    "meow_lrs": MEOW | {"num_shifts": 1},
    "meow_affine": MEOW | {"coupling": "affine"},
    "meow_affine_no_lrs": MEOW | {"coupling": "affine", "num_shifts": 0},
    "meow_stochastic": MEOW | {"eval_deterministic": False},
    "ecga": {"critic": "energy", "actor": "gaussian", "lrs": False},
    "ecfa": {"critic": "energy", "actor": "flow", "lrs": False},
    "fcga": {"critic": "flow", "actor": "gaussian", "lrs": True},
    "fcfa": {"critic": "flow", "actor": "flow", "lrs": True},
    "sac_lrs": {"critic": "energy", "actor": "gaussian", "lrs": True},
    **{f"meow_tau_{tau}": MEOW | {"tau": tau} for tau in (0.0001, 0.0005, 0.003, 0.005)},
    **{name: {"algo": name} for name in ("sac", "td3", "ddpg", "ppo")},
    "sql": {},
}
SIZES = {  # environments, systems
    "fig1_jacobian.sh": (1, 2),
    "fig3_mujoco.sh": (5, 6),
    "fig4_isaacgym.sh": (6, 2),
    "fig4_mujoco_tasks.sh": (2, 2),
    "fig6_ablation.sh": (5, 3),
    "fig7_deterministic.sh": (5, 2),
    "figA1_affine.sh": (5, 2),
    "figA2_actor_critic.sh": (5, 5),
    "figA3_tau.sh": (5, 4),
    "figA4_sac_lrs.sh": (5, 3),
}


def test_every_figure_has_its_launcher():
    assert LAUNCHERS == sorted([*SIZES, "fig2_multigoal.sh"])
    assert all(os.access(ROOT / "benchmark" / name, os.X_OK) for name in LAUNCHERS)


@pytest.mark.parametrize("name", SIZES)
def test_each_system_is_what_its_name_says_on_each_environment(name):
    jobs = jobs_of(name)
    assert (len({env for env, _ in jobs}), len({system for _, system in jobs})) == SIZES[name]
    assert len(jobs) == math.prod(SIZES[name])
    for (env, system), (module, args) in jobs.items():
        on = {"env_id": args.env_id} if hasattr(args, "env_id") else {"task": args.task, "make": args.make}
        assert env in on.values() and args.exp_name == system and args.seed == 1
        meaning = {key: value for key, value in MEANING[system].items() if hasattr(args, key)}
        assert meaning or system in ("sac", "sql")
        assert args == module.Args(**on, **meaning, exp_name=system), (env, system)


def test_fig2_has_the_papers_settings():
    (((env, system), (_, args)),) = jobs_of("fig2_multigoal.sh").items()
    assert (env, system, args.env_id) == ("MultiGoal-v0", "meow", "benchmark.multigoal:MultiGoal-v0")
    assert (args.total_timesteps, args.gamma, args.tau, args.alpha) == (4_000, 0.9, 0.0005, 2.5)
    assert (args.sigma_min, args.sigma_max, args.num_shifts) == (-2, 1, 2)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_smoke_run_ends_in_the_figure(name, smoke_repository):
    options = ("--smoke", "--workers", "2")
    result = launch(name, *options, cwd=smoke_repository, PYTHONPATH=str(ROOT / "tests" / "standin"))
    assert result.returncode == 0, result.stdout + result.stderr
    figure = smoke_repository / re.findall(r"^figure: (\S+\.png)", result.stdout, re.M)[-1]
    assert figure.stat().st_size > 5_000
    if name in SIZES:  # the other figures' systems are in the same folder
        drawn = re.findall(r"<!-- (\S+) \(1 seed\b", figure.with_suffix(".svg").read_text())
        assert drawn == list(dict.fromkeys(system for _, system in jobs_of(name)))


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
        (["--env-id", "Nothing-v4"], "--env-id must be an environment or task of fig6_ablation.sh"),
        (["--env-id"], "--env-id must be followed by an environment or task"),
        (["--env-id", "opper-v4"], "--env-id must be an environment or task of fig6_ablation.sh"),
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


def test_a_failed_submission_is_told(smoke_repository, tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    options = ["--quick", "--", "--slurm-template-path", "benchmark/slurm_template.sh"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = launch("fig6_ablation.sh", *options, cwd=smoke_repository, PATH=f"{Path(sys.executable).parent}:{path}")
    assert result.returncode == 1 and "has ended" not in result.stdout


def drawing(path):
    """An SVG's text without its numbers, and these: machines may differ in the last digit."""
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    text = path.read_text()
    return re.sub(number, "#", text), np.array(re.findall(number, text), dtype=float)


def test_results_are_drawn_and_reported_from_the_committed_files_by_one_command(tmp_path):
    shutil.copytree(ROOT / "benchmark", tmp_path / "benchmark", ignore=shutil.ignore_patterns("__pycache__", "*.svg"))
    shutil.copy(ROOT / "meow_continuous_action.py", tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = [tmp_path / name for name in ("README.md", "benchmark/RESULTS.md")]
    committed = [page.read_text() for page in pages]
    pages[0].write_text(committed[0].replace("| Hopper-v4 | 910k", "| Hopper-v4 | 2M"))
    result = launch("results.sh", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [page.read_text() for page in pages] == committed
    figures = {path.relative_to(tmp_path) for path in tmp_path.rglob("results/**/*.svg")}
    assert figures == {path.relative_to(ROOT) for path in ROOT.glob("benchmark/results/**/*.svg")}
    for figure in figures:
        (text, numbers), (committed_text, committed_numbers) = drawing(tmp_path / figure), drawing(ROOT / figure)
        assert text == committed_text, figure
        np.testing.assert_allclose(numbers, committed_numbers, atol=0.01, rtol=1e-6, err_msg=str(figure))
        assert (ROOT / figure.with_suffix(".png")).exists()


def test_collect_copies_what_a_report_needs_of_each_run(smoke_repository):
    job = smoke_repository / "runs" / "benchmark" / "collected" / "Some-v4" / "meow" / "seed_3"
    (job / "runs" / "NAME").mkdir(parents=True)
    (job / "job.json").write_text("job")
    never_started = job.with_name("seed_1")
    never_started.mkdir()
    (never_started / "job.json").write_text("refused")
    for name in ("config.json", "evaluations.csv", "checkpoint.pt"):
        (job / "runs" / "NAME" / name).write_text(name)
    result = launch("collect.sh", str(job.parents[2]), cwd=smoke_repository)
    assert result.returncode == 0, result.stderr
    copied = smoke_repository / "benchmark" / "results" / "Some-v4" / "meow" / "seed_3"
    assert list(copied.parent.iterdir()) == [copied]
    assert {path.name: path.read_text() for path in copied.iterdir()} == {
        "job.json": "job",
        "config.json": "config.json",
        "evaluations.csv": "evaluations.csv",
    }
    results = sorted((smoke_repository / "benchmark" / "results").rglob("*"))
    for folder, system, words in [
        ("nowhere", [], "must be a folder"),
        (job.parents[2], ["Some-v4/typo"], "Some-v4/typo"),
    ]:
        result = launch("collect.sh", str(folder), *system, cwd=smoke_repository)
        assert result.returncode == 2 and words in result.stderr
    assert sorted((smoke_repository / "benchmark" / "results").rglob("*")) == results
