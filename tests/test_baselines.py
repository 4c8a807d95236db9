"""All baselines as they are run: what they leave, store and refuse, that they resume, and that each one learns."""

import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import actor_critic
import gymnasium as gym
import numpy as np
import off_policy
import pytest
import sb3
import sql
import torch
from conftest import Count, count
from off_policy import meow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._pytree import tree_leaves

SYSTEMS = {
    "sql": (sql, {}),
    "ecga": (actor_critic, {}),
    "ecfa": (actor_critic, {"actor": "flow"}),
    "fcga": (actor_critic, {"critic": "flow", "lrs": True}),
    "fcfa": (actor_critic, {"critic": "flow", "actor": "flow", "lrs": True}),
    "sac_lrs": (actor_critic, {"lrs": True}),
    **{algo: (sb3, {"algo": algo}) for algo in sb3.ALGORITHMS},
}
TRAIN = {sb3: sb3.train, sql: functools.partial(off_policy.train, sql.SQL)}
TRAIN[actor_critic] = functools.partial(off_policy.train, actor_critic.ActorCritic)
SHORT = {"total_timesteps": 160, "learning_starts": 60, "batch_size": 8, "buffer_size": 120}
SHORT |= {"eval_frequency": 40, "eval_episodes": 2, "checkpoint_frequency": 40}
REACH, STEPS = 0.25, 10


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Args", "train"):
        monkeypatch.setattr(meow, name, getattr(meow, name))  # main replaces them; this puts them back


class Point(gym.Env):
    """A point in [-1,1]^2 is to be moved to the origin, by up to REACH in each coordinate; reward -|x| - |y|."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-REACH, REACH, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.position.copy(), {}

    def step(self, action):
        self.position += action
        return self.position.copy(), -np.abs(self.position).sum(), False, False, {}


gym.register("BaselinePoint-v0", entry_point=Point, max_episode_steps=STEPS)


def train(name, **settings):
    """A run of a system, short if the settings do not say else. Returns its agent or SB3 model, and the Run."""
    module, own = SYSTEMS[name]
    settings = SHORT | own | settings
    if name == "ppo":
        settings |= {"learning_starts": 0, "buffer_size": 4 * settings["batch_size"]}
    return TRAIN[module](module.Args(**settings))


def main(module, *flags):
    """The exit code of a script's command line, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__file__, *map(str, flags)])
        return off_policy.main(module.Args, TRAIN[module])


def to_flags(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def evaluations(run_dir):
    """evaluations.csv without the column of seconds."""
    with open(f"{run_dir}/evaluations.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def scalars(run_dir):
    """{tag: [(step, value), ...]} of a run's TensorBoard logs, except the speed."""
    logs = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = set(logs.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: sorted((event.step, event.value) for event in logs.Scalars(tag)) for tag in tags}


def tensors(tree):
    """All tensors in nested lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def learned(model):
    """All tensors that an agent or an SB3 model has learnt."""
    if isinstance(model, torch.nn.Module):
        return tensors([model.state_dict(), *(optimizer.state_dict() for optimizer in model.optimizers)])
    return tensors([model.get_parameters(), getattr(model, "log_ent_coef", None)])


def assert_same(one, other, run, other_run):
    """Two runs have learnt the same and have the same transitions, bit for bit."""
    assert len(learned(one)) > 20 and all(map(torch.equal, learned(one), learned(other)))
    stored = min(run.rb.added, len(run.rb.rows))
    assert run.rb.added == other_run.rb.added > 0 and torch.equal(run.rb.rows[:stored], other_run.rb.rows[:stored])


@pytest.mark.parametrize("name, steps", [("sql", 400), ("sac_lrs", 600), ("fcfa", 900), ("td3", 400), ("ppo", 1600)])
def test_each_script_learns_to_move_a_point_to_the_origin(name, steps):
    """By two thirds of the way from no move (-10.0) to the optimum (-0.85). Measured: -1.7, -3.0, -2.7, -1.0, -1.0."""
    settings = {"learning_starts": 100, "batch_size": 64, "buffer_size": 10_000, "gamma": 0.8}
    if name == "sql":
        settings |= {"alpha": 0.02, "learning_rate": 1e-3, "target_update_interval": 50}
    elif name == "ppo":
        settings |= {"batch_size": 50, "learning_rate": 3e-3}
    elif name == "td3":
        settings |= {"learning_rate": 3e-3}
    else:
        settings |= {"critic_learning_rate": 2e-3, "actor_learning_rate": 2e-3, "tau": 0.05, "gamma": 0.5}
        settings |= {"alpha": 0.2} if name == "fcfa" else {}
    settings |= {"total_timesteps": steps, "eval_frequency": 10_000, "eval_episodes": 10}
    _, run = train(name, env_id="BaselinePoint-v0", **settings)
    first, last = [float(row["mean"]) for row in evaluations(run.dir)]
    assert first < 0.9 * -10.0 and -3.9 < last <= -0.84


@pytest.mark.parametrize(
    "name, losses",
    [
        ("sql", {"qf_loss", "qf1_values"}),
        ("fcfa", {"qf_loss", "qf1_values", "qf2_values", "grad_norm", "actor_loss", "entropy", "alpha"}),
        ("sac", {"critic_loss", "actor_loss", "ent_coef"}),
        ("ppo", {"value_loss", "policy_gradient_loss", "entropy_loss"}),
    ],
)
def test_a_run_leaves_its_evaluations_settings_and_scalars(name, losses):
    _, run = train(name, env_id="Counting-v0")
    assert run.name.startswith(f"runs/Counting-v0__{name}{'_lrs' * (name == 'fcfa')}__1__")
    assert {path.name for path in run.dir.iterdir()} >= {"checkpoint.pt", "config.json", "evaluations.csv", "model.pt"}
    rows = evaluations(run.dir)
    assert [row["step"] for row in rows] == ["0", "40", "80", "120", "160"]
    assert list(rows[0]) == ["step", "mean", "std", "return_0", "return_1", "success_rate"]
    assert {(row["mean"], row["return_1"]) for row in rows} == {("28.0", "28.0"), ("55.0", "55.0")}
    config = json.loads((run.dir / "config.json").read_text())
    assert config["args"]["env_id"] == "Counting-v0" and {"mujoco", "torch"} <= config["versions"].keys()
    if name == "sac":
        assert config["args"]["algo"] == name and "stable_baselines3 2.9" in config["network"]["rl_zoo3"]
    logs = scalars(run.dir)
    assert [step for step, _ in logs["eval/episodic_return"]] == [0, 40, 80, 120, 160]
    lengths = logs["charts/episodic_length"]
    assert [value for _, value in lengths[:4]] in ([7, 10, 7, 10], [10, 7, 10, 7]) and lengths[1][0] == 17
    assert {value for _, value in logs["charts/episodic_return"]} == {28, 55}
    assert logs.keys() >= {f"losses/{loss}" for loss in losses}
    assert [step for step, _ in logs[f"losses/{min(losses)}"]] == ([32, 64, 96, 128] if name == "ppo" else [100])


@pytest.mark.parametrize("name", ["sql", "sac"])
def test_what_is_stored_is_what_was_done_and_only_termination_cuts_the_bootstrap(name):
    _, run = train(name, env_id="Counting-v0", buffer_size=1000)
    obs, next_obs, act, reward, terminated = run.rb.rows[: run.rb.added].split(run.rb.widths, dim=1)
    assert len(obs) == 160 and torch.equal(obs[:, 0], next_obs[:, 0]) and torch.equal(obs[:, 1] + 1, next_obs[:, 1])
    assert torch.equal(reward[:, 0], next_obs[:, 1])
    assert torch.equal(terminated[:, 0].bool(), (next_obs[:, 0] % 2 == 0) & (next_obs[:, 1] == 7))
    assert terminated.sum() > 5 and ((next_obs[:, 1] == 10) & (terminated[:, 0] == 0)).sum() > 5
    assert act.abs().max() <= 1 and act.std() > 0.4 and act.min() < -0.9 and act.max() > 0.9


class Odd(Point):
    """What users' environments do: one array for all observations, a reward in an array, strict bounds, an `info` with
    an "episode" of its own that cannot be copied, large data, global noise."""

    action_space = gym.spaces.Box(np.float32([-3.1, -0.5]), np.float32([0.7, 1000]))

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.height_map = np.zeros(5_000_000)

    def step(self, action):
        assert self.action_space.contains(action), action
        self.position[:] = np.clip(self.position + 0.1 * np.tanh(action), -2, 2) + 0.01 * np.random.normal(size=2)
        return self.position, np.array([self.position.sum()]), False, False, {"episode": 3, "of": (x for x in ())}


gym.register("Odd-v0", entry_point=Odd, max_episode_steps=STEPS)


@pytest.mark.parametrize("name", ["sql", "sac"])
def test_an_odd_environment_trains_and_resumes(name):
    settings = {"env_id": "Odd-v0", "buffer_size": 1000, "total_timesteps": 165}
    whole, whole_run = train(name, **settings, eval_frequency=30)
    _, run = train(name, **settings | {"total_timesteps": 115}, eval_frequency=1000)
    obs, next_obs, _, reward, _ = whole_run.rb.rows[:165].split(whole_run.rb.widths, dim=1)
    torch.testing.assert_close(reward[:, 0], next_obs.sum(dim=1))
    assert torch.equal(obs[1:10], next_obs[:9]) and (whole_run.dir / "checkpoint.pt").stat().st_size < 20e6
    resumed, run = train(name, **settings, eval_frequency=1000, resume=str(run.dir))
    assert_same(whole, resumed, whole_run, run)


@pytest.mark.parametrize("name", ["sql", "sac", "td3", "ppo"])
def test_evaluations_change_nothing_in_training(name):
    """They sample the policy here, where it can be: the noise must be of a stream of its own."""
    settings = {"env_id": "Hopper-v4", "eval_deterministic": name == "td3", "total_timesteps": 120}
    (one, run), (other, other_run) = (train(name, **settings, eval_frequency=n, exp_name=str(n)) for n in (30, 1000))
    assert [len(evaluations(run.dir)) for run in (run, other_run)] == [5, 2]
    assert_same(one, other, run, other_run)


@pytest.mark.parametrize("name", ["sql", "ecga", "sac", "ppo"])
def test_the_seed_and_the_flag_for_the_best_action_reach_a_run(name):
    short = {"env_id": "BaselinePoint-v0", "total_timesteps": 62, "checkpoint_frequency": 1000}
    flags = [{}, {"exp_name": "again"}, {"eval_deterministic": False}, {"seed": 2}]
    first, again, sampled, seeded = (evaluations(train(name, **short | flag)[1].dir) for flag in flags)
    assert first == again and first[0]["mean"] != sampled[0]["mean"] and first[0]["mean"] != seeded[0]["mean"]


REFUSED = [
    (sql, ["--alpha", "0"], ["0 < alpha", "--alpha 0.0"]),
    (sql, ["--value-particles", "0"], ["1 <= value_particles must hold", "value_particles=0"]),
    (sql, ["--kernel-particles", "7"], ["kernel_particles % 2 == 0"]),
    (sql, ["--target-update-interval", "0"], ["1 <= target_update_interval"]),
    (sb3, ["--env-id", "CartPole-v1", "--algo", "ppo"], ["Discrete(2)"]),
    (sql, ["--resume", "nowhere"], ["--resume", "nowhere"]),
    (sql, ["--learning-starts", "1500000"], ["--learning-starts", "< total_timesteps"]),
    (sql, ["--env-id", "Pendulum-v1", "--buffer-size", 10**12], ["--buffer-size", "free memory"]),
    (actor_critic, ["--tau", "1.5"], ["tau <= 1", "--tau 1.5"]),
    (actor_critic, ["--max-grad-norm", "-1"], ["0 < max_grad_norm"]),
    (actor_critic, ["--critic-learning-rate", "nan"], ["0 < critic_learning_rate < inf"]),
    (sb3, ["--gamma", "1.1"], ["gamma <= 1", "--gamma 1.1"]),
    (sb3, ["--learning-rate", "nan"], ["0 < learning_rate"]),
    (sb3, ["--algo", "ddpg", "--no-eval-deterministic"], ["eval_deterministic or algo in ('sac', 'ppo')"]),
    (sb3, ["--algo", "ppo", "--learning-starts", "5"], ["learning_starts == 0"]),
    (sb3, ["--algo", "ppo", "--batch-size", "100"], ["buffer_size % batch_size == 0"]),
    *((module, ["--track=True"], ["--track=True must be written without a value"]) for module in TRAIN),
]


@pytest.mark.parametrize("module, flags, words", REFUSED)
def test_bad_input_is_refused_in_one_sentence_before_any_work(module, flags, words, capsys):
    assert main(module, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert not Path("runs").exists()


@pytest.mark.parametrize("module", TRAIN)
def test_a_script_starts_as_a_user_starts_it(module):
    command = [sys.executable, module.__file__, "--env-id", "Hoper-v4"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "--env-id Hoper-v4" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["sql", "sac", "ppo"])
def test_without_evaluations_the_last_training_episodes_count(name):
    _, run = train(name, env_id=count("only one"), eval_episodes=0)
    rows = list(csv.DictReader((run.dir / "returns.csv").open()))
    assert [row["step"] for row in rows] == ["40", "80", "120", "160"]  # no episode has ended at step 0
    assert {row["mean"] for row in rows} == {"7.0"} and rows[-1]["episodes"] == "22"
    assert (run.dir / "model_best.pt").exists()


@pytest.mark.parametrize("name", ["sql", "sac"])
@pytest.mark.parametrize("raises, code", [(None, 0), (OSError, 1), (KeyboardInterrupt, 130), (SystemExit, 1)])
def test_whatever_ends_a_run_its_environments_are_closed(name, raises, code):
    env_id = count("thread", raises=raises)
    assert main(SYSTEMS[name][0], "--env-id", env_id, *to_flags(SHORT)) == code
    assert Count.alive["thread"] == 0


def test_a_resumed_run_keeps_its_settings_and_its_script(capsys):
    _, run = train("sac", env_id="BaselinePoint-v0")
    before = (run.dir / "config.json").read_text()
    for module, flags, word in [
        (sb3, ["--seed", "2"], "--seed must stay 1"),
        (sb3, ["--algo", "td3"], "--algo must stay sac"),
        (sb3, ["--gamma", "0.9"], "--gamma must stay 0.99"),
        (sql, [], "what this script wrote"),
    ]:
        assert main(module, "--resume", run.dir, *flags) == 2
        assert word in capsys.readouterr().err
    assert (run.dir / "config.json").read_text() == before
    assert main(sb3, "--resume", run.dir, "--total-timesteps", "170") == 0
    assert [row["step"] for row in evaluations(run.dir)] == ["0", "40", "80", "120", "160", "170"]


@pytest.mark.parametrize("name", ["sql", "ecfa", "fcga", "sac_lrs", "sac", "td3", "ddpg"])
def test_a_resumed_run_is_the_one_that_was_never_interrupted(name):
    settings = {"env_id": "BaselinePoint-v0", "eval_frequency": 60, "learning_starts": 40}
    whole, whole_run = train(name, **settings, exp_name="whole")
    _, half_run = train(name, **settings, total_timesteps=110)
    assert [row["step"] for row in evaluations(half_run.dir)] == ["0", "60", "110"]
    resumed, run = train(name, **settings, exp_name=half_run.args.exp_name, resume=str(half_run.dir))
    assert run.first_step == 90
    assert_same(resumed, whole, run, whole_run)
    assert evaluations(run.dir) == evaluations(whole_run.dir) and scalars(run.dir) == scalars(whole_run.dir)


def test_ppo_resumes_with_what_it_has_learnt_in_a_new_episode(capsys):
    _, run = train("ppo", env_id="Hopper-v4", total_timesteps=97)
    resumed, run = train("ppo", env_id="Hopper-v4", resume=str(run.dir), total_timesteps=96)
    assert run.first_step == resumed.num_timesteps == 96 and "not resumed bit for bit" in capsys.readouterr().out
    state, seen = torch.load(run.dir / "checkpoint.pt", weights_only=True), resumed.env.obs_rms
    assert seen.count == state["normaliser"][0]["count"] + 1  # and the first observation
    assert np.abs(seen.mean).max() > 0.1 and seen.count > 90
    assert all(map(torch.equal, learned(resumed), tensors(state["parameters"])))
    assert resumed.env.ret_rms.var == state["normaliser"][1]["var"] != 1
    resumed, run = train("ppo", env_id="Hopper-v4", resume=str(run.dir))
    assert [row["step"] for row in evaluations(run.dir)] == ["0", "40", "80", "120", "160"]


@pytest.mark.parametrize("kind", ["obs", "reward", "overflow"])
@pytest.mark.parametrize("name", ["sql", "ppo"])
def test_a_poisoned_number_stops_the_run(name, kind):
    with pytest.raises(FloatingPointError, match="not finite"):
        train(name, env_id=f"Poisoned-{kind}-v0", eval_episodes=1)


@pytest.mark.parametrize("name", ["sql", "sac", "ppo"])
def test_a_run_that_diverges_stops_with_exit_code_1(name, capsys):
    ppo = {"algo": "ppo", "learning_starts": 0, "buffer_size": 32} if name == "ppo" else {}
    flags = to_flags(SHORT | {"env_id": "Counting-v0", "learning_rate": 1e30} | ppo)
    assert main(SYSTEMS[name][0], *flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in error or "no Gaussian" in error
