"""What users bring: environments and simulators of every kind train as they should or are refused in one sentence."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio.v3
import psutil
import pytest
import torch
from conftest import Count, count
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import SCRIPT, assert_refused, run_counting
from test_training import small_args

import meow_continuous_action as meow

PARALLEL = SCRIPT.parent / "meow_isaacgym.py"
SHORT = ["--total-timesteps", "60", "--learning-starts", "40", "--eval-frequency", "60", "--eval-episodes", "2"]
SHORT += ["--batch-size", "8", "--buffer-size", "100"]


@pytest.fixture(autouse=True)
def as_before():
    Count.alive.clear()
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def table(run_dir, name="evaluations.csv"):
    with open(run_dir / name) as file:
        return list(csv.DictReader(file))


# One process, one environment


@pytest.mark.parametrize("kind", ["plain", "memory", "list of integers at reset", "tensor", "array reward"])
@pytest.mark.filterwarnings("ignore")
def test_however_an_environment_returns_its_numbers_they_are_stored_as_they_were(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, run = meow.train(small_args(env_id=count(kind), total_timesteps=60))
    obs, next_obs, _, reward, _ = run.rb.rows[:60].split(run.rb.widths, dim=1)
    assert obs[:, 0].tolist() == [t % 7 for t in range(60)] and (reward == 1).all()
    assert (next_obs - obs == torch.tensor([1, 0])).all()
    assert {row["mean"] for row in table(run.dir)} == {"7.0"}


@pytest.mark.parametrize(
    "kind, words",
    [
        ("short", ["observations are not in"]),
        ("row", ["dimension"]),
        ("old reset", ["must work here"]),
        ("old step", ["must work here"]),
        ("no flag", ["must work here"]),
        ("constructor", ["OSError('the data set is missing')"]),
        ("quits", ["SystemExit"]),
        ("dict", ["1-D Box", "MY_MODULE.py", "FlattenObservation"]),
        ("shared world", ["stepping a second instance moves the first"]),
        ("only one", ["the robot is in use", "--eval-episodes 0 trains without"]),
        ("only two", ["the robot is in use", "--eval-episodes"]),
        ("default type", ["default type"]),
        ("gradients", ["gradients"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_does_not_work_is_refused_in_one_sentence(kind, words, script, tmp_path):
    assert_refused(script("--env-id", count(kind), *SHORT), "--env-id", tmp_path, *words)
    assert Count.alive.total() == 0  # closed


def test_an_unknown_id_names_the_ways_to_bring_one(script, tmp_path):
    assert_refused(script("--env-id", "FetchReach-v4", *SHORT), "--env-id", tmp_path, "PACKAGE:ID", "MY_MODULE.py")


def test_a_module_in_the_current_directory_is_found(tmp_path):
    make = "lambda **kwargs: gym.wrappers.FlattenObservation(gym.make('Pendulum-v1', g=5, **kwargs))"
    (tmp_path / "my_envs.py").write_text(f"import gymnasium as gym\ngym.register('Slow-v0', {make})\n")
    command = [sys.executable, str(SCRIPT), "--env-id", "my_envs:Slow-v0", *SHORT]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [path.name.partition("__")[0] for path in tmp_path.glob("runs/*")] == ["my_envs-Slow-v0"]
    assert "time limit" not in result.stdout  # Pendulum's 200 steps, inside


def test_an_evaluation_without_a_time_limit_ends_at_its_cap_and_this_is_told(script):
    result = script("--env-id", count(limit=None), *SHORT, "--eval-max-steps", "25")
    assert result.returncode == 0 and "has no time limit up to --eval-max-steps" in result.stdout
    assert result.stdout.count("eval return 25.0") == 2
    (run_dir,) = Path("runs").iterdir()
    assert "episode 0: 30.0" in script("--evaluate", run_dir, "--eval-max-steps", "30").stdout
    assert "time limit" not in script("--env-id", count(), *SHORT).stdout


@pytest.mark.parametrize("env_id", [count("unseeded"), count("curriculum"), "Normalized-v0", "BipedalWalker-v3"])
def test_what_outlives_a_reset_is_told_in_one_line(env_id, script):
    """Episodes without a seed, rewards alone, statistics of a wrapper, and one whose third episode differs."""
    for name, lines in [(env_id, 1), ("Pendulum-v1", 0), (count(), 0)]:
        result = script("--env-id", name, *SHORT)
        assert result.returncode == 0, result.stderr
        said = [line for line in result.stdout.splitlines() if "does not repeat after reset(seed=...)" in line]
        assert len(said) == lines and all("--evaluate" in line and "--resume" in line for line in said)


def test_a_model_plays_other_seeds_and_other_ids_of_the_same_spaces(script):
    assert script("--env-id", "Pendulum-v1", *SHORT).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    before = script("--evaluate", run_dir, "--eval-episodes", 3).stdout.splitlines()
    after = script("--evaluate", run_dir, "--eval-episodes", 2, "--seed", 1).stdout.splitlines()
    assert [line.split(": ")[0] for line in after[1:3]] == ["episode 1", "episode 2"]
    for line, same in zip(after[1:3], before[2:4], strict=True):  # batches of another size round differently
        assert float(line.split()[-1]) == pytest.approx(float(same.split()[-1]), rel=1e-3)
    gym.register("Pendulum-v9", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    other = script("--evaluate", run_dir, "--env-id", "Pendulum-v9")
    assert other.returncode == 0 and "Pendulum-v1" in other.stdout and "Pendulum-v9" in other.stdout
    result = script("--evaluate", run_dir, "--env-id", "Hopper-v4")
    assert result.returncode == 2 and "--env-id" in result.stderr and "(11, 3)" in result.stderr


def test_a_model_does_not_play_in_an_environment_that_has_changed(script):
    name = count()
    assert script("--env-id", name, *SHORT).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    gym.registry[name].kwargs["kind"] = "larger"
    result = script("--evaluate", run_dir)
    assert result.returncode == 2 and "observations and actions of the model" in result.stderr
    assert "(3, 1)" in result.stderr


def test_one_instance_is_enough_without_evaluations(script):
    result = script("--env-id", count("only one"), *SHORT, "--eval-episodes", 0, "--eval-frequency", 20)
    assert result.returncode == 0, result.stderr
    (run_dir,) = Path("runs").iterdir()
    assert not (run_dir / "evaluations.csv").exists()
    rows = table(run_dir, "returns.csv")  # of training episodes; at step 0 there is none
    assert [(row["step"], row["episodes"]) for row in rows] == [("20", "2"), ("40", "5"), ("60", "8")]
    assert {row["mean"] for row in rows} == {"7.0"}
    assert meow.load_policy(run_dir)[1]["step"] == 60 and meow.load_policy(run_dir / "model_best.pt")[1]["step"] == 20
    assert "episode 0: 7.0" in script("--evaluate", run_dir).stdout


def test_successes_are_logged_and_counted(script):
    """Every fourth episode of an instance succeeds, and `is_success` comes before `success`."""
    result = script("--env-id", count("success"), *SHORT)
    assert result.returncode == 0, result.stderr
    (run_dir,) = Path("runs").iterdir()
    logs = EventAccumulator(str(run_dir)).Reload()
    rates = [event.value for event in logs.Scalars("charts/success_rate")]
    assert rates == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 2 / 7, 2 / 8])  # of the last 100 episodes
    assert [event.value for event in logs.Scalars("eval/success_rate")] == [1.0, 0.0]
    assert [row["success_rate"] for row in table(run_dir)] == ["1.0", "0.0"]
    assert script("--evaluate", run_dir).stdout.strip().endswith("success rate 1.00")
    assert Count.alive.total() == 0  # closed


@pytest.mark.parametrize("raises, code", [(None, 0), (OSError, 1), (ZeroDivisionError, 1), (KeyboardInterrupt, 130)])
@pytest.mark.parametrize("kind", ["thread", "child"])
def test_what_only_close_ends_has_ended_whatever_ends_the_run(kind, raises, code, tmp_path):
    """Else the process never exits, or its child stays."""
    result = run_counting("--env-id", f"conftest:{count(kind, raises=raises)}", *SHORT, cwd=tmp_path, timeout=60)
    assert result.returncode == code, result.stderr
    assert ("finished" in result.stdout) == (code == 0)


@pytest.mark.parametrize("kind", ["thread and dict", "thread and only two"])
def test_what_only_close_ends_has_ended_where_the_environment_is_refused(kind, tmp_path):
    result = run_counting("--env-id", f"conftest:{count(kind)}", *SHORT, cwd=tmp_path, timeout=60)
    assert_refused(result, "--env-id", tmp_path)


def test_an_environment_that_ends_the_process_ends_the_run_with_code_1_and_says_how_to_continue(script):
    result = script("--env-id", count(raises=SystemExit), *SHORT)
    (run_dir,) = Path("runs").iterdir()
    assert result.stdout.strip().endswith(f"continue with: python meow_continuous_action.py --resume {run_dir}")
    assert result.returncode == 1


def test_an_environment_may_go_to_another_folder(script, tmp_path):
    result = script("--env-id", count("folder"), *SHORT)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} >= {"config.json", "evaluations.csv", "model.pt", "checkpoint.pt"}
    os.chdir(tmp_path)
    assert script("--evaluate", run_dir.relative_to(tmp_path)).returncode == 0


def test_rewards_that_are_too_large_are_named(script):
    result = script("--env-id", count("money"), "--total-timesteps", 120, *SHORT[2:], "--alpha", 1000)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "scale the rewards" in result.stderr and "inf" in result.stderr


@pytest.mark.parametrize("limit, frames", [(7, 3 * [8]), (None, [1001])])
def test_a_film_is_of_one_episode_and_of_at_most_1000_steps(limit, frames, script):
    steps = 63 if limit else 1300
    few = ["--total-timesteps", steps, "--learning-starts", steps - 1, "--eval-max-steps", 20]
    result = script("--env-id", count("film", limit), *few, *SHORT[4:], "--capture-video")
    assert result.returncode == 0, result.stderr
    assert [len(imageio.v3.imread(film)) for film in Path("videos").rglob("*.mp4")] == frames


def test_an_environment_without_pictures_is_not_filmed(script, tmp_path):
    result = script("--env-id", count(), *SHORT, "--capture-video")
    assert_refused(result, "--capture-video", tmp_path, "NotImplementedError")


def test_a_buffer_must_fit_into_the_free_memory(script, tmp_path, monkeypatch):
    enough = 4 * 100 * (2 + 2 + 1 + 2)
    for free, code in [(enough, 0), (enough - 1, 2)]:
        memory = psutil.virtual_memory()._replace(available=free)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        result = script("--env-id", count(), *SHORT)
        assert result.returncode == code, result.stderr
    assert "--buffer-size must fit" in result.stderr and len(list(tmp_path.glob("runs/*"))) == 1


def test_a_compile_cache_that_cannot_be_made_means_eager_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    flags = "--env-id Pendulum-v1 --total-timesteps 20000 --learning-starts 19950 --eval-episodes 1".split()
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    command = [sys.executable, str(SCRIPT), *flags]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--compile: running eager, for compiling failed: [Errno 20]" in result.stdout


# Many environments: the contract of --make

SIMULATOR = '''
import types
import numpy as np
import torch

class Simulator:
    """Observation [environment, step of the episode, 0, ...]; reward 1; an episode's limit is 10 steps."""
    def __init__(self, num_envs, kind, size):
        self.n, self.kind, self.size, self.t = num_envs, kind, size, torch.zeros(num_envs)
        self.done, self.reset_is_real = torch.ones(num_envs) == 0, True
        shape = (2, 2) if kind == "image" else (size,)
        self.observation_space = types.SimpleNamespace(shape=shape)
        bound = 2.0 if kind == "bounds" else 1.0
        self.action_space = types.SimpleNamespace(shape=(2,), low=np.full(2, -bound), high=np.full(2, bound))

    def obs(self):
        obs = torch.zeros(self.n, self.size)
        obs[:, 0], obs[:, 1] = torch.arange(self.n), self.t
        if self.kind == "numpy":
            return {"obs": obs.double().numpy()}
        others = {"bare": obs, "pair": (obs, {}), "narrow": {"obs": obs[:, :1]}, "transposed": obs.T}
        return others.get(self.kind, {"obs": obs})

    def reset(self):
        self.t.zero_()
        self.done[:] = False
        return self.obs()

    def step(self, actions):
        assert actions.shape == (self.n, 2) and actions.dtype == torch.float32
        self.t = torch.where(self.done, torch.zeros_like(self.t), self.t + 1)
        reward, self.done = torch.ones(self.n), self.t == 10
        time_outs = self.done.clone()
        if self.kind == "numpy":
            return self.obs(), reward.double().numpy()[:, None], self.done.numpy(), {"time_outs": time_outs.numpy()}
        if self.kind == "two rewards":
            reward = torch.ones(self.n, 2)
        if self.kind == "gymnasium":
            return self.obs(), reward, self.done, time_outs, {}
        return self.obs(), reward, self.done, {} if self.kind == "no time_outs" else {"time_outs": time_outs}

def make(seed, task, num_envs, sim_device, rl_device, graphics_device_id, headless, kind="plain", size=3):
    return Simulator(num_envs, kind, size)
'''


def parallel(cwd, *flags):
    small = ["--num-envs", "4", "--total-vector-steps", "45", "--random-steps", "5", "--learning-starts", "10"]
    small += ["--batch-size", "8", "--log-frequency", "45", "--buffer-steps", "50", "--checkpoint-frequency", "44"]
    (cwd / "sims.py").write_text(SIMULATOR)
    make = [] if "--evaluate" in flags else ["--make", "sims:make", *small]
    command = [sys.executable, str(PARALLEL), *make, *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["plain", "numpy", "bare", "pair"])
def test_what_a_simulator_returns_is_converted_and_every_step_counts(kind, tmp_path):
    result = parallel(tmp_path, "--make-kwargs", json.dumps({"kind": kind}))
    assert result.returncode == 0, result.stderr
    assert "return 10.0 +- 0.0 of the last 16 episodes" in result.stdout
    (run_dir,) = tmp_path.glob("runs/*")
    paths = sorted(run_dir.glob("replay_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    rows = torch.cat([meow.load_file(path, "", torch.clone) for path in paths]).reshape(-1, 4, 10)
    assert len(rows) == 45 - 4  # each of 4 resets is a step that is not stored
    assert (rows[:, :, 0] == torch.arange(4)).all() and (rows[:, :, 4] == rows[:, :, 1] + 1).all()
    played = parallel(tmp_path, "--evaluate", str(run_dir))
    assert played.stdout.count(": 10.0\n") == 10, played.stderr
    played = parallel(tmp_path, "--evaluate", str(run_dir), "--make-kwargs", '{"size": 5}')
    assert played.returncode == 2 and "--make-kwargs must stay" in played.stderr


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ('{"kind": "no time_outs"}', ["KeyError('time_outs')"]),
        ('{"kind": "gymnasium"}', ["gymnasium_vector:make"]),
        ('{"kind": "image"}', ["unpack"]),
        ('{"kind": "bounds"}', ["[-1,1]"]),
        ('{"kind": "narrow"}', ["observations (4, 1)"]),
        ('{"kind": "transposed"}', ["RuntimeError"]),
        ('{"kind": "two rewards"}', ["RuntimeError"]),
        ('{"wind": 3}', ["wind"]),
        ("kind=plain", ["--make-kwargs kind=plain", "JSONDecodeError"]),
        ("[1]", ["--make-kwargs [1]", "TypeError"]),
    ],
)
def test_a_simulator_that_breaks_the_contract_is_refused_in_one_sentence(kwargs, words, tmp_path):
    result = parallel(tmp_path, "--make-kwargs", kwargs)
    assert_refused(result, "--make sims:make", tmp_path, "make_env says what it must return", *words)
    assert result.stderr.strip().count("\n") == 0


def test_a_parallel_model_does_not_play_in_a_simulator_that_has_changed(tmp_path):
    assert parallel(tmp_path).returncode == 0
    (run_dir,) = tmp_path.glob("runs/*")
    global SIMULATOR
    before, SIMULATOR = SIMULATOR, SIMULATOR.replace("size=3", "size=4")
    result = parallel(tmp_path, "--evaluate", str(run_dir))
    SIMULATOR = before
    assert result.returncode == 2 and "observations and actions as in the run that --evaluate names" in result.stderr
