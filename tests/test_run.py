"""benchmark/tools/run.py runs the whole grid, and the same line continues it whatever ended it."""

import contextlib
import csv
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARK = [sys.executable, str(REPOSITORY / "benchmark" / "tools" / "run.py"), "--output", "out"]
FAKES = ["--env-ids", "A-v0", "--command"]
JOB = "A-v0/fake/seed_1"

# A training script with the contract of ours: a curve that depends on the seed alone, checkpoint, --resume, a lock.
# The state of its random stream is in the checkpoint, nowhere else.
FAKE = """
import argparse, json, os, random, subprocess, sys, threading, time
from filelock import FileLock
from pathlib import Path

parser = argparse.ArgumentParser()
for name, default in {"exp-name": "fake", "seed": 1, "steps": 3, "fail-at": 0, "seconds": 0.0}.items():
    parser.add_argument(f"--{name}", default=default, type=type(default))
parser.add_argument("--env-id", "--task")
parser.add_argument("--no-checkpoints", action="store_true")
parser.add_argument("--hang", action="store_true")
parser.add_argument("--resume")
args = parser.parse_args()

run_dir = Path(args.resume or f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{int(1e3 * time.time())}")
run_dir.mkdir(parents=True, exist_ok=True)
lock = FileLock(run_dir / "lock")
lock.acquire(timeout=0)
rng, rows = random.Random(args.seed), ["step,seconds,mean"]
if args.resume:
    version, stream, gauss, rows = json.loads((run_dir / "checkpoint.pt").read_text())
    rng.setstate((version, tuple(stream), gauss))
(run_dir / "config.json").write_text(json.dumps({"python": sys.executable, **os.environ}))
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
print("finished:", run_dir, flush=True)
if args.hang:
    subprocess.Popen(["sleep", "1000"])
    threading.Thread(target=time.sleep, args=(1000,)).start()
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder


def benchmark(*flags, code=0):
    result = subprocess.run([*BENCHMARK, *flags], capture_output=True, text=True, timeout=300)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    return result


@contextlib.contextmanager
def started(*flags):
    """A benchmark that runs meanwhile, in a session of its own as in a terminal; it is gone afterwards."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*BENCHMARK, *flags], stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition):
    end = time.time() + 120
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.02)


def job_json(job=JOB):
    return json.loads(Path("out", job, "job.json").read_text())


def log(job=JOB):
    return Path("out", job, "log.txt").read_text()


def at_step(step, job=JOB):
    """Whether the one run in a job's folder has a checkpoint of that step or a later one."""
    return any(len(json.loads(path.read_text())[3]) > step for path in Path("out", job).glob("runs/*/checkpoint.pt"))


def curve(job=JOB):
    """The (step, mean) of the one run in a job's folder."""
    (path,) = Path("out", job).glob("runs/*/evaluations.csv")
    with open(path) as file:
        return [(int(row["step"]), float(row["mean"])) for row in csv.DictReader(file)]


def fake_curve(seed, steps):
    """The curve of a fake run that nothing interrupts."""
    rng = random.Random(seed)
    return [(step, rng.random()) for step in range(1, steps + 1)]


def is_at_work(job=JOB):
    """Whether a process works in a job's folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == os.path.abspath(f"out/{job}"):
                return True
    return False


# The grid


def test_every_command_runs_on_every_environment_and_seed():
    flags = ["--env-ids", "A-v0", "module:B-v0", "--num-seeds", "2", "--start-seed", "4", "--workers", "3"]
    flags += ["--threads-per-worker", "2", "--command", "python fake.py", "python fake.py --exp-name other --steps 5"]
    result = benchmark(*flags)
    jobs = [f"{env}/{name}/seed_{seed}" for name in ("fake", "other") for env in ("A-v0", "B-v0") for seed in (4, 5)]
    assert {str(path.parent) for path in Path("out").glob("*/*/*/job.json")} == {f"out/{job}" for job in jobs}
    assert result.stdout.startswith("".join(f"run     {job}\n" for job in jobs) + "8 jobs in out: 8 to run, 0 to")
    for job in jobs:
        assert result.stdout.count(f"{job}: run\n") == 1 and result.stdout.count(f"{job}: finished after") == 1
        assert curve(job) == fake_curve(seed=int(job[-1]), steps=3 if "fake" in job else 5)
    assert "(8 of 8)" in result.stdout
    (config,) = Path("out/B-v0/other/seed_5").glob("runs/module:B-v0__other__5__*/config.json")
    config = json.loads(config.read_text())
    threads = [config[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL", "OPENBLAS")]
    assert config["python"] == sys.executable and threads == ["2", "2", "2"]
    record = job_json("B-v0/other/seed_5")
    assert record["command"] == "python fake.py --exp-name other --steps 5 --env-id module:B-v0 --seed 5"
    assert (record["returncode"], record["attempts"]) == (0, 1)
    assert set(record["hardware"]) == {"cpu", "cores", "gpus"} and socket.gethostname() not in str(record["hardware"])
    assert record["started"] <= record["ended"] and record["seconds"] > 0 and record["commit"]

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert "8 jobs in out: 0 to run, 0 to resume, 8 to skip" in benchmark(*flags).stdout
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}


def test_a_dry_run_prints_commands_also_of_parallel_scripts():
    command = "python fake.py  --exp_name='a b' "
    result = benchmark("--dry-run", "--env-flag", "task", "--env-ids", "Ant", "--command", command)
    assert "run     Ant/a b/seed_1  python fake.py '--exp_name=a b' --task Ant --seed 1\n" in result.stdout
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--env-ids", "A-v0"], "--command must be command lines"),
        (["--command", "python fake.py"], "with --env-ids"),
        ([*FAKES, "python none.py"], "--command must name a script NAME.py that exists"),
        ([*FAKES, "A=1 python fake.py"], "--command must begin with a program"),
        ([*FAKES, "python fake.py 'x"], "must be a command line (No closing quotation)"),
        ([*FAKES, "python fake.py --env_id A"], "--command must not have --env_id"),
        ([*FAKES, "python fake.py --seed=3"], "--command must not have --seed"),
        ([*FAKES, "python fake.py", "python fake.py --steps 9"], "must not share A-v0/fake/seed_1"),
        (["--command", "python fake.py", "--env-ids", "A-v0", "a:A-v0"], "must not share A-v0/fake/seed_1"),
        ([*FAKES, "python fake.py", "--workers", "0"], "--workers must be at least 1"),
        ([*FAKES, "python fake.py", "--gpus-per-job", "0.5"], "--gpus-per-job needs --ray"),
        ([*FAKES, "python fake.py", "--ray", "auto", "--slurm-template-path", "x"], "must not be given together"),
        ([*FAKES, "python fake.py", "--ray", "127.0.0.1:1"], "--ray must be the address of a running Ray cluster"),
        ([*FAKES, "python fake.py", "--only-job", "1"], "--only-job must be from 0 to 0"),
        ([*FAKES, "python fake.py", "--slurm-template-path", "none.sh"], "'none.sh'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, sentence):
    result = benchmark(*flags, code=2)
    assert sentence in result.stderr and result.stderr.count("\n") == 1 and not Path("out").exists()


def test_what_is_relative_to_the_callers_folder_counts_in_the_jobs(tmp_path, monkeypatch):
    """Modules of PYTHONPATH and of the folder itself, files and a script in another folder, behind a program."""
    for name in ("lib/in_lib.py", "my_envs.py", "own.cfg", "scripts/script.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("7")
    own = "import in_lib, my_envs, os, sys\nprint(open(sys.argv.pop(1)).read(), os.environ['OWN'])\n"
    (tmp_path / "scripts/script.py").write_text(own + FAKE)
    monkeypatch.setenv("PYTHONPATH", "lib")
    command = f"env 'OWN=a b' {sys.executable} scripts/script.py own.cfg --exp-name fake"
    benchmark(*FAKES, command)
    assert log().startswith("7 a b\n") and curve() == fake_curve(1, 3)
    assert job_json()["command"] == f"{command} --env-id A-v0 --seed 1"


# Failures


def test_a_damaged_record_stops_nothing_and_its_job_resumes():
    flags = ["--num-seeds", "6", *FAKES, "python fake.py"]
    benchmark(*flags[:-1], "python fake.py --fail-at 2", code=1)
    next(Path("out/A-v0/fake/seed_5").glob("runs/*/checkpoint.pt")).unlink()
    for seed, content in enumerate(["", '{"command": "pyth', "null", "{}", '{"returncode": 0'], start=1):
        Path(f"out/A-v0/fake/seed_{seed}/job.json").write_text(content)
    assert "1 to run, 5 to resume, 0 to skip" in benchmark(*flags).stdout
    for seed in range(1, 7):
        job = f"A-v0/fake/seed_{seed}"
        assert curve(job) == fake_curve(seed, 3) and log(job).count("begins at step 1") == (seed != 5)
        assert job_json(job)["commit"].startswith("unknown, then ") == (seed < 5)
    assert len(list(Path("out/A-v0/fake/seed_5").glob("abandoned_*/config.json"))) == 1
    assert "6 to skip" in benchmark(*flags).stdout


def test_a_failure_is_reported_and_the_others_run():
    commands = ["python fake.py --fail-at 2 --exp-name broken", "python fake.py", "python fake.py --exp-name no"]
    Path("out/A-v0").mkdir(parents=True)
    Path("out/A-v0/no").touch()  # no folder can be made there
    result = benchmark(*FAKES, *commands, code=1)
    assert "A-v0/fake/seed_1: finished" in result.stdout and curve() == fake_curve(1, 3)
    report = f"A-v0/broken/seed_1 failed with exit code 3: {os.path.abspath('out')}/A-v0/broken/seed_1/log.txt ends in"
    assert f"{report}\nbegins at step 0\nprogress 2%\nit broke at step 2\n" in result.stderr
    assert "A-v0/no/seed_1 failed with exit code NotADirectoryError" in result.stderr
    assert job_json("A-v0/broken/seed_1")["returncode"] == 3


def test_runs_without_a_checkpoint_are_put_aside_and_given_up():
    flags = ["--num-seeds", "2", *FAKES, "python fake.py --no-checkpoints --fail-at 2"]
    for attempts in (1, 2, 3):
        benchmark(*flags, code=1)
        assert job_json()["attempts"] == attempts
    result = benchmark(*flags, code=1)
    assert result.stderr.count("none of 3 attempts reached a checkpoint; to try again delete job.json") == 2
    assert log().count("begins at step 0") == 3
    Path("out", JOB, "job.json").unlink()
    benchmark(*flags, code=1)
    assert job_json()["attempts"] == 1

    result = benchmark(*FAKES, "python fake.py --no-checkpoints")  # another command begins to count anew
    assert "run     A-v0/fake/seed_1" in result.stdout and job_json()["attempts"] == 1
    assert curve() == fake_curve(1, 3)  # of the one run in runs/
    assert len(list(Path("out", JOB).glob("abandoned_*/config.json"))) == 4
    result = benchmark(*FAKES, "python fake.py --no-checkpoints --steps 6", code=2)
    assert "has no checkpoint and has finished as" in result.stderr and curve() == fake_curve(1, 3)


def test_a_script_that_has_finished_but_does_not_exit_is_killed_and_counts():
    flags = ["--exit-seconds", "1", *FAKES]
    result = benchmark(*flags, "python fake.py --steps 2 --hang")
    assert f"{JOB}: it has finished but does not exit, so it is killed" in result.stdout
    assert curve() == fake_curve(1, 2) and job_json()["returncode"] == 0
    assert not is_at_work()
    # one that is silent for as long is not, even if its log has that line of an earlier attempt
    result = benchmark(*flags, "python fake.py --steps 3 --seconds 3")
    assert "killed" not in result.stdout and curve() == fake_curve(1, 3)


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_takes_the_scripts_along_and_the_same_line_continues(number):
    flags = ["--num-seeds", "2", *FAKES, "python fake.py --steps 15 --seconds 0.2"]
    with started(*flags) as process:
        wait_until(lambda: at_step(2))
        process.send_signal(number)
        output, _ = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("stopped: the same command continues" in output) == (number == signal.SIGINT)
    wait_until(lambda: not is_at_work())
    assert not at_step(15)  # it did not go on to its end
    assert "seed_2: run" not in output and not Path("out/A-v0/fake/seed_2/log.txt").exists()

    began = time.time() - 1000  # as if that attempt had begun so long ago
    os.utime(f"out/{JOB}/job.json", (began, began))
    result = benchmark(*flags[:-1], "python fake.py --steps 15")
    assert "1 to run, 1 to resume, 0 to skip" in result.stdout and log().count("begins at step 0") == 1
    assert curve() == fake_curve(1, 15) and curve("A-v0/fake/seed_2") == fake_curve(2, 15)
    assert job_json()["attempts"] == 2 and job_json()["seconds"] > 990  # the ended attempt's too


def test_two_at_once_run_a_job_once():
    flags = [*FAKES, "python fake.py --steps 10 --seconds 0.2"]
    with started(*flags) as process:
        wait_until(lambda: at_step(1))
        benchmark(*flags)  # waits, and finds it finished
        process.communicate()
    assert process.returncode == 0 and job_json()["attempts"] == 1 and curve() == fake_curve(1, 10)


def test_the_real_script_keeps_to_the_contract_and_resumes_when_its_command_has_more_steps():
    """That it resumes exactly is for test_checkpoints.py."""
    script = f"python {REPOSITORY / 'meow_continuous_action.py'} --exp-name real --learning-starts 199 --batch-size 8"
    script += " --eval-frequency 200 --eval-episodes 1 --checkpoint-frequency 200 --total-timesteps"
    for steps, step, attempts in [(200, "run", 1), (400, "resume", 2), (400, "skip", 2)]:
        result = benchmark("--env-ids", "Pendulum-v1", "--command", f"{script} {steps}")
        assert f"1 to {step}" in result.stdout and job_json("Pendulum-v1/real/seed_1")["attempts"] == attempts
    assert "\nfinished: runs/" in log("Pendulum-v1/real/seed_1")
    assert [step for step, _ in curve("Pendulum-v1/real/seed_1")] == [0, 200, 400]


# Clusters


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@needs_ray
def test_jobs_of_a_lost_ray_node_continue_elsewhere():
    from ray.cluster_utils import Cluster

    # how often the head asks whether a node lives: a test need not wait half a minute for that
    config = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 0}
    head = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False, "_system_config": config}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
        flags = ["--num-seeds", "3", *FAKES, "python fake.py --steps 30 --seconds 0.3"]
        jobs = [f"A-v0/fake/seed_{seed}" for seed in (1, 2, 3)]
        with started("--ray", cluster.address, *flags) as process:
            wait_until(lambda: sum(at_step(5, job) for job in jobs) == 2)  # one on each node
            cluster.remove_node(node, allow_graceful=False)
            _, errors = process.communicate(timeout=120)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, errors
    assert sorted(job_json(job)["attempts"] for job in jobs) == [1, 1, 2]
    assert [curve(job) for job in jobs] == [fake_curve(seed, 30) for seed in (1, 2, 3)]


@needs_ray
def test_stopped_on_ray_the_scripts_end():
    flags = [*FAKES, "python fake.py --steps 100 --seconds 0.2"]
    with started("--ray", "local", *flags) as process:
        wait_until(lambda: at_step(4))
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    wait_until(lambda: not is_at_work())
    assert "1 to resume" in benchmark("--dry-run", *flags).stdout


def test_the_slurm_array_runs_each_job_and_queues_a_stopped_one_again(tmp_path, monkeypatch):
    """The array's script as Slurm would run it: under its variables, told by SIGUSR1 that the time is nearly over."""
    for program in ("sbatch", "scontrol"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "$@" > {program}.txt\n')
        (tmp_path / program).chmod(0o755)
    flags = ["--slurm-template-path", str(REPOSITORY / "benchmark/slurm_template.sh"), "--threads-per-worker", "4"]
    flags += ["--num-seeds", "3", "--workers", "2", *FAKES, "python fake.py --steps 20 --seconds 0.2"]
    assert "sbatch" in benchmark(*flags, code=2).stderr
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script = Path("out/slurm.sh")
    benchmark(*flags)
    assert Path("sbatch.txt").read_text() == f"{script.absolute()}\n"
    assert "{{" not in script.read_text()
    for setting in ("array=0-2%2", "cpus-per-task=4", f'chdir="{tmp_path}"', f'output="{tmp_path}/out/slurm_%a.out"'):
        assert f"#SBATCH --{setting}\n" in script.read_text()

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    with subprocess.Popen(["bash", script]) as task:
        wait_until(lambda: at_step(4, "A-v0/fake/seed_2"))
        task.send_signal(signal.SIGUSR1)
    assert Path("scontrol.txt").read_text() == "requeue 7_1\n"
    wait_until(lambda: not is_at_work("A-v0/fake/seed_2"))
    assert not at_step(20, "A-v0/fake/seed_2")
    Path("scontrol.txt").unlink()
    assert subprocess.run(["bash", script]).returncode == 0 and not Path("scontrol.txt").exists()
    assert curve("A-v0/fake/seed_2") == fake_curve(2, 20)
    assert {path.name for path in Path("out/A-v0/fake").iterdir()} == {"seed_2"}  # each task runs its own job alone
