"""benchmark/simulators/mujoco.py against MuJoCo's own functions and Isaac's contract."""

from contextlib import ExitStack

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

import meow_isaacgym
from benchmark.simulators.isaaclab import IsaacLabVecTask
from benchmark.simulators.mujoco import make

BOTH = ["AntMujoco", "HumanoidMujoco"]


def make_task(task, num_envs=4, seed=1):
    torch.manual_seed(seed)
    return make(seed=seed, task=task, num_envs=num_envs, sim_device="cpu", rl_device="cpu", headless=True)


def random_actions(env):
    return 2 * torch.rand(env.num_envs, env.action_space.shape[0]) - 1


@pytest.mark.parametrize("task, obs_dim, act_dim", [("AntMujoco", 36, 8), ("HumanoidMujoco", 63, 17)])
def test_the_contract_of_a_vec_task(task, obs_dim, act_dim):
    env = make_task(task)
    first = env.reset()
    assert env.action_space.shape == (act_dim,) and torch.equal(first["obs"], torch.zeros(4, obs_dim))
    assert env.observation_space.shape == (obs_dim,)
    previous, longest, lengths = torch.ones(4, dtype=torch.bool), 0, torch.zeros(4)
    for _ in range(1200):
        obs_dict, reward, done, extras = env.step(3 * random_actions(env))
        assert obs_dict is first and extras is env.extras and done.dtype == torch.int64  # the task's own memory
        assert obs_dict["obs"].isfinite().all() and reward.isfinite().all()
        assert obs_dict["obs"][:, -act_dim:].abs().max() <= 1  # clamped actions
        height = obs_dict["obs"][:, 0]
        fallen = height < env.task.fallen_height
        assert torch.equal(done.bool(), fallen | extras["time_outs"]) and (reward[fallen] == env.task.death_cost).all()
        started = reward[previous] - env.task.alive_reward  # being put back to the start is no progress
        assert ((started > -2) & (started <= 0.6001)).all()
        lengths = (lengths + 1) * ~previous
        assert (height[previous] - env.task.height).abs().le(1e-6).all() and not done[previous].any()
        assert torch.equal(extras["time_outs"], lengths == env.task.max_episode_length - 1)
        longest = max([longest, *lengths[done.bool()].tolist()])
        previous = done.bool()
    assert 0 < longest <= 999


def test_ant_has_isaacs_joints_and_they_move():
    """nv_ant.xml of isaacgymenvs; with the rotor inertia of gymnasium's body no joint is faster than 2 rad/s."""
    env = make_task("AntMujoco", num_envs=16)
    for i, ankle in enumerate(([30, 100], [-100, -30], [-100, -30], [30, 100])):
        for name, degrees in ((f"hip_{i + 1}", [-40, 40]), (f"ankle_{i + 1}", ankle)):
            np.testing.assert_allclose(np.degrees(env.model.joint(name).range), degrees)
    assert (env.model.dof_armature[6:] == 0.01).all() and (env.model.dof_damping[6:] == 0.1).all()
    fastest = 0.0
    for _ in range(100):
        env.step(random_actions(env))
        fastest = max(fastest, env.qvel[:, 6:].abs().max().item())
    assert 10 < fastest < 100


@pytest.mark.parametrize("task", BOTH)
def test_observations_agree_with_mujocos_own_frames(task):
    env = make_task(task)
    for _ in range(15):
        obs = env.step(random_actions(env))[0]["obs"].numpy().astype(float)
    data, nu, torso = mujoco.MjData(env.model), env.model.nu, env.model.body("torso").id
    for i in range(4):
        data.qpos[:], data.qvel[:] = env.qpos[i], env.qvel[i]
        mujoco.mj_forward(env.model, data)
        frame = data.xmat[torso].reshape(3, 3)
        velocity = np.zeros(6)  # turning, then velocity, in the torso's frame, at its origin
        mujoco.mj_objectVelocity(env.model, data, mujoco.mjtObj.mjOBJ_XBODY, torso, velocity, 1)
        assert obs[i, 0] == pytest.approx(data.xpos[torso, 2], abs=1e-5)
        np.testing.assert_allclose(obs[i, 1:4], velocity[3:], atol=1e-4)
        np.testing.assert_allclose(obs[i, 4:7], env.task.angular_velocity_scale * velocity[:3], atol=1e-4)
        yaw, roll = np.arctan2(frame[1, 0], frame[0, 0]), np.arctan2(frame[2, 1], frame[2, 2])
        assert obs[i, 7:12] == pytest.approx([yaw, roll, -yaw, frame[2, 2], frame[0, 0]], abs=1e-5)
        for j in range(nu):
            joint = data.joint(env.model.actuator_trnid[j, 0])
            low, high = env.model.jnt_range[joint.id]
            assert obs[i, 12 + j] == pytest.approx((joint.qpos[0] - low) / (high - low) * 2 - 1, abs=1e-5)
            assert obs[i, 12 + nu + j] == pytest.approx(env.task.joint_velocity_scale * joint.qvel[0], abs=1e-4)


def test_the_reward_is_isaacs_by_hand():
    env = make_task("AntMujoco", num_envs=1)
    env.step(torch.zeros(1, 8))
    before, action = env.qpos[0, 0].item(), torch.tensor([0.5, -1.0, 0.25, 0.0, 1.0, 0.0, -0.5, 0.1])
    obs, reward, done, _ = env.step(action[None])
    obs, action = obs["obs"][0].double(), action.double()
    expected = (env.qpos[0, 0].item() - before) * 60 + 0.5  # progress and being alive
    expected += 0.1 * (obs[10] > 0.93) + (0.5 if obs[11] > 0.8 else 0.5 * obs[11] / 0.8)
    expected -= 0.005 * action.square().sum() + 0.05 * (action * obs[20:28]).abs().sum()
    expected -= 0.1 * (obs[12:20] > 0.99).sum()
    assert not done and reward.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("task", BOTH)
def test_a_restored_simulator_continues_bit_for_bit_and_threads_change_nothing(task):
    second, first = make_task(task, seed=7), make_task(task)
    torch.set_num_threads(2)
    third = make_task(task)
    torch.set_num_threads(1)
    for _ in range(50):
        first.step(random_actions(first))
    second.set_state(first.get_state())
    third.set_state(first.get_state())
    resets = 0
    for _ in range(150):
        actions, results = random_actions(first), []
        for env in (first, second, third):
            obs, reward, done, extras = env.step(actions)
            results.append(torch.cat([obs["obs"], reward[:, None], done[:, None], extras["time_outs"][:, None]], dim=1))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
        resets += int(done.sum())
    assert resets > 0 or task == "AntMujoco"


class FakeIsaacLab:
    """What IsaacLabVecTask uses of a manager-based task: obs = [t], episodes of 3 steps ended by time in env 1."""

    num_envs, step_dt, reward_manager = 2, 0.5, None
    single_observation_space = {"policy": gym.spaces.Box(-np.inf, np.inf, (1,))}
    single_action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    unwrapped = property(lambda self: self)

    def reset(self):
        self.episode_length_buf = torch.zeros(2, dtype=torch.int64)
        return {"policy": self.episode_length_buf[:, None].float()}, {}

    def step(self, actions):
        assert actions.abs().max() <= 1
        last = self.episode_length_buf + 1
        truncated, self.episode_length_buf = last == 3, last % 3
        extras = {"final_obs": {"policy": last[:, None].float()}} if truncated.any() else {}
        obs = {"policy": self.episode_length_buf[:, None].float()}
        return obs, torch.ones(2), truncated & torch.tensor([True, False]), truncated, extras


def test_the_isaac_lab_adapter_returns_last_observations_drops_no_time_limit_and_counts_whole_episodes(monkeypatch):
    monkeypatch.setattr("benchmark.simulators.isaaclab.make", lambda *_, **__: IsaacLabVecTask(FakeIsaacLab()))
    args = meow_isaacgym.Args(make="benchmark.simulators.isaaclab:make")
    env, (obs, reward, done, _, in_episode) = meow_isaacgym.make_env(args, 2, torch.device("cpu"), ExitStack())
    assert obs.tolist() == [[1], [1]]
    statistics, seen = meow_isaacgym.EpisodeStatistics(2, "cpu"), []
    statistics.add(reward, done, in_episode)
    for _ in range(8):
        seen.append([*meow_isaacgym.step_simulator(env, 5 * torch.ones(2, 1), done), done])
        statistics.add(seen[-1][1], done := seen[-1][2], seen[-1][4])
    assert [obs[0].item() for obs, *_ in seen] == [2, 3, 1, 2, 3, 1, 2, 3]
    assert [done.tolist() for _, _, done, *_ in seen] == [[i in (1, 4, 7)] * 2 for i in range(8)]
    assert seen[1][3].tolist() == [False, True] and seen[0][1].tolist() == [2, 2]  # 2 a step
    returns, lengths = statistics.last()
    assert returns.tolist() == [6] * 6 and lengths.tolist() == [3] * 6
    assert sum((~resets).sum() for *_, resets in seen) == 12  # of 16 transitions: an episode's first is dropped
