"""Any gymnasium environment with 1-D Boxes for observations and actions, many at a time, for meow_isaacgym.py.

    python meow_isaacgym.py --make benchmark.simulators.gymnasium_vector:make --task Pendulum-v1
    ... --task PACKAGE:ID --make-kwargs '{"vectorization_mode": "async", "frame_skip": 2}'

One process steps all environments in turn; vectorization_mode "async" takes one process per environment, and
"vector_entry_point" the vector environment that an id brings itself. Other arguments go to the environment. There is
no get_state: what a gymnasium environment holds is its own affair, so a resumed run begins new episodes.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode


class GymnasiumVecTask:
    """A gymnasium vector environment with the interface of isaacgymenvs' VecTask, but reset() begins an episode."""

    reset_is_real = True

    def __init__(self, env, seed, device):
        self.env, self.num_envs, self.seed, self.device = env, env.num_envs, seed, device
        self.observation_space, self.bounds = env.single_observation_space, env.single_action_space
        self.action_space = Box(-1.0, 1.0, self.bounds.shape)

    def reset(self):
        seed, self.seed = self.seed, None  # only once, or each call would repeat the same episodes
        return {"obs": self.tensor(self.env.reset(seed=seed)[0])}

    def step(self, actions):
        low, high = self.bounds.low, self.bounds.high
        actions = low + (actions.double().cpu().numpy() + 1) / 2 * (high - low)
        actions = np.clip(actions.astype(self.bounds.dtype), low, high)  # the last: rounding may leave the bounds
        obs, reward, terminated, truncated, _ = self.env.step(actions)
        done, time_outs = terminated | truncated, truncated & ~terminated
        extras = {"time_outs": self.tensor(time_outs, torch.bool)}
        return {"obs": self.tensor(obs)}, self.tensor(reward), self.tensor(done, torch.bool), extras

    def close(self):
        self.env.close()

    def tensor(self, values, dtype=torch.float32):
        """A copy, for environments reuse their arrays."""
        return torch.tensor(values, dtype=dtype, device=self.device)


def make(seed, task, num_envs, sim_device, rl_device, graphics_device_id=-1, headless=True, **kwargs):
    """As isaacgymenvs.make, of whose arguments `seed`, `task`, `num_envs` and `rl_device` count here.

    Raises ValueError for an environment that does not fit.
    """
    env = gymnasium.make_vec(task, num_envs, **{"vectorization_mode": "sync", **kwargs})
    obs, act, mode = env.single_observation_space, env.single_action_space, env.metadata.get("autoreset_mode")
    for space in (obs, act):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(f"observations and actions must be 1-D Boxes, not {obs} and {act}")
    if not np.issubdtype(act.dtype, np.floating) or not act.is_bounded("both"):
        raise ValueError(f"actions must be bounded floats, not {act}")
    if mode != AutoresetMode.NEXT_STEP:
        raise ValueError(f"an environment that is done must reset in the next step, not {mode}")
    return GymnasiumVecTask(env, seed, rl_device)
