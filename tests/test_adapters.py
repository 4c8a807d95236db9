"""The adapters of benchmark/simulators to other libraries' environments, against meow_isaacgym.py's contract."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from benchmark.simulators.gymnasium_vector import make

PLACE = {"sim_device": "cpu", "rl_device": "cpu", "graphics_device_id": -1, "headless": True}


class Strict(gymnasium.Env):
    """obs = [episode, t] as integers, reward 1; takes only actions within its bounds, which float32 cannot hold."""

    observation_space = Box(0, 1000, (2,), np.int64)
    action_space = Box(np.array([-0.1, 0.3]), np.array([0.7, 1000.1]), dtype=np.float64)

    def __init__(self, dies_at=1000, **spaces):
        self.dies_at, self.episode, self.actions = dies_at, -1, []
        vars(self).update(spaces)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, self.t]), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.t += 1
        return np.array([self.episode, self.t]), 1.0, self.t == self.dies_at, False, {}


gymnasium.register("Strict-v0", Strict, max_episode_steps=10)


def drive(env, steps):
    """Random steps with actions outside [-1,1] too; yields copies of obs, reward, done and time_outs."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        actions = 1.2 * (2 * torch.rand(env.num_envs, *env.action_space.shape, generator=generator) - 1)
        obs, reward, done, extras = env.step(actions)
        yield obs["obs"].clone(), reward.clone(), done.clone(), extras["time_outs"].clone()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_episodes_have_all_their_steps_and_end_with_their_last_observation(mode):
    env = make(1, "test_adapters:Strict-v0", 2, **PLACE, vectorization_mode=mode)
    assert env.reset()["obs"].tolist() == [[0, 0], [0, 0]]
    for i, (obs, reward, done, time_outs) in enumerate(drive(env, 33)):
        episode, t = divmod(i + 1, 11)  # 10 steps, and one that resets and returns the next episode's first
        assert obs.tolist() == [[episode, t]] * 2 and obs.dtype == reward.dtype == torch.float32
        assert done.tolist() == time_outs.tolist() == [t == 10] * 2
        assert t == 0 or reward.tolist() == [1, 1]
    assert env.reset()["obs"].tolist() == [[4, 0]] * 2  # at any time
    assert env.step(torch.zeros(2, 2))[0]["obs"].tolist() == [[4, 1]] * 2
    env.close()
    assert env.env.closed


@pytest.mark.parametrize("length", [7, 10])
def test_a_termination_is_no_time_out_even_at_the_limit(length):
    env = make(1, "Strict-v0", 1, **PLACE, dies_at=length)
    env.reset()
    for i, (_, _, done, time_outs) in enumerate(drive(env, 2 * length + 2)):
        assert done == (i in (length - 1, 2 * length)) and not time_outs


def test_actions_reach_the_environments_own_bounds_and_never_leave_them():
    env = make(1, "Strict-v0", 3, **PLACE)
    assert env.action_space == Box(-1.0, 1.0, (2,))
    env.reset()
    env.step(torch.tensor([[-1.0, 1.0], [0.0, 0.5], [-5.0, 5.0]]))
    received = [single.unwrapped.actions[0] for single in env.env.envs]
    np.testing.assert_allclose(received, [[-0.1, 1000.1], [0.3, 750.15], [-0.1, 1000.1]], rtol=1e-12)
    env = make(1, "Strict-v0", 1, **PLACE, action_space=Box(-1.1, np.float32(0.1), (3,)))
    env.reset()
    for value in torch.linspace(-1, 1, 1001):
        env.step(value.expand(1, 3))  # float32 bounds, where the rescaled ends round outwards


def test_pendulum_is_gymnasiums_and_what_it_returned_stays():
    env, single = make(5, "Pendulum-v1", 3, **PLACE, g=5.0), gymnasium.make("Pendulum-v1", g=5.0)
    first = env.reset()["obs"]
    kept = first.clone()
    np.testing.assert_array_equal(first[1], single.reset(seed=6)[0])  # environment i has seed + i
    for i in range(200):
        actions = 2 * torch.rand(3, 1) - 1
        obs, reward, done, extras = env.step(actions)
        expected, expected_reward, _, truncated, _ = single.step(2 * actions[1].numpy())
        np.testing.assert_allclose(obs["obs"][1], expected, atol=1e-4)
        assert reward[1].item() == pytest.approx(float(expected_reward), abs=1e-3)
        assert done.bool().all() == extras["time_outs"].all() == truncated == (i == 199)
    assert torch.equal(first, kept)
    assert not torch.equal(env.reset()["obs"], first)  # the seed counts once


UNFIT = [
    {"observation_space": Box(0, 1, (2, 2))},
    {"observation_space": Discrete(3)},
    {"action_space": Discrete(3)},
    {"action_space": Box(-1, 1, (2, 2))},
    {"action_space": Box(-np.inf, 1, (2,))},
    {"action_space": Box(-1, 1, (2,), np.int64)},
]


@pytest.mark.parametrize("spaces", UNFIT)
def test_unfit_spaces_are_refused(spaces):
    with pytest.raises(ValueError, match="observations|actions"):
        make(1, "Strict-v0", 1, **PLACE, **spaces)


def test_a_vector_environment_that_resets_in_the_same_step_is_refused():
    def same_step(num_envs, **kwargs):
        return gymnasium.vector.SyncVectorEnv([Strict] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    gymnasium.register("OwnVector-v0", Strict, vector_entry_point=same_step)
    with pytest.raises(ValueError, match="next step.*SAME_STEP"):
        make(1, "OwnVector-v0", 2, **PLACE, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match="next step.*SAME_STEP"):
        make(1, "Strict-v0", 2, **PLACE, vector_kwargs={"autoreset_mode": "SameStep"})


@pytest.fixture
def playground():
    pytest.importorskip("mujoco_playground")  # not among the tests' requirements
    from benchmark.simulators import playground

    return playground


def cartpoles(playground, seed):
    """Three tasks with episodes of 11 steps of 2."""
    return playground.make(seed, "CartpoleBalance", 3, **PLACE, episode_length=21, action_repeat=2)


def test_playground_resets_one_step_late(playground):
    env = cartpoles(playground, 1)
    first = env.reset()["obs"].clone()
    assert first.shape == (3, 5) and env.action_space.shape == (1,)
    env.world = env.world._replace(steps=env.world.steps.at[1].set(12))  # its first limit is 6 steps earlier
    starts = [*first[:, 0]]
    for i, (obs, reward, done, time_outs) in enumerate(drive(env, 30)):
        t = np.array([i + 1, i + 7, i + 1]) % 12
        assert done.tolist() == time_outs.tolist() == (t == 11).tolist()
        np.testing.assert_allclose(reward, 1.5 * (t > 0), atol=0.5)
        if t[0] == 0:
            assert (obs[[0, 2], 0].abs() <= 0.1).all()
            starts += [*obs[[0, 2], 0]]
    assert len(starts) == len(set(map(float, starts))) == 7  # every start is a new one


def test_playground_resumes_bit_for_bit_and_ends_what_diverges(playground):
    env, other = cartpoles(playground, 1), cartpoles(playground, 7)
    env.reset(), other.reset()
    other.set_state(env.get_state())
    for one, two in zip(drive(env, 30), drive(other, 30), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    diverged = env.world.state.data.qvel.at[2].set(np.nan)
    env.world = env.world._replace(state=env.world.state.tree_replace({"data.qvel": diverged}))
    (before, reward, done, time_outs), (after, _, done_after, _) = drive(env, 2)
    assert done.tolist() == [False, False, True] and before.isfinite().all() and reward.isfinite().all()
    assert reward[2] == 0 and not time_outs.any()
    assert not done_after.any() and after[2, 0].abs() <= 0.1


def test_playground_is_refused_where_jax_runs_elsewhere(playground):
    with pytest.raises(ValueError, match="JAX runs on the cpu"):
        playground.make(1, "CartpoleBalance", 3, **{**PLACE, "rl_device": "cuda:0"})
