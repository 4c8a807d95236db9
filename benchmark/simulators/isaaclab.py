"""Isaac Lab's tasks behind the contract of `isaacgymenvs.make`. Written from its public code; NOT TESTED ON HARDWARE.

    python meow_isaacgym.py --make benchmark.simulators.isaaclab:make --task Isaac-Ant

Isaac Lab 3 (Python 3.12, `isaaclab` and `isaaclab_tasks` with an NVIDIA GPU) resets an environment within the step that
ends its episode. Here that step returns the true last observation (`compute_final_obs`). The next step is the first of
the new episode: its action was chosen at the last observation of the old one, so the script drops its transition but
counts its reward. One transition per episode is lost, none is wrong.
"""

import gymnasium
import torch


class IsaacLabVecTask:
    """An Isaac Lab environment with a single "policy" observation, with the interface of isaacgymenvs' VecTask."""

    def __init__(self, env):
        self.env, task = env, env.unwrapped
        self.num_envs = task.num_envs
        self.observation_space = task.single_observation_space["policy"]
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, task.single_action_space.shape)  # theirs is often unbounded
        # manager-based tasks multiply rewards by the step's seconds, which Isaac Gym's and the paper's settings do not
        self.reward_scale = 1 / task.step_dt if hasattr(task, "reward_manager") else 1.0
        self.obs = env.reset()[0]["policy"]

    @property
    def progress_buf(self):
        """Steps of the episodes (N,): 1 after an episode's first step, by which the script counts its reward."""
        return self.env.unwrapped.episode_length_buf

    def reset(self):
        return {"obs": self.obs}

    def step(self, actions):
        obs, reward, terminated, truncated, extras = self.env.step(actions.clamp(-1.0, 1.0))
        self.obs, done = obs["policy"].clone(), terminated | truncated
        if "final_obs" in extras:  # where an environment ended: the observations of all before the resets
            self.obs = torch.where(done[:, None], extras["final_obs"]["policy"], self.obs)
        return {"obs": self.obs}, reward * self.reward_scale, done.long(), {"time_outs": truncated & ~terminated}


def make(seed, task, num_envs, sim_device, rl_device, graphics_device_id=-1, headless=True, cfg=None):
    """As isaacgymenvs.make; `task` is one of Isaac Lab's gymnasium ids. Starts its application, once per process."""
    if str(rl_device) != str(sim_device):
        raise ValueError(f"simulator and learner must share a device, got {sim_device} and {rl_device}")
    from isaaclab.app import AppLauncher

    AppLauncher(headless=headless, device=str(sim_device))
    import isaaclab_tasks  # noqa: F401  registers the tasks; the application must run before
    from isaaclab_tasks.utils import parse_env_cfg

    cfg = cfg or parse_env_cfg(task, device=str(sim_device), num_envs=num_envs)
    if not hasattr(cfg, "compute_final_obs"):
        raise ValueError("this version of Isaac Lab does not return last observations (compute_final_obs)")
    cfg.seed, cfg.compute_final_obs = seed, True
    return IsaacLabVecTask(gymnasium.make(task, cfg=cfg))
