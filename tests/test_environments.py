"""What users bring: environments and simulators of every kind train as they should or are refused in one sentence."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import imageio.v3
import numpy as np
import psutil
import pytest
import torch
from conftest import Count, count, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import assert_refused, run
from test_training import small_args

import meow_continuous_action as meow
import meow_isaacgym

SHORT = "--total-timesteps=60 --learning-starts=40 --eval-frequency=60 --eval-episodes=2 --batch-size=8".split()
SHORT += ["--buffer-size=100"]


@pytest.fixture(autouse=True)
def as_before():
    Count.alive.clear()
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture
def trained(script):
    """trained(*flags) is a run that must succeed: its result, with its folder."""

    def call(*flags):
        before = set(Path("runs").glob("*"))
        result = script(*flags)
        assert result.returncode == 0, result.stderr
        (result.run_dir,) = set(Path("runs").iterdir()) - before
        return result

    return call


# One process, one environment


@pytest.mark.parametrize("kind", ["memory", "list of integers at reset", "tensor", "array reward"])
@pytest.mark.filterwarnings("ignore")
def test_however_an_environment_returns_its_numbers_they_are_stored_as_they_were(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, run = meow.train(small_args(env_id=count(kind), total_timesteps=60))
    obs, next_obs, _, reward, _ = run.rb.rows[:60].split(run.rb.widths, dim=1)
    assert obs[:, 0].tolist() == [t % 7 for t in range(60)] and (reward == 1).all()
    assert (next_obs - obs == torch.tensor([1, 0])).all()
    assert {row["mean"] for row in table(run.dir)} == {"7.0"}


REFUSED = {
    "short": ["observations are not in"],
    "row": ["dimension"],
    "old reset": ["must work here"],
    "old step": ["must work here"],
    "no flag": ["must work here"],
    "constructor": ["OSError('the data set is missing')"],
    "quits": ["SystemExit"],
    "dict": ["1-D Box", "MY_MODULE.py", "FlattenObservation"],
    "shared world": ["stepping a second instance moves the first"],
    "only one": ["the robot is in use", "--eval-episodes 0 trains without"],
    "only two": ["the robot is in use", "--eval-episodes"],
    "default type": ["default type"],
    "gradients": ["gradients"],
}


@pytest.mark.parametrize("kind, words", REFUSED.items())
@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_does_not_work_is_refused_in_one_sentence_and_closed(kind, words, script, tmp_path):
    assert_refused(script("--env-id", count(kind), *SHORT), "--env-id", tmp_path, *words)
    assert Count.alive.total() == 0


def test_a_module_in_the_current_directory_is_found(trained):
    make = "lambda **kwargs: gym.wrappers.FlattenObservation(gym.make('Pendulum-v1', g=5, **kwargs))"
    Path("my_envs.py").write_text(f"import gymnasium as gym\ngym.register('Slow-v0', {make})\n")
    result = trained("--env-id", "my_envs:Slow-v0", *SHORT)
    assert result.run_dir.name.startswith("my_envs-Slow-v0__")
    assert "time limit" not in result.stdout  # Pendulum's 200 steps, inside


def test_an_evaluation_without_a_time_limit_ends_at_its_cap_and_this_is_told(script, trained):
    result = trained("--env-id", count(limit=None), *SHORT, "--eval-max-steps", "25")
    assert "has no time limit up to --eval-max-steps" in result.stdout
    assert result.stdout.count("eval return 25.0") == 2
    assert "episode 0: 30.0" in script("--evaluate", result.run_dir, "--eval-max-steps", "30").stdout
    assert "time limit" not in trained("--env-id", count(), *SHORT).stdout


ODD = [count("unseeded"), count("curriculum"), count("numbered"), "Normalized-v0", "BipedalWalker-v3"]


@pytest.mark.parametrize("env_id", ODD)
def test_what_outlives_a_reset_is_told_in_one_line(env_id, trained):
    """Episodes without a seed, rewards, instances, statistics of a wrapper, and one whose third episode differs."""
    for name, lines in [(env_id, 1), ("Pendulum-v1", 0), (count(), 0)]:
        result = trained("--env-id", name, *SHORT)
        assert result.stdout.count("does not repeat after reset(seed=...)") == lines
        assert result.stdout.count("evaluations, --evaluate and --resume (not bit for bit)") == lines


def test_a_model_plays_other_seeds_and_other_ids_of_the_same_spaces(script, trained):
    run_dir = trained("--env-id", "Pendulum-v1", *SHORT).run_dir
    before = script("--evaluate", run_dir, "--eval-episodes", 3).stdout.splitlines()
    after = script("--evaluate", run_dir, "--eval-episodes", 2, "--seed", 1).stdout.splitlines()
    for line, same in zip(after[1:3], before[2:4], strict=True):
        episode, episodic_return = line.split(": ")
        same_episode, same_return = same.split(": ")
        assert episode == same_episode
        assert float(episodic_return) == pytest.approx(float(same_return), rel=1e-3)  # batches of another size
    gym.register("Pendulum-v9", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    other = script("--evaluate", run_dir, "--env-id", "Pendulum-v9")
    assert other.returncode == 0 and "Pendulum-v1" in other.stdout and "Pendulum-v9" in other.stdout
    result = script("--evaluate", run_dir, "--env-id", "Hopper-v4")
    assert result.returncode == 2 and "must have the observations and actions of the model" in result.stderr
    assert "--env-id" in result.stderr and "(11, 3)" in result.stderr


def test_one_instance_is_enough_without_evaluations(script, trained):
    run_dir = trained("--env-id", count("only one"), *SHORT, "--eval-episodes=0", "--eval-frequency=20").run_dir
    assert not (run_dir / "evaluations.csv").exists()
    rows = table(run_dir, "returns.csv")  # of training episodes; at step 0 there is none
    assert [(row["step"], row["episodes"]) for row in rows] == [("20", "2"), ("40", "5"), ("60", "8")]
    assert {row["mean"] for row in rows} == {"7.0"}
    assert meow.load_policy(run_dir)[1]["step"] == 60 and meow.load_policy(run_dir / "model_best.pt")[1]["step"] == 20
    assert "episode 0: 7.0" in script("--evaluate", run_dir).stdout


def test_a_model_plays_that_was_saved_before_any_episode_ended(script, trained):
    run_dir = trained("--env-id", count(limit=100), *SHORT, "--eval-episodes=0").run_dir
    assert not (run_dir / "returns.csv").exists()
    result = script("--evaluate", run_dir)
    assert "after 60 steps" in result.stdout and "episode 0: 100.0" in result.stdout


def test_successes_are_logged_and_counted(script, trained):
    """Every fourth episode of an instance succeeds, and `is_success` comes before `success`."""
    run_dir = trained("--env-id", count("success"), *SHORT).run_dir
    logs = EventAccumulator(str(run_dir)).Reload()
    rates = [event.value for event in logs.Scalars("charts/success_rate")]
    assert rates == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 2 / 7, 2 / 8])  # of the last 100 episodes
    assert [event.value for event in logs.Scalars("eval/success_rate")] == [1.0, 0.0]
    assert [row["success_rate"] for row in table(run_dir)] == ["1.0", "0.0"]
    assert script("--evaluate", run_dir).stdout.strip().endswith("success rate 1.00")
    assert Count.alive.total() == 0  # closed


ENDS = [(None, 0), (OSError, 1), (ZeroDivisionError, 1), (KeyboardInterrupt, 130), (SystemExit, 1)]


@pytest.mark.parametrize("raises, code", ENDS)
def test_whatever_ends_a_run_all_environments_are_closed_and_it_says_how_to_continue(raises, code, script):
    """Else what only `close` ends, such as a thread, would keep the process alive."""
    result = script("--env-id", count(raises=raises), *SHORT)
    assert result.returncode == code and Count.alive.total() == 0
    (run_dir,) = Path("runs").iterdir()
    last = f"continue with: python meow_continuous_action.py --resume {run_dir}" if code else f"finished: {run_dir}"
    assert result.stdout.splitlines()[-1].startswith(last)


@pytest.mark.parametrize("kind, raises, code", [("thread", None, 0), ("child", ZeroDivisionError, 1)])
def test_what_only_close_ends_has_ended(kind, raises, code, tmp_path):
    """Else the process never exits, or its child stays."""
    given = "--env-id", f"conftest:{count(kind, raises=raises)}", *SHORT
    result = run(*given, cwd=tmp_path, timeout=100, PYTHONPATH=str(Path(__file__).parent))
    assert result.returncode == code, result.stderr


def test_an_environment_may_go_to_another_folder(script, tmp_path):
    result = script("--env-id", count("folder"), *SHORT)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} >= {"config.json", "evaluations.csv", "model.pt", "checkpoint.pt"}
    os.chdir(tmp_path)
    assert script("--evaluate", run_dir.relative_to(tmp_path)).returncode == 0


def test_rewards_that_are_too_large_are_named(script):
    result = script("--env-id", count("money"), *SHORT, "--total-timesteps", 120, "--alpha", 1000)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "scale the rewards" in result.stderr and "inf" in result.stderr


@pytest.mark.parametrize("limit, steps, frames", [(7, 63, [8, 8, 8]), (None, 1300, [1001])])
def test_a_film_is_of_one_episode_and_of_at_most_1000_steps(limit, steps, frames, trained):
    few = f"--total-timesteps={steps} --learning-starts={steps - 1} --eval-max-steps=20 --capture-video"
    trained("--env-id", count("film", limit), *SHORT, *few.split())
    assert [len(imageio.v3.imread(film)) for film in Path("videos").rglob("*.mp4")] == frames


def test_an_environment_without_pictures_is_not_filmed(script, tmp_path):
    result = script("--env-id", count(), *SHORT, "--capture-video")
    assert_refused(result, "--capture-video", tmp_path, "NotImplementedError")


def test_a_buffer_must_fit_into_the_free_memory(script, monkeypatch):
    enough = 4 * 100 * (2 + 2 + 1 + 2)
    for free, code in [(enough, 0), (enough - 1, 2)]:
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        result = script("--env-id", count(), *SHORT)
        assert result.returncode == code, result.stderr
    assert "--buffer-size must fit" in result.stderr and len(list(Path("runs").iterdir())) == 1


# Many environments: the contract of --make


class Simulator:
    """Observation [environment, step of the episode, 0, ...]; reward 1; an episode's limit is 10 steps."""

    def __init__(self, num_envs, kind, size):
        self.n, self.kind, self.size, self.t = num_envs, kind, size, torch.zeros(num_envs)
        self.done, self.reset_is_real = torch.zeros(num_envs, dtype=bool), True
        self.observation_space = SimpleNamespace(shape=(2, 2) if kind == "image" else (size,))
        bound = np.full(2, 2.0 if kind == "bounds" else 1.0)
        self.action_space = SimpleNamespace(shape=(2,), low=-bound, high=bound)

    def obs(self):
        obs = torch.zeros(self.n, self.size)
        obs[:, 0], obs[:, 1] = torch.arange(self.n), self.t
        if self.kind == "numpy":
            return {"obs": obs.double().numpy()}
        others = {"bare": obs, "pair": (obs, {}), "narrow": {"obs": obs[:, :1]}, "transposed": obs.T}
        return others.get(self.kind, {"obs": obs})

    def reset(self):
        self.t.zero_()
        self.done[:] = False
        return self.obs()

    def step(self, actions):
        assert actions.shape == (self.n, 2) and actions.dtype == torch.float32
        self.t = torch.where(self.done, torch.zeros_like(self.t), self.t + 1)
        reward, self.done = torch.ones(self.n), self.t == 10
        done, time_outs = self.done, self.done.clone()
        if self.kind == "numpy":
            reward, done, time_outs = reward.double().numpy()[:, None], done.numpy(), time_outs.numpy()
        if self.kind == "two rewards":
            reward = torch.ones(self.n, 2)
        if self.kind == "gymnasium":
            return self.obs(), reward, done, time_outs, {}
        return self.obs(), reward, done, {} if self.kind == "no time_outs" else {"time_outs": time_outs}


def make_simulator(seed, task, num_envs, sim_device, rl_device, graphics_device_id, headless, kind="plain", size=3):
    return Simulator(num_envs, kind, size)


@pytest.fixture
def parallel(script):
    """parallel(*flags) is `python meow_isaacgym.py ...` with that simulator."""
    small = "--make=test_environments:make_simulator --num-envs=4 --total-vector-steps=45 --random-steps=5"
    small += " --learning-starts=10 --batch-size=8 --log-frequency=45 --buffer-steps=50 --checkpoint-frequency=44"

    def call(*flags):
        given = [] if "--evaluate" in flags else small.split()
        return script(*given, *flags, module=meow_isaacgym)

    return call


@pytest.mark.parametrize("kind", ["numpy", "bare", "pair"])
def test_what_a_simulator_returns_is_converted_and_every_step_counts(kind, parallel, monkeypatch):
    result = parallel("--make-kwargs", json.dumps({"kind": kind}))
    assert result.returncode == 0, result.stderr
    assert "return of the last 16 episodes 10.0 +- 0.0" in result.stdout
    (run_dir,) = Path("runs").iterdir()
    assert torch.load(run_dir / "checkpoint.pt", weights_only=True)["replay"] == [0, 4]  # 41 steps of 4
    rows = torch.cat([torch.load(run_dir / name) for name in ("replay_0.pt", "replay_4.pt")]).reshape(-1, 4, 10)
    assert len(rows) == 45 - 4  # each of 4 resets is a step that is not stored
    assert (rows[:, :, 0] == torch.arange(4)).all() and (rows[:, :, 4] == rows[:, :, 1] + 1).all()
    assert parallel("--evaluate", run_dir).stdout.count(": 10.0\n") == 10
    played = parallel("--evaluate", run_dir, "--make-kwargs", '{"size": 5}')
    assert played.returncode == 2 and "--make-kwargs must stay" in played.stderr
    monkeypatch.setattr(make_simulator, "__defaults__", ("plain", 4))  # another simulator of the same name
    played = parallel("--evaluate", run_dir)
    assert played.returncode == 2 and "observations and actions as in the run that --evaluate names" in played.stderr


BROKEN = {
    '{"kind": "no time_outs"}': "KeyError('time_outs')",
    '{"kind": "gymnasium"}': "gymnasium_vector:make",
    '{"kind": "image"}': "unpack",
    '{"kind": "bounds"}': "[-1,1]",
    '{"kind": "narrow"}': "observations (4, 1)",
    '{"kind": "transposed"}': "RuntimeError",
    '{"kind": "two rewards"}': "RuntimeError",
    '{"wind": 3}': "wind",
    "kind=plain": "--make-kwargs kind=plain",
    "[1]": "--make-kwargs [1]",
}


@pytest.mark.parametrize("kwargs, words", BROKEN.items())
def test_a_simulator_that_breaks_the_contract_is_refused_in_one_sentence(kwargs, words, parallel, tmp_path):
    result = parallel("--make-kwargs", kwargs)
    made = "--make test_environments:make_simulator"
    assert_refused(result, made, tmp_path, "make_env says what it must return", words)
    assert result.stderr.strip().count("\n") == 0
