"""What users bring: environments and simulators of every kind train as they should or are refused in one sentence."""

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_cli import SCRIPT, assert_refused

import meow_continuous_action as meow

PARALLEL = SCRIPT.parent / "meow_isaacgym.py"
SHORT = ["--total-timesteps", "60", "--learning-starts", "40", "--eval-frequency", "60", "--eval-episodes", "2"]
SHORT += ["--batch-size", "8", "--buffer-size", "100"]


class Count(gym.Env):
    """Observation [steps of the episode, number of the episode]; reward 1. `kind` says how it returns them."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space, action_space = gym.spaces.Box(-9, 999, (2,), np.float32), gym.spaces.Box(-1, 1, (1,))
    episode = -1

    def __init__(self, kind="plain", render_mode=None):
        self.kind, self.render_mode, self.memory = kind, render_mode, np.zeros(2)
        if kind == "larger":
            self.observation_space = gym.spaces.Box(-9, 999, (3,), np.float32)
        if kind == "dict":
            self.observation_space = gym.spaces.Dict(x=gym.spaces.Box(-9, 999, (2,)))
        if kind == "constructor":
            raise OSError("the data set is missing")
        if kind == "quits":
            sys.exit(0)

    def observation(self):
        numbers = [self.t, self.episode]
        self.memory[:] = numbers
        if self.kind == "list of integers at reset" and self.t == 0:
            return numbers
        kinds = {"memory": self.memory, "row": np.array([numbers]), "tensor": torch.tensor(numbers), "short": [self.t]}
        kinds |= {"larger": np.array([*numbers, 0]), "dict": {"x": self.memory}}
        return kinds.get(self.kind, np.array(numbers, np.float32))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, 0 if seed is not None and self.kind != "unseeded" else self.episode + 1
        return self.observation() if self.kind == "old reset" else (self.observation(), {})

    def step(self, action):
        self.t += 1
        kinds = {"array reward": (np.array([1.0]), np.array([False])), "no flag": (1.0, None)}
        reward, ends = kinds.get(self.kind, (1.0, False))
        return (self.observation(), reward, ends, *([] if self.kind == "old step" else [False]), {})


gym.register("Count-v0", Count, max_episode_steps=7)
gym.register("CountForever-v0", Count)


def count(kind, limited=True):
    """Registers a Count of this kind; its id."""
    name = "Count" + kind.title().replace(" ", "") + ("" if limited else "Forever") + "-v0"
    gym.register(name, Count, max_episode_steps=7 if limited else None, kwargs={"kind": kind})
    return name


# One process, one environment


@pytest.mark.parametrize("kind", ["plain", "memory", "list of integers at reset", "row", "tensor", "array reward"])
@pytest.mark.filterwarnings("ignore")
def test_however_an_environment_returns_its_numbers_they_are_stored_as_they_were(kind, script):
    assert script("--env-id", count(kind), *SHORT).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    (path,) = run_dir.glob("replay_*.pt")
    obs, next_obs, reward = np.split(
        meow.load_file(path, "", lambda file: file["rows"].numpy()[:, [0, 1, 2, 3, 5]]), [2, 4], 1
    )
    assert obs[:, 0].tolist() == [t % 7 for t in range(60)] and (next_obs - obs == [1, 0]).all() and (reward == 1).all()
    with open(run_dir / "evaluations.csv") as file:
        assert {row["mean"] for row in csv.DictReader(file)} == {"7.0"}


@pytest.mark.parametrize(
    "kind, words",
    [
        ("short", ["cannot reshape"]),
        ("old reset", ["must work here"]),
        ("old step", ["must work here"]),
        ("no flag", ["NoneType"]),
        ("constructor", ["OSError: the data set is missing"]),
        ("quits", ["SystemExit"]),
        ("dict", ["1-D Box", "MY_MODULE.py", "FlattenObservation"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_does_not_work_is_refused_in_one_sentence(kind, words, script, tmp_path):
    assert_refused(script("--env-id", count(kind), *SHORT), "--env-id", tmp_path, *words)


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
    result = script("--env-id", count("plain", limited=False), *SHORT, "--eval-max-steps", "25")
    assert result.returncode == 0 and "has no time limit" in result.stdout and "--eval-max-steps 25" in result.stdout
    assert result.stdout.count("eval return 25.0") == 2
    (run_dir,) = Path("runs").iterdir()
    assert "episode 0: 30.0" in script("--evaluate", run_dir, "--eval-max-steps", "30").stdout
    assert "time limit" not in script("--env-id", count("plain"), *SHORT).stdout


def test_a_seed_that_an_environment_does_not_honour_is_told(script):
    told = "does not repeat after reset(seed=...)"
    assert told in script("--env-id", count("unseeded"), *SHORT).stdout
    assert told in script("--env-id", "BipedalWalker-v3", *SHORT).stdout  # its third episode differs
    assert told not in script("--env-id", "Pendulum-v1", *SHORT).stdout


def test_a_model_does_not_play_in_an_environment_that_has_changed(script):
    name = count("plain")
    assert script("--env-id", name, *SHORT).returncode == 0
    (run_dir,) = Path("runs").iterdir()
    gym.registry[name].kwargs["kind"] = "larger"
    result = script("--evaluate", run_dir)
    assert result.returncode == 2 and "must have (2, 1) observations and actions" in result.stderr
    assert "(3, 1)" in result.stderr


def test_an_environment_without_pictures_is_not_filmed(script, tmp_path):
    result = script("--env-id", count("plain"), *SHORT, "--capture-video")
    assert_refused(result, "--capture-video", tmp_path, "NotImplementedError")


def test_the_least_of_the_memory_limits_counts(tmp_path, monkeypatch):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9))

    command = [sys.executable, str(SCRIPT), "--env-id", "Hopper-v4", "--buffer-size", "40000000"]  # 4.3 GB
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert_refused(result, "--buffer-size", tmp_path, "it needs 4.3 GB")

    cpu = torch.device("cpu")
    monkeypatch.setattr(meow, "Path", lambda *parts: Path(str(tmp_path) + os.path.join(*map(str, parts))))
    for line, file in [
        ("0::/user/job", "sys/fs/cgroup/user/memory.max"),
        ("4:memory:/docker/1", "sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ]:
        for path, text in [("proc/self/cgroup", f"9:cpu:/\n{line}\n"), (file, "max\n")]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        meow.check_memory("--buffer-size", 10**7, 10, cpu)
        (tmp_path / file).write_text("300000000\n")
        with pytest.raises(meow.UsageError, match="--buffer-size must fit in memory: it needs 0.4 GB"):
            meow.check_memory("--buffer-size", 10**7, 10, cpu)
        (tmp_path / file).unlink()


def test_a_compile_cache_that_cannot_be_made_means_eager_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    flags = [
        "--env-id",
        "Pendulum-v1",
        "--total-timesteps",
        "20000",
        "--learning-starts",
        "19950",
        "--eval-episodes",
        "1",
    ]
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], cwd=tmp_path, env=env, capture_output=True, text=True
    )
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
    small += ["--batch-size", "8", "--log-frequency", "45", "--buffer-steps", "50"]
    (cwd / "sims.py").write_text(SIMULATOR)
    command = [
        sys.executable,
        str(PARALLEL),
        *(["--make", "sims:make", *small] if "--evaluate" not in flags else []),
        *flags,
    ]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["plain", "numpy", "bare", "pair"])
def test_what_a_simulator_returns_is_converted_and_every_step_counts(kind, tmp_path):
    result = parallel(tmp_path, "--make-kwargs", json.dumps({"kind": kind}))
    assert result.returncode == 0, result.stderr
    assert "return 10.0 +- 0.0 of the last 16 episodes" in result.stdout
    (run_dir,) = tmp_path.glob("runs/*")
    (path,) = run_dir.glob("replay_*.pt")
    rows = meow.load_file(path, "", lambda file: file["rows"].reshape(-1, 4, 10))  # in the order of the environments
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
