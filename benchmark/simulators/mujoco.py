"""Ant and Humanoid on MuJoCo's thread pool, many at a time, behind the contract of `isaacgymenvs.make`.

    python meow_isaacgym.py --make benchmark.simulators.mujoco:make --task AntMujoco

Bodies are gymnasium's bundled models; observations, reward terms, reset rules and the delayed auto-reset are those of
Isaac Gym's tasks of these names (`Task`), and so are Ant's motors, joints and friction (`adapt_ant`). The physics is
MuJoCo's, and so are Humanoid's masses and joints: returns do not compare with Isaac Gym's. What differs from Isaac's
observations: no force sensors (Ant: 24 of its 60 numbers, Humanoid: 12 of 108), no joint forces (Humanoid: 21),
17 joints instead of Humanoid's 21, and angles always in [-pi, pi].
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
CONTROL_SECONDS = 1 / 60


@dataclass
class Task:
    """A task's numbers: Isaac's (its compute_*_reward and configuration files), the height at reset the bodies' own."""

    model: str
    height: float  # of the torso at reset, m
    fallen_height: float  # an episode ends below, m
    death_cost: float
    alive_reward: float
    actions_cost: float
    joints_at_limit_cost: float
    joint_limit: float  # share of a joint's range at which it is at its limit
    limit_cost_grows: bool  # with the distance past that limit, and weighted by the motors' strength
    angular_velocity_scale: float
    joint_velocity_scale: float
    substeps: int
    adapt: Callable[[mujoco.MjModel], None] = lambda model: None  # what else makes the model Isaac's
    heading_weight: float = 0.5
    up_weight: float = 0.1
    energy_cost: float = 0.05
    max_episode_length: int = 1000


def adapt_ant(model):
    """Gives gymnasium's Ant the motors, joints and friction of Isaac's nv_ant.xml; shapes and masses are the same.

    Its own rotor inertia, 1 kg m^2 per joint, is about a hundred times the leg's: Isaac's motors could hardly move it.
    """
    model.actuator_gear[:, 0] = 15.0
    model.dof_armature[6:], model.dof_damping[6:] = 0.01, 0.1
    model.geom_friction[:] = 1.5, 0.1, 0.1
    for joint in range(1, model.njnt):
        low, high = model.jnt_range[joint]
        is_hip = low < 0 < high
        model.jnt_range[joint] = np.radians([-40, 40] if is_hip else [30, 100] if low > 0 else [-100, -30])


TASKS = {
    "AntMujoco": Task("ant.xml", 0.55, 0.31, -2.0, 0.5, 0.005, 0.1, 0.99, False, 1.0, 0.2, substeps=2, adapt=adapt_ant),
    "HumanoidMujoco": Task("humanoid.xml", 1.4, 0.8, -1.0, 2.0, 0.01, 0.25, 0.98, True, 0.25, 0.1, substeps=4),
}


class ThreadPoolPhysics:
    """MuJoCo on CPU threads, as many as PyTorch has: (qpos, qvel, ctrl) of N worlds -> (qpos, qvel), float64 tensors.

    Every call starts the solver cold, so its result depends on its arguments alone.
    """

    def __init__(self, model, substeps):
        threads = torch.get_num_threads()
        self.model, self.substeps = model, substeps
        self.data = [mujoco.MjData(model) for _ in range(threads)]
        self.pool = Rollout(nthread=threads if threads > 1 else 0)

    def step(self, qpos, qvel, ctrl):
        state = np.concatenate([np.zeros((len(qpos), 1)), qpos, qvel], axis=1)  # time, qpos, qvel
        ctrl = np.repeat(ctrl.double().numpy()[:, None], self.substeps, axis=1)
        states, _ = self.pool.rollout(self.model, self.data, state, ctrl)
        last = torch.from_numpy(states[:, -1])
        return last[:, 1 : 1 + qpos.shape[1]], last[:, 1 + qpos.shape[1] :]


def rotate_inverse(quat, vector):
    """A vector (N, 3) of the world in the frame that the unit quaternion (N, 4), w first, turns."""
    w, xyz = quat[:, :1], -quat[:, 1:]
    cross = torch.linalg.cross(xyz, vector)
    return vector + 2 * (w * cross + torch.linalg.cross(xyz, cross))


class MujocoVecTask:
    """N worlds of a Task, with the interface of isaacgymenvs' VecTask; physics on the CPU, what it returns on `device`.

    step: actions (N, A), clamped to [-1,1] -> {"obs": (N, S)}, reward (N,), done int64 (N,), {"time_outs": bool (N,)},
    all of them the task's own memory, overwritten by the next step. An environment that is done resets in the next
    step, after the physics and before the observation: its action is discarded. reset() resets nothing; it returns
    the current observation, zeros before the first step.
    """

    def __init__(self, task, num_envs, seed, device):
        model = mujoco.MjModel.from_xml_path(str(ASSETS / task.model))
        model.opt.timestep = CONTROL_SECONDS / task.substeps
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self.control_scale = torch.tensor(model.actuator_ctrlrange[:, 1])
        task.adapt(model)
        strength = model.actuator_gear[:, 0] * model.actuator_ctrlrange[:, 1]
        self.strength = torch.tensor(strength / strength.max(), dtype=torch.float32)
        self.task, self.model, self.num_envs = task, model, num_envs
        self.physics = ThreadPoolPhysics(model, task.substeps)
        self.generator = torch.Generator().manual_seed(seed)

        joints = model.actuator_trnid[:, 0]  # in the motors' order
        self.q_index, self.v_index = torch.tensor(model.jnt_qposadr[joints]), torch.tensor(model.jnt_dofadr[joints])
        self.low, self.high = torch.tensor(model.jnt_range[joints]).T
        self.first_q = torch.zeros(model.nq, dtype=torch.float64)
        self.first_q[2], self.first_q[3] = task.height, 1.0
        self.first_q[self.q_index] = torch.zeros(model.nu, dtype=torch.float64).clamp(self.low, self.high)

        self.qpos = self.first_q.repeat(num_envs, 1)
        self.qvel = torch.zeros(num_envs, model.nv, dtype=torch.float64)
        self.actions = torch.zeros(num_envs, model.nu)
        self.progress = torch.zeros(num_envs, dtype=torch.int64)
        self.done = torch.ones(num_envs, dtype=torch.int64)  # so the first step resets all
        self.reward, self.obs = torch.zeros(num_envs), torch.zeros(num_envs, 12 + 3 * model.nu)
        self.time_outs = torch.zeros(num_envs, dtype=torch.bool)
        self.returned = [x.to(device, copy=True) for x in (self.obs, self.reward, self.done, self.time_outs)]
        self.obs_dict, self.extras = {"obs": self.returned[0]}, {"time_outs": self.returned[3]}
        self.observation_space = SimpleNamespace(shape=(self.obs.shape[1],))
        self.action_space = SimpleNamespace(shape=(model.nu,))

    def reset(self):
        return self.obs_dict

    def reset_idx(self, which):
        """Puts the worlds of a mask (N,) at their start, joints at random near it (Isaac's reset_idx)."""
        shape = (self.num_envs, self.model.nu)  # drawn for all, so that a draw's size never varies
        position, velocity = (
            2 * torch.rand(shape, generator=self.generator, dtype=torch.float64) - 1 for _ in range(2)
        )
        qpos, qvel = self.first_q.repeat(self.num_envs, 1), torch.zeros_like(self.qvel)
        qpos[:, self.q_index] = (qpos[:, self.q_index] + 0.2 * position).clamp(self.low, self.high)
        qvel[:, self.v_index] = 0.1 * velocity
        self.qpos = torch.where(which[:, None], qpos, self.qpos)
        self.qvel = torch.where(which[:, None], qvel, self.qvel)
        self.progress.masked_fill_(which, 0)

    def step(self, actions):
        self.actions.copy_(actions).clamp_(-1.0, 1.0)
        before = self.qpos[:, 0].clone()
        self.qpos, self.qvel = self.physics.step(self.qpos, self.qvel, self.actions * self.control_scale)
        self.progress += 1
        resets = self.done.bool()
        self.reset_idx(resets)
        advance = torch.where(resets, 0.0, self.qpos[:, 0] - before)  # towards a target far ahead on the x axis
        self.obs.copy_(self.observations())
        fallen = self.obs[:, 0] < self.task.fallen_height
        last = self.progress >= self.task.max_episode_length - 1
        self.reward.copy_(torch.where(fallen, self.task.death_cost, self.rewards(advance / CONTROL_SECONDS)))
        self.done.copy_(fallen | last)
        self.time_outs.copy_(last)
        for memory, value in zip(self.returned, (self.obs, self.reward, self.done, self.time_outs), strict=True):
            memory.copy_(value)
        return self.obs_dict, self.returned[1], self.returned[2], self.extras

    def observations(self):
        """Height, velocity and turning in the torso's frame, yaw, roll, target's angle, up, heading, joints, action."""
        quat = self.qpos[:, 3:7]
        w, x, y, z = quat.unbind(1)
        roll = torch.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        yaw = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        up = 1 - 2 * (x * x + y * y)  # the torso's z axis on the world's
        heading = 1 - 2 * (y * y + z * z)  # its x axis on the target's direction
        velocity = rotate_inverse(quat, self.qvel[:, :3])
        turning = self.task.angular_velocity_scale * self.qvel[:, 3:6]  # MuJoCo keeps it in the torso's frame
        position = (2 * self.qpos[:, self.q_index] - self.high - self.low) / (self.high - self.low)
        speed = self.task.joint_velocity_scale * self.qvel[:, self.v_index]
        scalars = torch.stack([yaw, roll, -yaw, up, heading], dim=1)
        return torch.cat([self.qpos[:, 2:3], velocity, turning, scalars, position, speed, self.actions], dim=1)

    def rewards(self, velocity):
        """Isaac's reward of a world that has not fallen, from the speed towards the target, m/s: (N,) -> (N,)."""
        task, joints = self.task, self.model.nu
        up, heading = self.obs[:, 10], self.obs[:, 11]
        position, speed = self.obs[:, 12 : 12 + joints], self.obs[:, 12 + joints : 12 + 2 * joints]
        strength = self.strength if task.limit_cost_grows else torch.ones_like(self.strength)
        heading_reward = torch.where(heading > 0.8, task.heading_weight, task.heading_weight * heading / 0.8)
        electricity = ((self.actions * speed).abs() * strength).sum(dim=1)
        if task.limit_cost_grows:
            past = (position.abs() - task.joint_limit).clamp(min=0) / (1 - task.joint_limit)
            at_limit = (past * strength).sum(dim=1)
        else:
            at_limit = (position > task.joint_limit).float().sum(dim=1)
        return (
            velocity
            + task.alive_reward
            + task.up_weight * (up > 0.93)
            + heading_reward
            - task.actions_cost * self.actions.square().sum(dim=1)
            - task.energy_cost * electricity
            - task.joints_at_limit_cost * at_limit
        ).float()

    def get_state(self):
        """All that decides the future, as tensors: with it a run resumes bit for bit."""
        names = ("qpos", "qvel", "progress", "done")
        return {"stream": self.generator.get_state(), **{name: getattr(self, name).clone() for name in names}}

    def set_state(self, state):
        """Puts a state of `get_state` in place."""
        self.generator.set_state(state["stream"])
        for name in state.keys() - {"stream"}:
            getattr(self, name).copy_(state[name])


def make(seed, task, num_envs, sim_device, rl_device, graphics_device_id=-1, headless=True):
    """As isaacgymenvs.make, of whose arguments `seed`, `task`, `num_envs` and `rl_device` count here.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"{task} is not one of {', '.join(TASKS)}")
    return MujocoVecTask(TASKS[task], num_envs, seed, rl_device)
