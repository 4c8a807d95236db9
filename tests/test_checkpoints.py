"""Runs that survive: killed anywhere and resumed, a run is to the bit the one that was never interrupted."""

import collections
import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import conftest  # noqa: F401  registers the small environments in the processes of this file too
import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from test_cli import SCRIPT, assert_refused, run, run_counting

import meow_continuous_action as meow
from meow_continuous_action import Args, Checkpoints, FlowPolicy, ReplayBuffer, UsageError, load_policy, train

FIVE = ["Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid"]
processes = multiprocessing.get_context("forkserver")  # children start without the threads and locks of this process
processes.set_forkserver_preload(["meow_continuous_action"])


def small_args(**kwargs):
    settings = {"env_id": "Hopper-v4", "total_timesteps": 240, "learning_starts": 60, "eval_frequency": 80}
    settings |= {"batch_size": 8, "buffer_size": 150, "eval_episodes": 2, "checkpoint_frequency": 20}
    return Args(**(settings | kwargs))  # the buffer is smaller than the run: its ring turns over


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def resumed(run_dir, **changes):
    return train(replace(meow.stored_args(Args(resume=str(run_dir))), **changes))


def content(run_dir):
    """All that a run leaves, without the clock: evaluations, scalars by tag, model files."""
    with open(f"{run_dir}/evaluations.csv") as file:
        found = {"csv": [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]}
    logs = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    for tag in logs.Tags()["scalars"]:
        if tag != "charts/SPS":
            found[tag] = [(event.step, event.value) for event in logs.Scalars(tag)]
    events = [event for path in Path(run_dir).glob("events*") for event in EventFileLoader(str(path)).Load()]
    points = [(value.tag, event.step) for event in events for value in event.summary.value]
    assert len(points) == len(set(points))  # in the files themselves, whatever a reader leaves out
    for name in ("model.pt", "model_best.pt"):
        found[name] = Path(run_dir, name).read_bytes()
    return found


def assert_same(run_dir, reference):
    found = content(run_dir)
    assert found.keys() == reference.keys()
    for name, expected in reference.items():
        assert found[name] == expected, name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What one run that is never interrupted leaves."""
    with contextlib.chdir(tmp_path_factory.mktemp("reference")):
        found = content(train(small_args()).run_dir)
    assert [row["step"] for row in found["csv"]] == ["0", "80", "160", "240"]
    assert len(found["losses/qf_loss"]) == 2 and len(found["charts/episodic_return"]) > 5
    return found


# The simulator's state


@pytest.mark.parametrize("env_id", [f"{name}-{version}" for name in FIVE for version in ("v4", "v5")] + ["Pendulum-v1"])
def test_a_restored_environment_goes_on_bitwise(env_id, tmp_path):
    args = Args(env_id=env_id)
    (first, _), (second, _) = meow.make_envs(args), meow.make_envs(replace(args, seed=9))
    for _ in range(150):
        first.step(first.action_space.sample())
    for _ in range(33):
        second.step(second.action_space.sample())
    torch.save(meow.get_env_state(first), tmp_path / "env.pt")
    meow.set_env_state(second, torch.load(tmp_path / "env.pt", weights_only=True))
    data = [envs.envs[0].unwrapped.data for envs in (first, second)] if "Pendulum" not in env_id else []
    if data:
        for name in ("qpos", "qvel", "act", "qacc_warmstart", "time", "cfrc_ext", "xipos"):
            assert np.array_equal(*(getattr(d, name) for d in data)), name
    ended = 0
    for _ in range(1200):  # past the time limit too
        actions = [envs.action_space.sample() for envs in (first, second)]
        assert np.array_equal(*actions)
        one, other = first.step(actions[0]), second.step(actions[1])
        for a, b in zip(one[:4], other[:4], strict=True):
            assert np.array_equal(a, b)
        if "final_obs" in one[4]:
            ended += 1
            assert np.array_equal(one[4]["final_obs"][0], other[4]["final_obs"][0])
            episodes = [{**infos["final_info"]["episode"], "t": None} for infos in (one[4], other[4])]
            assert str(episodes[0]) == str(episodes[1])
    assert ended > 0
    assert meow.env_state_is_whole(args)
    first.close(), second.close()


class HiddenEnv(gym.Env):
    """obs = [t]: counts its steps where no state of it can be seen."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = iter(range(1, 10**9))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.array([next(self.count)], np.float32), 1.0, False, False, {}


class HiddenStreamEnv(HiddenEnv):
    """Starts at random, from a stream that cannot be seen either."""

    def __init__(self):
        self.hidden = [np.random.RandomState(0)]

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.count = iter(range(1 + self.hidden[0].randint(10**6), 10**9))
        return obs, info


class GlobalNoiseEnv(gym.Env):
    """obs = noise from numpy's global stream, and how often it was reset; steps in two wrappers of one class."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,))
    resets = 0

    def observe(self):
        return np.array([np.random.standard_normal(), self.resets], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        return self.observe(), {}

    def step(self, action):
        obs = self.observe()
        return obs, float(obs.sum() + action[0]), False, False, {}


class TensorEnv(HiddenEnv):
    """Counts its steps in a tensor."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.total = torch.zeros(1)
        return obs, info

    def step(self, action):
        self.total = self.total.clone() + 1
        return self.total.numpy(), 1.0, False, False, {}


class VisitsEnv(HiddenEnv):
    """Counts its steps in a kind of dict that cannot be made anew without knowing its default."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.visits = collections.defaultdict(int)
        return obs, info

    def step(self, action):
        self.visits[str(len(self.visits))] += 1
        return np.array([len(self.visits)], np.float32), 1.0, False, False, {}


class BrittleEnv(VisitsEnv):
    """Fails in the first step after another's state was put in."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.steps, self.own_steps = 0, iter(range(10**9))
        return obs, info

    def step(self, action):
        assert self.steps == next(self.own_steps)
        self.steps += 1
        return super().step(action)


gym.register("Tensor-v0", entry_point=TensorEnv, max_episode_steps=37)
gym.register("Visits-v0", entry_point=VisitsEnv, max_episode_steps=37)
gym.register("Brittle-v0", entry_point=BrittleEnv, max_episode_steps=37)
gym.register("Hidden-v0", entry_point=HiddenEnv, max_episode_steps=37)
gym.register("HiddenStream-v0", entry_point=HiddenStreamEnv, max_episode_steps=37)
gym.register("Noise-v0", entry_point=lambda: gym.wrappers.TimeLimit(GlobalNoiseEnv(), 33), max_episode_steps=50)


def test_what_an_environment_keeps_across_episodes_and_draws_globally_is_restored():
    assert meow.env_state_is_whole(Args(env_id="Noise-v0"))
    assert meow.env_state_is_whole(Args(env_id="Tensor-v0"))
    with pytest.raises(meow.NotPlain):
        meow.plain(collections.defaultdict(int, a=1))  # a dict in its place would fail later
    for env_id in ("HiddenStream-v0", "Visits-v0", "Brittle-v0"):
        assert not meow.env_state_is_whole(Args(env_id=env_id))
    settings = {"env_id": "Counting-v0", "eval_frequency": 50}
    expected = content(train(small_args(**settings)).run_dir)
    run_dir = train(small_args(exp_name="cut", **settings)).run_dir
    for path in Path(run_dir).glob("checkpoints/step_*240_*"):
        path.unlink()
    resumed(run_dir)
    assert_same(run_dir, expected)


def test_an_environment_that_hides_its_state_begins_a_new_episode(capsys):
    run_dir = train(small_args(env_id="Hidden-v0", total_timesteps=100)).run_dir
    said = "Hidden-v0: its state cannot be saved, so a resumed run begins with a new episode"
    assert said in capsys.readouterr().out
    rb = ReplayBuffer(150, 1, 1)
    resumed(run_dir, total_timesteps=150)
    Checkpoints(Path(run_dir, "checkpoints")).load(rb)
    obs, next_obs = rb.rows[:150, 0], rb.rows[:150, 1]
    assert torch.equal(next_obs, obs + 1)  # no pair crosses the seam
    assert obs[99] == 25 and obs[100] == 0
    capsys.readouterr()
    train(small_args())
    assert "cannot be saved" not in capsys.readouterr().out


# Kills


def live(folder, run_dir, deadly=None, call=None):
    """A child process: starts or resumes the run, and dies in the `call`-th call of `deadly`, (object, name)."""
    os.chdir(folder)
    torch.set_num_threads(1)
    if deadly is not None:
        path, name = deadly
        owner = {"meow": meow, "os": os, "Path": Path, "envs": meow.SyncVectorEnv, "np": np, "torch": torch}[path]
        function, calls = getattr(owner, name), []

        def dying(*args, **kwargs):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(owner, name, dying)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        if run_dir is None:
            train(small_args())
        else:
            resumed(run_dir)


def newest(folder):
    """The run folder to resume, or None if the newest run has no checkpoint yet."""
    dirs = sorted(Path(folder).glob("runs/*"), key=lambda path: path.stat().st_mtime)
    return str(dirs[-1]) if dirs and list(dirs[-1].glob("checkpoints/step_*.pt")) else None


def finish(folder, reference):
    child = processes.Process(target=live, args=(folder, newest(folder)))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert_same(newest(folder), reference)


def test_20_kills_at_random_moments_change_nothing(tmp_path, reference):
    moments, kills, resumes, runs = random.Random(1), 0, 0, 0
    while kills < 20 or resumes < 10:
        folder = tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        for _ in range(5):
            resumes += newest(folder) is not None
            child = processes.Process(target=live, args=(folder, newest(folder)))
            child.start()
            child.join(timeout=moments.uniform(0.3, 2.5))
            if child.exitcode is not None:
                break  # it had finished
            child.kill()
            child.join()
            kills += 1
        resumes += newest(folder) is not None
        finish(folder, reference)


DEADLY = [
    (("envs", "step"), 105),  # two calls each for env_state_is_whole come first
    (("meow", "update"), 50),
    (("meow", "evaluate"), 2),
    (("meow", "save_model"), 2),
    (("meow", "get_env_state"), 4),
    (("np", "save"), 3),
    (("torch", "save"), 4),
    (("os", "fsync"), 15),
    (("os", "fsync"), 16),
    *((("os", "replace"), call) for call in (2, 4, 5, 6, 7, 12)),
    (("Path", "unlink"), 1),
    (("os", "truncate"), 1),
]


@pytest.mark.parametrize("deadly, call", DEADLY)
def test_a_kill_inside_a_step_an_update_an_evaluation_or_a_checkpoint(deadly, call, tmp_path, reference):
    if deadly == ("os", "truncate"):  # of a resumed run
        child = processes.Process(target=live, args=(tmp_path, None, ("meow", "update"), 60))
        child.start()
        child.join()
    child = processes.Process(target=live, args=(tmp_path, newest(tmp_path), deadly, call))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finish(tmp_path, reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_writes_a_checkpoint_and_says_how_to_go_on(number, tmp_path):
    flags = ["--env-id", "Pendulum-v1", "--total-timesteps", "600", "--learning-starts", "100", "--batch-size", "16"]
    flags += ["--eval-frequency", "200", "--eval-episodes", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert run(*flags, cwd=whole).returncode == 0
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags],
        cwd=cut,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # not ignored, as in the background
    )
    while not list(cut.glob("runs/*/checkpoints/step_*200_*.pt")):
        assert child.poll() is None
        time.sleep(0.01)
    (run_dir,) = cut.glob("runs/*")
    with pytest.raises(UsageError, match="one works on"):
        resumed(run_dir)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    *_, line = out.strip().splitlines()
    assert line.startswith("stopped at step ")
    assert line.endswith(f"go on with: python meow_continuous_action.py --resume runs/{run_dir.name}")
    assert (run_dir / "model.pt").exists()
    result = run("--resume", f"runs/{run_dir.name}", cwd=cut)
    assert result.returncode == 0, result.stderr
    (uninterrupted,) = whole.glob("runs/*")
    assert_same(run_dir, content(uninterrupted))


def test_a_stop_signal_while_a_checkpoint_is_written_is_answered_in_full(reference, monkeypatch):
    def save_and_be_told(*args):
        save(*args)
        if not signals:
            signals.append(signal.raise_signal(signal.SIGTERM))

    save, signals = Checkpoints.save, []
    monkeypatch.setattr(Checkpoints, "save", save_and_be_told)
    with pytest.raises(SystemExit) as stopped:
        train(small_args())
    assert stopped.value.code == 128 + signal.SIGTERM
    (run_dir,) = Path("runs").glob("*")
    assert (run_dir / "model.pt").exists()
    resumed(run_dir)
    assert_same(run_dir, reference)


def test_a_compiled_run_resumes_to_the_bit(tmp_path):
    settings = {"compile_min_timesteps": 0, "total_timesteps": 120, "eval_frequency": 60}
    expected = content(train(small_args(**settings)).run_dir)
    run_dir = train(small_args(exp_name="cut", **settings)).run_dir
    step_file(run_dir, 120).unlink()  # as if it had been killed before step 120
    resumed(run_dir)
    assert_same(run_dir, expected)


# What is in the way


def steps_stored(run_dir):
    return sorted(int(path.name.split("_")[1]) for path in Path(run_dir).glob("checkpoints/step_*"))


def step_file(run_dir, step):
    (path,) = Path(run_dir).glob(f"checkpoints/step_{step:012d}_*.pt")
    return path


def rewrite(path, state):
    """Puts another state in a step file, with the checksum that it then has."""
    content = meow.tensors_to_bytes(state)
    path.unlink()
    new = path.with_name(f"{path.name[:17]}_{zlib.crc32(content):08x}.pt")
    new.write_bytes(content)
    return new


@pytest.fixture
def ended_run():
    """A run whose newest checkpoints are of steps 220 and 240."""
    run_dir = Path(train(small_args()).run_dir)
    assert steps_stored(run_dir) == [220, 240]
    return run_dir


def replay_files(run_dir):
    return sorted(path.name for path in run_dir.glob("checkpoints/replay_*"))


def test_only_the_replay_files_that_the_newest_two_checkpoints_need_are_kept(ended_run):
    oldest = 220 - 150  # the buffer's size before the older one
    expected = [f"replay_{a:012d}_{a + 20:012d}.npy" for a in range(0, 240, 20) if a + 20 > oldest]
    assert replay_files(ended_run) == expected
    assert len(list((ended_run / "checkpoints").iterdir())) == len(expected) + 2


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
    elif how == "other format":
        state = torch.load(path, weights_only=True)
        rewrite(path, state | {"format": Checkpoints.FORMAT + 1})
    elif how == "no checkpoint at all":
        rewrite(path, {"hello": 1})


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "changed", "other format", "no checkpoint at all"])
def test_a_spoilt_checkpoint_is_told_and_the_one_before_is_taken(how, ended_run, reference, capsys):
    spoil(step_file(ended_run, 240), how)
    resumed(ended_run)
    out = capsys.readouterr().out
    if how != "missing":
        assert (
            f"step_{240:012d}" in out
            and ".pt cannot be used" in out
            and f"going on from {ended_run}/checkpoints/step_" in out
        )
    assert "Traceback" not in out
    assert_same(ended_run, reference)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "changed"])
def test_a_spoilt_replay_file_of_the_newest_checkpoint_is_told_and_the_one_before_is_taken(
    how, ended_run, reference, capsys
):
    spoil(ended_run / "checkpoints" / replay_files(ended_run)[-1], how)
    resumed(ended_run)
    out = capsys.readouterr().out
    assert f"step_{240:012d}" in out and "cannot be used" in out
    assert_same(ended_run, reference)


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_a_spoilt_replay_file_that_both_need_ends_in_one_sentence(how, ended_run):
    name = replay_files(ended_run)[-3]
    spoil(ended_run / "checkpoints" / name, how)
    result = run("--resume", str(ended_run), cwd=".")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--resume must name" in result.stderr and result.stderr.count(name) == 2


def test_other_versions_of_the_libraries_are_told(ended_run, capsys):
    state = torch.load(step_file(ended_run, 240), weights_only=True)
    state["versions"]["torch"] = "1.0"
    rewrite(step_file(ended_run, 240), state)
    resumed(ended_run)
    assert "not to the bit as before: versions were" in capsys.readouterr().out


def test_another_mujoco_is_refused_before_the_run_is_touched(ended_run):
    state = torch.load(step_file(ended_run, 240), weights_only=True)
    state["versions"]["mujoco"] = "3.5.0"
    rewrite(step_file(ended_run, 240), state)
    before = {path: path.read_bytes() for path in ended_run.rglob("*") if path.is_file()}
    result = run("--resume", str(ended_run), cwd=".")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"--resume needs mujoco 3.5.0, as that run had, got {mujoco.__version__}" in result.stderr
    assert {path: path.read_bytes() for path in ended_run.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_checkpoint(tmp_path):
    result = run("--resume", "runs/none", cwd=tmp_path)
    assert_refused(result, "--resume", tmp_path)
    assert result.stderr.startswith("no checkpoint in runs/none")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_in_a_checkpoint_or_model_can_run_code(ended_run):
    folder = ended_run / "checkpoints"
    rewrite(step_file(ended_run, 240), {"format": Checkpoints.FORMAT, "bomb": Bomb()})
    content = pickle.dumps(Bomb())
    (folder / f"step_{260:012d}_{zlib.crc32(content):08x}.pt").write_bytes(content)
    state = torch.load(step_file(ended_run, 220), weights_only=True)
    *_, name = state["replay_files"]
    np.save(folder / name, np.array([Bomb()]))
    state["replay_files"][name][2] = zlib.crc32((folder / name).read_bytes())
    rewrite(step_file(ended_run, 220), state)
    with pytest.raises(UsageError, match="weights_only.*weights_only.*allow_pickle"):
        Checkpoints(folder).load(ReplayBuffer(150, 11, 3))
    content = meow.tensors_to_bytes({"bomb": Bomb()})
    (ended_run / "model.pt").write_bytes(content)
    about = json.loads((ended_run / "model.json").read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    (ended_run / "model.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="weights_only"):
        load_policy(ended_run)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "flag, value",
    [("--seed", 2), ("--env-id", "Ant-v4"), ("--alpha", 0.5), ("--buffer-size", 300), ("--eval-frequency", 30)]
    + [("--batch-size", 9), ("--num-shifts", 1), ("--exp-name", "x"), ("--learning-starts", 61), ("--gamma", 0.9)],
)
def test_a_change_of_meaning_is_refused_by_name(flag, value, ended_run):
    result = run("--resume", str(ended_run), flag, str(value), cwd=".")
    assert result.returncode == 2
    assert result.stderr.startswith(f"{flag} must stay ") and result.stderr.strip().endswith(f"got {value}")


def test_fewer_steps_than_were_done_are_refused(ended_run):
    with pytest.raises(UsageError, match="--total-timesteps must be at least 240"):
        resumed(ended_run, total_timesteps=239)


def test_more_timesteps_go_on_to_the_run_that_had_them_from_the_start(tmp_path, reference):
    short = train(small_args(total_timesteps=160)).run_dir
    result = run("--resume", short, "--total-timesteps", "240", "--torch-threads", "1", "--no-cuda-graph", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same(short, reference)
    with open(f"{short}/config.json") as file:
        config = json.load(file)
    assert config["args"]["total_timesteps"] == 240 and config["resumed_at"] == [160]


def test_a_finished_run_is_left_as_it_is(ended_run, reference):
    resumed(ended_run)
    assert_same(ended_run, reference)


def test_a_full_disk_ends_nothing_and_spoils_nothing(tmp_path, reference, capfd):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        os.chdir(small)
        save, seen = Checkpoints.save, []

        def filling(checkpoints, step, *rest):
            if step == 100:  # the user's other files
                with open("other", "wb") as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
            if step == 180:  # they make room
                os.remove("other")
            try:
                save(checkpoints, step, *rest)
            finally:
                seen.append((step, steps_stored(checkpoints.folder.parent)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", filling)
            run_dir = train(small_args()).run_dir
        kept = dict(seen)
        assert kept[100] == kept[160] == [60, 80]
        assert kept[180] == [80, 180]
        assert "the checkpoint could not be written ([Errno 28] No space left on device" in capfd.readouterr().out
        assert_same(run_dir, reference)
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", "-l", str(small)], check=True)


# Models


def test_best_and_last_models_are_told_apart_and_play_as_they_were_evaluated(capsys):
    run_dir = Path(train(small_args(total_timesteps=400, learning_starts=30)).run_dir)
    with open(run_dir / "evaluations.csv") as file:
        rows = {int(row["step"]): [float(row["return_0"]), float(row["return_1"])] for row in csv.DictReader(file)}
    best = max(rows, key=lambda step: np.mean(rows[step]))
    assert best != 400  # else nothing is told apart
    for name, kind, step in [("model_best.pt", "best", best), ("model.pt", "last", 400)]:
        policy, about = load_policy(run_dir / name)
        assert (about["kind"], about["step"], about["evaluation"]) == (
            kind,
            step,
            {"step": step, "returns": rows[step]},
        )
        plain_state = torch.load(run_dir / name, weights_only=True)
        assert plain_state.keys() == policy.state_dict().keys()
        result = run("--evaluate", str(run_dir / name), "--eval-episodes", "3", cwd=".")
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert f"{kind} model of Hopper-v4, after {step} steps" in lines[0]
        assert lines[1:3] == [f"episode {i}: {rows[step][i]:.1f}" for i in range(2)]
        assert lines[4].startswith("3 deterministic episodes: mean ") and "min" in lines[4] and "max" in lines[4]
    result = run("--evaluate", str(run_dir), "--stochastic", cwd=".")
    assert "last model" in result.stdout and "2 stochastic episodes" in result.stdout
    assert not Path("runs", "eval").exists() and len(list(Path("runs").iterdir())) == 1


def test_playback_writes_a_video(tmp_path):
    run_dir = train(small_args(env_id="Pendulum-v1")).run_dir
    result = run("--evaluate", run_dir, "--capture-video", cwd=tmp_path, SDL_VIDEODRIVER="dummy")
    assert result.returncode == 0, result.stderr
    (video,) = tmp_path.glob("videos/*-last-eval/*.mp4")
    assert video.stat().st_size > 1000 and f"videos/{video.parent.name}" in result.stdout


def test_playing_with_another_mujoco_is_told(ended_run, capsys):
    told = f"it was trained with mujoco 3.5.0, here is {mujoco.__version__}"
    meow.play(meow.stored_args(Args(evaluate=str(ended_run), eval_episodes=1)))
    assert told not in capsys.readouterr().out
    about = json.loads((ended_run / "model.json").read_text())
    about["versions"]["mujoco"] = "3.5.0"
    (ended_run / "model.json").write_text(json.dumps(about))
    meow.play(meow.stored_args(Args(evaluate=str(ended_run), eval_episodes=1)))
    assert told in capsys.readouterr().out


def test_save_model_can_be_left_out_and_made_up_for():
    run_dir = train(small_args(save_model=False)).run_dir
    assert not list(Path(run_dir).glob("model*"))
    policy = resumed(run_dir, save_model=True).policy
    assert torch.equal(load_policy(run_dir)[0].vector, policy.vector)


def test_playing_computes_as_training_did(ended_run, monkeypatch):
    """Other matrix routines round otherwise, and the episodes would not be the evaluation's."""
    devices = []
    monkeypatch.setattr(meow, "use_onednn", devices.append)
    meow.play(meow.stored_args(Args(evaluate=str(ended_run), eval_episodes=1)))
    assert devices == [torch.device("cpu")]


def test_a_model_stays_loadable_at_every_moment_of_its_replacement(ended_run, monkeypatch):
    """A kill between the renames of the two files leaves a new .pt, an old .json and the new one's temporary file."""
    old, _ = load_policy(ended_run)
    new = FlowPolicy(11, 3, 0.25)
    about = json.loads((ended_run / "model.json").read_text()) | {"step": 7}
    replace_file, calls = os.replace, []

    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            meow.save_model(ended_run / "model", new, about)
    assert torch.equal(load_policy(ended_run)[0].vector, old.vector)

    def dying(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace_file(*args)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        meow.save_model(ended_run / "model", new, about)
    policy, about = load_policy(ended_run)
    assert torch.equal(policy.vector, new.vector) and about["step"] == 7


def test_best_stays_best_where_a_better_one_found_no_room(monkeypatch):
    save_model, kinds = meow.save_model, []

    def full_at_first(path, *rest):
        kinds.append(path.name)
        if len(kinds) < 3:
            raise OSError("No space left on device")
        save_model(path, *rest)

    monkeypatch.setattr(meow, "save_model", full_at_first)
    means = iter([3.0, 2.0, 1.0, 5.0])
    monkeypatch.setattr(meow, "evaluate", lambda *args: np.full(2, next(means)))
    run_dir = Path(train(small_args()).run_dir)
    assert kinds == ["model_best"] * 4 + ["model"]  # each beats what is on the disk
    assert load_policy(run_dir / "model_best.pt")[1]["evaluation"]["returns"] == [5.0, 5.0]


def test_deleted_checkpoints_are_made_up_for_by_the_next(ended_run, reference):
    for path in ended_run.glob("checkpoints/*"):
        path.unlink()
    save, deleted = Checkpoints.save, []

    def deleting(checkpoints, step, *rest):
        save(checkpoints, step, *rest)
        if step == 120:
            deleted.extend(path.unlink() for path in checkpoints.folder.iterdir())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", deleting)
        run_dir = train(small_args(exp_name="x", total_timesteps=160)).run_dir
    assert deleted
    resumed(run_dir, total_timesteps=240)
    assert_same(run_dir, reference)


def test_a_run_that_begins_to_film_when_resumed_and_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    settings = {"env_id": "Pendulum-v1", "total_timesteps": 450}
    run_dir = Path(train(small_args(**settings)).run_dir)
    moved = tmp_path / "elsewhere" / run_dir.name
    moved.parent.mkdir()
    run_dir.rename(moved)
    monkeypatch.chdir(moved.parent)
    resumed(moved, total_timesteps=700, capture_video=True)
    (folder,) = moved.parent.glob("videos/*")
    assert folder.name == run_dir.name and list(folder.glob("*.mp4"))


def test_logs_of_an_attempt_that_reached_no_checkpoint_are_removed(ended_run, reference):
    step_file(ended_run, 240).unlink()
    orphan = ended_run / "events.out.tfevents.2000000000.host.1.0"
    shutil.copy(next(ended_run.glob("events*")), orphan)
    resumed(ended_run)
    assert not orphan.exists()
    assert_same(ended_run, reference)


def test_an_open_tensorboard_sees_no_point_twice():
    run_dir = train(small_args(total_timesteps=200)).run_dir
    logs = EventAccumulator(run_dir).Reload()
    step_file(run_dir, 200).unlink()
    resumed(run_dir, total_timesteps=240)
    steps = [event.step for event in logs.Reload().Scalars("eval/episodic_return")]
    assert steps == sorted(set(steps)) and steps[-1] == 240


@pytest.mark.parametrize("how", ["missing", "changed", "no json", "other json", "unfinished"])
def test_a_model_that_is_not_whole_is_refused(how, ended_run):
    model, about = ended_run / "model.pt", ended_run / "model.json"
    if how in ("missing", "changed"):
        spoil(model, how)
    if how == "missing":
        (ended_run / "model_best.pt").unlink()
    if how == "no json":
        about.unlink()
    if how == "other json":
        about.write_text(about.read_text().replace('"sha256": "', '"sha256": "0'))
    if how == "unfinished":
        model.unlink()
    result = run("--evaluate", str(ended_run), cwd=".")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "model" in result.stderr
    if how == "unfinished":
        assert "its best so far is" in result.stderr and "model_best.pt" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [["--resume", "a", "--evaluate", "b"], ["--stochastic"], ["--checkpoint-frequency", "0"]]
    + [["--evaluate", "x"], ["--evaluate", ""], ["--resume", ""]],
)
def test_flags_that_do_not_go_together_are_refused(flags, tmp_path):
    result = run_counting(*flags, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert flags[0] in result.stderr
    assert not list(tmp_path.iterdir())
