"""Runs that survive: killed anywhere and resumed, a run is bit for bit the one that was never interrupted."""

import contextlib
import itertools
import json
import multiprocessing.forkserver
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import pytest
import torch
from conftest import count, table  # which registers the small environments in the processes of this file too
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import SCRIPT

import meow_continuous_action as meow
import meow_isaacgym

processes = multiprocessing.get_context("forkserver")  # children start without the threads and locks of this process
UPDATE = "meow_continuous_action.update"
NOISE = count("noise", limit=33)


@pytest.fixture(autouse=True, scope="module")
def children_start_with_everything_imported():
    processes.set_forkserver_preload(["test_checkpoints"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()


def flags(env_id="Hopper-v4", **changes):
    """Of a run with two logged losses, whose buffer is smaller than the run, so its ring turns over."""
    settings = {"env_id": env_id, "total_timesteps": 200, "learning_starts": 50, "eval_frequency": 100}
    settings |= {"batch_size": 8, "buffer_size": 120, "eval_episodes": 2, "checkpoint_frequency": 20}
    settings |= changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def content(run_dir, logs=None):
    """All that a run leaves, without the clock: names of files, evaluations, settings, scalars and models."""
    found = {"files": set(), "csv": table(run_dir)}
    for path in run_dir.iterdir():
        if not path.name.startswith(("events", "replay")):
            found["files"].add(path.name)
    for row in found["csv"]:
        del row["seconds"]
    found["args"] = json.loads((run_dir / "config.json").read_text())["args"]
    logs = (logs or EventAccumulator(str(run_dir), size_guidance={"scalars": 0})).Reload()
    for tag in logs.Tags()["scalars"]:
        found[tag] = [(event.step, event.value * (tag != "charts/SPS")) for event in logs.Scalars(tag)]
    for name in ("model.pt", "model_best.pt"):
        policy, about = meow.load_policy(run_dir / name)
        weights = torch.nn.utils.parameters_to_vector(policy.parameters())
        found[name] = about["step"], about["score"], weights.tolist()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name


def live(folder, flags, target, call, limit):
    """A process: in the `call`-th call of target, it is killed or, given a limit, no file can grow beyond it."""
    os.chdir(folder)
    if target is not None:
        owner, _, name = target.rpartition(".")
        owner, calls = pkgutil.resolve_name(owner), itertools.count(1)
        function = getattr(owner, name)

        def sabotaged(*args, **kwargs):
            if next(calls) == call:
                if limit is None:
                    if name == "write_text":
                        function(args[0], args[1][:100])
                    os.kill(os.getpid(), signal.SIGKILL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return function(*args, **kwargs)

        setattr(owner, name, sabotaged)
    sys.argv = ["meow_continuous_action.py", *flags]
    with open("log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        sys.exit(meow.main())


class Lives:
    """The processes that start and resume one run in a folder of its own."""

    def __init__(self, folder, flags):
        self.folder, self.flags = folder, flags
        folder.mkdir(exist_ok=True)

    @property
    def run_dir(self):
        """The run's folder, or None if it has no checkpoint yet."""
        runs = list(self.folder.glob("runs/*/checkpoint.pt"))
        return max(runs, key=os.path.getmtime).parent if runs else None

    def live(self, target=None, call=None, limit=None, seconds=None):
        """Returns the exit code, which is -9 if it is killed, at the latest after so many seconds."""
        time.sleep(1 - time.time() % 1)  # names of logs have the second in them
        flags = [f"--resume=runs/{self.run_dir.name}"] if self.run_dir else self.flags
        child = processes.Process(target=live, args=(self.folder, flags, target, call, limit))
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
        return child.exitcode

    def finish(self):
        assert self.live() == 0
        return content(self.run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never interrupted: its folder and what it leaves."""
    lives = Lives(tmp_path_factory.mktemp("whole"), flags())
    found = lives.finish()
    assert len(found["csv"]) == 3
    assert len(found["losses/qf_loss"]) == 2 and len(found["charts/episodic_return"]) > 5
    return lives.run_dir, found


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of that run."""
    return shutil.copytree(whole[0], tmp_path / "runs" / whole[0].name)


MOMENTS = [  # in which calls of what a run is killed
    ("gymnasium.envs.mujoco.hopper_v4.HopperEnv.step", (40, 80)),
    ("meow_continuous_action.evaluate", (1, 2)),
    ("os.fsync", (1, 2, 3, 4)),
    ("os.replace", (1, 2, 3, 4)),
    ("pathlib.Path.unlink", (1,)),
    ("pathlib.Path.write_text", (1, 2)),
]


@pytest.mark.parametrize("target, calls", MOMENTS)
def test_21_kills_inside_a_step_an_update_an_evaluation_and_every_write_change_nothing(target, calls, tmp_path, whole):
    lives = Lives(tmp_path, flags())
    assert lives.live(UPDATE, 25) == -signal.SIGKILL  # the others resume
    for call in calls:
        assert lives.live(target, call) == -signal.SIGKILL
        meow.load_policy(lives.run_dir)  # can be loaded at every moment
    assert_same(lives.finish(), whole[1])


def test_kills_at_random_moments_change_nothing(tmp_path, whole):
    lives, moments, kills = Lives(tmp_path, flags()), random.Random(1), 0
    while kills < 8 and lives.live(seconds=moments.uniform(0.5, 4)) != 0:
        kills += 1
    assert kills > 0
    assert_same(lives.finish(), whole[1])


@pytest.mark.parametrize("env_id, steps, kills", [("Pendulum-v1", 450, (200, 150)), (NOISE, 200, (60, 40))])
def test_other_environments_resume_bit_for_bit_and_an_open_tensorboard_sees_no_point_twice(
    env_id, steps, kills, tmp_path
):
    given = flags(env_id, total_timesteps=steps)  # two episodes of Pendulum and a part of one
    expected = Lives(tmp_path / "whole", given).finish()
    lives = Lives(tmp_path / "cut", given)
    assert lives.live(UPDATE, kills[0]) == -signal.SIGKILL
    logs = EventAccumulator(str(lives.run_dir), size_guidance={"scalars": 0}).Reload()
    assert lives.live(UPDATE, kills[1]) == -signal.SIGKILL
    logs.Reload()
    assert_same(lives.finish(), expected)
    assert_same(content(lives.run_dir, logs), expected)


@pytest.mark.parametrize("limit, steps", [(7, [7, 28, 49]), (None, [40])])
def test_a_checkpoint_is_at_the_end_of_an_episode_or_after_ten_times_the_interval(limit, steps, script):
    """Of Count, whose transitions tell the step of the episode: no pair crosses the seam of a resumed run."""
    interval = 20 if limit else 4
    result = script(*flags(count(limit=limit), total_timesteps=60, eval_max_steps=20, checkpoint_frequency=interval))
    assert result.returncode == 0
    assert ("--resume begins a new episode, not bit for bit" in result.stdout) == (limit is None)
    (run_dir,) = Path("runs").iterdir()
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert [*state["replay"][1:], state["step"]] == steps  # each wrote the rows since the one before
    _, run = meow.train(meow.stored_args(meow.Args(resume=str(run_dir))))
    obs, next_obs = run.rb.rows[:60, :2], run.rb.rows[:60, 2:4]
    assert torch.equal(next_obs, obs + torch.tensor([1, 0]))
    assert obs[:, 0].tolist() == [t % (limit or 40) for t in range(60)]


def test_a_checkpoint_writes_only_the_new_rows_and_deletes_those_that_no_one_needs(ended):
    state = torch.load(ended / "checkpoint.pt", weights_only=True)
    starts, added = state["replay"], state["added"]
    assert {path.name for path in ended.glob("replay_*")} == {f"replay_{start}.pt" for start in starts}
    assert len(starts) > 2 and starts[1] > added - 120 >= starts[0] > 0
    for start, stop in itertools.pairwise([*starts, added]):
        path = ended / f"replay_{start}.pt"
        assert len(torch.load(path)) == stop - start and path.stat().st_size < 27 * 4 * (stop - start) + 3000


def assert_refused_untouched(script, run_dir, *flags, words=()):
    """Exit code 2, one sentence, and every file as it was."""
    before = {path: path.read_bytes() for path in run_dir.rglob("*")}
    result = script(*flags)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr
    assert {path: path.read_bytes() for path in run_dir.rglob("*")} == before
    assert len(list(run_dir.parent.iterdir())) == 1


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def spoil(path, how):
    raw = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "changed":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif how == "runs code":
        content = torch.load(path, weights_only=True)
        torch.save(content | {"bomb": Bomb()} if isinstance(content, dict) else [content, Bomb()], path)
    elif how == "foreign":
        torch.save({"hello": torch.zeros(3)}, path)
    elif how == "of another task":
        torch.save(torch.zeros(len(torch.load(path)), 9), path)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["missing", "truncated", "changed", "runs code", "foreign", "of another task"])
@pytest.mark.parametrize("name", ["checkpoint.pt", "replay", "model.pt"])
def test_spoilt_files_are_refused_in_one_sentence(name, how, ended, script):
    path = sorted(ended.glob(f"{name}*"))[-1]
    spoil(path, how if name == "replay" else how.replace("of another task", "foreign"))
    flag = "--evaluate" if name == "model.pt" else "--resume"
    assert_refused_untouched(script, ended, flag, ended, words=[flag, path.name])
    assert not Path("exploded").exists()


def test_a_folder_of_the_other_script_is_refused_in_one_sentence(script):
    from test_isaacgym import copying

    _, run = meow_isaacgym.train(copying())
    for flag in ("--resume", "--evaluate"):
        assert_refused_untouched(script, run.dir, flag, run.dir, words=[flag, run.dir, "meow_isaacgym.py wrote it"])


def test_what_would_make_one_curve_of_two_runs_is_refused(ended, script, monkeypatch):
    changed = "--seed=2 --env-id=Ant-v4 --alpha=0.5 --buffer-size=300 --eval-frequency=30 --gamma=0.9 --batch-size=9 "
    changed += "--num-shifts=1 --exp-name=x --learning-starts=61 --no-eval-deterministic"
    for flag in changed.split():
        name = flag.replace("--no-", "--").partition("=")[0]
        assert_refused_untouched(script, ended, "--resume", ended, flag, words=[name, "must stay"])
    monkeypatch.setattr(mujoco, "__version__", "3.5.0")
    result = script("--resume", ended, "--total-timesteps", 210)
    assert result.returncode == 0 and "not bit for bit as before: versions were" in result.stdout
    assert "mujoco 3.5.0 is not 3.4.0" in result.stdout


def test_more_steps_lead_to_the_run_that_had_them_from_the_start(script, whole):
    script(*flags(total_timesteps=100))
    (run_dir,) = Path("runs").iterdir()
    more = "--total-timesteps", 200, "--torch-threads", 1, "--no-cuda-graph", "--no-compile"
    for given in (more, ()):  # the second time the last part is played again
        result = script("--resume", run_dir, *given)
        assert result.returncode == 0, result.stderr
        args = {**whole[1]["args"], "compile": False, "cuda_graph": False}
        assert_same(content(run_dir), {**whole[1], "args": args})


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_stands(tmp_path, whole):
    lives = Lives(tmp_path, flags())
    for limit in (100_000, 1_000_000):  # bytes that a file can have: the first stops models too
        assert lives.live("os.fsync", 7, limit) == 1
        text = (tmp_path / "log").read_text()
        assert "Traceback" not in text
        assert f"python meow_continuous_action.py --resume runs/{lives.run_dir.name}" in text
    assert_same(lives.finish(), whole[1])


def test_ctrl_c_prints_the_line_that_resumes_and_a_run_belongs_to_one_process(script, tmp_path, monkeypatch):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    command = [sys.executable, str(SCRIPT), *flags(total_timesteps=19_000)]
    child = subprocess.Popen(command, cwd=tmp_path, **pipes)
    while not list(tmp_path.glob("runs/*/checkpoint.pt")):
        assert child.poll() is None
        time.sleep(0.01)
    (run_dir,) = tmp_path.glob("runs/*")
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("the live run's record at W&B was opened"))
    result = script("--resume", run_dir, "--track")
    assert result.returncode == 2 and str(run_dir) in result.stderr and "Traceback" not in result.stderr
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err
    assert out.strip().endswith(f"continue with: python {SCRIPT} --resume runs/{run_dir.name}")


def test_two_runs_of_one_second_share_no_folder(script, monkeypatch):
    moments = itertools.count(1000, 1e-6)
    monkeypatch.setattr(meow.time, "time", lambda: next(moments))
    codes = [script(*flags("Counting-v0", total_timesteps=80)).returncode for _ in range(2)]
    assert codes.count(0) == len(list(Path("runs").iterdir())) and codes in ([0, 2], [0, 0])


def test_best_and_last_model_play_as_they_were_evaluated(script, monkeypatch):
    assert script(*flags(total_timesteps=400, learning_starts=30, eval_frequency=80)).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    rows = {int(row["step"]): row for row in table(run_dir)}
    best = max(rows, key=lambda step: float(rows[step]["mean"]))
    assert best != 400  # else nothing is told apart
    for path, step in [(run_dir / "model_best.pt", best), (run_dir, 400)]:
        result = script("--evaluate", path, "--eval-episodes", 3)
        assert result.returncode == 0, result.stderr
        assert f"Hopper-v4 after {step} steps" in result.stdout and "'mujoco': '3.4.0'" in result.stdout
        first, second = (float(rows[step][f"return_{i}"]) for i in range(2))
        assert f"episode 0: {first:.1f}\nepisode 1: {second:.1f}\nepisode 2:" in result.stdout
        assert "3 deterministic episodes of Hopper-v4" in result.stdout
    sampled = script("--evaluate", run_dir, "--no-eval-deterministic").stdout
    assert "2 stochastic episodes of Hopper-v4" in sampled and f"episode 0: {first:.1f}" not in sampled
    for others in (["--alpha", 0.1], ["--resume", run_dir]):
        assert script("--evaluate", run_dir, *others).returncode == 2
    assert len(list(Path("runs").iterdir())) == 1


def test_a_moved_run_films_when_it_is_resumed_and_when_it_plays(script):
    assert script(*flags("Pendulum-v1", total_timesteps=250)).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    moved = shutil.move(run_dir, "moved")
    resumed = script("--resume", moved, "--total-timesteps", 500, "--capture-video")
    played = script("--evaluate", moved, "--eval-episodes", 1, "--capture-video")
    assert resumed.returncode == played.returncode == 0, resumed.stderr + played.stderr
    assert len({path.parent for path in Path("videos").rglob("*.mp4") if path.stat().st_size > 1000}) == 2
