"""Runs the benchmark: every command on every environment and seed, some at a time. The same line again continues.

    python benchmark/tools/run.py --env-ids Hopper-v4 Ant-v4 --num-seeds 5 --workers 2 \
        --command "python meow_continuous_action.py --exp-name meow" \
        "python benchmark/baselines/sb3.py --algo sac --exp-name sac"
    ... --ray auto                                            # on the Ray cluster of this machine
    ... --slurm-template-path benchmark/slurm_template.sh     # as a Slurm job array

A job, one command on one environment with one seed, works in OUTPUT/ENV/EXP_NAME/seed_N, which gets

    log.txt     all that it printed, in all attempts
    job.json    command, commit, hardware, when and for how long it ran, its exit code
    runs/NAME   what the training script writes

What has finished is skipped; what has a checkpoint resumes from it (`--resume`), whatever ended it: Ctrl-C, a crash, a
lost node; what has none begins anew, but no fourth time. The scripts end with this process, however that ends (on
Linux). Ray and Slurm need a file system that all their machines share at the same path.
"""

import argparse
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

import tyro
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
SET_FOR_EACH_JOB = ("--env-id", "--task", "--seed", "--resume", "--evaluate")
# What counts for a damaged job.json: its job has not finished, so a checkpoint resumes and nothing is taken for done.
DAMAGED = {"command": "unknown", "commit": "unknown", "started": "unknown"}
DAMAGED |= {"attempts": 0, "seconds": 0.0, "returncode": 1}
MAX_STARTS = 3  # attempts of a command none of which leaves a checkpoint: one more would hardly do better


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Raised before any work; exit code 2."""


@dataclass
class Args:
    command: tuple[str, ...] = ()  # command lines of training scripts, each in quotes
    env_ids: tuple[str, ...] = ()  # environments to run every command on
    env_flag: str = "env-id"  # the scripts' flag for the environment (parallel ones: task)
    num_seeds: int = 1  # seeds of every command and environment (the paper: 5)
    start_seed: int = 1  # the first seed
    workers: int = 1  # jobs at a time, here or as a Slurm array (Ray runs as many as it has CPUs and GPUs for)
    threads_per_worker: int = 1  # CPU threads per job: 1 is fastest; more need --torch-threads in the command too
    output: str = "runs/benchmark"  # folder of the jobs' folders
    dry_run: bool = False  # print the jobs and their commands, run nothing
    ray: str | None = None  # run the jobs on the Ray cluster at this address, such as auto or HOST:6379
    gpus_per_job: float = 0.0  # with --ray: 0.25 lets four jobs share a GPU
    ray_retries: int = 3  # with --ray: how often a job continues elsewhere after its machine or worker was lost
    slurm_template_path: str | None = None  # make OUTPUT/slurm.sh, a job array, from this template and submit it
    slurm_submit: bool = True  # submit it, or only write it
    only_job: int | None = None  # run the job of this number alone, as the tasks of the Slurm array do


@dataclass(frozen=True)
class Job:
    name: str  # ENV/EXP_NAME/seed_N, ENV without its "module:"
    folder: Path  # where it works
    tokens: tuple[str, ...]  # the command line, files with their whole path
    command: str  # the same as one would type it in the repository: what job.json records
    variables: dict  # of its environment, those that the command begins with and PYTHONPATH
    threads: int
    commit: str

    def record(self):
        """What job.json says, {} if there is none."""
        path = self.folder / "job.json"
        if not path.exists():
            return {}
        try:
            record = json.loads(path.read_text())
            return {name: record[name] for name in DAMAGED}
        except (OSError, ValueError, TypeError, KeyError):
            return DAMAGED

    def write_record(self, record):
        """Writes job.json, whole or as it was."""
        (self.folder / "job.json.tmp").write_text(json.dumps(record, indent=2) + "\n")
        os.replace(self.folder / "job.json.tmp", self.folder / "job.json")

    def next_step(self):
        """What is to be done: ("skip" | "resume" | "run", the folder of the run to resume or None).

        Raises UsageError for a job that has finished as another command and cannot resume.
        """
        record = self.record()
        finished = record.get("returncode") == 0
        if finished and record["command"] == self.command:
            return "skip", None
        resumable = sorted(path.parent for path in self.folder.glob("runs/*/checkpoint.pt"))
        if finished and not resumable:
            other = f"has no checkpoint and has finished as `{record['command']}`"
            raise UsageError(f"--command: {self.folder} {other}, so `{self.command}` needs another --exp-name")
        return ("resume", resumable[-1]) if resumable else ("run", None)  # names of runs end in the time they began


def make_jobs(args):
    """The jobs, commands x environments x seeds, in an order that depends on `args` alone. Raises UsageError."""
    for allowed, rule in [
        (args.num_seeds >= 1 and args.start_seed >= 0, "--num-seeds must be at least 1, --start-seed at least 0"),
        (args.workers >= 1 and args.threads_per_worker >= 1, "--workers, --threads-per-worker must be at least 1"),
        (args.gpus_per_job >= 0 and args.ray_retries >= 0, "--gpus-per-job and --ray-retries must be at least 0"),
        (args.ray or not args.gpus_per_job, "--gpus-per-job needs --ray (Slurm: write it into the template)"),
        (None in (args.ray, args.slurm_template_path), "--ray and --slurm-template-path must not be given together"),
        (args.command and args.env_ids, '--command must be command lines, such as "python x.py", with --env-ids'),
    ]:
        if not allowed:
            raise UsageError(rule)
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    jobs = {}
    for line in args.command:
        try:
            tokens = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--command must be a command line ({error}), got: {line}") from error
        variables = {}
        while tokens and re.match(r"\w+=", tokens[0]):
            name, value = tokens.pop(0).split("=", 1)
            variables[name] = value
        script = next((token for token in tokens if token.endswith(".py") and os.path.isfile(token)), None)
        if script is None:
            raise UsageError(f"--command must name a script NAME.py that exists here, got: {line}")
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("--exp-name", *SET_FOR_EACH_JOB):  # in both spellings that tyro takes
            parser.add_argument(name, "--" + name[2:].replace("-", "_"), nargs="?", const="")
        flags = vars(parser.parse_known_args(tokens)[0])
        exp_name = flags.pop("exp_name") or Path(script).stem
        if any(value is not None for value in flags.values()):
            raise UsageError(f"--command must not have {', '.join(SET_FOR_EACH_JOB)}: jobs get their own, got: {line}")
        files, typed = {}, {}
        for token in tokens:
            value = token.partition("=")[2] or token  # --flag=FILE
            if os.path.isfile(value):
                path, flag = Path(os.path.abspath(value)), token.removesuffix(value)
                files[token] = f"{flag}{path}"
                typed[token] = f"{flag}{path.relative_to(REPOSITORY)}" if REPOSITORY in path.parents else token
        if tokens[0] != "python":  # that of this process
            program = shutil.which(files.get(tokens[0], tokens[0]))
            if program is None:
                raise UsageError(f"--command must begin with a program that can be run here, got: {line}")
            files[tokens[0]] = os.path.abspath(program)
        typed_variables = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
        # a job works in another folder, where relative paths and modules of this folder would not be found
        python_path = variables.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep)
        variables["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, [*python_path, ""]))
        for env_id in args.env_ids:
            for seed in range(args.start_seed, args.start_seed + args.num_seeds):
                name = f"{env_id.rpartition(':')[2]}/{exp_name}/seed_{seed}"
                if name in jobs:
                    raise UsageError(f"--command: two jobs must not share {name}: give each its own --exp-name")
                added = f"--{args.env_flag}", env_id, "--seed", str(seed)
                command = typed_variables + shlex.join([*(typed.get(token, token) for token in tokens), *added])
                whole = (*(files.get(token, token) for token in tokens), *added)
                folder, threads = Path(args.output, name).absolute(), args.threads_per_worker
                jobs[name] = Job(name, folder, whole, command, variables, threads, commit or "unknown")
    if args.only_job is not None and not 0 <= args.only_job < len(jobs):
        raise UsageError(f"--only-job must be from 0 to {len(jobs) - 1}, got {args.only_job}")
    return list(jobs.values()) if args.only_job is None else [list(jobs.values())[args.only_job]]


def utc():
    """The time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def hardware():
    """CPU, cores and GPUs of this machine."""
    cpuinfo, gpus = Path("/proc/cpuinfo"), []
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return {"cpu": cpu, "cores": os.cpu_count(), "gpus": gpus}


def say(text):
    """Prints a line, in one piece where other threads print too."""
    print(f"{text}\n", end="", flush=True)


def die_with_parent():
    """In a child before its exec: Linux sends it SIGTERM when the thread that started it ends, in whatever way."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # of linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def run_job(job):
    """Runs a job from where it stands to its end, here or on a Ray worker. Returns its exit code and its seconds."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / "lock"):  # figures share runs: another launcher may be at it
        (step, run_dir), before = job.next_step(), job.record()
        if step == "skip":  # it has just finished it
            return 0, before["seconds"]
        if step == "run":
            starts = before["attempts"] if before.get("command") == job.command else 0
            if starts >= MAX_STARTS:
                raise RuntimeError(f"none of {starts} attempts reached a checkpoint; to try again delete job.json")
            before = {"attempts": starts}
            for run in job.folder.glob("runs/*"):  # it has no checkpoint; nobody must take it for this job's run
                run.rename(job.folder / f"abandoned_{starts}_{run.name}")
        log = job.folder / "log.txt"
        seconds = before.get("seconds", 0.0)
        if step == "resume" and before and before["returncode"] is None:  # a kill: count up to the last sign of life
            seconds += max(0.0, log.stat().st_mtime - (job.folder / "job.json").stat().st_mtime)
        commits = before.get("commit", job.commit)
        record = {"command": job.command, "hardware": hardware(), "attempts": before.get("attempts", 0) + 1}
        record["commit"] = commits if commits.endswith(job.commit) else f"{commits}, then {job.commit}"
        record |= {"started": before.get("started", utc()), "ended": None, "seconds": seconds, "returncode": None}
        log.touch()
        job.write_record(record)
        flags = [] if run_dir is None else ["--resume", os.path.relpath(run_dir, job.folder)]
        say(" ".join([f"{job.name}: {step}", *flags[1:]]))
        program = sys.executable if job.tokens[0] == "python" else job.tokens[0]
        threads = {f"{library}_NUM_THREADS": str(job.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        settings = {"cwd": job.folder, "env": os.environ | threads | job.variables, "preexec_fn": die_with_parent}
        settings |= {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        start = time.time()
        with open(log, "a") as stdout:
            code = subprocess.run([program, *job.tokens[1:], *flags], stdout=stdout, **settings).returncode
        record |= {"ended": utc(), "seconds": round(seconds + time.time() - start, 1), "returncode": code}
        job.write_record(record)
        return code, record["seconds"]


def log_tail(job, lines=15):
    """The last lines of a job's log; of what a progress bar wrote over each other, the last."""
    path = job.folder / "log.txt"
    text = path.read_bytes()[-100_000:].decode(errors="replace") if path.exists() else ""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def connect_ray(args):
    """Connects to the Ray cluster. Returns job -> Future of run_job's result there. Raises UsageError."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # sends nothing anywhere; shows every line
    try:
        import ray

        host, _, port = args.ray.rpartition(":")
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # ray.init would try for many minutes
        ray.init(address=args.ray)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray must be the address of a running Ray cluster, got {args.ray}: {error}") from error
    options = {"num_cpus": args.threads_per_worker, "num_gpus": args.gpus_per_job, "max_retries": args.ray_retries}
    remote = ray.remote(**options)(run_job)
    return lambda job: remote.remote(job).future()


def run_all(jobs, submit):
    """Runs jobs to their ends, whatever happens to single ones. Returns the exit code.

    submit: job -> Future of run_job's result.
    """
    futures, failures = {submit(job): job for job in jobs}, []
    for done, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        try:
            code, seconds = future.result()
        except Exception as error:  # no room for its log, no such program, a worker lost too often
            code, seconds = f"{type(error).__name__}: {error}", 0
        if code != 0:
            failures.append((job, code))
        say(f"{job.name}: {'finished' if code == 0 else 'FAILED'} after {seconds:,.0f} s ({done} of {len(jobs)})")
    for job, code in failures:
        report = f"\n{job.name} failed with exit code {code}: {job.folder}/log.txt ends in"
        print(report, log_tail(job), sep="\n", file=sys.stderr)
    return 1 if failures else 0


def write_slurm_array(args, num_jobs):
    """Writes OUTPUT/slurm.sh, a job array whose tasks run this very command line with --only-job. Returns its path."""
    text = Path(args.slurm_template_path).read_text()
    path = Path(args.output, "slurm.sh").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, os.path.abspath(__file__), *sys.argv[1:]])
    values = {"array": f"0-{num_jobs - 1}%{args.workers}", "threads": args.threads_per_worker, "cwd": os.getcwd()}
    for name, value in {**values, "output": path.parent, "command": command}.items():
        text = text.replace("{{" + name + "}}", str(value))
    path.write_text(text)
    return path


def main():
    """The command line. Returns the exit code: 0, 1 if a job failed, 2 for bad input."""
    args = tyro.cli(Args)
    as_array = args.slurm_template_path is not None and args.only_job is None
    try:
        jobs = make_jobs(args)
        steps = [job.next_step()[0] for job in jobs]
        if as_array and not os.path.isfile(args.slurm_template_path):
            raise UsageError(f"--slurm-template-path must be a file, got {args.slurm_template_path}")
        if as_array and args.slurm_submit and not args.dry_run and not shutil.which("sbatch"):
            raise UsageError("--slurm-template-path needs sbatch here; --no-slurm-submit only writes the script")
        for job, step in zip(jobs, steps, strict=True):
            damaged = "  (its job.json is damaged)" if job.record() is DAMAGED else ""
            print(f"{step:<6}  {job.name}{damaged}" + (f"  {job.command}" if args.dry_run else ""))
        counts = [f"{steps.count(step)} to {step}" for step in ("run", "resume", "skip")]
        say(f"{len(jobs)} jobs in {args.output}: {', '.join(counts)}")
        if args.dry_run:
            return 0
        if as_array:
            path = write_slurm_array(args, len(jobs))
            say(f"the job array is in {path}")
            return subprocess.run(["sbatch", str(path)]).returncode if args.slurm_submit else 0
        jobs = [job for job, step in zip(jobs, steps, strict=True) if step != "skip"]
        if args.ray is not None and jobs:
            return run_all(jobs, connect_ray(args))
        pool = ThreadPoolExecutor(args.workers)
        return run_all(jobs, lambda job: pool.submit(run_job, job))
    except (UsageError, OSError) as error:  # OSError: --output cannot be written
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped: the same command continues")
        os._exit(130)  # without waiting for the jobs, which end with this process


if __name__ == "__main__":
    sys.exit(main())
