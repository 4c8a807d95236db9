"""benchmark/simulators/mujoco.py against MuJoCo's own functions and Isaac's contract."""

import contextlib

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

import meow_isaacgym
from benchmark.simulators.isaaclab import IsaacLabVecTask
from benchmark.simulators.mujoco import TASKS, make

BOTH = ["AntMujoco", "HumanoidMujoco"]


def make_task(task, num_envs=4, seed=1):
    env = make(seed=seed, task=task, num_envs=num_envs, sim_device="cpu", rl_device="cpu", headless=True)
    return env, torch.Generator().manual_seed(seed)


def random_actions(env, generator):
    return 2 * torch.rand(env.num_envs, env.action_space.shape[0], generator=generator) - 1


@pytest.mark.parametrize("task, dims", [("AntMujoco", (36, 8)), ("HumanoidMujoco", (63, 17))])
def test_the_contract_of_a_vec_task(task, dims):
    env, generator = make_task(task)
    assert (env.observation_space.shape, env.action_space.shape) == ((dims[0],), (dims[1],))
    first = env.reset()
    assert torch.equal(first["obs"], torch.zeros(4, dims[0]))
    previous, episode_lengths, lengths = torch.ones(4, dtype=torch.bool), [], torch.zeros(4)
    for _ in range(1200):
        obs_dict, reward, done, extras = env.step(3 * random_actions(env, generator))
        assert obs_dict is first and extras is env.extras and done.dtype == torch.int64  # the task's own memory
        assert obs_dict["obs"].isfinite().all() and reward.isfinite().all()
        assert obs_dict["obs"][:, -dims[1] :].abs().max() <= 1  # clamped actions
        height = obs_dict["obs"][:, 0]
        fallen = height < env.task.fallen_height
        assert torch.equal(done.bool(), fallen | extras["time_outs"])
        assert (reward[fallen] == env.task.death_cost).all()
        started = reward[previous] - env.task.alive_reward  # being put back to the start is no progress
        assert (started > -2).all() and (started <= 0.6001).all()
        lengths += 1
        lengths[previous] = 0
        assert (height[previous] - env.task.height).abs().le(1e-6).all() and not done[previous].any()
        assert torch.equal(extras["time_outs"], lengths == env.task.max_episode_length - 1)
        episode_lengths += lengths[done.bool()].tolist()
        previous = done.bool()
    assert episode_lengths and max(episode_lengths) <= 999


def test_ant_has_isaacs_joints_and_they_move():
    """nv_ant.xml of isaacgymenvs; with the rotor inertia of gymnasium's body no joint is faster than 2 rad/s."""
    env, generator = make_task("AntMujoco", num_envs=16)
    names = [env.model.joint(i).name for i in range(1, 9)]
    ranges = {name: np.degrees(env.model.joint(name).range).round(6).tolist() for name in names}
    assert all(ranges[f"hip_{i}"] == [-40, 40] for i in range(1, 5))
    assert [ranges[f"ankle_{i}"] for i in range(1, 5)] == [[30, 100], [-100, -30], [-100, -30], [30, 100]]
    assert (env.model.dof_armature[6:] == 0.01).all() and (env.model.dof_damping[6:] == 0.1).all()
    fastest = 0.0
    for _ in range(100):
        env.step(random_actions(env, generator))
        fastest = max(fastest, env.qvel[:, 6:].abs().max().item())
    assert 10 < fastest < 100


@pytest.mark.parametrize("task", BOTH)
def test_observations_agree_with_mujocos_own_frames(task):
    env, generator = make_task(task)
    for _ in range(15):
        obs = env.step(random_actions(env, generator))[0]["obs"].numpy().astype(float)
    data, nu = mujoco.MjData(env.model), env.model.nu
    torso = env.model.body("torso").id
    for i in range(4):
        data.qpos[:], data.qvel[:] = env.qpos[i], env.qvel[i]
        mujoco.mj_forward(env.model, data)
        frame = data.xmat[torso].reshape(3, 3)
        velocity = np.zeros(6)  # turning, then velocity, in the torso's frame, at its origin
        mujoco.mj_objectVelocity(env.model, data, mujoco.mjtObj.mjOBJ_XBODY, torso, velocity, 1)
        assert obs[i, 0] == pytest.approx(data.xpos[torso, 2], abs=1e-5)
        np.testing.assert_allclose(obs[i, 1:4], velocity[3:], atol=1e-4)
        np.testing.assert_allclose(obs[i, 4:7], env.task.angular_velocity_scale * velocity[:3], atol=1e-4)
        assert obs[i, 7] == pytest.approx(np.arctan2(frame[1, 0], frame[0, 0]), abs=1e-5)  # yaw
        assert obs[i, 8] == pytest.approx(np.arctan2(frame[2, 1], frame[2, 2]), abs=1e-5)  # roll
        assert obs[i, 9] == -obs[i, 7]
        assert obs[i, 10:12] == pytest.approx([frame[2, 2], frame[0, 0]], abs=1e-5)
        for j in range(nu):
            joint = data.joint(env.model.actuator_trnid[j, 0])
            low, high = env.model.jnt_range[joint.id]
            assert obs[i, 12 + j] == pytest.approx((joint.qpos[0] - low) / (high - low) * 2 - 1, abs=1e-5)
            assert obs[i, 12 + nu + j] == pytest.approx(env.task.joint_velocity_scale * joint.qvel[0], abs=1e-4)


def test_the_reward_is_isaacs_by_hand():
    env, _ = make_task("AntMujoco", num_envs=1)
    env.step(torch.zeros(1, 8))
    before = env.qpos[0, 0].item()
    action = torch.tensor([[0.5, -1.0, 0.25, 0.0, 1.0, 0.0, -0.5, 0.1]])
    obs, reward, done, _ = env.step(action)
    obs, action = obs["obs"][0].double(), action[0].double()
    expected = (env.qpos[0, 0].item() - before) * 60 + 0.5  # progress and being alive
    expected += 0.1 * (obs[10] > 0.93) + (0.5 if obs[11] > 0.8 else 0.5 * obs[11] / 0.8)
    expected -= 0.005 * action.square().sum() + 0.05 * (action * obs[20:28]).abs().sum()
    expected -= 0.1 * (obs[12:20] > 0.99).sum()
    assert not done and reward.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("task", BOTH)
def test_a_restored_simulator_continues_bit_for_bit_and_threads_change_nothing(task):
    (first, generator), (second, _) = make_task(task), make_task(task, seed=7)
    for _ in range(50):
        first.step(random_actions(first, generator))
    second.set_state(first.get_state())
    torch.set_num_threads(2)
    try:
        third, _ = make_task(task)
    finally:
        torch.set_num_threads(1)
    third.set_state(first.get_state())
    resets = 0
    for _ in range(150):
        actions = random_actions(first, generator)
        results = [env.step(actions) for env in (first, second, third)]
        resets += int(results[0][2].sum())
        for other in results[1:]:
            assert torch.equal(results[0][0]["obs"], other[0]["obs"])
            assert all(torch.equal(a, b) for a, b in zip(results[0][1:3], other[1:3], strict=True))
            assert torch.equal(results[0][3]["time_outs"], other[3]["time_outs"])
    assert resets > 0 or task == "AntMujoco"


def test_what_it_cannot_make_is_refused():
    with pytest.raises(ValueError, match="AntMujoco, HumanoidMujoco"):
        make(seed=1, task="Walker", num_envs=1, sim_device="cpu", rl_device="cpu")
    assert set(TASKS) == set(BOTH)


class FakeIsaacLab:
    """What IsaacLabVecTask uses of a manager-based task: obs = [t], episodes of 3 steps ended by time in env 1."""

    num_envs, step_dt, reward_manager = 2, 0.5, None
    single_observation_space = {"policy": gym.spaces.Box(-np.inf, np.inf, (1,))}
    single_action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    unwrapped = property(lambda self: self)

    def observe(self):
        return {"policy": self.episode_length_buf[:, None].float()}

    def reset(self):
        self.episode_length_buf = torch.zeros(2, dtype=torch.int64)
        return self.observe(), {}

    def step(self, actions):
        assert actions.abs().max() <= 1
        self.episode_length_buf += 1
        truncated = self.episode_length_buf == 3
        extras = {"final_obs": self.observe()} if truncated.any() else {}
        self.episode_length_buf[truncated] = 0
        return self.observe(), torch.ones(2), truncated & torch.tensor([True, False]), truncated, extras


def test_the_isaac_lab_adapter_returns_last_observations_and_drops_no_time_limit(monkeypatch):
    monkeypatch.setattr("benchmark.simulators.isaaclab.make", lambda *_, **__: IsaacLabVecTask(FakeIsaacLab()))
    args = meow_isaacgym.Args(make="benchmark.simulators.isaaclab:make")
    env, (obs, *_) = meow_isaacgym.make_env(args, 2, torch.device("cpu"), contextlib.ExitStack())
    assert obs.tolist() == [[1], [1]]
    seen = [env.step(5 * torch.ones(2, 1)) for _ in range(4)]
    assert [obs["obs"][0, 0].item() for obs, *_ in seen] == [2, 3, 1, 2]
    assert [done.tolist() for _, _, done, _ in seen] == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert seen[1][3]["time_outs"].tolist() == [False, True] and seen[0][1].tolist() == [2, 2]


def test_returns_in_isaac_lab_are_those_of_whole_episodes():
    env, statistics = IsaacLabVecTask(FakeIsaacLab()), meow_isaacgym.EpisodeStatistics(2, "cpu")
    done, stored = torch.ones(2, dtype=torch.bool), 0
    for _ in range(9):
        resets = done
        _, reward, done, _, in_episode = meow_isaacgym.step_simulator(env, torch.zeros(2, 1), resets)
        statistics.add(reward, done, in_episode)
        stored += (~resets).sum().item()
    returns, lengths = statistics.last()
    assert returns.tolist() == [6] * 6 and lengths.tolist() == [3] * 6  # 2 a step
    assert stored == 12  # of 18 transitions: an episode's first is dropped
