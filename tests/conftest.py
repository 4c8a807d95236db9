"""Small environments whose transitions can be counted, registered for every test, and the command line in-process."""

import os
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of scripts that tests start: more threads only get in each other's way
torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # also where these tests run in the background, which ignores it


@pytest.fixture(autouse=True, scope="module")
def gpu_for_test_cuda_alone(request):
    """Other tests count a step's calls, which a replayed graph does not make, and hold tensors of the CPU beside it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_cuda.py":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of scripts that tests start
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """script(*flags) is `python meow_continuous_action.py ...` in an empty folder, but, for speed, in this process."""
    import meow_continuous_action as meow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # tyro breaks its sentences to fit the terminal
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["meow_continuous_action.py", *map(str, flags)])
        capfd.readouterr()
        try:
            code = meow.main()
        except SystemExit as stop:
            code = stop.code
        return subprocess.CompletedProcess(flags, code, *capfd.readouterr())

    return call


class CountingEnv(gym.Env):
    """obs = [episode, t, t]: an episode alternates between terminating at t = 7 and running into its time limit of 10.

    `poison` = (what, episode) spoils "obs" (NaN), "reward" (inf) or "overflow" (no float32) at t = 5 of that episode,
    where "quit" ends the process as a game does whose window is closed.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, render_mode=None, action_space=None, observation_space=None, poison=(None, 0)):
        self.action_space = action_space or gym.spaces.Box(-0.4, 0.8, (2,), np.float32)
        self.observation_space = observation_space or CountingEnv.observation_space
        self.render_mode, self.poison = render_mode, poison
        self.episode, self.actions = -1, []

    def observe(self):
        return np.array([self.episode, self.t, self.t], dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe() * (np.nan if self.poison == ("reset", self.episode) else 1), {}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        what = self.poison[0] if (self.t, self.episode) == (5, self.poison[1]) else None
        if what == "quit":
            sys.exit()
        obs = self.observe() * np.nan if what == "obs" else self.observe()
        reward = {"reward": np.inf, "overflow": 1e300}.get(what, float(self.t))
        return obs, reward, self.t == 7 and self.episode % 2 == 0, False, {}


def register(name, **kwargs):
    gym.register(name, entry_point=CountingEnv, max_episode_steps=10, kwargs=kwargs)


register("Counting-v0")
for what in ("obs", "reward", "overflow"):
    register(f"Poisoned-{what}-v0", poison=(what, 1))  # the evaluation at step 0 plays episode 0
register("Poisoned-first-v0", poison=("obs", 0))
register("Poisoned-reset-v0", poison=("reset", 7))  # not at the first contact, which resets six times
register("Quitting-v0", poison=("quit", 8))
register("Discrete-v0", action_space=gym.spaces.Discrete(3))
register("Unbounded-v0", action_space=gym.spaces.Box(-np.inf, np.inf, (2,)))
register("IntegerAction-v0", action_space=gym.spaces.Box(-1, 1, (2,), np.int64))
register("MatrixAction-v0", action_space=gym.spaces.Box(-1, 1, (2, 2)))
register("Image-v0", observation_space=gym.spaces.Box(0, 255, (8, 8, 3), np.uint8))
register("Dict-v0", observation_space=gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (3,))}))
