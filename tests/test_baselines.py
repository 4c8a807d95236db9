"""The stable-baselines3 baselines: their settings, what they store, evaluate and log, resume, and that each learns."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import baselines
import gymnasium as gym
import numpy as np
import pytest
import torch
from baselines import ALGORITHMS, ZOO, Args, Replay, make_model, meow, train
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import assert_refused, run

SCRIPT = Path(baselines.__file__)


class PointEnv(gym.Env):
    """A point in the plane is to be moved to the origin in steps of at most 0.2; reward = -|x| - |y|."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-0.2, 0.2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.position.copy(), {}

    def step(self, action):
        self.position = self.position + action
        return self.position.copy(), -float(np.abs(self.position).sum()), False, False, {}


class HiddenEnv(PointEnv):
    """Keeps its position where no state can be seen."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.hidden = [{1: self.position}]
        return obs, info

    def step(self, action):
        self.position = self.hidden[0][1]
        result = super().step(action)
        self.hidden[0][1] = self.position
        self.position = None
        return result


gym.register("SB3Point-v0", entry_point=PointEnv, max_episode_steps=10)
gym.register("SB3Hidden-v0", entry_point=HiddenEnv, max_episode_steps=37)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small_args(algo, **kwargs):
    """Arguments of a short run that learns: 32 steps a rollout, or a small replay memory."""
    settings = {"env_id": "Counting-v0", "total_timesteps": 300, "eval_frequency": 100, "eval_episodes": 2}
    if algo == "ppo":
        settings |= {"buffer_size": 32, "batch_size": 16}
    else:
        settings |= {"buffer_size": 1000, "batch_size": 8, "learning_starts": 50}
    return Args(algo=algo, **(settings | kwargs))


def built(algo, env_id):
    args = Args(algo=algo, env_id=env_id)
    env = DummyVecEnv([meow.make_env(env_id, 1, 0, False, "")])
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    return args, make_model(args, env, meow.ReplayBuffer(args.buffer_size, *sizes, args.seed), "cpu")


def tensors(value):
    """All tensors of nested dicts and lists, by their path."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {f"{key}/{path}": tensor for key, item in items for path, tensor in tensors(item).items()}


def assert_same_model(one, other):
    one, other = (tensors(baselines.get_model_state(model)) for model in (one, other))
    assert one.keys() == other.keys() and len(one) > 20
    for path in one:
        assert torch.equal(one[path], other[path]), path


def read_csv(run_dir):
    """evaluations.csv without the column of seconds."""
    with open(f"{run_dir}/evaluations.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def scalars(run_dir):
    """{tag: [(step, value), ...]} of a run's TensorBoard logs, but for the speed."""
    logs = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = set(logs.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(event.step, event.value) for event in logs.Scalars(tag)] for tag in tags}


# Settings


@pytest.mark.parametrize("env_id", [*meow.PAPER_SETTINGS, "Hopper-v5", "Pendulum-v1"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_model_of_every_row_has_its_values(algo, env_id):
    args, model = built(algo, env_id)
    row = ZOO[algo]["default" if env_id == "Pendulum-v1" else env_id.replace("v5", "v4")]
    special = {"learning_rate", "clip_range", "policy_kwargs", "normalize", "noise_std"}
    for name in row.keys() - special:
        assert getattr(model, name) == row[name], name
    learning_rate = row.get("learning_rate", 3e-4 if algo in ("sac", "ppo") else 1e-3)
    optimizers = [model.policy.optimizer] if algo == "ppo" else [model.actor.optimizer, model.critic.optimizer]
    assert {optimizer.param_groups[0]["lr"] for optimizer in optimizers} == {learning_rate} == {args.learning_rate}
    assert model.lr_schedule(1) == model.lr_schedule(0) == learning_rate  # no schedule
    assert args.gamma == model.gamma == row.get("gamma", 0.99) and args.batch_size == model.batch_size
    normaliser = model.get_vec_normalize_env()
    assert (normaliser is not None) == row.get("normalize", False)
    if normaliser is not None:
        assert (normaliser.gamma, normaliser.norm_obs, normaliser.norm_reward) == (args.gamma, True, True)
    if algo == "ppo":
        assert model.clip_range(1) == model.clip_range(0) == row.get("clip_range", 0.2)
        assert args.buffer_size == model.n_steps == row.get("n_steps", 2048)
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


def test_sac_is_that_of_the_papers_table_a2(monkeypatch):
    """Adam, 3e-4, gamma 0.99, a buffer of 1e6, no clipping of gradients."""
    args, model = built("sac", "Hopper-v4")
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["lr"] == 3e-4
    assert (model.gamma, model.buffer_size, model.tau) == (0.99, 1_000_000, 0.005)
    assert len(model.replay_buffer.rb.rows) == args.buffer_size == 1_000_000

    def clips(*args, **kwargs):
        raise AssertionError("a gradient was clipped")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clips)
    with pytest.raises(AssertionError, match="clipped"):
        train(small_args("ppo"))
    train(small_args("sac", total_timesteps=60))


def test_the_length_of_a_run_is_the_papers_and_flags_win():
    steps = {"Hopper-v4": 1_500_000, "Ant-v4": 4_000_000, "Humanoid-v5": 5_000_000, "Pendulum-v1": 1_500_000}
    assert {env_id: Args(env_id=env_id).total_timesteps for env_id in steps} == steps
    flags = {"gamma": 0.5, "batch_size": 64, "learning_rate": 0.1, "total_timesteps": 7}
    args = Args(algo="ppo", env_id="Hopper-v4", buffer_size=128, **flags)
    assert {name: getattr(args, name) for name in flags} == flags
    env = DummyVecEnv([meow.make_env("Hopper-v4", 1, 0, False, "")])
    model = make_model(args, env, None, "cpu")
    assert (model.gamma, model.batch_size, model.learning_rate, model.n_steps) == (0.5, 64, 0.1, 128)
    assert model.get_vec_normalize_env().gamma == 0.5


# From the command line


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_leaves_its_evaluations_settings_versions_and_scalars(algo, tmp_path, monkeypatch):
    flags = ["--algo", algo, "--env-id", "Pendulum-v1", "--total-timesteps", "250", "--eval-frequency", "100"]
    flags += ["--eval-episodes", "2", *(["--buffer-size", "128"] if algo == "ppo" else ["--batch-size", "8"])]
    if algo == "sac":  # the others in this process, which has paid for the imports
        result = run(*flags, cwd=tmp_path, script=SCRIPT)
        assert result.returncode == 0, result.stderr
    else:
        monkeypatch.setattr(sys, "argv", ["baselines.py", *flags])
        assert baselines.main(Args, train) == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith(f"Pendulum-v1__{algo}__1__")
    rows = read_csv(run_dir)
    assert [int(row["step"]) for row in rows] == [0, 100, 200, 250]
    assert [list(row) for row in rows] == 4 * [["step", "mean", "std", "return_0", "return_1"]]
    config = json.loads((run_dir / "config.json").read_text())
    assert config["args"]["algo"] == config["args"]["exp_name"] == algo
    assert {"stable_baselines3", "mujoco", "torch"} <= config["versions"].keys()
    assert config["hyperparameters"]["gamma"] == 0.99 and config["hyperparameters"]["normalize"] is False
    logs = scalars(run_dir)
    assert [step for step, _ in logs["eval/episodic_return"]] == [0, 100, 200, 250]
    assert [step for step, _ in logs["charts/episodic_length"]] == [199]
    losses = {"td3": {"critic_loss", "actor_loss"}, "ppo": {"value_loss", "policy_gradient_loss", "entropy_loss"}}
    losses |= {"ddpg": losses["td3"], "sac": losses["td3"] | {"ent_coef"}}
    tags = {f"losses/{name}" for name in losses[algo]}
    assert logs.keys() >= tags | {"eval/episodic_return_std", "charts/episodic_return"}
    assert not {"losses/learning_rate", "losses/n_updates"} & logs.keys()
    losses_at = {"ppo": [127], "td3": [200]}.get(algo, [100, 200])  # td3: the actor's first update is at step 101
    assert [step for step, _ in logs[f"losses/{'value' if algo == 'ppo' else 'actor'}_loss"]] == losses_at


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--total-timesteps", "0"], ["--total-timesteps", "at least 1"]),
        (["--gamma", "1.1"], ["--gamma", "between 0 and 1"]),
        (["--learning-rate", "nan"], ["--learning-rate", "above 0"]),
        (["--learning-starts", "1500000"], ["--learning-starts", "below --total-timesteps"]),
        (["--algo", "ddpg", "--no-eval-deterministic"], ["--no-eval-deterministic", "sac and ppo"]),
        (["--algo", "ppo", "--learning-starts", "5"], ["--learning-starts", "0 with --algo ppo"]),
        (["--algo", "ppo", "--batch-size", "100"], ["--batch-size", "divide --buffer-size"]),
        (["--env-id", "Hoper-v4"], ["--env-id", "Hopper-v4"]),
        (["--resume", "nowhere"], ["--resume", "nowhere"]),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, words, tmp_path, monkeypatch, capsys):
    assert_main_refuses(flags, words, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/*/*"))


def assert_main_refuses(flags, words, monkeypatch, capsys):
    """main() returns 2, and what it says on stderr has the words."""
    monkeypatch.setattr(sys, "argv", ["baselines.py", *flags])
    assert baselines.main(Args, train) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert all(word in said for word in words), said


def test_the_command_line_refuses_with_exit_code_2(tmp_path):
    result = run("--algo", "td3", "--no-eval-deterministic", cwd=tmp_path, script=SCRIPT)
    assert_refused(result, "--no-eval-deterministic", tmp_path, "sac and ppo")


def test_a_resumed_run_keeps_its_settings(monkeypatch, capsys):
    flags = ["--env-id", "Pendulum-v1", "--eval-episodes", "1"]
    _, run_dir, _ = train(Args(env_id="Pendulum-v1", total_timesteps=30, learning_starts=20, eval_episodes=1))
    before = Path(run_dir, "config.json").read_text()
    for flag, value in [("--seed", "2"), ("--algo", "td3"), ("--gamma", "0.9"), ("--total-timesteps", "29")]:
        assert_main_refuses(["--resume", run_dir, flag, value], [flag], monkeypatch, capsys)
    with monkeypatch.context() as patch:
        versions = meow.versions_here() | {"mujoco": "3.5.0"}
        patch.setattr(meow, "versions_here", lambda: versions)
        assert_main_refuses(["--resume", run_dir, "--total-timesteps", "40"], ["got 3.5.0"], monkeypatch, capsys)
    assert Path(run_dir, "config.json").read_text() == before
    monkeypatch.setattr(sys, "argv", ["baselines.py", "--resume", run_dir, *flags, "--total-timesteps", "40"])
    assert baselines.main(Args, train) == 0
    assert [int(row["step"]) for row in read_csv(run_dir)] == [0, 40]


# What is done to the environment, and what is stored


def all_bounds(actions, low, high):
    return np.allclose(actions.min(axis=0), low, atol=0.02) and np.allclose(actions.max(axis=0), high, atol=0.02)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_actions_reach_the_bounds_of_the_environment_and_are_stored_in_unit_bounds(algo):
    model, _, _ = train(small_args(algo))
    actions = np.array(model.env.get_attr("unwrapped")[0].actions)
    assert len(actions) == 300 and actions.min() >= -0.4 - 1e-6 and actions.max() <= 0.8 + 1e-6
    assert all_bounds(actions, -0.4, 0.8)
    if algo != "ppo":
        rb = model.replay_buffer.rb
        stored = rb.rows[: rb.size, 6:8].numpy()
        assert all_bounds(stored, -1, 1)
        np.testing.assert_allclose(0.2 + 0.6 * stored, actions[: rb.size], atol=1e-6)


@pytest.mark.parametrize("algo", ["sac", "td3", "ddpg"])
def test_only_termination_cuts_the_bootstrap_as_with_sb3s_own_buffer(algo, monkeypatch):
    """The same calls fill an SB3 buffer beside ours: all fields of all transitions must be equal."""
    theirs, add = [], Replay.add

    def spied(self, obs, next_obs, action, reward, done, infos):
        if not theirs:
            spaces = (gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), gym.spaces.Box(-1, 1, (2,)))
            theirs.append(ReplayBuffer(1000, *spaces, handle_timeout_termination=True))
        theirs[0].add(obs, next_obs, action, reward, done, infos)
        add(self, obs, next_obs, action, reward, done, infos)

    monkeypatch.setattr(Replay, "add", spied)
    model, _, _ = train(small_args(algo))
    rb = model.replay_buffer.rb
    ours = dict(zip(meow.Transitions._fields, rb.rows[: rb.size].split(rb.widths, dim=1), strict=True))
    samples = theirs[0]._get_samples(np.arange(rb.size))
    pairs = {"obs": "observations", "next_obs": "next_observations", "act": "actions", "reward": "rewards"}
    for name, theirs_name in (pairs | {"terminated": "dones"}).items():
        assert torch.equal(ours[name], getattr(samples, theirs_name).float()), name
    last = ours["next_obs"]
    assert torch.equal(ours["terminated"][:, 0].bool(), (last[:, 0] % 2 == 0) & (last[:, 1] == 7))
    assert theirs[0].timeouts.sum() > 5 and ours["terminated"].sum() > 5
    assert torch.equal(ours["obs"][:, 0], last[:, 0]) and torch.equal(ours["obs"][:, 1] + 1, last[:, 1])


def test_our_buffer_hands_sb3_what_it_stored():
    rb = meow.ReplayBuffer(100, 2, 1, seed=0)
    replay = Replay(100, None, None, torch.device("cpu"), 1, False, rb)
    for i in range(50):
        infos = [{"TimeLimit.truncated": i % 4 == 1}]
        replay.add(np.full((1, 2), i), np.full((1, 2), i + 0.5), np.full((1, 1), -i), [2 * i], [i % 2 == 1], infos)
    data = replay.sample(1000)
    i = data.observations[:, :1]
    assert set(i[:, 0].tolist()) == set(range(50)) and data.discounts is None
    assert torch.equal(data.next_observations, (i + 0.5).expand(-1, 2)) and torch.equal(data.actions, -i)
    assert torch.equal(data.rewards, 2 * i) and torch.equal(data.dones.bool(), i % 4 == 3)


def test_ppo_bootstraps_from_a_time_limit_and_not_from_a_termination():
    model, _, _ = train(small_args("ppo", buffer_size=64, total_timesteps=128))
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


# Evaluation


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_evaluation_frequency_changes_nothing_in_training(algo):
    """SAC's evaluation samples its policy here: the noise must come from a stream of its own."""
    settings = {"env_id": "Hopper-v4", "total_timesteps": 150, "eval_deterministic": algo != "sac"}
    runs = [train(small_args(algo, **settings, eval_frequency=n, exp_name=str(n))) for n in (30, 1000)]
    assert [len(evaluations) for _, _, evaluations in runs] == [6, 2]
    assert_same_model(runs[0][0], runs[1][0])
    if algo == "ppo":
        assert runs[0][0].get_vec_normalize_env().obs_rms.count > 150
    else:
        rows = [model.replay_buffer.rb.rows[:149] for model, _, _ in runs]
        assert torch.equal(*rows)


def test_ppos_evaluation_normalises_as_training_and_clips():
    args, model = built("ppo", "Hopper-v4")
    model.learn(512)
    policy, normaliser = baselines.Policy(model), model.get_vec_normalize_env()
    before = normaliser.obs_rms.mean.copy(), normaliser.obs_rms.count
    raw = normaliser.get_original_obs()
    action = policy.act(torch.as_tensor(raw, dtype=torch.float32), deterministic=True)
    with torch.no_grad():
        mean = model.policy.get_distribution(torch.as_tensor(model._last_obs)).distribution.mean
    torch.testing.assert_close(action, mean.clamp(-1, 1), atol=1e-5, rtol=0)
    assert np.array_equal(normaliser.obs_rms.mean, before[0]) and normaliser.obs_rms.count == before[1] > 512
    with torch.no_grad():
        model.policy.action_net.bias.fill_(5.0)
    assert (policy.act(torch.as_tensor(raw, dtype=torch.float32), deterministic=True) == 1).all()


# Interruptions


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_resumed_run_is_the_one_that_was_never_interrupted(algo):
    settings = {"env_id": "Hopper-v4", "eval_frequency": 60, "exp_name": "whole"}
    whole, whole_dir, _ = train(small_args(algo, total_timesteps=260, **settings))
    _, run_dir, _ = train(small_args(algo, total_timesteps=150, **settings))
    assert [int(row["step"]) for row in read_csv(run_dir)] == [0, 60, 120, 150]
    at = 128 if algo == "ppo" else 149
    assert meow.Checkpoints(f"{run_dir}/checkpoints").load()["step"] == at
    resumed, _, _ = train(small_args(algo, total_timesteps=260, resume=run_dir, **settings))
    assert resumed.num_timesteps == 260
    assert read_csv(run_dir) == read_csv(whole_dir)
    assert scalars(run_dir) == scalars(whole_dir)
    assert_same_model(resumed, whole)
    if algo != "ppo":
        one, other = resumed.replay_buffer.rb, whole.replay_buffer.rb
        assert one.added == other.added == 259 and torch.equal(one.rows[:259], other.rows[:259])
    assert json.loads(Path(run_dir, "config.json").read_text())["resumed_at"] == [at]


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_an_environment_that_hides_its_state_begins_a_new_episode(algo, capsys):
    settings = {"env_id": "SB3Hidden-v0", "eval_frequency": 50}
    _, run_dir, _ = train(small_args(algo, total_timesteps=100, **settings))
    at = 96 if algo == "ppo" else 99
    model, _, _ = train(small_args(algo, total_timesteps=150, resume=run_dir, **settings))
    assert "its state cannot be saved" in capsys.readouterr().out
    assert model.num_timesteps == 150
    lengths = scalars(run_dir)["charts/episodic_length"]
    assert [step for step, _ in lengths] == [36, 73, at + 36] and {value for _, value in lengths} == {37.0}
    if algo == "sac":
        obs, next_obs = model.replay_buffer.rb.rows[:149, :2], model.replay_buffer.rb.rows[:149, 2:4]
        assert (next_obs - obs).abs().max() <= 0.2 + 1e-6  # no pair crosses the seam


@pytest.mark.parametrize("algo", ["td3", "ppo"])
def test_sigterm_writes_a_checkpoint_to_go_on_from(algo, tmp_path):
    settings = {"env_id": "Pendulum-v1", "buffer_size": 64, "batch_size": 8, "eval_frequency": 50, "eval_episodes": 1}
    settings |= {"checkpoint_frequency": 100_000, "learning_starts": 0 if algo == "ppo" else 20}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, str(SCRIPT), "--algo", algo, *flags, "--total-timesteps", "100000"]
    with open(tmp_path / "log", "w") as log:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    deadline = time.time() + 120
    while "step 100:" not in (tmp_path / "log").read_text() and time.time() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 128 + signal.SIGTERM
    (run_dir,) = Path("runs").iterdir()
    step = meow.Checkpoints(run_dir / "checkpoints").load()["step"]
    log = (tmp_path / "log").read_text()
    assert step >= 100 and f"stopped at step {step:,}; go on with:" in log and f"--resume {run_dir}" in log
    train(Args(algo=algo, **settings, total_timesteps=step + 60, resume=str(run_dir)))
    _, whole_dir, _ = train(Args(algo=algo, **settings, total_timesteps=step + 60, exp_name="whole"))
    assert read_csv(run_dir) == read_csv(whole_dir)


# Runs that must not go on


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("kind", ["obs", "reward", "overflow"])
@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_poisoned_number_stops_the_run(algo, kind):
    with pytest.raises(FloatingPointError, match="an observation or reward is not finite at step 11"):
        train(small_args(algo, env_id=f"Poisoned-{kind}-v0", eval_episodes=1))


def test_a_run_that_diverges_stops():
    with pytest.raises(FloatingPointError, match="_loss is not finite at step 5"):
        train(small_args("sac", learning_rate=1e30))
    with pytest.raises(FloatingPointError, match="at step 31"):
        train(small_args("ppo", learning_rate=1e30))


# Learning


def optimum_and_idle():
    """Mean returns of the ten evaluation episodes of SB3Point-v0: straight to the origin, and without a move."""
    best, idle = [], []
    for seed in range(10):
        start = gym.make("SB3Point-v0").reset(seed=seed)[0]
        left = [np.maximum(np.abs(start) - 0.2 * step, 0).sum() for step in range(1, 11)]
        best.append(-sum(left)), idle.append(-10 * np.abs(start).sum())
    return np.mean(best), np.mean(idle)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_learns_to_move_a_point_to_the_origin(algo):
    """The optimum is -1.18, no move -9.95. Measured at the end for seeds 1, 2, 3:

    sac -2.34, -1.88, -1.90, td3 -1.35, -1.35, -1.64, ddpg -1.96, -1.31, -1.44, ppo -1.50, -1.36, -1.53.
    """
    optimum, idle = optimum_and_idle()
    settings = {"total_timesteps": 800, "learning_starts": 100, "batch_size": 32}
    if algo == "ppo":
        settings = {"total_timesteps": 3000, "buffer_size": 200, "batch_size": 50}
    settings |= {"env_id": "SB3Point-v0", "learning_rate": 3e-3, "gamma": 0.8, "eval_frequency": 1000}
    _, _, evaluations = train(Args(algo=algo, **settings))
    means = [returns.mean() for _, returns in evaluations]
    assert means[0] < -8  # the untrained policy
    assert optimum - 0.2 * (optimum - idle) < means[-1] <= optimum
