"""The stable-baselines3 baselines: rl-zoo3's settings, what SB3 gets to learn from, PPO's. Runs: test_baselines.py."""

import gymnasium as gym
import numpy as np
import pytest
import sb3
import torch
from sb3 import ALGORITHMS, PPO_COLUMNS, PPO_ROWS, Args, Stored, make_model, meow, train
from stable_baselines3.common.buffers import ReplayBuffer


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def built(algo, env_id, **flags):
    args = Args(algo=algo, env_id=env_id, **flags)
    env = meow.make_env(env_id)
    rb = meow.ReplayBuffer(args.buffer_size, env.observation_space.shape[0], env.action_space.shape[0])
    return args, make_model(args, Stored(env, rb), "cpu")


@pytest.mark.parametrize("env_id", [*meow.PAPER_SETTINGS, "Hopper-v5", "Pendulum-v1"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_model_of_every_row_has_its_values(algo, env_id):
    args, model = built(algo, env_id)
    numbers = PPO_ROWS.get(env_id.replace("v5", "v4"), ()) if algo == "ppo" else ()
    row = dict(zip(PPO_COLUMNS, numbers, strict=False))
    for name in row.keys() - {"learning_rate", "clip_range", "policy_kwargs"}:
        assert getattr(model, name) == row[name], name
    learning_rate = row.get("learning_rate", 3e-4 if algo in ("sac", "ppo") else 1e-3)
    optimizers = [model.policy.optimizer] if algo == "ppo" else [model.actor.optimizer, model.critic.optimizer]
    assert {optimizer.param_groups[0]["lr"] for optimizer in optimizers} == {learning_rate} == {args.learning_rate}
    assert model.lr_schedule(1) == model.lr_schedule(0) == learning_rate  # no schedule
    assert args.gamma == model.gamma == row.get("gamma", 0.99) and args.batch_size == model.batch_size
    normaliser = model.get_vec_normalize_env()
    assert (normaliser is not None) == (algo == "ppo" and env_id != "Pendulum-v1")
    if normaliser is not None:
        assert (normaliser.gamma, normaliser.norm_obs, normaliser.norm_reward) == (args.gamma, True, True)
    if algo == "ppo":
        assert model.clip_range(1) == model.clip_range(0) == row.get("clip_range", 0.2)
        assert args.buffer_size == model.n_steps == (512 if row else 2048)
        wide = row.get("policy_kwargs", {}) != {}
        assert wide == (env_id[:6] in ("Hopper", "HalfCh", "Humano"))
        for net in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
            assert [layer.out_features for layer in net[::2]] == ([256, 256] if wide else [64, 64])
            assert isinstance(net[1], torch.nn.ReLU if wide else torch.nn.Tanh)
        assert (model.policy.log_std == (-2 if wide else 0)).all()
    else:
        assert (model.action_noise is not None) == (algo != "sac")
        if algo != "sac":
            assert np.array_equal(model.action_noise._sigma, np.full(model.action_space.shape, 0.1))
            sizes = [layer.out_features for layer in model.critic.q_networks[0][::2]]
            assert sizes == [400, 300, 1] and len(model.critic.q_networks) == (2 if algo == "td3" else 1)
        assert (model.train_freq.frequency, model.gradient_steps, model.batch_size) == (1, 1, 256)
        assert model.learning_starts == (100 if env_id == "Pendulum-v1" else 10_000)


def test_sac_is_that_of_the_papers_table_a2():
    """Adam, 3e-4, gamma 0.99, a buffer of 1e6."""
    args, model = built("sac", "Hopper-v4")
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["lr"] == 3e-4
    assert (model.gamma, model.buffer_size, model.tau, model.target_entropy) == (0.99, 1_000_000, 0.005, -3)
    assert len(model.replay_buffer.rb.rows) == args.buffer_size == 1_000_000


def test_the_length_of_a_run_is_the_papers_and_flags_win():
    assert (Args().total_timesteps, Args(env_id="Humanoid-v5").total_timesteps) == (1_500_000, 5_000_000)
    flags = {"gamma": 0.5, "batch_size": 64, "learning_rate": 0.1, "total_timesteps": 7}
    args, model = built("ppo", "Hopper-v4", buffer_size=128, **flags)
    assert {name: getattr(args, name) for name in flags} == flags
    assert (model.gamma, model.batch_size, model.learning_rate, model.n_steps) == (0.5, 64, 0.1, 128)
    assert model.get_vec_normalize_env().gamma == 0.5


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_sb3_draws_the_transitions_that_its_own_buffer_would_hold(algo, monkeypatch):
    """The calls that ours leaves to `Stored` fill an SB3 buffer, in which a time limit is no termination."""
    spaces = (gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), gym.spaces.Box(-1, 1, (2,)))
    theirs = ReplayBuffer(1000, *spaces, handle_timeout_termination=True)
    monkeypatch.setattr(Stored, "add", lambda self, *transition: theirs.add(*transition))
    settings = {"total_timesteps": 300, "buffer_size": 1000, "batch_size": 8, "learning_starts": 50}
    model, run = train(Args(algo=algo, env_id="Counting-v0", **settings, eval_frequency=100, eval_episodes=2))
    held = theirs._get_samples(np.arange(theirs.pos))
    index = {tuple(obs.tolist()): i for i, obs in enumerate(held.observations)}
    drawn = model.replay_buffer.sample(5000)
    rows = [(k, index[key]) for k, obs in enumerate(drawn.observations) if (key := tuple(obs.tolist())) in index]
    ours, others = (torch.tensor(column) for column in zip(*rows, strict=True))
    assert len(index) == theirs.pos == 299 == len(set(others.tolist())) and run.rb.added == 300
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        a, b = getattr(drawn, name)[ours], getattr(held, name)[others].float()
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)
    assert theirs.timeouts.sum() > 5 and drawn.dones.any() and drawn.discounts is None
    actions = np.array(model.env.get_attr("unwrapped")[0].actions)  # what reached it, whose bounds are [-0.4, 0.8]
    np.testing.assert_allclose(actions, 0.2 + 0.6 * run.rb.rows[:300, 6:8], atol=1e-6)
    assert np.allclose([actions.min(), actions.max()], [-0.4, 0.8], atol=0.02)


def test_ppo_bootstraps_from_a_time_limit_and_not_from_a_termination():
    settings = {"total_timesteps": 128, "buffer_size": 64, "batch_size": 16, "eval_episodes": 2}
    model, _ = train(Args(algo="ppo", env_id="Counting-v0", **settings))
    buffer = model.rollout_buffer  # the last rollout, all but its last step
    t, rewards, starts = buffer.observations[:63, 0, 1], buffer.rewards[:63, 0], buffer.episode_starts[:, 0]
    ends = np.flatnonzero(starts[1:64])
    truncated = ends[t[ends] == 9]
    others = np.setdiff1d(np.arange(63), truncated)
    assert len(truncated) >= 2 and (t[ends] == 6).sum() >= 2
    assert np.array_equal(rewards[others], t[others] + 1)
    last = torch.tensor([[episode, 10.0, 10.0] for episode in buffer.observations[truncated, 0, 0]])
    with torch.no_grad():
        values = model.policy.predict_values(last)[:, 0].numpy()
    np.testing.assert_allclose(rewards[truncated], 10 + 0.99 * values, rtol=1e-5)
    assert np.abs(values).min() > 0.01


def test_ppos_evaluation_normalises_as_training_and_clips():
    args, model = built("ppo", "Hopper-v4")
    model.learn(512, log_interval=None)
    policy, normaliser = sb3.Policy(model), model.get_vec_normalize_env()
    before = normaliser.obs_rms.mean.copy(), normaliser.obs_rms.count
    raw = torch.as_tensor(normaliser.get_original_obs(), dtype=torch.float32)
    action = policy.act(raw, deterministic=True)
    with torch.no_grad():
        mean = model.policy.get_distribution(torch.as_tensor(model._last_obs)).distribution.mean
    torch.testing.assert_close(action, mean.clamp(-1, 1), atol=1e-5, rtol=0)
    assert np.array_equal(normaliser.obs_rms.mean, before[0]) and normaliser.obs_rms.count == before[1] > 512
    with torch.no_grad():
        model.policy.action_net.bias.fill_(5.0)
    assert (policy.act(raw, deterministic=True) == 1).all()
