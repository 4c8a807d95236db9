"""Runs the benchmark: every command on every environment and seed. The same line again continues.

    python benchmark/tools/run.py --env-ids Hopper-v4 Ant-v4 --num-seeds 5 --workers 2 \
        --command "python meow_continuous_action.py --exp-name meow" \
        "python benchmark/baselines/sb3.py --algo sac --exp-name sac"
    ... --ray auto                                            # on the Ray cluster of this machine
    ... --slurm-template-path benchmark/slurm_template.sh     # as a Slurm job array

A job, one command on one environment with one seed, works in OUTPUT/ENV/EXP_NAME/seed_N, which gets

    log.txt     all that it printed, in all attempts
    job.json    command, commit, hardware, when and for how long it ran, its exit code
    runs/NAME   what the training script writes

What has finished is skipped. What has a checkpoint resumes from it (`--resume`), whatever ended it.
What has none begins anew, but no fourth time. The scripts end with this process, however that ends
(on Linux). Ray and Slurm need a file system that all their machines share at the same path.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
SET_FOR_EACH_JOB = ("--env-id", "--task", "--seed", "--resume", "--evaluate")
MAX_STARTS = 3  # attempts of a command none of which leaves a checkpoint: one more would hardly help


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Exit code 2."""


@dataclass
class Args:
    command: tuple[str, ...] = ()  # command lines of training scripts, each in quotes
    env_ids: tuple[str, ...] = ()  # environments to run every command on
    env_flag: str = "env-id"  # the scripts' flag for the environment (parallel ones: task)
    num_seeds: int = 1  # seeds of every command and environment (the paper: 5)
    start_seed: int = 1  # the first seed
    workers: int = 1  # jobs at a time, here or as a Slurm array (Ray decides for itself)
    threads_per_worker: int = 1  # CPU threads per job: more need --torch-threads in the command too
    output: str = "runs/benchmark"  # folder of the jobs' folders
    exit_seconds: float = 600.0  # a script that has printed "finished: ..." is ended after that time
    dry_run: bool = False  # print the jobs and their commands, run nothing
    ray: str | None = None  # run the jobs on the Ray cluster at this address: auto or HOST:6379
    gpus_per_job: float = 0.0  # with --ray: 0.25 lets four jobs share a GPU
    slurm_template_path: str | None = None  # make OUTPUT/slurm.sh, a job array, and submit it
    only_job: int | None = None  # run the job of this number alone, as the tasks of the array do


@dataclass(frozen=True)
class Job:
    name: str  # ENV/EXP_NAME/seed_N, ENV without its "module:"
    folder: Path  # where it works
    command: str  # the command line as typed, with the flags of this job
    tokens: tuple[str, ...]  # the same, files with their whole path
    variables: dict  # of its environment, besides those of this process
    commit: str
    exit_seconds: float


def make_jobs(args):
    """The jobs, commands x environments x seeds, in an order that depends on `args` alone."""
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    # a job works in another folder, where relative paths of this one would not be found
    places = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), "."]
    variables = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, places))}
    for library in ("OMP", "MKL", "OPENBLAS"):
        variables[f"{library}_NUM_THREADS"] = str(args.threads_per_worker)
    jobs = {}
    for line in args.command:
        exp_name, typed, tokens = parse_command(line)
        for env_id in args.env_ids:
            for seed in range(args.start_seed, args.start_seed + args.num_seeds):
                name = f"{env_id.rpartition(':')[2]}/{exp_name}/seed_{seed}"
                if name in jobs:
                    raise UsageError(f"--command: two jobs must not share {name}: give each its own --exp-name")
                added = [f"--{args.env_flag}", env_id, "--seed", str(seed)]
                folder, command = Path(args.output, name).absolute(), shlex.join([*typed, *added])
                settings = variables, commit or "unknown", args.exit_seconds
                jobs[name] = Job(name, folder, command, (*tokens, *added), *settings)
    if args.only_job is None:
        return list(jobs.values())
    if not 0 <= args.only_job < len(jobs):
        raise UsageError(f"--only-job must be from 0 to {len(jobs) - 1}, got {args.only_job}")
    return [list(jobs.values())[args.only_job]]


def check_args(args):
    """Raises UsageError for settings that break a rule."""
    if not args.command or not args.env_ids:
        raise UsageError('--command must be command lines, such as "python x.py", with --env-ids')
    for name in ("num_seeds", "workers", "threads_per_worker", "exit_seconds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    if args.gpus_per_job and args.ray is None:
        raise UsageError("--gpus-per-job needs --ray (Slurm: write it into the template)")
    if None not in (args.ray, args.slurm_template_path):
        raise UsageError("--ray and --slurm-template-path must not be given together")


def parse_command(line):
    """--exp-name of a command line, its tokens, and these with whole paths. Raises UsageError."""
    try:
        typed = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"--command must be a command line ({error}), got: {line}") from error
    tokens, script = list(typed), None
    for i, token in enumerate(typed):
        if token.partition("=")[0].replace("_", "-") in SET_FOR_EACH_JOB:
            raise UsageError(f"--command must not have {token}: jobs get their own, got: {line}")
        if os.path.isfile(token):
            tokens[i] = os.path.abspath(token)
            if token.endswith(".py"):
                script = script or token
    if script is None:
        raise UsageError(f"--command must name a script NAME.py that exists here, got: {line}")
    if tokens[0] != "python" and not shutil.which(tokens[0]):
        raise UsageError(f"--command must begin with a program that can be run here, got: {line}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--exp-name", "--exp_name", default=Path(script).stem)
    return parser.parse_known_args(typed)[0].exp_name, typed, tokens


def hardware():
    """CPU, cores and GPUs of this machine."""
    cpu, gpus = "unknown", []
    if os.path.exists("/proc/cpuinfo"):
        cpu = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + "model name: unknown")[0]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return {"cpu": cpu, "cores": os.cpu_count(), "gpus": gpus}


def utc():
    """The time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def say(text):
    """Prints a line, in one piece where other threads print too."""
    print(f"{text}\n", end="", flush=True)


def read_record(job):
    """What job.json says; {} if there is none or a damaged one, so that nothing is taken for done."""
    try:
        return dict(json.loads((job.folder / "job.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_record(job, record):
    """Writes job.json, whole or as it was."""
    path = job.folder / "job.json"
    path.with_suffix(".tmp").write_text(json.dumps(record, indent=2) + "\n")
    os.replace(path.with_suffix(".tmp"), path)


def next_step(job):
    """What is to be done: "skip", "resume" or "run", and the folder of the run to resume or None.
    Raises UsageError for a job that has finished as another command and cannot resume."""
    record = read_record(job)
    finished = record.get("returncode") == 0
    if finished and record.get("command") == job.command:
        return "skip", None
    checkpoints = sorted(job.folder.glob("runs/*/checkpoint.pt"))
    if checkpoints:
        return "resume", checkpoints[-1].parent  # names of runs end in the time they began
    if finished:
        other = f"has no checkpoint and has finished as `{record.get('command')}`"
        raise UsageError(f"--command: {job.folder} {other}, so `{job.command}` needs another --exp-name")
    return "run", None


def run_job(job):
    """Runs a job from where it stands to its end, here or on a Ray worker.
    Returns its exit code and its seconds in all attempts."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / "lock"):  # figures share runs: another launcher may be at it
        step, run_dir = next_step(job)
        before = read_record(job)
        if step == "run":
            before = begin_anew(job, before)
        log, seconds = job.folder / "log.txt", before.get("seconds", 0.0)
        if step == "skip":  # the other launcher has just finished it
            return 0, seconds
        if "ended" in before and before["ended"] is None:  # a kill: count up to the last sign of life
            seconds += max(0.0, log.stat().st_mtime - (job.folder / "job.json").stat().st_mtime)
        log.touch()
        commit = before.get("commit", job.commit if step == "run" else "unknown")
        if not commit.endswith(job.commit):
            commit += f", then {job.commit}"
        record = {"command": job.command, "commit": commit, "hardware": hardware()}
        record |= {"attempts": before.get("attempts", 0) + 1, "started": before.get("started", utc())}
        record |= {"ended": None, "seconds": seconds, "returncode": None}
        write_record(job, record)
        start = time.time()
        record["returncode"] = run_script(job, log, run_dir)
        record |= {"ended": utc(), "seconds": round(seconds + time.time() - start, 1)}
        write_record(job, record)
        return record["returncode"], record["seconds"]


def begin_anew(job, before):
    """Renames runs that left no checkpoint: nobody must take them for this job's run.
    Returns what the next record begins with. Raises RuntimeError after MAX_STARTS attempts."""
    starts = before.get("attempts", 0) if before.get("command") == job.command else 0
    if starts >= MAX_STARTS:
        raise RuntimeError(f"none of {starts} attempts reached a checkpoint; to try again delete job.json")
    for run in job.folder.glob("runs/*"):
        run.rename(job.folder / f"abandoned_{starts}_{run.name}")
    return {"attempts": starts}


def run_script(job, log, run_dir):
    """Runs a job's script, whose output is added to the log. Returns its exit code.
    An environment may leave a thread running, for which Python waits at its exit: a script that has
    said it is finished, and nothing more for --exit-seconds, is killed, and its run counts."""
    command = list(job.tokens)
    if command[0] == "python":
        command[0] = sys.executable
    if run_dir is not None:
        command += ["--resume", os.path.relpath(run_dir, job.folder)]
    say(f"{job.name}: run" if run_dir is None else f"{job.name}: resume {command[-1]}")
    settings = {"cwd": job.folder, "env": os.environ | job.variables, "preexec_fn": die_with_parent}
    begins, size = log.stat().st_size, None
    with open(log, "a") as output:
        settings |= {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, **settings)
    while True:
        try:
            return child.wait(timeout=job.exit_seconds)
        except subprocess.TimeoutExpired:
            before, size = size, log.stat().st_size
            if size == before and b"\nfinished: " in log.read_bytes()[begins:]:
                break
    say(f"{job.name}: it has finished but does not exit, so it is killed")
    script = psutil.Process(child.pid)
    for process in [*script.children(recursive=True), script]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()
    return 0


def die_with_parent():
    """In a child before its exec: Linux sends it SIGTERM when the thread that started it ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # of linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def run_all(jobs, submit):
    """Runs jobs to their ends, whatever happens to single ones. Returns the exit code.
    submit: job -> Future of run_job's result."""
    futures, failures = {submit(job): job for job in jobs}, []
    for done, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        try:
            code, seconds = future.result()
        except Exception as error:  # no room for its log, a worker lost too often
            code, seconds = f"{type(error).__name__}: {error}", 0
        if code != 0:
            failures.append((job, code))
        say(f"{job.name}: {'FAILED' if code else 'finished'} after {seconds:,.0f} s ({done} of {len(jobs)})")
    for job, code in failures:
        log = job.folder / "log.txt"
        print(f"\n{job.name} failed with exit code {code}: {log} ends in\n{tail(log)}", file=sys.stderr)
    return 1 if failures else 0


def tail(log):
    """The last lines of a log; of what a progress bar wrote over each other, the last."""
    text = log.read_bytes()[-100_000:].decode(errors="replace") if log.exists() else ""
    text = re.sub(r".*\r", "", text)
    return "\n".join(text.strip().split("\n")[-15:])


def connect_ray(args):
    """Connects to the Ray cluster. Returns job -> Future of run_job's result there."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # sends nothing; shows every line
    try:
        import ray

        host, _, port = args.ray.rpartition(":")
        if port.isdigit():  # ray.init would try for many minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=args.ray)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray must be the address of a running Ray cluster, got {args.ray}: {error}") from error
    options = {"num_cpus": args.threads_per_worker, "num_gpus": args.gpus_per_job}
    remote = ray.remote(max_retries=3, **options)(run_job)  # after a lost machine it continues elsewhere
    return lambda job: remote.remote(job).future()


def submit_array(args, num_jobs):
    """Submits OUTPUT/slurm.sh, an array whose tasks run this command line with --only-job."""
    path, text = Path(args.output, "slurm.sh").absolute(), Path(args.slurm_template_path).read_text()
    values = {"array": f"0-{num_jobs - 1}%{args.workers}", "threads": args.threads_per_worker}
    values |= {"cwd": os.getcwd(), "output": path.parent}
    values["command"] = shlex.join([sys.executable, os.path.abspath(__file__), *sys.argv[1:]])
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", str(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    say(f"the job array is in {path}")
    return subprocess.run(["sbatch", str(path)]).returncode


def main():
    """The command line. Returns the exit code: 0, 1 if a job failed, 2 for bad input."""
    args = tyro.cli(Args)
    try:
        check_args(args)
        jobs = make_jobs(args)
        steps = [next_step(job)[0] for job in jobs]
        for job, step in zip(jobs, steps, strict=True):
            print(f"{step:<6}  {job.name}" + (f"  {job.command}" if args.dry_run else ""))
        counts = [f"{steps.count(step)} to {step}" for step in ("run", "resume", "skip")]
        say(f"{len(jobs)} jobs in {args.output}: {', '.join(counts)}")
        jobs_left = [job for job, step in zip(jobs, steps, strict=True) if step != "skip"]
        if args.dry_run or not jobs_left:
            return 0
        if args.slurm_template_path is not None and args.only_job is None:
            return submit_array(args, len(jobs))
        if args.ray is not None:
            return run_all(jobs_left, connect_ray(args))
        pool = ThreadPoolExecutor(args.workers)
        return run_all(jobs_left, lambda job: pool.submit(run_job, job))
    except (UsageError, OSError) as error:  # OSError: no sbatch, no template, no room for it
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped: the same command continues")
        os._exit(130)  # without waiting for the jobs, which end with this process


if __name__ == "__main__":
    sys.exit(main())
