"""Runs the benchmark: every command for every environment and seed, some at a time. The same line again goes on.

    python benchmark/run.py --env-ids Hopper-v4 Ant-v4 --num-seeds 5 --workers 2 \
        --command "python meow_continuous_action.py --exp-name meow"
    python benchmark/run.py --num-seeds 2 --workers 2 --output runs/benchmark/quick \
        --command "python meow_continuous_action.py --env-id Hopper-v4 --exp-name meow --alpha 0.25" \
        "python benchmark/baselines.py --algo sac --env-id Hopper-v4 --exp-name sac"
    ... --ray auto                                            # on the Ray cluster of this machine
    ... --slurm-template-path benchmark/slurm_template.sh     # as a Slurm job array

A job, one command for one environment and seed, works in OUTPUT/ENV/EXP_NAME/seed_N, which gets

    log.txt     all that it printed, in all attempts
    job.json    command, commit, hardware, versions, when and for how long it ran, its exit code
    runs/NAME   what the training script writes

What has finished is skipped; what has a checkpoint goes on from it (`--resume`), whatever ended it: Ctrl-C, a crash, a
node that is gone. Ray and Slurm need a file system that all their machines share at the same path.
"""

import ctypes
import fcntl
import functools
import json
import os
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

REPOSITORY = Path(__file__).resolve().parent.parent


class UsageError(ValueError):
    """Bad input: one sentence naming the flag and what is allowed. Raised before any work; exit code 2."""


@dataclass
class Args:
    command: tuple[str, ...] = ()
    """command lines of training scripts, each in quotes; --env-id (of --env-ids) and --seed are added to them"""
    env_ids: tuple[str, ...] = ()
    """environments to run every command on (none: the commands name theirs with --env-id or --task)"""
    num_seeds: int = 1
    """seeds of every command and environment (the paper: 5)"""
    start_seed: int = 1
    """the first seed"""
    workers: int = 1
    """jobs that run at a time, here or as a Slurm array (Ray runs as many as it has CPUs and GPUs for)"""
    threads_per_worker: int = 1
    """CPU threads of a job: 1 is fastest for our scripts; more need --torch-threads in the command too"""
    output: str = "runs/benchmark"
    """folder of the jobs' folders"""
    dry_run: bool = False
    """print the jobs and their commands, run nothing"""

    # Ray
    ray: str | None = None
    """run the jobs on the Ray cluster at this address, such as auto or HOST:6379"""
    gpus_per_job: float = 0.0
    """with --ray: GPUs of a job; 0.25 lets four jobs share one"""
    ray_retries: int = 3
    """with --ray: how often a job goes on elsewhere after its machine or worker was lost"""

    # Slurm
    slurm_template_path: str | None = None
    """write a job array from this template, such as benchmark/slurm_template.sh, to OUTPUT/slurm.sh and submit it"""
    slurm_submit: bool = True
    """submit the job array with sbatch (or only write its script)"""
    only_job: int | None = None
    """run the job of this number alone, as the tasks of the Slurm array do"""


@dataclass(frozen=True)
class Job:
    """One run of one training script."""

    env: str  # without its "module:"
    exp_name: str
    seed: int
    tokens: tuple[str, ...]  # the command line, files with their whole path
    command: str  # the same as one would type it in the repository: what job.json records
    folder: str  # the job's current directory
    threads: int
    commit: str

    @property
    def name(self):
        return f"{self.env}/{self.exp_name}/seed_{self.seed}"


def flag(tokens, name):
    """The value of a flag on a command line in any spelling tyro takes (--env-id X, --env_id=X), or None."""
    found = None
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        spelling, equals, value = token.partition("=")
        if spelling.replace("_", "-") == name:
            found = value if equals else following
    return found


def git_commit():
    """The repository's commit, with a note if files differ from it."""
    if not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    status = [*git, "status", "--porcelain", "--untracked-files=no"]
    changes = subprocess.run(status, capture_output=True, text=True).stdout
    return (commit or "unknown") + (" with uncommitted changes" if changes else "")


def make_jobs(args):
    """The jobs, commands x environments x seeds, in an order that depends on `args` alone. Raises UsageError."""
    for name, low in [("num_seeds", 1), ("start_seed", 0), ("workers", 1), ("threads_per_worker", 1)]:
        if getattr(args, name) < low:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    if args.gpus_per_job < 0 or args.ray_retries < 0:
        raise UsageError("--gpus-per-job and --ray-retries must be at least 0")
    if args.gpus_per_job and args.ray is None:
        raise UsageError("--gpus-per-job is allowed with --ray only (Slurm: write it into the template)")
    if args.ray is not None and args.slurm_template_path is not None:
        raise UsageError("--ray and --slurm-template-path must not be given together")
    if not args.command:
        raise UsageError('--command must be one or more command lines, such as "python meow_continuous_action.py"')
    jobs, commit = {}, git_commit()
    for line in args.command:
        try:
            tokens = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--command must be a command line ({error}), got: {line}") from error
        scripts = [token for token in tokens if token.endswith(".py")]
        if not scripts or not os.path.isfile(scripts[0]):
            raise UsageError(f"--command must name a script NAME.py that exists here, got: {line}")
        for name in ("--seed", "--resume", "--evaluate"):
            if flag(tokens, name) is not None:
                raise UsageError(f"--command must not have {name}, which is set for each job, got: {line}")
        own_env = flag(tokens, "--env-id") or flag(tokens, "--task")
        if (own_env is None) == (not args.env_ids):
            raise UsageError(f"--env-ids or the command (--env-id, --task) must name the environment, not both: {line}")
        exp_name = flag(tokens, "--exp-name") or Path(scripts[0]).stem
        files = {token: Path(os.path.abspath(token)) for token in tokens if os.path.isfile(token)}
        typed = {token: path.relative_to(REPOSITORY) for token, path in files.items() if REPOSITORY in path.parents}
        for env_id in args.env_ids or [own_env]:
            for seed in range(args.start_seed, args.start_seed + args.num_seeds):
                env = env_id.rpartition(":")[2]
                folder = os.path.abspath(os.path.join(args.output, env, exp_name, f"seed_{seed}"))
                if folder in jobs:
                    raise UsageError(f"--command: two jobs must not share {folder}: give each its own --exp-name")
                added = [*(["--env-id", env_id] if args.env_ids else []), "--seed", str(seed)]
                command = shlex.join([str(typed.get(token, token)) for token in tokens] + added)
                absolute = (*(str(files.get(token, token)) for token in tokens), *added)
                threads = args.threads_per_worker
                jobs[folder] = Job(env, exp_name, seed, absolute, command, folder, threads, commit)
    if args.only_job is not None and not 0 <= args.only_job < len(jobs):
        raise UsageError(f"--only-job must be from 0 to {len(jobs) - 1}, got {args.only_job}")
    return list(jobs.values()) if args.only_job is None else [list(jobs.values())[args.only_job]]


def read_record(job):
    """The content of job.json, {} if there is none."""
    path = Path(job.folder, "job.json")
    return json.loads(path.read_text()) if path.exists() else {}


def write_record(job, record):
    """Writes job.json, whole or as it was."""
    path = Path(job.folder, "job.json")
    Path(f"{path}.tmp").write_text(json.dumps(record, indent=2) + "\n")
    os.replace(f"{path}.tmp", path)


def utc(seconds):
    """A time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def next_step(job):
    """What is to be done for a job: ("skip" | "resume" | "run", the folder of the run to go on with or None).

    Raises UsageError for a run that has finished as another command and cannot go on.
    """
    record, runs = read_record(job), Path(job.folder, "runs")
    finished = record.get("returncode") == 0
    if finished and record["command"] == job.command:
        return "skip", None
    resumable = sorted(path.parent.parent for path in runs.glob("*/checkpoints/step_*.pt"))
    if finished and not resumable:
        raise UsageError(
            f"--command: {job.folder} has no checkpoint and has finished as `{record['command']}`, "
            f"so `{job.command}` must have another --exp-name or --output"
        )
    return ("resume", resumable[-1]) if resumable else ("run", None)  # the names of runs end in the time they began


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
    """Prints a line, of one piece where other threads print too."""
    print(f"{text}\n", end="", flush=True)


def lock_folder(lock, signals):
    """Waits until no other process holds the lock file, and takes it. Returns at once when there is a signal."""
    said = False
    while not signals:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                say(f"waiting for the process that holds {lock.name}")
            said = True
            time.sleep(0.2)
        except OSError as error:
            return say(f"{lock.name} cannot be locked ({error}): let nothing else run this job")


def die_with_parent(libc, parent):
    """In a child before its exec: Linux will send it SIGTERM when the thread that started it ends, in whatever way."""
    pr_set_pdeathsig = 1  # of linux/prctl.h
    libc.prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os._exit(128 + signal.SIGTERM)


def run_script(job, flags, signals, lock):
    """Runs a job's script with further flags to its end and passes `signals` on to it. Returns its exit code.

    The script inherits the lock file, so that the lock is its own too.
    """
    program = sys.executable if job.tokens[0] == "python" else job.tokens[0]
    threads = {f"{library}_NUM_THREADS": str(job.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    settings = {"cwd": job.folder, "env": os.environ | threads, "stdin": subprocess.DEVNULL}
    settings |= {"start_new_session": True, "pass_fds": [lock.fileno()]}  # a Ctrl-C must not reach it twice
    if sys.platform == "linux":
        settings["preexec_fn"] = functools.partial(die_with_parent, ctypes.CDLL(None), os.getpid())
    with open(Path(job.folder, "log.txt"), "a") as log:
        child = subprocess.Popen([program, *job.tokens[1:], *flags], stdout=log, stderr=subprocess.STDOUT, **settings)
        sent = 0
        while child.poll() is None:
            for number in signals[sent:]:
                child.send_signal(number)
                sent += 1
            time.sleep(0.1)
    return child.returncode


def run_job(job, signals):
    """Runs a job from where it stands to its end, here or on a Ray worker. Returns its record, the content of job.json.

    signals: a list; a number appended to it while the job runs is sent to the script as a signal. Returns None for a
    job that had not begun before.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        lock_folder(lock, signals)  # a script that outlived its worker may be writing its checkpoint
        if signals:
            return None
        (step, run_dir), before = next_step(job), read_record(job)
        if step == "skip":  # another process has just finished it
            return before
        if step == "run":
            before = {}
            for run in folder.glob("runs/*"):  # it has no checkpoint; nobody must take it for this job's run
                run.rename(folder / f"abandoned_{run.name}")
        seconds = before.get("seconds", 0.0)
        if before and before["returncode"] is None:  # who kept the time was killed: count up to the last sign of life
            seconds += max(0.0, (folder / "log.txt").stat().st_mtime - (folder / "job.json").stat().st_mtime)
        commits, start = before.get("commit", job.commit), time.time()
        record = {"env": job.env, "exp_name": job.exp_name, "seed": job.seed, "command": job.command}
        record["commit"] = commits if commits.endswith(job.commit) else f"{commits}, then {job.commit}"
        record |= {"hardware": hardware(), "versions": None, "started": before.get("started", utc(start))}
        record |= {"ended": None, "seconds": seconds, "attempts": before.get("attempts", 0) + 1, "returncode": None}
        (folder / "log.txt").touch()
        write_record(job, record)
        flags = ["--resume", os.path.relpath(run_dir, folder)] if step == "resume" else []
        say(" ".join([f"{job.name}: {step}", *flags[1:]]))
        record["returncode"] = run_script(job, flags, signals, lock)
        for config in sorted(folder.glob("runs/*/config.json")):
            record["versions"] = json.loads(config.read_text()).get("versions")
        record |= {"ended": utc(time.time()), "seconds": round(seconds + time.time() - start, 1)}
        write_record(job, record)
        return record


def log_tail(job, lines=15):
    """The last lines of a job's log; of what a progress bar wrote over each other, the last."""
    path = Path(job.folder, "log.txt")
    text = path.read_bytes()[-100_000:].decode(errors="replace") if path.exists() else ""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def connect_ray(args):
    """Connects to the Ray cluster. Returns `submit` and `cancel` of run_all. Raises UsageError."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # sends nothing anywhere; shows every line
    try:
        import ray

        host, _, port = args.ray.rpartition(":")
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # ray.init would try for many minutes
        ray.init(address=args.ray)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray must be the address of a running Ray cluster, got {args.ray}: {error}") from error

    def run_on_worker(job):
        signals = []
        signal.signal(signal.SIGINT, lambda *_: signals.append(signal.SIGTERM))  # it is how ray.cancel reaches a task
        return run_job(job, signals)

    options = {"num_cpus": args.threads_per_worker, "num_gpus": args.gpus_per_job, "max_retries": args.ray_retries}
    remote, tasks = ray.remote(**options)(run_on_worker), []

    def submit(job):
        tasks.append(remote.remote(job))
        return tasks[-1].future()

    return submit, lambda: [ray.cancel(task) for task in tasks]


def run_all(jobs, submit, cancel, signals):
    """Runs jobs to their ends, whatever happens to single ones. Returns the exit code.

    submit: job -> Future of its record; cancel: called, with a signal's number appended to `signals`, at each Ctrl-C or
    SIGTERM.
    """

    def stop(number, frame):
        signals.append(number)
        os.write(2, b"\nstopping: the jobs write a checkpoint first (once more: at once, without)\n")
        cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    stopped = (None, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # None: not begun
    futures, failures, unfinished = {submit(job): job for job in jobs}, [], 0
    for done, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        try:
            record = future.result() or {"returncode": None}
        except Exception as error:  # no room for its log, no such program, a worker lost too often, cancelled by Ray
            record = {"returncode": None if signals else f"{type(error).__name__}: {error}"}
        code, seconds = record["returncode"], record.get("seconds", 0)
        if signals and code in stopped:
            unfinished += 1
            continue
        if code != 0:
            failures.append((job, code))
        how = "FAILED" if code != 0 else "finished"
        say(f"{job.name}: {how} after {seconds:,.0f} s ({done} of {len(jobs)})")
    for job, code in failures:
        print(f"\n{job.name} failed with exit code {code}: {job.folder}/log.txt ends in", file=sys.stderr)
        print(log_tail(job), file=sys.stderr)
    if unfinished:
        print(f"stopped with {unfinished} jobs unfinished; the same command goes on with them", file=sys.stderr)
        return 128 + signals[0]
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
    """The command line. Returns the exit code: 0, 1 if a job failed, 2 for bad input, 128 + signal if stopped."""
    args = tyro.cli(Args)
    as_array = args.slurm_template_path is not None and args.only_job is None
    try:
        jobs = make_jobs(args)
        steps = [next_step(job) for job in jobs]
        if as_array and not os.path.isfile(args.slurm_template_path):
            raise UsageError(f"--slurm-template-path must be a file, got {args.slurm_template_path}")
        if as_array and args.slurm_submit and not args.dry_run and not shutil.which("sbatch"):
            raise UsageError("--slurm-template-path needs sbatch here; --no-slurm-submit only writes the script")
        for job, (step, _) in zip(jobs, steps, strict=True):
            print(f"{step:<6}  {job.name}" + (f"  {job.command}" if args.dry_run else ""))
        counts = [f"{sum(step == what for step, _ in steps)} to {what}" for what in ("run", "resume", "skip")]
        print(f"{len(jobs)} jobs in {args.output}: {', '.join(counts)}", flush=True)
        if args.dry_run:
            return 0
        if as_array:
            path = write_slurm_array(args, len(jobs))
            print(f"the job array is in {path}", flush=True)
            return subprocess.run(["sbatch", str(path)]).returncode if args.slurm_submit else 0
        jobs, signals = [job for job, (step, _) in zip(jobs, steps, strict=True) if step != "skip"], []
        if not jobs:
            return 0
        if args.ray is not None:
            return run_all(jobs, *connect_ray(args), signals)
        with ThreadPoolExecutor(args.workers) as pool:
            return run_all(jobs, lambda job: pool.submit(run_job, job, signals), lambda: None, signals)
    except (UsageError, OSError) as error:  # OSError: --output cannot be written
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
