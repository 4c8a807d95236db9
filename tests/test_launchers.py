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


def launch(name, *options, cwd=ROOT, code=0, programs="", **env):
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"  # first the `python` of the launchers
    command = ["bash", str(cwd / "benchmark" / name), *options]
    result = subprocess.run(command, env=os.environ | {"PATH": path} | env, capture_output=True, text=True, timeout=600)
    assert result.returncode == code, result.stdout + result.stderr
    return result


@functools.cache
def jobs_of(name):
    """{(environment, system): (script's module, its Args)} of the jobs that a launcher would run with one seed."""
    result, jobs = launch(name, "--seeds", "1", "--dry-run"), {}
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
    "sql": {},
}
for tau in (0.0001, 0.0005, 0.003, 0.005):
    MEANING[f"meow_tau_{tau}"] = MEOW | {"tau": tau}
for name in ("sac", "td3", "ddpg", "ppo"):
    MEANING[name] = {"algo": name}
SIZES = {"fig1_jacobian.sh": (1, 2), "fig3_mujoco.sh": (5, 6), "fig4_isaacgym.sh": (6, 2)}  # environments, systems
SIZES |= {"fig4_mujoco_tasks.sh": (2, 2), "fig6_ablation.sh": (5, 3), "fig7_deterministic.sh": (5, 2)}
SIZES |= {"figA1_affine.sh": (5, 2), "figA2_actor_critic.sh": (5, 5), "figA3_tau.sh": (5, 4)}
SIZES |= {"figA4_sac_lrs.sh": (5, 3)}


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
    assert LAUNCHERS == sorted([*SIZES, "fig2_multigoal.sh"])  # there are no others
    ((_, args),) = jobs_of("fig2_multigoal.sh").values()
    assert (args.env_id, args.exp_name) == ("benchmark.multigoal:MultiGoal-v0", "meow")
    assert (args.total_timesteps, args.gamma, args.tau, args.alpha) == (4_000, 0.9, 0.0005, 2.5)
    assert (args.sigma_min, args.sigma_max, args.num_shifts) == (-2, 1, 2)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_smoke_run_ends_in_the_figure(name, smoke_repository):
    options = ("--smoke", "--workers", "2")
    result = launch(name, *options, cwd=smoke_repository, PYTHONPATH=str(ROOT / "tests" / "standin"))
    figure = smoke_repository / re.findall(r"^figure: (\S+\.png)", result.stdout, re.M)[-1]
    assert figure.stat().st_size > 5_000 and os.access(ROOT / "benchmark" / name, os.X_OK)
    if name in SIZES:  # the other figures' systems are in the same folder
        drawn = re.findall(r"<!-- (\S+) \(1 seed\b", figure.with_suffix(".svg").read_text())
        assert drawn == list(dict.fromkeys(system for _, system in jobs_of(name)))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--seeds", "0"], "--seeds must be an integer of at least 1, got 0"),
        (["--quick", "--steps", "50000"], "--steps and --quick must not be given together"),
        (["--env-id"], "--env-id must be followed by an environment or task"),
        (["--env-id", "opper-v4"], "--env-id must be an environment or task of fig6_ablation.sh"),
        (["--steps", "100"], "--steps must be above 10000, got 100"),
        (["--smoke", "--", "--output", "x"], "--output and --only-job are set by fig6_ablation.sh itself"),
        (["--fast"], "--fast is not an option of fig6_ablation.sh"),
    ],
)
def test_bad_options_are_refused(options, words):
    assert words in launch("fig6_ablation.sh", *options, code=2).stderr


def test_a_dry_run_prints_the_jobs_and_makes_nothing(smoke_repository):
    before = sorted(smoke_repository.glob("runs/benchmark/*"))
    output = launch("fig6_ablation.sh", "--quick", "--env-id", "Ant-v4", "--dry-run", cwd=smoke_repository).stdout
    systems = re.findall(r"Ant-v4/(\S+)/seed_1 ", output)
    assert systems == ["meow_vanilla", "meow_lrs", "meow"] and "3 jobs in" in output
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
    result = launch("fig6_ablation.sh", *options, cwd=smoke_repository, programs=tmp_path, code=1)
    assert "has ended" not in result.stdout


def test_results_are_drawn_and_reported_from_the_committed_files_by_one_command(tmp_path):
    shutil.copytree(ROOT / "benchmark", tmp_path / "benchmark", ignore=shutil.ignore_patterns("__pycache__", "*.svg"))
    shutil.copy(ROOT / "meow_continuous_action.py", tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = [tmp_path / "README.md", tmp_path / "benchmark/RESULTS.md"]
    committed = [page.read_text() for page in pages]
    pages[0].write_text(committed[0].replace("| Hopper-v4 | 910k", "| Hopper-v4 | 2M"))
    launch("results.sh", cwd=tmp_path)
    assert [page.read_text() for page in pages] == committed
    figures = {path.relative_to(tmp_path) for path in tmp_path.rglob("results/**/*.svg")}
    assert figures == {path.relative_to(ROOT) for path in ROOT.glob("benchmark/results/**/*.svg")}
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"  # machines may differ in the last digit
    for figure in figures:
        drawn, expected = (tmp_path / figure).read_text(), (ROOT / figure).read_text()
        assert re.sub(number, "#", drawn) == re.sub(number, "#", expected), figure
        drawn, expected = (np.array(re.findall(number, text), dtype=float) for text in (drawn, expected))
        np.testing.assert_allclose(drawn, expected, atol=0.01, rtol=1e-6, err_msg=str(figure))
        assert (ROOT / figure.with_suffix(".png")).exists()


def test_collect_copies_what_a_report_needs_of_each_run(smoke_repository):
    scale, results = smoke_repository / "runs/benchmark/collected", smoke_repository / "benchmark/results"
    for name in ("runs/NAME/config.json", "runs/NAME/evaluations.csv", "runs/NAME/checkpoint.pt", "job.json"):
        (scale / "Some-v4/meow/seed_3" / name).parent.mkdir(parents=True, exist_ok=True)
        (scale / "Some-v4/meow/seed_3" / name).write_text(name)
    (scale / "Some-v4/meow/seed_1").mkdir()  # it never started
    (scale / "Some-v4/meow/seed_1/job.json").touch()
    launch("collect.sh", str(scale), cwd=smoke_repository)
    copied = {str(path.relative_to(results)): path.read_text() for path in results.glob("Some-v4/*/*/*")}
    for name in ("job.json", "runs/NAME/config.json", "runs/NAME/evaluations.csv"):
        assert copied.pop(f"Some-v4/meow/seed_3/{Path(name).name}") == name
    assert copied == {}
    for options, words in [(["nowhere"], "must be a folder"), ([str(scale), "Some-v4/typo"], "Some-v4/typo")]:
        assert words in launch("collect.sh", *options, cwd=smoke_repository, code=2).stderr
    assert len(list(results.glob("Some-v4/*/*/*"))) == 3
