"""A stand-in for isaacgymenvs: every clause of the contract of `make`, with dynamics that can be counted.

The observation is [environment, episode, t, first action given]; a step's reward is 1000 * environment + t + 0.5.
Episodes with environment + episode even end by falling at t = 7; environment 3's episode 2 falls at its very last step.
The others run into the time limit. Task "Ant" resets after the physics, so its first observation has t = 0 and the
action is discarded; task "AllegroHand" resets before, so its first has t = 1.
"""

import types

import isaacgym  # noqa: F401
import torch

__version__ = "stand-in"
made = []


class VecTask:
    max_episode_length = 11

    def __init__(self, task, num_envs, device):
        self.task, self.num_envs = task, num_envs
        self.observation_space, self.action_space = types.SimpleNamespace(shape=(4,)), types.SimpleNamespace(shape=(2,))
        self.obs_buf = torch.zeros(num_envs, 4, device=device)
        self.rew_buf = torch.zeros(num_envs, device=device)
        self.reset_buf = torch.ones(num_envs, dtype=torch.int64, device=device)
        self.progress_buf = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.episode = torch.full((num_envs,), -1, device=device)
        self.index = torch.arange(num_envs, device=device)
        self.obs_dict, self.extras = {"obs": torch.zeros_like(self.obs_buf)}, {}

    def get_state(self):
        """Privileged observations, as the real one's: not the simulator's state."""
        return torch.zeros(self.num_envs, 0)

    def reset(self):
        self.obs_dict["obs"] = self.obs_buf.clamp(-5e6, 5e6)
        return self.obs_dict

    def reset_idx(self):
        again = self.reset_buf == 1
        self.episode[again] += 1
        self.progress_buf[again] = 0
        self.reset_buf[again] = 0

    def step(self, actions):
        given = actions.clamp(-1.0, 1.0)
        if self.task == "AllegroHand":
            self.reset_idx()
        self.progress_buf += 1
        if self.task == "Ant":
            self.reset_idx()
        t = self.progress_buf
        self.obs_buf.copy_(torch.stack([self.index.float(), self.episode.float(), t.float(), given[:, 0]], dim=1))
        self.rew_buf.copy_(1000 * self.index + t + 0.5)
        last = t >= self.max_episode_length - 1
        falls = ((self.index + self.episode) % 2 == 0) & (t == 7) | (self.index == 3) & (self.episode == 2) & last
        self.reset_buf.copy_(falls | last)
        self.extras["time_outs"] = last & (self.reset_buf != 0)
        self.obs_dict["obs"] = self.obs_buf.clamp(-5e6, 5e6) if self.task == "AllegroHand" else self.obs_buf
        return self.obs_dict, self.rew_buf, self.reset_buf, self.extras


def make(
    seed,
    task,
    num_envs,
    sim_device,
    rl_device,
    graphics_device_id=-1,
    headless=False,
    multi_gpu=False,
    virtual_screen_capture=False,
    force_render=True,
    cfg=None,
):
    if not headless or graphics_device_id != -1:
        raise RuntimeError("a viewer cannot be opened here")
    if made:
        raise RuntimeError("one simulation per process")
    if task not in ("Ant", "AllegroHand"):
        print("*** Failed to create sim")
        quit()
    made.append(task)
    return VecTask(task, num_envs, rl_device)
