"""Runs that survive: killed anywhere and resumed, a run is bit for bit the one that was never interrupted."""

import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import pickle
import pkgutil
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from conftest import count  # which registers the small environments in the processes of this file too
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import SCRIPT

import meow_continuous_action as meow

processes = multiprocessing.get_context("forkserver")  # children start without the threads and locks of this process
processes.set_forkserver_preload(["meow_continuous_action"])


def flags(env_id="Hopper-v4", **changes):
    """The buffer is smaller than the run, so its ring turns over; a scalar is logged at a checkpoint's step, 100."""
    settings = {"env_id": env_id, "total_timesteps": 240, "learning_starts": 60, "eval_frequency": 80}
    settings |= {"batch_size": 8, "buffer_size": 150, "eval_episodes": 2, "checkpoint_frequency": 20} | changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


class NoiseEnv(gym.Env):
    """Draws from numpy's global stream, as no environment should."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,))
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.random.standard_normal(2).astype(np.float32), {}

    def step(self, action):
        obs = np.random.standard_normal(2).astype(np.float32)
        return obs, float(obs.sum() + action[0]), False, False, {}


gym.register("Noise-v0", entry_point=lambda **_: NoiseEnv(), max_episode_steps=33)


def content(run_dir, logs=None):
    """All that a run leaves, without the clock: names of files, evaluations, settings, scalars and models."""
    files = [path.name for path in run_dir.iterdir() if "events" not in path.name]
    found = {"files": sorted(name for name in files if not name.startswith("replay"))}
    with open(run_dir / "evaluations.csv") as file:
        found["csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    found["args"] = json.loads((run_dir / "config.json").read_text())["args"]
    logs = (logs or EventAccumulator(str(run_dir), size_guidance={"scalars": 0})).Reload()
    for tag in logs.Tags()["scalars"]:
        points = [(event.step, event.value) for event in logs.Scalars(tag)]
        found[tag] = [step for step, _ in points] if tag == "charts/SPS" else points
    for name in ("model.pt", "model_best.pt"):
        policy, about = meow.load_policy(run_dir / name)
        found[name] = about["step"], about["score"], weights(policy)
    return found


def weights(policy):
    return torch.nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().tobytes()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name


def live(folder, flags, target, call, limit):
    """A process: in the `call`-th call of target, it is killed or, given a limit, no file can grow beyond it."""
    os.chdir(folder)
    torch.set_num_threads(1)
    if target is not None:
        owner, _, name = target.rpartition(".")
        owner, calls = pkgutil.resolve_name(owner), itertools.count(1)
        function = getattr(owner, name)

        def sabotaged(*args, **kwargs):
            if next(calls) == call:
                if limit is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    return function(*args, **kwargs)
                if name == "write_text":
                    function(args[0], args[1][:100])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(owner, name, sabotaged)
    sys.argv = ["meow_continuous_action.py", *flags]
    with open("log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        sys.exit(meow.main())


class Lives:
    """The processes that start and resume one run in a folder of its own."""

    def __init__(self, folder, flags):
        self.folder, self.flags, self.second = folder, flags, 0
        folder.mkdir(exist_ok=True)

    @property
    def run_dir(self):
        """The run's folder, or None if it has no checkpoint yet."""
        runs = list(self.folder.glob("runs/*/checkpoint.pt"))
        return max(runs, key=lambda path: path.stat().st_mtime).parent if runs else None

    def live(self, target=None, call=None, limit=None, seconds=None):
        """Returns the exit code, which is -9 if it is killed, at the latest after so many seconds."""
        while int(time.time()) == self.second:  # names of logs have the second in them
            time.sleep(0.01)
        self.second = int(time.time())
        flags = [f"--resume=runs/{self.run_dir.name}"] if self.run_dir else self.flags
        child = processes.Process(target=live, args=(self.folder, flags, target, call, limit))
        child.start()
        child.join(seconds)
        if child.exitcode is None:
            child.kill()
            child.join()
        return child.exitcode

    def finish(self):
        assert self.live() == 0, (self.folder / "log").read_text()
        return content(self.run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never interrupted: its folder, what it leaves, and the seconds it takes."""
    lives, start = Lives(tmp_path_factory.mktemp("whole"), flags()), time.time()
    found = lives.finish()
    assert [row["step"] for row in found["csv"]] == ["0", "80", "160", "240"]
    assert len(found["losses/qf_loss"]) >= 2 and len(found["charts/episodic_return"]) > 5
    assert len(list(lives.run_dir.glob("replay*"))) <= 150 // 20 + 2  # those that no one needs are deleted
    return lives.run_dir, found, time.time() - start


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of that run."""
    return shutil.copytree(whole[0], tmp_path / "runs" / whole[0].name)


def test_20_kills_at_random_moments_change_nothing(tmp_path, whole):
    moments, kills, resumes = random.Random(1), 0, 0
    for i in itertools.count():
        lives = Lives(tmp_path / str(i), flags())
        for _ in range(5):
            resumes += lives.run_dir is not None
            if lives.live(seconds=moments.uniform(0.1, 0.8) * whole[2]) == 0:
                break
            kills += 1
        assert_same(lives.finish(), whole[1])
        if kills >= 20 and resumes >= 10:
            break


@pytest.mark.parametrize(
    "target, stride",
    [("gymnasium.envs.mujoco.hopper_v4.HopperEnv.step", 90), ("meow_continuous_action.update", 35)]
    + [("meow_continuous_action.evaluate", 1), ("os.fsync", 1), ("os.replace", 1)]
    + [("pathlib.Path.unlink", 1), ("pathlib.Path.write_text", 1)],
)
def test_kills_inside_a_step_an_update_an_evaluation_and_every_write_change_nothing(target, stride, tmp_path, whole):
    lives = Lives(tmp_path, flags())
    assert lives.live("meow_continuous_action.update", 25) == -signal.SIGKILL  # the others resume
    for kills in itertools.count():
        code = lives.live(target, stride * (kills + 1))
        meow.load_policy(lives.run_dir)  # can be loaded at every moment
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert kills >= 1
    assert_same(content(lives.run_dir), whole[1])


@pytest.mark.parametrize("env_id", ["Humanoid-v4", "Pendulum-v1", "Noise-v0"])
def test_other_environments_resume_bit_for_bit_and_a_tensorboard_that_is_open_sees_no_point_twice(env_id, tmp_path):
    given = flags(env_id, total_timesteps=450, eval_frequency=150)  # two episodes of Pendulum and a part of one
    expected = Lives(tmp_path / "whole", given).finish()
    lives = Lives(tmp_path / "cut", given)
    assert lives.live("meow_continuous_action.update", 200) == -signal.SIGKILL
    logs = EventAccumulator(str(lives.run_dir), size_guidance={"scalars": 0}).Reload()
    assert lives.live("meow_continuous_action.update", 150) == -signal.SIGKILL
    logs.Reload()
    assert_same(lives.finish(), expected)
    assert_same(content(lives.run_dir, logs), expected)


@pytest.mark.parametrize("limit, steps", [(7, [7, 28, 49]), (None, [40])])
def test_a_checkpoint_is_at_the_end_of_an_episode_or_after_ten_times_the_interval(limit, steps, script, monkeypatch):
    """Of Count, whose transitions tell the step of the episode: no pair crosses the seam of a resumed run."""
    written, checkpoint = [], meow.Run.checkpoint

    def spied(run, step, *args, **kwargs):
        written.append(step)
        return checkpoint(run, step, *args, **kwargs)

    monkeypatch.setattr(meow.Run, "checkpoint", spied)
    given = flags(count(limit=limit), total_timesteps=60, learning_starts=50, eval_max_steps=20)
    result = script(*given, f"--checkpoint-frequency={20 if limit else 4}")
    assert result.returncode == 0 and written == steps
    assert ("--resume begins a new episode, not bit for bit" in result.stdout) == (limit is None)
    (run_dir,) = Path("runs").iterdir()
    _, run = meow.train(meow.stored_args(meow.Args(resume=str(run_dir))))
    obs, next_obs = run.rb.rows[:60, :2], run.rb.rows[:60, 2:4]
    assert torch.equal(next_obs, obs + torch.tensor([1, 0]))
    assert obs[:, 0].tolist() == [t % limit if limit else t % 40 for t in range(60)]


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


def spoil(path, how):
    raw = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "changed":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif how == "text":
        path.write_text("hello")
    elif how == "foreign":
        torch.save({"hello": torch.zeros(3)}, path)
    elif path.name.startswith("replay"):  # "of another task"
        torch.save(torch.zeros(len(torch.load(path, weights_only=True)), 9), path)
    else:
        state = torch.load(path, weights_only=True)
        state["about"]["args"]["env_id"] = "Ant-v4"
        torch.save(state, path)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "changed", "text", "foreign", "of another task"])
@pytest.mark.parametrize("name", ["checkpoint.pt", "replay", "model.pt"])
def test_spoilt_files_are_refused_in_one_sentence(name, how, ended, script):
    path = sorted(ended.glob(f"{name}*"))[-1]
    spoil(path, how)
    flag = "--evaluate" if name == "model.pt" else "--resume"
    words = [flag, path.name] if how != "of another task" else []
    given = ["--env-id=Hopper-v4"] if how == "of another task" and name == "checkpoint.pt" else []
    assert_refused_untouched(script, ended, flag, ended, *given, words=words)


def test_a_folder_of_the_other_script_is_refused_in_one_sentence(script, tmp_path):
    parallel = (
        "--task Hopper-v4 --num-envs 2 --total-vector-steps 60 --random-steps 5 --learning-starts 10 --batch-size 8"
    )
    parallel += " --make benchmark.simulators.gymnasium_vector:make --log-frequency 30 --buffer-steps 60"
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, str(SCRIPT.parent / "meow_isaacgym.py"), *parallel.split()]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (run_dir,) = Path("runs").iterdir()
    for flag in ("--resume", "--evaluate"):
        assert_refused_untouched(script, run_dir, flag, run_dir, words=[flag, run_dir, "meow_isaacgym.py wrote it"])


def test_every_changed_byte_of_a_model_is_noticed_or_without_effect(ended, tmp_path):
    raw, moments = (ended / "model.pt").read_bytes(), random.Random(1)
    policy, about = meow.load_policy(ended)
    noticed = 0
    for _ in range(200):
        changed = bytearray(raw)
        changed[moments.randrange(len(raw))] ^= 1 << moments.randrange(8)
        (tmp_path / "changed.pt").write_bytes(changed)
        try:
            loaded, loaded_about = meow.load_policy(tmp_path / "changed.pt")
            assert weights(loaded) == weights(policy) and loaded_about == about
        except meow.UsageError:
            noticed += 1
    assert noticed > 150


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["checkpoint.pt", "replay", "model.pt"])
def test_no_file_can_run_code(name, ended, script):
    path = sorted(ended.glob(f"{name}*"))[-1]
    state = torch.load(path, weights_only=True)
    state = {**state, "bomb": Bomb()} if isinstance(state, dict) else [state, Bomb()]
    for write in (lambda: torch.save(state, path), lambda: path.write_bytes(pickle.dumps(Bomb()))):
        write()
        flag = "--evaluate" if name == "model.pt" else "--resume"
        assert_refused_untouched(script, ended, flag, ended, words=[path.name])
        assert not Path("exploded").exists()


def test_what_would_make_one_curve_of_two_runs_is_refused(ended, script, monkeypatch):
    changed = "--seed=2 --env-id=Ant-v4 --alpha=0.5 --buffer-size=300 --eval-frequency=30 --gamma=0.9 --batch-size=9 "
    changed += "--num-shifts=1 --exp-name=x --learning-starts=61 --no-eval-deterministic"
    for flag in changed.split():
        name = flag.replace("--no-", "--").partition("=")[0]
        assert_refused_untouched(script, ended, "--resume", ended, flag, words=[name, "must stay"])
    monkeypatch.setattr(mujoco, "__version__", "3.5.0")
    result = script("--resume", ended, "--total-timesteps", 260)
    assert result.returncode == 0 and "not bit for bit as before: versions were" in result.stdout
    assert "mujoco 3.5.0 is not 3.4.0" in result.stdout


def test_more_steps_lead_to_the_run_that_had_them_from_the_start(script, whole):
    script(*flags(total_timesteps=160))
    (run_dir,) = Path("runs").iterdir()
    more = "--total-timesteps", 240, "--torch-threads", 1, "--no-cuda-graph", "--no-compile"
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
    given = flags("Pendulum-v1", total_timesteps=600, eval_frequency=300)
    expected = Lives(tmp_path / "whole", given).finish()
    cut = tmp_path / "cut"
    cut.mkdir()
    command = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": cut}
    command["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    child = subprocess.Popen([sys.executable, str(SCRIPT), *given], **command)
    while not list(cut.glob("runs/*/checkpoint.pt")):
        assert child.poll() is None
        time.sleep(0.01)
    (run_dir,) = cut.glob("runs/*")
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("the live run's record at W&B was opened"))
    result = script("--resume", run_dir, "--track")
    assert result.returncode == 2 and str(run_dir) in result.stderr and "Traceback" not in result.stderr
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err
    python, *resume = shlex.split(out.strip().splitlines()[-1].partition(": ")[2])
    assert python == "python" and resume == [str(SCRIPT), "--resume", f"runs/{run_dir.name}"]
    result = subprocess.run([sys.executable, *resume], cwd=cut, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_same(content(run_dir), expected)


def test_two_runs_of_one_second_share_no_folder(script, monkeypatch):
    moments = itertools.count(1000, 1e-6)
    monkeypatch.setattr(meow.time, "time", lambda: next(moments))
    codes = [script(*flags("Counting-v0", total_timesteps=80)).returncode for _ in range(2)]
    assert codes.count(0) == len(list(Path("runs").iterdir())) and codes in ([0, 2], [0, 0])


def test_best_and_last_model_play_as_they_were_evaluated(script, monkeypatch):
    assert script(*flags(total_timesteps=400, learning_starts=30)).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    with open(run_dir / "evaluations.csv") as file:
        rows = {int(row["step"]): [float(row["return_0"]), float(row["return_1"])] for row in csv.DictReader(file)}
    best = max(rows, key=lambda step: np.mean(rows[step]))
    assert best != 400  # else nothing is told apart
    for path, step in [(run_dir / "model_best.pt", best), (run_dir / "model.pt", 400), (run_dir, 400)]:
        result = script("--evaluate", path, "--eval-episodes", 3)
        assert result.returncode == 0, result.stderr
        assert f"Hopper-v4 after {step} steps" in result.stdout and "'mujoco': '3.4.0'" in result.stdout
        episodes = f"episode 0: {rows[step][0]:.1f}\nepisode 1: {rows[step][1]:.1f}\nepisode 2:"
        assert episodes in result.stdout and "3 deterministic episodes of Hopper-v4" in result.stdout
    sampled = script("--evaluate", run_dir, "--no-eval-deterministic").stdout
    assert "2 stochastic episodes of Hopper-v4" in sampled
    assert f"episode 0: {rows[step][0]:.1f}" not in sampled
    monkeypatch.setattr(mujoco, "__version__", "3.5.0")
    said = script("--evaluate", run_dir).stdout
    assert "3.4.0" in said and "3.5.0" in said
    assert script("--evaluate", run_dir, "--alpha", 0.1).returncode == 2
    assert len(list(Path("runs").iterdir())) == 1


def test_a_moved_run_films_when_it_is_resumed_and_when_it_plays(script):
    assert script(*flags("Pendulum-v1", total_timesteps=250)).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    moved = shutil.move(run_dir, "moved")
    resumed = script("--resume", moved, "--total-timesteps", 500, "--capture-video")
    played = script("--evaluate", moved, "--eval-episodes", 1, "--capture-video")
    assert resumed.returncode == played.returncode == 0, resumed.stderr + played.stderr
    assert len({path.parent for path in Path("videos").rglob("*.mp4") if path.stat().st_size > 1000}) == 2
