"""The training loop, buffer and evaluation: what is stored, what is seeded, what stops a run."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import meow_continuous_action as meow
from meow_continuous_action import Args, FlowPolicy, ReplayBuffer, evaluate, make_env, train


def small_args(**kwargs):
    settings = {"env_id": "Counting-v0", "total_timesteps": 300, "learning_starts": 50, "eval_frequency": 100}
    return Args(**(settings | {"batch_size": 8, "buffer_size": 1000, "eval_episodes": 2} | kwargs))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def buffers(monkeypatch):
    """Every ReplayBuffer that a run makes."""
    made = []

    class Recorded(ReplayBuffer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(meow, "ReplayBuffer", Recorded)
    return made


def test_no_stored_pair_crosses_an_episode_and_only_termination_cuts(buffers):
    train(small_args())
    rb = buffers[0]
    assert rb.size == 300
    obs, next_obs, _, reward, terminated = rb.rows[:300].split(rb.widths, dim=1)
    assert torch.equal(obs[:, 0], next_obs[:, 0])  # the same episode
    assert torch.equal(obs[:, 1] + 1, next_obs[:, 1])  # the next step of it
    assert torch.equal(reward[:, 0], next_obs[:, 1])
    even = next_obs[:, 0] % 2 == 0
    assert torch.equal(terminated[:, 0].bool(), even & (next_obs[:, 1] == 7))
    # every last observation is stored once: t = 7 where the episode terminates, t = 10 where it is truncated
    for episode in range(int(obs[:, 0].max())):
        steps = next_obs[obs[:, 0] == episode, 1].tolist()
        assert steps == list(range(1, 8 if episode % 2 == 0 else 11))
    assert (next_obs[:, 1] == 10).any() and (next_obs[:, 1] == 7).any()


def test_stored_actions_are_before_tanh_and_the_env_gets_its_own_bounds(buffers, monkeypatch):
    env = make_env("Counting-v0", 0, 0, False, "")()
    env.reset(seed=0)
    for action in ([-1.0, 1.0], [0.0, 0.5]):
        env.step(np.array(action, dtype=np.float32))
    np.testing.assert_allclose(env.unwrapped.actions, [[-0.4, 0.8], [0.2, 0.5]], atol=1e-6)
    humanoid = make_env("Humanoid-v4", 0, 0, False, "")()
    humanoid.reset(seed=0)
    humanoid.step(np.ones(17, dtype=np.float32))
    np.testing.assert_allclose(humanoid.unwrapped.data.ctrl, 0.4, atol=1e-6)
    humanoid.close()
    given, step = [], meow.SyncVectorEnv.step
    monkeypatch.setattr(meow.SyncVectorEnv, "step", lambda self, act: given.append(act) or step(self, act))
    train(small_args())
    act = torch.tanh(buffers[0].rows[:300].split(buffers[0].widths, dim=1)[2])
    np.testing.assert_allclose(np.concatenate(given[-300:]), act, atol=1e-6)
    assert act[:50].abs().max() > 0.9 and act[:50].mean(dim=0).abs().max() < 0.3  # uniform before learning


def test_replay_buffer_keeps_the_newest_and_draws_uniformly():
    rb = ReplayBuffer(10, 2, 1, seed=0)
    for i in range(25):
        rb.add(np.full(2, i), np.full(2, i + 0.5), np.full(1, -i), 10 * i, i % 2)
    data = rb.sample(20_000)
    assert [field.shape[1] for field in data] == [2, 2, 1, 1, 1]
    i = data.obs[:, :1]
    assert torch.equal(data.next_obs, (i + 0.5).expand(-1, 2)) and torch.equal(data.act, -i)
    assert torch.equal(data.reward, 10 * i) and torch.equal(data.terminated, i % 2)
    counts = torch.bincount(i[:, 0].long(), minlength=25)
    assert (counts[:15] == 0).all() and (counts[15:] > 1800).all() and (counts[15:] < 2200).all()


def test_replay_buffer_never_draws_what_was_not_written():
    rb = ReplayBuffer(1000, 2, 1, seed=0)
    for i in range(3):
        rb.add(np.full(2, i), np.zeros(2), np.zeros(1), 0, 0)
    assert set(rb.sample(1000).obs[:, 0].tolist()) == {0.0, 1.0, 2.0}


def test_train_hands_every_setting_to_the_algorithm(monkeypatch):
    calls, acts, masks, evaluating = [], [], [], []
    update, forward, evaluate = meow.update, FlowPolicy.forward, meow.evaluate

    def spied_update(soft_q_loss, optimizer, data, *rates):
        policy, target = soft_q_loss.policy, soft_q_loss.target
        if not calls:  # the target starts as a copy
            assert torch.equal(policy.vector, target.vector)
        assert not any(param.requires_grad for param in target.parameters())
        assert optimizer.vector is policy.vector
        calls.append((data.obs.shape, optimizer.lr, rates[:-1]))
        masks.append(rates[-1])
        return update(soft_q_loss, optimizer, data, *rates)

    def spied_evaluate(policy, envs, deterministic):
        evaluating.append(deterministic)
        returns = evaluate(policy, envs, deterministic)
        evaluating.append(None)
        return returns

    def spied_forward(policy, obs, z):
        if not evaluating or evaluating[-1] is None:
            acts.append(z)
        return forward(policy, obs, z)

    monkeypatch.setattr(meow, "update", spied_update)
    monkeypatch.setattr(meow, "evaluate", spied_evaluate)
    monkeypatch.setattr(FlowPolicy, "forward", spied_forward)
    settings = {"alpha": 0.4, "sigma_min": -4.0, "sigma_max": -0.2, "gamma": 0.8, "tau": 0.02, "batch_size": 11}
    args = small_args(**settings, learning_rate=2e-3, max_grad_norm=7.0, coupling="affine", eval_deterministic=False)
    policy = train(args).policy
    assert calls == 249 * [((11, 3), 2e-3, (0.8, 0.02, 7.0))]  # one update a step, the first after learning_starts
    assert masks[0].shape == (4, 2, 2, 11, 64) and not torch.equal(masks[0], masks[1])  # new ones every step
    assert len(acts) == 251  # training samples the policy: one noise a step, and one that the last step does not use
    assert abs(torch.cat(acts).mean()) < 0.2 and 0.8 < torch.cat(acts).std() < 1.2
    assert evaluating[::2] == 4 * [False]
    assert (policy.alpha, policy.sigma_min, policy.sigma_max) == (0.4, -4.0, -0.2)
    assert policy.couplings[0].log_scale is not None


def test_the_action_of_a_step_is_made_from_its_observation_after_the_update_before_it(buffers, monkeypatch):
    made, learn_and_act = [], meow.learn_and_act

    def spied(*arguments):
        q, numbers = learn_and_act(*arguments)
        made.append((arguments[-2], numbers[:-2]))
        return q, numbers

    monkeypatch.setattr(meow, "learn_and_act", spied)
    train(small_args())
    obs, _, act, _, _ = buffers[0].rows[:300].split(buffers[0].widths, dim=1)
    assert len(made) == 249  # at steps 51 to 299, for the actions of steps 52 to 300
    for step, (made_for, action) in enumerate(made[:-1], start=52):
        assert torch.equal(made_for[0], obs[step]) and torch.equal(action, act[step])


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = [train(small_args(seed=seed, exp_name=name)) for seed, name in [(3, "a"), (3, "b"), (4, "c")]]
    weights = [torch.cat([p.flatten() for p in run.policy.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_evaluation_frequency_changes_nothing_in_training(buffers):
    """Stochastic evaluation draws noise: it must come from streams of its own."""
    frequencies = {"never": 10_000, "often": 10}
    runs = [
        train(
            small_args(env_id="Hopper-v4", eval_frequency=f, exp_name=n, total_timesteps=150, eval_deterministic=False)
        )
        for n, f in frequencies.items()
    ]
    assert [len(run.evaluations) for run in runs] == [2, 16]
    assert torch.equal(buffers[0].rows[:150], buffers[1].rows[:150])
    for a, b in zip(runs[0].policy.parameters(), runs[1].policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_evaluate_is_the_papers_protocol_and_touches_no_random_stream():
    envs = [make_env("Hopper-v4", i, i, False, "")() for i in range(3)]
    torch.manual_seed(0)
    policy = FlowPolicy(11, 3, 0.25)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    returns = {deterministic: evaluate(policy, envs, deterministic) for deterministic in (True, False)}
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    torch.manual_seed(2)
    for seed, env in enumerate(envs):
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                act = policy.sample(torch.as_tensor(obs[None], dtype=torch.float32), deterministic=True)[0][0].numpy()
            obs, reward, terminated, truncated, _ = env.step(act)
            total, done = total + reward, terminated or truncated
        assert total == pytest.approx(returns[True][seed], rel=0.02)  # batches of another size round differently
    assert np.array_equal(evaluate(policy, envs), returns[True])  # the same every time
    assert np.array_equal(evaluate(policy, envs, deterministic=False), returns[False])
    assert not np.array_equal(returns[True], returns[False])


def test_a_run_leaves_its_settings_versions_evaluations_and_scalars():
    result = train(small_args())
    assert [step for step, _ in result.evaluations] == [0, 100, 200, 300]
    with open(f"{result.run_dir}/evaluations.csv") as file:
        rows = list(csv.DictReader(file))
    for row, (step, returns) in zip(rows, result.evaluations, strict=True):
        assert int(row["step"]) == step
        assert [float(row["return_0"]), float(row["return_1"])] == returns.tolist()
        assert float(row["mean"]) == pytest.approx(returns.mean()) and float(row["std"]) == pytest.approx(returns.std())
        assert set(returns) <= {28.0, 55.0}  # 1 + ... + 7 and 1 + ... + 10
    with open(f"{result.run_dir}/config.json") as file:
        config = json.load(file)
    assert config["args"]["alpha"] == 0.25 and config["args"]["env_id"] == "Counting-v0"
    assert set(config["versions"]) == {"gymnasium", "mujoco", "numpy", "torch", "python"}
    logs = EventAccumulator(result.run_dir).Reload()
    assert min(event.value for event in logs.Scalars("flow/log_det_nonlinear")) > 0  # atanh expands: -sum log(1 - a^2)
    assert min(event.value for event in logs.Scalars("flow/log_det_linear")) > 0.6  # 1 / sigma expands: -2 * sigma_max
    tags = {"eval/episodic_return", "eval/episodic_return_std", "charts/episodic_return", "charts/episodic_length"}
    tags |= {"charts/SPS", "losses/qf_loss", "losses/qf1_values", "losses/qf2_values", "losses/grad_norm"}
    tags |= {"flow/log_det_nonlinear", "flow/log_det_linear"}
    assert set(logs.Tags()["scalars"]) == tags
    assert {event.value for event in logs.Scalars("charts/episodic_length")} == {7.0, 10.0}
    assert [event.step for event in logs.Scalars("eval/episodic_return")] == [0, 100, 200, 300]
    state = torch.load(f"{result.run_dir}/model.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in result.policy.state_dict().items())


def logged(run_dir, tag):
    return [event.value for event in EventAccumulator(run_dir).Reload().Scalars(tag)]


@pytest.mark.parametrize("num_shifts", [0, 1, 2])
@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_every_ablation_trains(num_shifts, coupling):
    result = train(small_args(num_shifts=num_shifts, coupling=coupling, eval_deterministic=coupling == "additive"))
    assert len(result.policy.shifts) == num_shifts
    assert all(torch.isfinite(param).all() for param in result.policy.parameters())
    assert len(logged(result.run_dir, "flow/log_det_nonlinear")) == 2


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("kind", ["obs", "reward", "overflow"])
def test_a_poisoned_number_stops_the_run_after_the_logs_are_written(kind):
    with pytest.raises(
        FloatingPointError, match="an observation, action or reward is not finite at step 11: nothing was"
    ):
        train(small_args(env_id=f"Poisoned-{kind}-v0", eval_episodes=1))
    (run_dir,) = meow.os.listdir("runs")
    assert len(logged(f"runs/{run_dir}", "eval/episodic_return")) == 1


def test_a_poisoned_evaluation_stops_the_run():
    with pytest.raises(FloatingPointError, match="of the evaluation is not finite at step 0: nothing was learnt"):
        train(small_args(env_id="Poisoned-first-v0", eval_episodes=1))


def test_a_gradient_that_is_not_finite_stops_the_run_at_its_step(monkeypatch):
    def poisoned(*args, healthy=meow.SoftQLoss.forward):
        loss, q = healthy(*args)
        q.register_hook(lambda grad: grad * torch.inf)
        return loss, q

    monkeypatch.setattr(meow.SoftQLoss, "forward", poisoned)
    with pytest.raises(FloatingPointError, match="the loss or its gradient is not finite at step 51"):
        train(small_args())


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_try(monkeypatch):
    healthy, calls = meow.SoftQLoss.forward, []

    def poisoned(*args):
        loss, q = healthy(*args)
        calls.append(1)
        return (loss * torch.nan if len(calls) == 20 else loss), q

    monkeypatch.setattr(meow.SoftQLoss, "forward", poisoned)
    with pytest.raises(FloatingPointError, match="the loss or its gradient is not finite at step 70: try.*--alpha"):
        train(small_args())


def test_same_step_autoreset_reports_the_true_last_observation():
    envs = SyncVectorEnv([make_env("Counting-v0", 0, 0, False, "")], autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    for _ in range(7):
        obs, _, terminations, _, infos = envs.step(np.zeros((1, 2), dtype=np.float32))
    assert terminations[0] and infos["final_obs"][0].tolist() == [0, 7, 7] and obs[0].tolist() == [1, 0, 0]
    assert infos["final_info"]["episode"]["r"][0] == 28


def test_two_runs_of_one_second_get_two_folders(monkeypatch):
    now = iter([1000, 1000, *range(1001, 9999)])
    monkeypatch.setattr(meow.time, "time", lambda: next(now))
    monkeypatch.setattr(meow.time, "sleep", lambda seconds: None)
    runs = [train(small_args(total_timesteps=60)).run_dir]
    now = iter([1000, *range(1001, 9999)])
    runs.append(train(small_args(total_timesteps=60)).run_dir)
    assert runs[0] != runs[1] and [run[:-4] for run in runs] == 2 * ["runs/Counting-v0__meow_continuous_action__1__"]


@pytest.mark.parametrize("bad", [{"coupling": "spline"}, {"num_shifts": 3}, {"total_timesteps": 60.0}, {"seed": None}])
def test_python_callers_get_the_same_refusals(bad, tmp_path):
    (name,) = bad
    with pytest.raises(meow.UsageError, match=f"--{name.replace('_', '-')} must be"):
        train(small_args(**bad))
    assert not list(tmp_path.iterdir())
