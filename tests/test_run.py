"""benchmark/tools/run.py runs the whole grid, and the same line continues it whatever ended it."""

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from meow_continuous_action import Args, train

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARK = [sys.executable, str(REPOSITORY / "benchmark" / "tools" / "run.py")]

# A training script with the contract of ours: a curve that depends on the seed alone, checkpoint, --resume, a lock.
# The state of its random stream is in the checkpoint, nowhere else.
FAKE = """
import argparse, json, os, random, sys, time
from filelock import FileLock
from pathlib import Path

parser = argparse.ArgumentParser()
for name, default in {"exp-name": "fake", "seed": 1, "steps": 3, "fail-at": 0, "seconds": 0.0}.items():
    parser.add_argument(f"--{name}", default=default, type=type(default))
parser.add_argument("--env-id", "--task")
parser.add_argument("--no-checkpoints", action="store_true")
parser.add_argument("--resume")
args = parser.parse_args()

run_dir = Path(args.resume or f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}")
run_dir.mkdir(parents=True, exist_ok=True)
lock = FileLock(run_dir / "lock")
lock.acquire(timeout=0)
rng, rows = random.Random(args.seed), ["step,seconds,mean"]
if args.resume:
    version, stream, gauss, rows = json.loads((run_dir / "checkpoint.pt").read_text())
    rng.setstate((version, tuple(stream), gauss))
threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
config = {"args": vars(args), "python": sys.executable, "threads": threads}
(run_dir / "config.json").write_text(json.dumps(config))
print("begins at step", len(rows) - 1, flush=True)
for step in range(len(rows), args.steps + 1):
    time.sleep(args.seconds)
    if step == args.fail_at:
        print("\\rprogress 1%\\rprogress 2%\\nit broke at step", step)
        sys.exit(3)
    rows.append(f"{step},{time.time()},{rng.random()}")
    (run_dir / "evaluations.csv").write_text("\\n".join(rows))
    if not args.no_checkpoints:
        (run_dir / "checkpoint.tmp").write_text(json.dumps([*rng.getstate(), rows]))
        os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder


def benchmark(*flags):
    return subprocess.run([*BENCHMARK, "--output", "out", *flags], capture_output=True, text=True)


@contextlib.contextmanager
def started(*flags, **settings):
    """A benchmark that runs meanwhile, in a session of its own as in a terminal; it is gone afterwards."""
    settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([*BENCHMARK, "--output", "out", *flags], **settings) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(condition):
    end = time.time() + 120
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.02)


def job_json(job):
    return json.loads(Path("out", job, "job.json").read_text())


def log(job):
    path = Path("out", job, "log.txt")
    return path.read_text() if path.exists() else ""


def at_step(job, step):
    """Whether the one run in a job's folder has a checkpoint of that step or a later one."""
    return any(len(json.loads(path.read_text())[3]) > step for path in Path("out", job).glob("runs/*/checkpoint.pt"))


def curve(job):
    """The evaluations of the one run in a job's folder, without the clock."""
    (path,) = Path("out", job).glob("runs/*/evaluations.csv")
    return table(path)


def table(path):
    """The rows of a CSV file, without the clock."""
    with open(path) as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def fake_curve(seed, steps):
    """The curve of a fake run that nothing interrupts."""
    import random

    rng = random.Random(seed)
    return [{"step": str(step), "mean": str(rng.random())} for step in range(1, steps + 1)]


def script_process(job):
    """The process of the training script that works in a job's folder, or None."""
    folder = os.path.abspath(os.path.join("out", job))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == folder and len(process.cmdline()) > 1 and process.cmdline()[1].endswith(".py"):
                return process
    return None


# The grid


def test_every_command_runs_on_every_environment_and_seed(tmp_path):
    flags = ["--env-ids", "A-v0", "module:B-v0", "--num-seeds", "2", "--start-seed", "4", "--workers", "3"]
    flags += ["--threads-per-worker", "2", "--command", "python fake.py", "python fake.py --exp-name other --steps 5"]
    result = benchmark(*flags)
    assert result.returncode == 0, result.stderr
    jobs = [f"{env}/{name}/seed_{seed}" for name in ("fake", "other") for env in ("A-v0", "B-v0") for seed in (4, 5)]
    assert {str(path.parent) for path in Path("out").glob("*/*/*/job.json")} == {f"out/{job}" for job in jobs}
    assert result.stdout.startswith("".join(f"run     {job}\n" for job in jobs) + "8 jobs in out: 8 to run, 0 to")
    for job in jobs:
        assert result.stdout.count(f"{job}: run\n") == 1 and result.stdout.count(f"{job}: finished after") == 1
        assert curve(job) == fake_curve(seed=int(job[-1]), steps=3 if "fake" in job else 5)
    assert "(8 of 8)" in result.stdout
    (config,) = Path("out/B-v0/other/seed_5").glob("runs/module:B-v0__other__5__*/config.json")
    config = json.loads(config.read_text())
    assert config["python"] == sys.executable
    threads = {name: value for name, value in config["threads"].items() if name[:3] in ("OMP", "MKL", "OPE")}
    assert threads == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    record = job_json("B-v0/other/seed_5")
    assert record["command"] == "python fake.py --exp-name other --steps 5 --env-id module:B-v0 --seed 5"
    assert (record["returncode"], record["attempts"]) == (0, 1)
    assert set(record["hardware"]) == {"cpu", "cores", "gpus"} and socket.gethostname() not in str(record["hardware"])
    assert record["started"] <= record["ended"] and record["seconds"] > 0 and record["commit"]

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    result = benchmark(*flags)
    assert result.returncode == 0 and "8 jobs in out: 0 to run, 0 to resume, 8 to skip" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}


def test_parallel_scripts_have_another_flag_for_the_environment():
    flags = ["--env-flag", "task", "--env-ids", "Ant", "--command", "python fake.py --exp_name=o"]
    result = benchmark("--dry-run", *flags)
    assert result.returncode == 0, result.stderr
    assert "run     Ant/o/seed_1  python fake.py --exp_name=o --task Ant --seed 1\n" in result.stdout


def test_the_recorded_command_is_as_typed_in_the_repository():
    script = REPOSITORY / "meow_continuous_action.py"
    result = benchmark("--dry-run", "--command", f"python {script} --exp-name 'a b'", "--env-ids", "Hopper-v4")
    command = "python meow_continuous_action.py --exp-name 'a b' --env-id Hopper-v4 --seed 1\n"
    assert result.returncode == 0 and f"run     Hopper-v4/a b/seed_1  {command}" in result.stdout
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--env-ids", "A-v0"], "--command must be command lines"),
        (["--command", "python fake.py"], "with --env-ids"),
        (["--command", "python none.py", "--env-ids", "A-v0"], "--command must name a script NAME.py that exists"),
        (["--command", "python -m fake", "--env-ids", "A-v0"], "--command must name a script NAME.py that exists"),
        (["--command", "pythn fake.py", "--env-ids", "A-v0"], "--command must begin with a program"),
        (["--command", "fake.py --steps 2", "--env-ids", "A-v0"], "--command must begin with a program"),
        (["--command", "A=1 pythn fake.py", "--env-ids", "A-v0"], "--command must begin with a program"),
        (["--command", "A=1 B=2", "--env-ids", "A-v0"], "--command must name a script NAME.py that exists"),
        (["--command", "python fake.py 'x", "--env-ids", "A-v0"], "must be a command line (No closing quotation)"),
        (["--command", "python fake.py --task A", "--env-ids", "B-v0"], "--command must not have --env-id, --task"),
        (["--command", "python fake.py --env_id A", "--env-ids", "B-v0"], "--command must not have --env-id, --task"),
        (["--command", "python fake.py --seed=3", "--env-ids", "B-v0"], "--command must not have"),
        (["--command", "python fake.py --resume x", "--env-ids", "B-v0"], "--command must not have"),
        (["--command", "python fake.py", "python fake.py --steps 9", "--env-ids", "A-v0"], "must not share"),
        (["--command", "python fake.py", "--env-ids", "A-v0", "a:A-v0"], "must not share"),
        (["--workers", "0"], "--workers, --threads-per-worker must be at least 1"),
        (["--num-seeds", "0"], "--num-seeds must be at least 1, --start-seed at least 0"),
        (["--start-seed", "-1"], "--num-seeds must be at least 1, --start-seed at least 0"),
        (["--threads-per-worker", "0"], "--workers, --threads-per-worker must be at least 1"),
        (["--ray", "auto", "--ray-retries", "-1"], "--gpus-per-job and --ray-retries must be at least 0"),
        (["--gpus-per-job", "0.5"], "--gpus-per-job needs --ray"),
        (["--ray", "auto", "--slurm-template-path", "x"], "--ray and --slurm-template-path must not be given together"),
        (["--command", "python fake.py", "--env-ids", "A-v0", "--only-job", "1"], "--only-job must be from 0 to 0"),
        (
            ["--command", "python fake.py", "--env-ids", "A-v0", "--slurm-template-path", "none.sh"],
            "--slurm-template-path must be a file, got none.sh",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, sentence):
    result = benchmark(*flags)
    assert result.returncode == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == "" and not Path("out").exists()


@pytest.mark.parametrize("python_path, assigned", [("lib:", ""), ("", "PYTHONPATH=lib ")])
def test_what_is_relative_to_the_callers_folder_counts_in_the_jobs(python_path, assigned, tmp_path, monkeypatch):
    """Modules of PYTHONPATH and of the folder itself, files after = and programs on PATH, beside a script elsewhere."""
    for folder in ("lib", "scripts", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lib/in_lib.py").touch()
    (tmp_path / "my_envs.py").touch()
    (tmp_path / "bin/own_python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin/own_python").chmod(0o755)
    (tmp_path / "own.cfg").write_text("7")
    own = "import in_lib, my_envs, os, sys\nprint(open(sys.argv.pop(1)[6:]).read(), os.environ['OWN'])\n"
    (tmp_path / "scripts/script.py").write_text(own + FAKE)
    monkeypatch.setenv("PYTHONPATH", python_path)
    monkeypatch.setenv("PATH", "bin", prepend=os.pathsep)
    command = f"{assigned}OWN='a b' OMP_NUM_THREADS=3 own_python scripts/script.py --own=own.cfg --exp-name fake"
    result = benchmark("--env-ids", "A-v0", "--command", command)
    assert result.returncode == 0, result.stderr
    assert log("A-v0/fake/seed_1").startswith("7 a b\n") and curve("A-v0/fake/seed_1") == fake_curve(1, 3)
    assert job_json("A-v0/fake/seed_1")["command"] == f"{command} --env-id A-v0 --seed 1"
    (config,) = Path("out/A-v0/fake/seed_1").glob("runs/*/config.json")
    assert json.loads(config.read_text())["threads"]["OMP_NUM_THREADS"] == "3"


# Failures


@pytest.mark.parametrize("content", ["", '{"command": "pyth', "null", "{}"])
def test_a_damaged_record_is_named_its_job_resumes_and_the_others_run(content):
    flags = ["--env-ids", "A-v0", "--num-seeds", "3", "--command", "python fake.py"]
    assert benchmark(*flags[:-1], "python fake.py --fail-at 2").returncode == 1
    for checkpoint in Path("out/A-v0/fake/seed_2").glob("runs/*/checkpoint.pt"):
        checkpoint.unlink()
    for seed in (1, 2):
        Path(f"out/A-v0/fake/seed_{seed}/job.json").write_text(content)
    result = benchmark("--dry-run", *flags)
    assert result.returncode == 0 and "1 to run, 2 to resume, 0 to skip" in result.stdout
    assert Path("out/A-v0/fake/seed_1/job.json").read_text() == content
    result = benchmark(*flags)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "resume  A-v0/fake/seed_1  (its job.json is damaged)\n" in result.stdout
    assert "run     A-v0/fake/seed_2  (its job.json is damaged)\n" in result.stdout
    assert "resume  A-v0/fake/seed_3\n" in result.stdout
    assert all(curve(f"A-v0/fake/seed_{seed}") == fake_curve(seed, 3) for seed in (1, 2, 3))
    assert "begins at step 1" in log("A-v0/fake/seed_1") and log("A-v0/fake/seed_2").count("begins at step 0") == 2
    assert len(list(Path("out/A-v0/fake/seed_2").glob("abandoned_*/config.json"))) == 1
    record = job_json("A-v0/fake/seed_1")
    assert record["commit"].startswith("unknown, then ") and record["returncode"] == 0
    assert "3 to skip" in benchmark(*flags).stdout


def test_a_failure_is_reported_and_the_others_run():
    commands = [
        "python fake.py --fail-at 2 --exp-name broken",
        "python fake.py",
        "python fake.py --exp-name no",
    ]
    Path("out/A-v0").mkdir(parents=True)
    Path("out/A-v0/no").touch()  # no folder can be made there
    result = benchmark("--command", *commands, "--env-ids", "A-v0")
    assert result.returncode == 1
    assert "A-v0/fake/seed_1: finished" in result.stdout and curve("A-v0/fake/seed_1") == fake_curve(1, 3)
    report = f"A-v0/broken/seed_1 failed with exit code 3: {os.path.abspath('out')}/A-v0/broken/seed_1/log.txt ends in"
    assert f"{report}\nbegins at step 0\nprogress 2%\nit broke at step 2\n" in result.stderr
    assert "A-v0/no/seed_1 failed with exit code NotADirectoryError" in result.stderr
    assert "Traceback" not in result.stderr
    assert job_json("A-v0/broken/seed_1")["returncode"] == 3

    result = benchmark("--command", commands[0].replace("--fail-at 2 ", ""), "--env-ids", "A-v0")  # now it is mended
    assert result.returncode == 0 and "resume  A-v0/broken/seed_1" in result.stdout
    assert "begins at step 1" in log("A-v0/broken/seed_1") and curve("A-v0/broken/seed_1") == fake_curve(1, 3)


def test_a_run_without_a_checkpoint_begins_anew_and_is_put_aside():
    command = "python fake.py --no-checkpoints"
    assert benchmark("--command", f"{command} --fail-at 2", "--env-ids", "A-v0").returncode == 1
    (dead,) = Path("out/A-v0/fake/seed_1/runs").iterdir()
    result = benchmark("--command", command, "--env-ids", "A-v0")
    assert result.returncode == 0 and "run     A-v0/fake/seed_1" in result.stdout
    assert curve("A-v0/fake/seed_1") == fake_curve(1, 3)  # of the one run in runs/
    assert (dead.parent.parent / f"abandoned_0_{dead.name}" / "config.json").exists()
    assert job_json("A-v0/fake/seed_1")["attempts"] == 1


def test_a_job_that_never_reaches_a_checkpoint_is_given_up():
    flags = ["--env-ids", "A-v0", "--num-seeds", "2", "--command", "python fake.py --no-checkpoints --fail-at 2"]
    for attempts in (1, 2, 3):
        assert benchmark(*flags).returncode == 1 and job_json("A-v0/fake/seed_1")["attempts"] == attempts
    result = benchmark(*flags)
    assert result.returncode == 1 and log("A-v0/fake/seed_1").count("begins at step 0") == 3
    sentence = "none of 3 attempts reached a checkpoint; to try again delete job.json"
    assert result.stderr.count(sentence) == 2 and "Traceback" not in result.stderr
    Path("out/A-v0/fake/seed_1/job.json").unlink()
    assert benchmark(*flags).returncode == 1 and job_json("A-v0/fake/seed_1")["attempts"] == 1


def test_a_finished_job_resumes_when_its_command_has_more_steps():
    command = ["--env-ids", "A-v0", "--command", "python fake.py --steps"]
    for steps, attempts in [(2, 1), (4, 2), (4, 2)]:
        result = benchmark(*command[:-1], f"{command[-1]} {steps}")
        assert result.returncode == 0
        assert curve("A-v0/fake/seed_1") == fake_curve(1, steps)
        assert job_json("A-v0/fake/seed_1")["attempts"] == attempts
    assert "begins at step 2" in log("A-v0/fake/seed_1") and log("A-v0/fake/seed_1").count("begins") == 2

    next(Path("out/A-v0/fake/seed_1/runs").glob("*/checkpoint.pt")).unlink()
    result = benchmark(*command[:-1], f"{command[-1]} 6")
    assert result.returncode == 2 and "has no checkpoint and has finished as" in result.stderr
    assert curve("A-v0/fake/seed_1") == fake_curve(1, 4)


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_takes_the_scripts_along_and_the_same_line_continues(number):
    flags = ["--env-ids", "A-v0", "--num-seeds", "2", "--command", "python fake.py --steps 15 --seconds 0.2"]
    with started(*flags) as process:
        wait_until(lambda: at_step("A-v0/fake/seed_1", 2))
        script = script_process("A-v0/fake/seed_1")
        process.send_signal(number)
        output, _ = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("stopped: the same command continues" in output) == (number == signal.SIGINT)
    wait_until(lambda: not script.is_running() or script.status() == psutil.STATUS_ZOMBIE)
    assert not at_step("A-v0/fake/seed_1", 15)  # it did not go on to its end
    assert "seed_2: run" not in output and not Path("out/A-v0/fake/seed_2/log.txt").exists()

    began = time.time() - 1000  # as if that attempt had begun so long ago
    os.utime("out/A-v0/fake/seed_1/job.json", (began, began))
    result = benchmark(*flags[:-1], "python fake.py --steps 15")
    assert result.returncode == 0 and "1 to run, 1 to resume, 0 to skip" in result.stdout
    for seed in (1, 2):
        assert curve(f"A-v0/fake/seed_{seed}") == fake_curve(seed, 15)
    assert log("A-v0/fake/seed_1").count("begins at step 0") == 1
    record = job_json("A-v0/fake/seed_1")
    assert record["attempts"] == 2 and record["seconds"] > 990  # the ended attempt's too


def test_two_at_once_run_a_job_once():
    flags = ["--env-ids", "A-v0", "--command", "python fake.py --steps 10 --seconds 0.2"]
    with started(*flags) as process:
        wait_until(lambda: at_step("A-v0/fake/seed_1", 1))
        result = benchmark(*flags)  # waits, and finds it finished
        process.communicate()
    assert process.returncode == result.returncode == 0
    assert curve("A-v0/fake/seed_1") == fake_curve(1, 10) and job_json("A-v0/fake/seed_1")["attempts"] == 1


def test_a_killed_training_run_resumes_to_the_same_curve():
    """The real script, whose process is killed without warning."""
    settings = {"total_timesteps": 600, "learning_starts": 200, "eval_frequency": 300, "checkpoint_frequency": 25}
    settings |= {"eval_episodes": 1, "batch_size": 8}
    _, whole = train(Args(env_id="Pendulum-v1", exp_name="whole", **settings))
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    command = f"python {REPOSITORY / 'meow_continuous_action.py'} --exp-name killed {' '.join(flags)}"
    flags = ["--env-ids", "Pendulum-v1", "--command", command]
    with started(*flags) as process:
        checkpoint = "Pendulum-v1/killed/seed_1/runs/*/replay_*_400.pt"  # episodes have 200 steps
        wait_until(lambda: list(Path("out").glob(checkpoint)))
        script_process("Pendulum-v1/killed/seed_1").kill()
        _, errors = process.communicate()
    assert process.returncode == 1 and "Pendulum-v1/killed/seed_1 failed with exit code -9" in errors
    result = benchmark(*flags)
    assert result.returncode == 0 and "resume  Pendulum-v1/killed/seed_1" in result.stdout
    assert curve("Pendulum-v1/killed/seed_1") == table(whole.dir / "evaluations.csv")
    assert [row["step"] for row in table(whole.dir / "evaluations.csv")] == ["0", "300", "600"]


# Clusters


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@contextlib.contextmanager
def ray_node(folder, *flags):
    """A Ray node of one CPU, all of whose processes are gone afterwards."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    command += ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0", *flags]
    # how often the head asks whether a node lives: a test need not wait half a minute for that
    settings = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
    settings |= {"RAY_health_check_initial_delay_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with open(folder / "ray.txt", "a") as output:
        node = psutil.Popen(command, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True)
    try:
        yield node
    finally:
        for process in [node, *node.children(recursive=True)] if node.is_running() else []:
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@needs_ray
def test_jobs_of_a_lost_ray_node_continue_elsewhere():
    address, seeds = f"127.0.0.1:{free_port()}", (1, 2, 3)
    flags = ["--ray", address, "--env-ids", "A-v0", "--num-seeds", "3"]
    flags += ["--command", "python fake.py --steps 30 --seconds 0.3"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray")))  # sockets need a short path
        head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
        stack.enter_context(ray_node(folder, *head))
        wait_until(lambda: "Ray runtime started" in (folder / "ray.txt").read_text())
        worker_node = stack.enter_context(ray_node(folder, f"--address={address}"))
        process = stack.enter_context(started(*flags))
        wait_until(lambda: sum(at_step(f"A-v0/fake/seed_{seed}", 5) for seed in seeds) == 2)  # one on each node
        scripts = {seed: script_process(f"A-v0/fake/seed_{seed}") for seed in seeds}
        scripts = {script: seed for seed, script in scripts.items() if script}
        lost_processes = [worker_node, *worker_node.children(recursive=True)]
        (lost,) = (seed for script, seed in scripts.items() if script in lost_processes)
        for node in lost_processes:
            if node not in scripts:  # a script must not outlive its worker
                node.kill()
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for seed in seeds:
        assert curve(f"A-v0/fake/seed_{seed}") == fake_curve(seed, 30)
        assert job_json(f"A-v0/fake/seed_{seed}")["attempts"] == 1 + (seed == lost)


@needs_ray
def test_stopped_on_ray_the_scripts_end():
    flags = ["--env-ids", "A-v0", "--command", "python fake.py --steps 100 --seconds 0.2"]
    with started("--ray", "local", *flags) as process:
        wait_until(lambda: at_step("A-v0/fake/seed_1", 4))
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    wait_until(lambda: script_process("A-v0/fake/seed_1") is None)
    assert "1 to resume" in benchmark("--dry-run", *flags).stdout


@needs_ray
def test_an_address_without_a_ray_cluster_is_told_at_once():
    flags = ["--command", "python fake.py", "--env-ids", "A-v0"]
    result = benchmark("--ray", f"127.0.0.1:{free_port()}", *flags)
    assert result.returncode == 2 and "--ray must be the address of a running Ray cluster" in result.stderr
    assert "Traceback" not in result.stderr and not Path("out").exists()


SLURM = ["--slurm-template-path", str(REPOSITORY / "benchmark" / "slurm_template.sh"), "--env-ids", "A-v0"]


def test_the_slurm_array_runs_each_job_and_queues_a_stopped_one_again(tmp_path, monkeypatch):
    """The array's script as Slurm would run it: under its variables, told by SIGUSR1 that the time is nearly over."""
    flags = ["--command", "python fake.py --steps 20 --seconds 0.2", "--num-seeds", "3", "--workers", "2"]
    result = benchmark(*SLURM, "--threads-per-worker", "4", "--no-slurm-submit", *flags)
    assert result.returncode == 0, result.stderr
    script = Path("out/slurm.sh")
    settings = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    for setting in ("array=0-2%2", "cpus-per-task=4", f'chdir="{tmp_path}"', "requeue", "signal=B:USR1@60"):
        assert f"#SBATCH --{setting}" in settings
    assert f'#SBATCH --output="{tmp_path}/out/slurm_%a.out"' in settings and "{{" not in script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0

    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > scontrol.txt\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen(["bash", script]) as task:
        wait_until(lambda: at_step("A-v0/fake/seed_2", 4))
        task.send_signal(signal.SIGUSR1)
    assert Path("scontrol.txt").read_text() == "requeue 7_1\n"
    wait_until(lambda: script_process("A-v0/fake/seed_2") is None)
    assert not at_step("A-v0/fake/seed_2", 20)
    Path("scontrol.txt").unlink()
    assert subprocess.run(["bash", script]).returncode == 0 and not Path("scontrol.txt").exists()
    assert curve("A-v0/fake/seed_2") == fake_curve(2, 20)
    assert {path.name for path in Path("out/A-v0/fake").iterdir()} == {"seed_2"}  # each task runs its own job alone


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("sbatch") or slurm("sinfo").returncode != 0, reason="needs a Slurm controller")
def test_a_slurm_array_for_real():
    flags = ["--command", "python fake.py --steps 30 --seconds 0.2", "--num-seeds", "2", "--workers", "2"]
    result = benchmark(*SLURM, *flags)
    assert result.returncode == 0, result.stderr
    array = result.stdout.split("Submitted batch job ")[1].strip()
    try:
        wait_until(lambda: at_step("A-v0/fake/seed_1", 4))
        assert slurm("scancel", "--batch", "--signal=USR1", f"{array}_0").returncode == 0
        wait_until(lambda: slurm("squeue", "-h", "-o", "%K %T %r").stdout == "0 PENDING BeginTime\n")  # task 1 is done
    finally:
        slurm("scancel", array)
    assert curve("A-v0/fake/seed_2") == fake_curve(2, 30)
    result = benchmark("--env-ids", "A-v0", *flags)
    assert result.returncode == 0 and "0 to run, 1 to resume, 1 to skip" in result.stdout
    assert curve("A-v0/fake/seed_1") == fake_curve(1, 30)
