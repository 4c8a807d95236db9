"""The training loop, buffer and evaluation: what is stored, what is seeded, what stops a run."""

import json
import random
from pathlib import Path

import conftest
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import meow_continuous_action as meow
from meow_continuous_action import Args, FlowPolicy, ReplayBuffer, evaluate, make_env, train


def small_args(**changes):
    settings = {"env_id": "Counting-v0", "total_timesteps": 300, "learning_starts": 50, "eval_frequency": 100}
    settings |= {"batch_size": 8, "buffer_size": 1000, "eval_episodes": 2}
    return Args(**(settings | changes))


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
        length = 7 if episode % 2 == 0 else 10
        assert next_obs[obs[:, 0] == episode, 1].tolist() == list(range(1, length + 1))


def test_actions_are_sampled_from_the_policy_stored_before_tanh_and_rescaled(monkeypatch):
    envs, drawn, forward, step = set(), [], FlowPolicy.forward, conftest.CountingEnv.step

    def spied_forward(policy, obs, z):
        u = forward(policy, obs, z)
        if len(obs) == 1:  # evaluations have two rows
            drawn.append((policy, obs.clone(), z, u))
        return u

    def spied_step(env, action):
        envs.add(env)
        return step(env, action)

    monkeypatch.setattr(FlowPolicy, "forward", spied_forward)
    monkeypatch.setattr(conftest.CountingEnv, "step", spied_step)
    policy, run = train(small_args())
    obs, _, stored_u, _, _ = stored(run)
    policies, seen, z, u = zip(*drawn, strict=True)
    assert set(policies) == {policy} and len(drawn) == 250  # one per step after learning_starts
    assert torch.equal(torch.cat(seen), obs[50:]) and torch.equal(torch.cat(u), stored_u[50:])
    assert abs(torch.cat(z).mean()) < 0.2 and 0.8 < torch.cat(z).std() < 1.2  # training samples the policy
    (given,) = [env.actions for env in envs if len(env.actions) == 300]
    np.testing.assert_allclose(given, -0.4 + 1.2 * (torch.tanh(stored_u) + 1) / 2, atol=1e-6)
    act = torch.tanh(stored_u[:50])
    assert act.abs().max() > 0.9 and act.mean(dim=0).abs().max() < 0.3  # uniform before learning


def test_a_rescaled_action_never_leaves_the_bounds_by_a_rounding():
    generator = np.random.default_rng(0)
    low = generator.uniform(-3, 0, 1000).astype(np.float32)
    high = (low + generator.uniform(0.1, 3, 1000)).astype(np.float32)
    conftest.register("ManyBounds-v0", action_space=gym.spaces.Box(low, high))
    env = make_env("ManyBounds-v0")
    env.reset(seed=0)
    for saturated in (-1, 1):
        env.step(np.full(1000, saturated, dtype=np.float32))
        assert env.unwrapped.action_space.contains(env.unwrapped.actions[-1])


def test_replay_buffer_keeps_the_newest_draws_uniformly_and_never_what_was_not_written():
    torch.manual_seed(0)
    rb = ReplayBuffer(10, 2, 1)
    for i in range(25):
        rb.add(np.full(2, i), np.full(2, i + 0.5), np.full(1, -i), 10 * i, i % 2)
        newest = range(max(0, i - 9), i + 1)
        assert set(rb.sample(1000).obs[:, 0].tolist()) == set(newest)
    data = rb.sample(20_000)
    i = data.obs[:, :1]
    assert torch.equal(data.next_obs, (i + 0.5).expand(-1, 2)) and torch.equal(data.u, -i)
    assert torch.equal(data.reward, 10 * i) and torch.equal(data.terminated, i % 2)
    counts = torch.bincount(i[:, 0].long())[15:]
    assert counts.min() > 1800 and counts.max() < 2200


def test_train_hands_every_setting_to_the_algorithm(monkeypatch):
    calls, masks, evaluations, update = [], [], [], meow.update

    def spied(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout):
        if not calls:  # the target starts as a copy
            assert torch.equal(policy.vector, target.vector) and policy.vector is not target.vector
        calls.append((len(data.obs), optimizer.param_groups[0]["lr"], gamma, tau, max_grad_norm))
        masks.append(dropout)
        return update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout)

    def spied_evaluate(policy, envs, deterministic):
        evaluations.append((envs.num_envs, deterministic))
        return evaluate(policy, envs, deterministic)

    monkeypatch.setattr(meow, "update", spied)
    monkeypatch.setattr(meow, "evaluate", spied_evaluate)
    settings = {"alpha": 0.4, "sigma_min": -4.0, "sigma_max": -0.2, "gamma": 0.8, "tau": 0.02, "batch_size": 11}
    settings |= {"learning_rate": 2**-9, "max_grad_norm": 7.0, "coupling": "affine", "eval_deterministic": False}
    policy, _ = train(small_args(**settings))
    assert calls == 250 * [(11, 2**-9, 0.8, 0.02, 7.0)]  # one update per step after learning_starts
    assert evaluations == 4 * [(2, False)]
    assert masks[0].shape == (4, 2, 2, 11, 64) and not torch.equal(masks[0], masks[1])  # new ones every step
    assert (policy.alpha, policy.sigma_min, policy.sigma_max) == (0.4, -4.0, -0.2)
    assert policy.couplings[0].log_scale is not None


def test_a_run_is_its_seed_alone_however_often_it_is_evaluated_and_saved():
    """Stochastic evaluation draws noise, which must not move the noise of training."""
    results = []
    for changes in ({"seed": 3}, {"seed": 3, "eval_frequency": 10, "checkpoint_frequency": 7}, {"seed": 4}):
        args = small_args(env_id="Hopper-v4", total_timesteps=120, eval_deterministic=False, **changes)
        policy, run = train(args)
        results.append((policy.vector, run.rb.rows[:120]))
    one, same, other = results
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_evaluate_repeats_itself_and_counts_seeds_from_the_one_given():
    envs = gym.vector.SyncVectorEnv(3 * [lambda: make_env("Hopper-v4")])
    torch.manual_seed(0)
    policy = FlowPolicy(11, 3, 0.25)
    greedy, successes = evaluate(policy, envs)
    sampled, _ = evaluate(policy, envs, deterministic=False)
    assert np.isnan(successes).all() and not np.array_equal(greedy, sampled)
    torch.manual_seed(2)
    for deterministic, returns in ((True, greedy), (False, sampled)):  # the same every time
        assert np.array_equal(evaluate(policy, envs, deterministic)[0], returns)
    np.testing.assert_array_equal(evaluate(policy, envs, seed=1)[0][:2], greedy[1:])


def logged(run_dir, tag):
    return EventAccumulator(str(run_dir)).Reload().Scalars(tag)


@pytest.mark.parametrize("coupling, num_shifts", [("additive", 2), ("affine", 1), ("additive", 0)])
def test_every_ablation_leaves_its_settings_versions_evaluations_scalars_and_model(coupling, num_shifts):
    policy, run = train(small_args(coupling=coupling, num_shifts=num_shifts))
    rows = table(run.dir)
    assert [int(row["step"]) for row in rows] == [0, 100, 200, 300]
    for row in rows:
        returns = float(row["return_0"]), float(row["return_1"])
        assert set(returns) <= {28.0, 55.0}  # 1 + ... + 7, 10
        assert (float(row["mean"]), float(row["std"])) == (np.mean(returns), np.std(returns))
    config = json.loads((run.dir / "config.json").read_text())
    assert config["args"]["alpha"] == 0.25 and config["args"]["num_shifts"] == num_shifts
    assert set(config["versions"]) >= {"gymnasium", "mujoco", "numpy", "torch"}
    logs = EventAccumulator(str(run.dir)).Reload()
    values = {tag: {event.value for event in logs.Scalars(tag)} for tag in logs.Tags()["scalars"]}
    assert min(values.pop("flow/log_det_linear")) > 0.6  # 1 / sigma expands: -2 * sigma_max
    log_det = values.pop("flow/log_det_nonlinear")
    assert coupling == "affine" or min(log_det) > 0  # atanh expands: -sum log(1 - a^2)
    assert values["charts/episodic_length"] == {7.0, 10.0} and values["charts/episodic_return"] == {28.0, 55.0}
    tags = "eval/episodic_return eval/episodic_return_std charts/episodic_return charts/episodic_length charts/SPS "
    tags += "losses/qf_loss losses/grad_norm losses/qf1_values" + " losses/qf2_values" * (num_shifts == 2)
    assert set(values) == set(tags.split())
    assert [event.step for event in logs.Scalars("eval/episodic_return")] == [0, 100, 200, 300]
    loaded, about = meow.load_policy(run.dir)
    assert torch.equal(torch.nn.utils.parameters_to_vector(loaded.parameters()), policy.vector)
    assert about["step"] == 300 and about["args"] == config["args"] and len(loaded.shifts) == num_shifts


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("what", ["obs", "reward", "overflow", "first", "reset"])
def test_a_number_of_the_environment_that_is_not_finite_stops_the_run_after_the_logs_are_written(what, script):
    flags = "--total-timesteps=300 --learning-starts=250 --eval-episodes=1 --checkpoint-frequency=1".split()
    result = script(f"--env-id=Poisoned-{what}-v0", *flags)
    assert result.returncode == 1 and "not finite" in result.stderr and "Traceback" not in result.stderr
    (run_dir,) = Path("runs").iterdir()
    if what != "first":  # the others come after the first evaluation
        assert len(logged(run_dir, "eval/episodic_return")) == 1


@pytest.mark.parametrize("at", [68, 70])  # an episode ends at 68
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stands(bad, at, monkeypatch):
    get_q, calls = FlowPolicy.get_q, []

    def poisoned(*args):
        q = get_q(*args)
        calls.append(1)
        if len(calls) == at - 50 and bad == "loss":
            return q * torch.nan
        if len(calls) == at - 50:
            q.register_hook(lambda grad: grad * torch.inf)
        return q

    monkeypatch.setattr(FlowPolicy, "get_q", poisoned)
    with pytest.raises(FloatingPointError, match="the policy has diverged.*lower --learning-rate"):
        train(small_args(checkpoint_frequency=1))
    (run_dir,) = Path("runs").iterdir()
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert state["step"] in (58, 68)
    for tensor in state["learned"]:
        assert torch.isfinite(tensor).all()


def test_an_evaluation_leaves_the_random_streams_as_they_were():
    def streams():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    class Drawing(gym.Wrapper):
        def step(self, action):
            random.random(), np.random.random(), torch.rand(1)
            return self.env.step(action)

    envs = gym.vector.SyncVectorEnv([lambda: Drawing(meow.make_env("Pendulum-v1"))])
    policy = FlowPolicy(3, 1, 0.25)
    before = streams()
    meow.evaluate(policy, envs, deterministic=False)
    assert streams() == before
