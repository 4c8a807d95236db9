"""A stand-in for isaacgymenvs: what `make`, `VecTask` and the six tasks do, with dynamics that can be counted.

The observation is [environment, episode, t, first action given]; a step's reward is 1000 * environment + t + 0.5.
Episodes with environment + episode even end by falling at t = 7; environment 3's episode 2 falls at its very last step.
The others run into the time limit. What differs between the tasks is the step that resets:

Ant, Humanoid   reset after the physics, so that the action is lost; the first observation has t = 0
FrankaCabinet   likewise, but the reward is still that of the pose before the reset
Anymal          likewise, but the contacts are still those before the reset: after a fall it is done twice running
AllegroHand     resets before the physics, which takes the action: the first observation has t = 1
Ingenuity       likewise, without the action; `make` writes and reads files relative to the current folder
"""

import os
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
        self.contact = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.index = torch.arange(num_envs, device=device)
        self.obs_dict, self.extras = {"obs": torch.zeros_like(self.obs_buf)}, {}

    def get_state(self):
        """Privileged observations, as the real one's: not the simulator's state."""
        return torch.zeros(self.num_envs, 0)

    def reset(self):
        self.obs_dict["obs"] = self.obs_buf.clamp(-5e6, 5e6)
        return self.obs_dict

    def reset_idx(self, again):
        self.episode[again & ~self.contact] += 1
        self.progress_buf[again] = 0
        self.reset_buf[again] = 0

    def step(self, actions):
        given, again = actions.clamp(-1.0, 1.0)[:, 0], self.reset_buf == 1
        before_physics = self.task in ("AllegroHand", "Ingenuity")
        if before_physics:
            self.reset_idx(again)
        if self.task == "Ingenuity":
            given = given * ~again
        self.progress_buf += 1
        rewarded = t = self.progress_buf
        if self.task == "FrankaCabinet":
            rewarded = t.clone()
        if not before_physics:
            self.reset_idx(again)
        obs = torch.stack([self.index.float(), self.episode.float(), t.float(), given], dim=1)
        if self.task == "FrankaCabinet":
            self.obs_buf = obs  # a new tensor, where the other tasks write over the last one
        else:
            self.obs_buf.copy_(obs)
        self.rew_buf.copy_(1000 * self.index + rewarded + 0.5)
        last = t >= self.max_episode_length - 1
        falls = ((self.index + self.episode) % 2 == 0) & (t == 7) | (self.index == 3) & (self.episode == 2) & last
        self.reset_buf.copy_(falls | last | self.contact)
        if self.task == "Anymal":
            self.contact = falls
        self.extras["time_outs"] = last & (self.reset_buf != 0)
        live = self.task in ("Ant", "Humanoid")  # harder than the real ones, whose observations are copies
        self.obs_dict["obs"] = self.obs_buf if live else self.obs_buf.clamp(-5e6, 5e6)
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
    if task not in ("Ant", "Humanoid", "FrankaCabinet", "Anymal", "AllegroHand", "Ingenuity"):
        print("*** Failed to create sim")
        quit()
    if task == "Ingenuity":
        with open("ingenuity.xml", "w") as file:
            file.write("../assets/glb/ingenuity/chassis.glb")
        os.stat("../assets/glb/ingenuity/chassis.glb")
    made.append(task)
    return VecTask(task, num_envs, rl_device)
