"""The training loop, buffer and evaluation: what is stored, what is seeded, what stops a run."""

import csv
import json
import random
from pathlib import Path

import conftest
import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import meow_continuous_action as meow
from meow_continuous_action import Args, FlowPolicy, ReplayBuffer, evaluate, make_env, train


def small_args(**kwargs):
    settings = {"env_id": "Counting-v0", "total_timesteps": 300, "learning_starts": 50, "eval_frequency": 100}
    return Args(**(settings | {"batch_size": 8, "buffer_size": 1000, "eval_episodes": 2} | kwargs))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stored(run):
    """obs, next_obs, u, reward, terminated of the run's 300 transitions."""
    return run.rb.rows[:300].split(run.rb.widths, dim=1)


def test_no_stored_pair_crosses_an_episode_and_only_termination_cuts():
    _, run = train(small_args())
    obs, next_obs, _, reward, terminated = stored(run)
    assert run.rb.added == 300
    assert torch.equal(obs[:, 0], next_obs[:, 0])  # the same episode
    assert torch.equal(obs[:, 1] + 1, next_obs[:, 1])  # the next step of it
    assert torch.equal(reward[:, 0], next_obs[:, 1])
    assert torch.equal(terminated[:, 0].bool(), (next_obs[:, 0] % 2 == 0) & (next_obs[:, 1] == 7))
    # every last observation is stored once: t = 7 where the episode terminates, t = 10 where it is truncated
    episodes = obs[:, 0].unique()[:-1]
    assert len(episodes) > 30
    for episode in episodes:
        steps = next_obs[obs[:, 0] == episode, 1].tolist()
        assert steps == list(range(1, 8 if episode % 2 == 0 else 11))


def test_actions_are_sampled_from_the_policy_stored_before_tanh_and_rescaled(monkeypatch):
    envs, made, forward = [], [], FlowPolicy.forward
    init = conftest.CountingEnv.__init__
    monkeypatch.setattr(conftest.CountingEnv, "__init__", lambda env, **kw: (envs.append(env), init(env, **kw))[1])

    def spied(policy, obs, z):
        u = forward(policy, obs, z)
        if len(obs) == 1:  # evaluations have two rows
            made.append((policy, obs.clone(), u, z))
        return u

    monkeypatch.setattr(FlowPolicy, "forward", spied)
    policy, run = train(small_args())
    obs, _, stored_u, _, _ = stored(run)
    assert len(made) == 250  # one per step after learning_starts
    for step, (made_by, made_for, u, _) in enumerate(made, start=50):
        assert made_by is policy and torch.equal(made_for[0], obs[step]) and torch.equal(u[0], stored_u[step])
    z = torch.cat([z for *_, z in made])
    assert abs(z.mean()) < 0.2 and 0.8 < z.std() < 1.2  # training samples the policy
    (given,) = [env.actions for env in envs if len(env.actions) == 300]
    np.testing.assert_allclose(given, -0.4 + 1.2 * (torch.tanh(stored_u) + 1) / 2, atol=1e-6)
    assert np.min(given) >= np.float32(-0.4) and np.max(given) <= np.float32(0.8)
    act = torch.tanh(stored_u[:50])
    assert act.abs().max() > 0.9 and act.mean(dim=0).abs().max() < 0.3  # uniform before learning
    humanoid = make_env("Humanoid-v4")
    humanoid.reset(seed=0)
    humanoid.step(np.ones(17, dtype=np.float32))
    np.testing.assert_allclose(humanoid.unwrapped.data.ctrl, 0.4, atol=1e-6)


def test_a_rescaled_action_never_leaves_the_bounds_by_a_rounding():
    random_numbers = np.random.default_rng(0)
    low = random_numbers.uniform(-3, 0, 1000).astype(np.float32)
    high = (low + random_numbers.uniform(0.1, 3, 1000)).astype(np.float32)
    conftest.register("ManyBounds-v0", action_space=gym.spaces.Box(low, high))
    env = make_env("ManyBounds-v0")
    env.reset(seed=0)
    for saturated in (-1, 1):
        env.step(np.full(1000, saturated, dtype=np.float32))
    assert all(env.unwrapped.action_space.contains(action) for action in env.unwrapped.actions)


def test_replay_buffer_keeps_the_newest_draws_uniformly_and_never_what_was_not_written():
    torch.manual_seed(0)
    rb = ReplayBuffer(10, 2, 1)
    for i in range(25):
        rb.add(np.full(2, i), np.full(2, i + 0.5), np.full(1, -i), 10 * i, i % 2)
        if i < 3:
            assert set(rb.sample(1000).obs[:, 0].tolist()) == set(range(i + 1))
    data = rb.sample(20_000)
    assert [field.shape[1] for field in data] == [2, 2, 1, 1, 1]
    i = data.obs[:, :1]
    assert torch.equal(data.next_obs, (i + 0.5).expand(-1, 2)) and torch.equal(data.u, -i)
    assert torch.equal(data.reward, 10 * i) and torch.equal(data.terminated, i % 2)
    counts = torch.bincount(i[:, 0].long(), minlength=25)
    assert (counts[:15] == 0).all() and (counts[15:] > 1800).all() and (counts[15:] < 2200).all()


def test_train_hands_every_setting_to_the_algorithm(monkeypatch):
    calls, masks, evaluating = [], [], []
    update, evaluate = meow.update, meow.evaluate

    def spied_update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout):
        if not calls:  # the target starts as a copy
            assert torch.equal(policy.vector, target.vector) and policy.vector is not target.vector
        assert not any(param.requires_grad for param in target.parameters())
        calls.append((len(data.obs), float(optimizer.param_groups[0]["lr"]), gamma, tau, max_grad_norm))
        masks.append(dropout)
        return update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout)

    def spied_evaluate(policy, envs, deterministic, *seed):
        evaluating.append((envs.num_envs, deterministic, *seed))
        return evaluate(policy, envs, deterministic, *seed)

    monkeypatch.setattr(meow, "update", spied_update)
    monkeypatch.setattr(meow, "evaluate", spied_evaluate)
    settings = {"alpha": 0.4, "sigma_min": -4.0, "sigma_max": -0.2, "gamma": 0.8, "tau": 0.02, "batch_size": 11}
    args = small_args(**settings, learning_rate=2e-3, max_grad_norm=7.0, coupling="affine", eval_deterministic=False)
    policy, _ = train(args)
    assert len(calls) == 250  # one update per step after learning_starts
    assert set(calls) == {(11, float(np.float32(2e-3)), 0.8, 0.02, 7.0)}
    assert masks[0].shape == (4, 2, 2, 11, 64) and not torch.equal(masks[0], masks[1])  # new ones every step
    assert evaluating == 4 * [(2, False)]
    assert (policy.alpha, policy.sigma_min, policy.sigma_max) == (0.4, -4.0, -0.2)
    assert policy.couplings[0].log_scale is not None


def test_a_run_is_its_seed_alone_however_often_it_is_evaluated_and_saved():
    """Stochastic evaluation draws noise, which must not move the noise of training."""
    common = {"env_id": "Hopper-v4", "total_timesteps": 120, "eval_deterministic": False}
    variants = [{"seed": 3}, {"seed": 3, "eval_frequency": 10, "checkpoint_frequency": 7}, {"seed": 4}]
    runs = [train(small_args(**common, **variant, exp_name=str(i))) for i, variant in enumerate(variants)]
    (one, same, other), buffers = [policy.vector for policy, _ in runs], [run.rb.rows[:120] for _, run in runs]
    assert torch.equal(one, same) and torch.equal(buffers[0], buffers[1])
    assert not torch.equal(one, other) and not torch.equal(buffers[0], buffers[2])


def test_evaluate_is_the_papers_protocol_and_touches_no_random_stream():
    envs = gym.vector.SyncVectorEnv(3 * [lambda: make_env("Hopper-v4")])
    torch.manual_seed(0)
    policy = FlowPolicy(11, 3, 0.25)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    returns = {deterministic: evaluate(policy, envs, deterministic)[0] for deterministic in (True, False)}
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    for seed, env in enumerate(envs.envs):
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                act = policy.act(torch.from_numpy(obs[None]), deterministic=True)[0].numpy()
            obs, reward, terminated, truncated, _ = env.step(act)
            total, done = total + reward, terminated or truncated
        assert total == pytest.approx(returns[True][seed], rel=0.02)  # batches of another size round differently
    torch.manual_seed(2)
    again, successes = evaluate(policy, envs)
    assert np.array_equal(again, returns[True]) and np.isnan(successes).all()  # the same every time
    assert np.array_equal(evaluate(policy, envs, deterministic=False)[0], returns[False])
    assert not np.array_equal(returns[True], returns[False])
    np.testing.assert_array_equal(evaluate(policy, envs, seed=1)[0][:2], returns[True][1:])


def logged(run_dir, tag):
    return EventAccumulator(str(run_dir)).Reload().Scalars(tag)


def test_a_run_leaves_its_settings_versions_evaluations_and_scalars():
    policy, run = train(small_args())
    with open(run.dir / "evaluations.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 100, 200, 300]
    for row in rows:
        returns = [float(row["return_0"]), float(row["return_1"])]
        assert float(row["mean"]) == pytest.approx(np.mean(returns)) and set(returns) <= {28.0, 55.0}  # 1 + ... + 7, 10
        assert float(row["std"]) == pytest.approx(np.std(returns)) and float(row["seconds"]) >= 0
    config = json.loads((run.dir / "config.json").read_text())
    assert config["args"]["alpha"] == 0.25 and config["args"]["env_id"] == "Counting-v0"
    assert set(config["versions"]) >= {"gymnasium", "mujoco", "numpy", "torch"}
    logs = EventAccumulator(str(run.dir)).Reload()
    assert min(event.value for event in logs.Scalars("flow/log_det_nonlinear")) > 0  # atanh expands: -sum log(1 - a^2)
    assert min(event.value for event in logs.Scalars("flow/log_det_linear")) > 0.6  # 1 / sigma expands: -2 * sigma_max
    tags = {"eval/episodic_return", "eval/episodic_return_std", "charts/episodic_return", "charts/episodic_length"}
    tags |= {"charts/SPS", "losses/qf_loss", "losses/qf1_values", "losses/qf2_values", "losses/grad_norm"}
    assert set(logs.Tags()["scalars"]) == tags | {"flow/log_det_nonlinear", "flow/log_det_linear"}
    assert {event.value for event in logs.Scalars("charts/episodic_length")} == {7.0, 10.0}
    assert {event.value for event in logs.Scalars("charts/episodic_return")} == {28.0, 55.0}
    assert [event.step for event in logs.Scalars("eval/episodic_return")] == [0, 100, 200, 300]
    loaded, about = meow.load_policy(run.dir)
    assert torch.equal(torch.nn.utils.parameters_to_vector(loaded.parameters()), policy.vector)
    assert about["step"] == 300 and about["args"] == config["args"]


@pytest.mark.parametrize("num_shifts", [0, 1, 2])
@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_every_ablation_trains(num_shifts, coupling):
    deterministic = coupling == "additive"
    policy, run = train(small_args(num_shifts=num_shifts, coupling=coupling, eval_deterministic=deterministic))
    assert len(policy.shifts) == num_shifts and torch.isfinite(policy.vector).all()
    assert len(logged(run.dir, "flow/log_det_nonlinear")) >= 2
    assert len(meow.load_policy(run.dir)[0].shifts) == num_shifts


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("env_id", [f"Poisoned-{what}-v0" for what in ("obs", "reward", "overflow", "first", "reset")])
def test_a_number_of_the_environment_that_is_not_finite_stops_the_run_after_the_logs_are_written(env_id):
    with pytest.raises(FloatingPointError, match="not finite"):
        train(small_args(env_id=env_id, eval_episodes=1, checkpoint_frequency=1))
    (run_dir,) = Path("runs").iterdir()
    if env_id != "Poisoned-first-v0":  # the others come after the first evaluation
        assert len(logged(run_dir, "eval/episodic_return")) == 1


@pytest.mark.parametrize("at", [68, 70])  # an episode ends at 68
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stands(what, at, monkeypatch):
    healthy, calls = FlowPolicy.get_q, []

    def poisoned(*args):
        q = healthy(*args)
        calls.append(1)
        if len(calls) == at - 50 and what == "gradient":
            q.register_hook(lambda grad: grad * torch.inf)
        return q * torch.nan if len(calls) == at - 50 and what == "loss" else q

    monkeypatch.setattr(FlowPolicy, "get_q", poisoned)
    with pytest.raises(FloatingPointError, match="the policy has diverged.*lower --learning-rate"):
        train(small_args(checkpoint_frequency=1))
    (run_dir,) = Path("runs").iterdir()
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert state["step"] in (58, 68) and all(torch.isfinite(tensor).all() for tensor in state["learned"])


def test_a_policy_that_has_diverged_is_not_blamed_on_the_environment():
    with pytest.raises(FloatingPointError, match="the policy has diverged"):
        train(small_args(learning_rate=1e30))
