"""Small environments whose transitions can be counted, registered for every test, and the command line in-process."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

os.environ["OMP_NUM_THREADS"] = "1"  # of scripts that tests start: more threads only get in each other's way
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where these tests run in the background


@pytest.fixture(autouse=True, scope="module")
def gpu_for_test_cuda_alone(request):
    """Other tests hold tensors of the CPU beside those of a run."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_cuda.py":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of scripts that tests start
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """script(*flags) is `python meow_continuous_action.py ...` in an empty folder, but, for speed, in this process."""
    import meow_continuous_action

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # tyro breaks its sentences to fit the terminal
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def call(*flags, module=meow_continuous_action):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags)])
        capfd.readouterr()
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = 1
        return subprocess.CompletedProcess(flags, code, *capfd.readouterr())

    return call


def table(run_dir, name="evaluations.csv"):
    with open(run_dir / name) as file:
        return list(csv.DictReader(file))


class CountingEnv(gym.Env):
    """obs = [episode, t, t]: an episode alternates between terminating at t = 7 and running into its time limit of 10.

    `poison` = (what, episode) spoils "obs" (NaN), "reward" (inf) or "overflow" (no float32) at t = 5 of that episode,
    or the first observation ("reset").
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-0.4, 0.8, (2,), np.float32)

    def __init__(self, render_mode=None, poison=(None, 0), **spaces):
        self.render_mode, self.poison = render_mode, poison
        self.episode, self.actions = -1, []
        vars(self).update(spaces)

    def observe(self, spoilt):
        obs = np.array([self.episode, self.t, self.t], dtype=np.float64)
        return obs * np.nan if spoilt else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(self.poison == ("reset", self.episode)), {}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        what, episode = self.poison
        if (self.t, self.episode) != (5, episode):
            what = None
        reward = {"reward": np.inf, "overflow": 1e300}.get(what, float(self.t))
        terminated = self.t == 7 and self.episode % 2 == 0
        return self.observe(what == "obs"), reward, terminated, False, {}


def register(name, **kwargs):
    gym.register(name, entry_point=CountingEnv, max_episode_steps=10, kwargs=kwargs)


register("Counting-v0")
for what in ("obs", "reward", "overflow"):
    register(f"Poisoned-{what}-v0", poison=(what, 1))  # the evaluation at step 0 plays episode 0
register("Poisoned-first-v0", poison=("obs", 0))
register("Poisoned-reset-v0", poison=("reset", 7))  # not at the first contact, which resets six times
register("Discrete-v0", action_space=gym.spaces.Discrete(3))
register("Unbounded-v0", action_space=Box(-np.inf, np.inf, (2,)))
register("IntegerAction-v0", action_space=Box(-1, 1, (2,), np.int64))
register("MatrixAction-v0", action_space=Box(-1, 1, (2, 2)))
register("Image-v0", observation_space=Box(0, 255, (8, 8, 3), np.uint8))


class Count(gym.Env):
    """Observation [steps of the episode, 0]; reward 1. `kind` says what is odd about it.
    `raises` ends the 30th step of an instance."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space, action_space = Box(-9, 9999, (2,), np.float32), Box(-1, 1, (1,))
    resets, t, steps, alive = 0, 0, 0, Counter()

    def __init__(self, kind="plain", raises=None, render_mode=None):
        self.kind, self.raises, self.render_mode = kind, raises, render_mode
        self.memory, self.number = np.zeros(2), Count.alive[kind] if kind == "numbered" else 0
        self.world = Count if kind == "shared world" else self
        if kind == "dict":
            self.observation_space = gym.spaces.Dict(x=self.observation_space)
        if kind == "constructor":
            raise OSError("the data set is missing")
        if kind == "quits":
            sys.exit(0)
        if Count.alive[kind] >= {"only one": 1, "only two": 2}.get(kind, 99):
            raise RuntimeError("the robot is in use")
        if kind == "folder":
            os.chdir(tempfile.mkdtemp())
        if kind == "default type":
            torch.set_default_dtype(torch.float64)
        if kind == "gradients":
            torch.set_grad_enabled(False)
        if kind in ("thread", "child"):
            context = multiprocessing.get_context("fork") if kind == "child" else threading
            make = context.Process if kind == "child" else context.Thread
            event = context.Event()
            self.stop, self.helper = event.set, make(target=event.wait, args=(200,))
            self.helper.start()
        Count.alive[kind] += 1

    def close(self):
        Count.alive[self.kind] -= 1
        if self.kind in ("thread", "child"):
            self.stop()
            self.helper.join()

    def observation(self):
        if self.kind == "noise":  # as no environment should
            return np.random.standard_normal(2).astype(np.float32)
        numbers = [self.world.t, self.resets if self.kind == "unseeded" else self.number]
        self.memory[:] = numbers
        if self.kind == "list of integers at reset" and self.t == 0:
            return numbers
        kinds = {"memory": self.memory, "row": np.array([numbers]), "tensor": torch.tensor(numbers)}
        kinds |= {"short": [self.t], "dict": {"x": self.memory}}
        return kinds.get(self.kind, np.array(numbers, np.float32))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.world.t, self.resets = 0, self.resets + 1
        return self.observation() if self.kind == "old reset" else (self.observation(), {})

    def step(self, action):
        self.world.t, self.steps = self.world.t + 1, self.steps + 1
        if self.raises is not None and self.steps == 30:
            raise self.raises()
        reward, terminated, info = 1.0, False, {}
        if self.kind == "array reward":
            reward, terminated = np.array([1.0]), np.array([False])
        elif self.kind == "curriculum":
            reward = float(self.resets)
        elif self.kind == "money":
            reward = 1e25
        elif self.kind == "no flag":
            terminated = None
        elif self.kind == "success":
            info = {"is_success": self.resets % 4 == 1, "success": self.t == 1}
        if self.kind == "old step":
            return self.observation(), reward, terminated, info
        return self.observation(), reward, terminated, False, info

    def render(self):
        if self.kind != "film":
            raise NotImplementedError
        return np.full((16, 16, 3), self.t % 250, np.uint8)


def count(kind="plain", limit=7, raises=None):
    """Registers a Count, with a time limit; its id."""
    name = f"Count-{kind}-{limit}-{raises and raises.__name__}-v0".replace(" ", "-")
    gym.register(name, Count, max_episode_steps=limit, kwargs={"kind": kind, "raises": raises})
    return name


gym.register("Normalized-v0", lambda **kwargs: gym.wrappers.NormalizeObservation(Count(**kwargs)), max_episode_steps=7)


# Also for scripts that tests start
count("thread")
count("child", raises=ZeroDivisionError)
