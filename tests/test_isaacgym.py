"""meow_isaacgym.py: what it stores, how it learns, and that it shares its classes with the other script."""

import contextlib
import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cli import run
from test_training import small_args

import meow_continuous_action
import meow_isaacgym
from meow_isaacgym import Args, EpisodeStatistics, RunningNormalizer, Transitions, UsageError, VectorReplayBuffer, train

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "meow_isaacgym.py"
STAND_IN = str(ROOT / "tests" / "standin")
MUJOCO = ["--make", "benchmark.simulators.mujoco:make", "--task", "AntMujoco"]
seeds = []  # of the simulators made by `make_copying`
SMALL = ["--num-envs", "8", "--batch-size", "32", "--random-steps", "5", "--learning-starts", "10"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def table(run_dir):
    rows = csv.DictReader((run_dir / "returns.csv").read_text().splitlines())
    return [{name: text for name, text in row.items() if name != "seconds"} for row in rows]


def weights(run_dir):
    return torch.load(run_dir / "model.pt", weights_only=True)["state_dict"]


def definitions(path):
    """{name: source} of what a script defines, with the comments and decorators right above it."""
    parts = path.read_text().split("\n\n\n")[1:-1]
    return {re.search(r"^(?:def |class )?(\w+)(?: =|\(|:)", part, re.M)[1]: part for part in parts}


def test_what_both_scripts_define_is_the_same_word_for_word_and_in_the_same_order():
    ours, other = definitions(SCRIPT), definitions(ROOT / "meow_continuous_action.py")
    own = {"Args", "train", "paper_row", "RULES", "make_env", "VERSIONED", "stored_args", "play", "main"}
    shared = [name for name in ours if name in other and name not in own]
    assert {"FlowPolicy", "Transitions", "update", "CapturedStep", "UsageError", "Run"} <= set(shared)
    for name in shared:
        assert ours[name] == other[name], name
    assert shared == [name for name in other if name in shared]


def test_the_script_needs_nothing_newer_than_python_3_8():
    files = [SCRIPT, ROOT / "benchmark/tools/speed_parallel.py", ROOT / "benchmark/baselines/sac_isaacgym.py"]
    command = [str(Path(sys.executable).with_name("vermin")), "--target=3.8-", "--violations", "--eval-annotations"]
    result = subprocess.run([*command, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    source = SCRIPT.read_text()
    assert "import gymnasium" not in source and not re.search(r"zip\([^)]*strict", source)
    assert source.index("import isaacgym") < source.index("import torch")


def test_a_step_reads_nothing_back_from_its_device(monkeypatch):
    """On the meta device there is no number to read: every synchronisation of the loop's parts would fail."""
    monkeypatch.setattr(meow_isaacgym, "check_flat", lambda module: None)  # meta tensors have no memory
    network = {"obs_dim": 4, "act_dim": 2, "alpha": 0.1}
    agent, target = meow_isaacgym.Agent(network).to("meta"), meow_isaacgym.FlowPolicy(**network).to("meta")
    policy, target = meow_isaacgym.flatten(agent.policy), meow_isaacgym.flatten(target)
    rb, statistics = VectorReplayBuffer(100, 4, 2, "meta"), EpisodeStatistics(8, "meta")
    obs, reward = torch.empty(8, 4, device="meta"), torch.empty(8, device="meta")
    rb.add(obs, obs, policy.draw(obs), reward, reward > 0, reward > 0)
    statistics.add(reward, reward > 0, reward > 0)
    agent.normalizer.update(obs)
    data = rb.sample(16)
    data = data._replace(obs=agent.normalizer(data.obs), next_obs=agent.normalizer(data.next_obs))
    rest = 0.99, 0.005, 30.0, meow_isaacgym.dropout_masks(policy, 16)
    result = meow_isaacgym.update(policy, target, meow_isaacgym.Adam(policy.vector, 1e-3), data, *rest)
    assert all(tensor.device.type == "meta" for tensor in result)


def test_the_step_needs_nothing_newer_than_torch_2_0(monkeypatch, capsys):
    """torch.compiler came with 2.1, and what compiling needs with 2.13: then the step says so and is eager."""
    monkeypatch.delattr(torch, "compiler")
    policy, target = (meow_isaacgym.flatten(meow_isaacgym.FlowPolicy(4, 2, 0.1)) for _ in range(2))
    optimizer, before = meow_isaacgym.Adam(policy.vector, 1e-3), policy.vector.clone()
    data = Transitions(*torch.randn(2, 16, 4), torch.randn(16, 2), torch.randn(16, 1), torch.zeros(16, 1))
    meow_isaacgym.CompiledStep(meow_isaacgym.update)(policy, target, optimizer, data, 0.9, 0.1, 30.0, None)
    assert not torch.equal(policy.vector, before)
    assert "--compile: running eager, for compiling failed" in capsys.readouterr().out


def stored(run_dir):
    """All transitions in the files of a run of the stand-in."""
    paths = sorted(run_dir.glob("replay_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    rows = torch.cat([torch.load(path, weights_only=True) for path in paths])
    return Transitions(*rows.split((4, 4, 2, 1, 1), dim=1))


def stand_in(*flags, cwd):
    result = run(*flags, cwd=cwd, script=SCRIPT, PYTHONPATH=STAND_IN)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_stand_in(cwd, *flags, task="Ant"):
    cwd.mkdir(exist_ok=True)
    often = "--checkpoint-frequency", "7"  # the first is at step 1, the last at step 120
    out = stand_in("--task", task, *SMALL, "--total-vector-steps", "120", *often, *flags, cwd=cwd)
    assert f"{task} settings, flags win" in out
    (run_dir,) = (cwd / "runs").iterdir()
    return run_dir


# Whose first observation has t = 0, for the simulator resets after its physics, and whose has t = 1
FIRST_T = {"Ant": 0, "FrankaCabinet": 0, "Anymal": 0, "AllegroHand": 1, "Ingenuity": 1}


@pytest.mark.parametrize("task, first_t", FIRST_T.items())
def test_no_pair_crosses_an_episode_every_last_observation_is_stored_once_and_falls_cut(task, first_t, tmp_path):
    data = stored(run_stand_in(tmp_path, task=task))
    env, episode, t, _ = data.obs.T
    next_env, next_episode, next_t, given = data.next_obs.T
    assert torch.equal(env, next_env) and torch.equal(episode, next_episode) and torch.equal(t + 1, next_t)
    assert torch.equal(given, torch.tanh(data.u)[:, 0])  # this very step's action: nothing stored was changed later
    assert torch.equal(data.reward[:, 0], 1000 * env + next_t + 0.5)
    falls = ((env + episode) % 2 == 0) & (next_t == 7)
    assert torch.equal(data.terminated[:, 0].bool(), falls) and falls.any()
    fell_at_the_limit = (env == 3) & (episode == 2) & (next_t == 10)
    assert fell_at_the_limit.sum() == 1 and data.terminated[fell_at_the_limit].item() == 0  # reads as a time-out
    finished = 0
    for e, k in torch.stack([env, episode], dim=1).unique(dim=0).tolist():
        stops, whole = next_t[(env == e) & (episode == k)].tolist(), list(range(first_t + 1, 11 if (e + k) % 2 else 8))
        assert stops == whole[: len(stops)]
        finished += stops == whole
    assert finished >= 8 * 8 and (next_t == 10).any()  # time limits, which do not cut


@pytest.mark.parametrize("task", FIRST_T)
def test_returns_are_those_of_whole_episodes(task, tmp_path):
    run_dir = run_stand_in(tmp_path, "--log-frequency", "60", "--num-envs", "1", task=task)
    rows = table(run_dir)
    assert list(rows[0]) == ["step", "mean", "std", "episodes"] and [row["step"] for row in rows] == ["60", "120"]
    # environment 0: episodes of 7 and 10 steps in turn, with returns 31.5 and 60. Ant needs one more step to reset,
    # Anymal two after a fall
    falls, whole = (4, 3) if FIRST_T[task] else (3, 3)
    assert float(rows[0]["episodes"]) == falls + whole
    assert float(rows[0]["mean"]) == pytest.approx((falls * 31.5 + whole * 60) / (falls + whole))
    out = stand_in("--evaluate", str(run_dir), "--seed", "5", "--eval-episodes", "3", cwd=tmp_path)
    lines = [f"episode {i}: {7 * 1000 * i + 31.5 if i % 2 == 0 else 10060:.1f}" for i in range(3)]
    assert out.splitlines()[1:4] == lines and "mean 8041.0" in out
    assert "3 deterministic episodes, 0 of them cut at --eval-max-steps 10000" in out
    out = stand_in("--evaluate", str(run_dir), "--eval-episodes", "3", "--eval-max-steps", "2", cwd=tmp_path)
    assert "3 deterministic episodes, 3 of them cut at --eval-max-steps 2" in out


def test_the_papers_conventions_store_and_normalise_as_it_did(tmp_path):
    conventions = ["--timeouts-terminate", "--keep-spurious", "--normalize-samples", "--clamp-actions"]
    ours, paper = run_stand_in(tmp_path / "ours"), run_stand_in(tmp_path / "paper", *conventions)
    data = stored(paper)
    assert len(data.obs) == 120 * 8  # every step of every environment
    last = (data.next_obs[:, 2] == 10) | (data.next_obs[:, 2] == 7) & ((data.obs[:, 0] + data.obs[:, 1]) % 2 == 0)
    assert torch.equal(data.terminated[:, 0].bool(), last)
    assert (data.next_obs[:, 2] == 0).sum() > 50  # steps that reset
    limit = math.atanh(1 - 1e-5)
    assert data.u.abs().max().item() == pytest.approx(limit, abs=0.01)  # float32 ends near it
    assert stored(ours).u.abs().max() > limit + 1
    # The normaliser learns from each new observation, and as the paper's from both of each sample
    assert weights(ours)["normalizer.count"] == pytest.approx(120 * 8, abs=1e-3)
    assert weights(ours)["normalizer.mean"][0] == pytest.approx(3.5, abs=1e-3)
    assert weights(paper)["normalizer.count"] == pytest.approx((120 - 10) * 2 * 32, abs=1e-3)


@pytest.mark.parametrize("task", ["Ant", "AllegroHand"])
def test_a_simulator_that_cannot_be_restored_begins_new_episodes(task, tmp_path):
    run_dir = run_stand_in(tmp_path, "--log-frequency", "7", "--num-envs", "1", task=task)
    before = stored(run_dir)
    out = stand_in("--resume", str(run_dir), "--total-vector-steps", "160", cwd=tmp_path)
    assert "not bit for bit as before, new episodes begin" in out
    data = stored(run_dir)
    assert len(data.obs) > len(before.obs) and torch.equal(data.obs[: len(before.obs)], before.obs)
    assert torch.equal(data.obs[:, :2], data.next_obs[:, :2]) and torch.equal(data.obs[:, 2] + 1, data.next_obs[:, 2])
    sums = [0.0] + [float(row["mean"]) * int(row["episodes"]) for row in table(run_dir)]
    finished = np.diff(sums).round(3)  # none was carried across: in 7 steps ends one whole episode or none
    assert set(finished) == {0, 31.5, 60} and (finished[-6:] > 0).any()


def test_ingenuity_is_made_in_a_folder_of_its_own_beside_isaacs_assets(tmp_path, monkeypatch):
    """It writes ./ingenuity.xml, whose meshes are in ../assets: jobs side by side must not share that file."""

    def make(seed, task, num_envs, rl_device, **_):
        folders.append(Path.cwd())
        assert os.listdir("../assets") == ["mesh"] and not os.listdir()
        Path("ingenuity.xml").touch()
        return Copying(num_envs, rl_device) if seed < 3 else sys.exit("no GPU")

    folders, mesh = [], tmp_path / "IsaacGymEnvs" / "assets" / "mesh"
    mesh.parent.mkdir(parents=True), mesh.touch()
    module = SimpleNamespace(make=make, __file__=str(tmp_path / "IsaacGymEnvs" / "isaacgymenvs" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "isaacgymenvs", module)
    with contextlib.ExitStack() as stack:
        for seed in (1, 2):
            meow_isaacgym.make_env(Args(task="Ingenuity", seed=seed), 8, torch.device("cpu"), stack)
        with pytest.raises(UsageError, match="no GPU"):
            meow_isaacgym.make_env(Args(task="Ingenuity", seed=3), 8, torch.device("cpu"), stack)
        assert all(folder.exists() for folder in folders)  # PyTorch's compiler starts a process there, which needs it
        assert Path.cwd() == tmp_path
    assert len(set(folders)) == 3 and not any(folder.parent.exists() for folder in folders)
    assert os.listdir(tmp_path) == ["IsaacGymEnvs"] and mesh.exists()


def test_the_launcher_finds_what_is_installed_beside_isaacs_python(tmp_path):
    """gymtorch is compiled at its import, by the ninja on PATH, also where that environment is not activated."""
    python, beside = tmp_path / "bin" / "python", tmp_path / "bin" / "beside"
    python.parent.mkdir()
    for path, line in ((python, f"command -v beside >> {tmp_path}/found; exit 1"), (beside, "")):
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    for name in ("benchmark", "meow_isaacgym.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ISAAC_PYTHON": str(python)}
    subprocess.run(["bash", str(tmp_path / "benchmark" / "fig4_isaacgym.sh"), "--smoke"], env=env, capture_output=True)
    assert (tmp_path / "found").read_text().splitlines() == [str(beside)] * 2


def test_vector_replay_buffer_stores_what_is_valid_keeps_the_newest_and_draws_uniformly():
    rb, expected = VectorReplayBuffer(10, 1, 1), []
    for step in range(12):
        x, valid = torch.arange(4.0)[:, None] + 10 * step, torch.rand(4) < 0.6
        rb.add(x, x + 1, -x, x[:, 0], valid, valid)
        expected += x[valid, 0].tolist()
        assert rb.added == len(expected)
        assert rb.get_rows(max(0, rb.added - 10), rb.added)[:, 0].tolist() == expected[-10:]
    data = rb.sample(40_000)
    values, counts = data.obs[:, 0].unique(return_counts=True)
    assert values.tolist() == expected[-10:] and ((counts - 4_000).abs() < 300).all()
    for found, wanted in zip(data[1:], (data.obs + 1, -data.obs, data.obs, torch.ones(40_000, 1)), strict=True):
        assert torch.equal(found, wanted)
    other = VectorReplayBuffer(10, 1, 1)
    for first, stop in ((rb.added - 10, rb.added - 4), (rb.added - 4, rb.added)):
        other.set_rows(first, rb.get_rows(first, stop))
    assert torch.equal(other.rows, rb.rows) and other.added == rb.added


def test_normalizer_and_episode_statistics_equal_a_count_by_hand():
    x, normalizer = 7 + 3 * torch.randn(1000, 5), RunningNormalizer(5)
    for part in x.split([1, 2, 397, 600]):
        normalizer.update(part)
    torch.testing.assert_close(normalizer.mean, x.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.var, x.double().var(0, unbiased=False), rtol=1e-4, atol=1e-4)
    assert normalizer(x).std() == pytest.approx(1.0, abs=0.02)
    assert normalizer(1000 + x).max() == 5 and normalizer(x - 1000).min() == -5

    statistics, running, finished, spurious = EpisodeStatistics(6, "cpu"), [[] for _ in range(6)], [], torch.ones(6) > 0
    assert statistics.last().shape == (2, 0)
    for _ in range(200):
        reward, done = torch.randn(6), torch.rand(6) < 0.2
        statistics.add(reward, done, ~spurious)
        for i in range(6):
            running[i] = [] if spurious[i] else [*running[i], reward[i].item()]
            if done[i] and running[i]:
                finished.append((sum(running[i]), len(running[i])))
                running[i] = []
        spurious = done
    assert len(finished) > 100
    np.testing.assert_allclose(statistics.last(), np.array(finished[-100:]).T, rtol=1e-9)


class Copying:
    """Reward -|a - s|^2 for a new random s every step, 10 steps an episode: at best 0, at random -13.3 an episode.
    The observation is 5 + 3 * s, so that something has to normalise it."""

    observation_space = action_space = SimpleNamespace(shape=(2,))

    def __init__(self, num_envs, device, odd=None):
        self.obs, self.odd = torch.zeros(num_envs, 2, device=device), odd
        self.t, self.done = torch.zeros(num_envs, device=device), torch.ones(num_envs, device=device)

    def reset(self):
        return {"obs": self.obs}

    def step(self, actions):
        if self.odd == "quits" and self.t[0] == 5:
            sys.exit()
        self.t = (self.t + 1) * (1 - self.done)
        reward = -(actions - (self.obs - 5) / 3).square().sum(dim=1)
        self.obs, self.done = 5 + 3 * (2 * torch.rand_like(self.obs) - 1), (self.t == 10).float()
        return {"obs": self.obs}, reward, self.done, {"time_outs": self.done}


def make_copying(seed, task, num_envs, rl_device, odd=None, **_):
    oddities = {"folder": lambda: os.chdir("/"), "gradients": lambda: torch.set_grad_enabled(False)}
    oddities["default type"] = lambda: torch.set_default_dtype(torch.float64)
    oddities.get(odd, int)()
    seeds.append(seed)
    return Copying(num_envs, rl_device, odd)


def copying(**settings):
    few = {"num_envs": 8, "batch_size": 16, "total_vector_steps": 30, "random_steps": 5, "learning_starts": 20}
    return Args(**{"make": "test_isaacgym:make_copying", "task": "Copying", "alpha": 0.1, **few, **settings})


def played(run_dir, **settings):
    """The returns of --evaluate."""
    args = meow_isaacgym.stored_args(Args(evaluate=str(run_dir)))
    return meow_isaacgym.play(replace(args, **settings))


def test_it_learns_a_task_with_a_known_optimum():
    settings = {"num_envs": 32, "batch_size": 256, "total_vector_steps": 1_500, "tau": 0.01, "gamma": 0.9}
    _, result = train(copying(**settings, learning_starts=60, random_steps=50, alpha=0.01, log_frequency=50))
    rows = table(result.dir)
    assert float(rows[0]["mean"]) < -10 and float(rows[-1]["mean"]) > -2  # random actions; sampled ones at the end
    greedy = played(result.dir, eval_episodes=50).mean()
    sampled = played(result.dir, eval_episodes=50, eval_deterministic=False).mean()
    assert greedy > -1.0 and sampled < greedy  # a random policy's is -13.3
    about = torch.load(result.dir / "model_best.pt", weights_only=True)["about"]
    assert about["score"] == max(float(row["mean"]) for row in rows if row["episodes"] == "100")
    assert about["args"]["gamma"] == 0.9 and about["network"]["obs_dim"] == 2


def test_every_setting_reaches_the_algorithm_and_the_papers_are_the_defaults(monkeypatch):
    def record(policy, target, optimizer, data, *rest):
        calls.append((float(optimizer.param_groups[0]["lr"]), *rest[:3], len(data.obs), rest[3].shape[-2]))
        return update(policy, target, optimizer, data, *rest)

    rows = [train(copying(seed=seed, exp_name=f"{i}"))[1].rb.rows[:200] for i, seed in enumerate((1, 1, 2))]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2]) and seeds[-3:] == [1, 1, 2]
    calls, update = [], meow_isaacgym.update
    monkeypatch.setattr(meow_isaacgym, "update", record)
    network = {"alpha": 0.7, "sigma_min": -2.0, "sigma_max": 1.0, "coupling": "affine", "num_shifts": 1}
    rates = {"learning_rate": 0.25, "gamma": 0.8, "tau": 0.3, "max_grad_norm": 4.0}
    agent, result = train(copying(**rates, **network, batch_size=24, buffer_steps=7, total_vector_steps=22))
    assert calls == [(0.25, 0.8, 0.3, 4.0, 24, 24)] * 2  # one a step from learning_starts = 20 on
    policy = agent.policy
    assert (policy.alpha, policy.sigma_min, policy.sigma_max, len(policy.shifts)) == (0.7, -2.0, 1.0, 1)
    assert policy.couplings[0].log_scale is not None and len(result.rb.rows) == 7 * 8
    assert (Args(task="AllegroHand").num_envs, Args(task="AllegroHand").batch_size) == (512, 256)
    assert (Args(task="AntMujoco").sigma_max, Args().tau, Args(task="Anymal").alpha) == (2.0, 0.0005, 0.00075)
    assert Args(task="Ingenuity").total_vector_steps == 500_000 and Args(task="Humanoid").sigma_max == -0.3
    assert Args().max_grad_norm == 2 * 30  # their loss is the mean over both shifts, ours the sum


def test_tracking_sends_every_setting_under_its_own_name_and_leaves_nothing_where_it_fails(monkeypatch):
    sent = {}
    monkeypatch.setattr("wandb.init", lambda **kwargs: sent.update(kwargs) or sys.no_login)
    with pytest.raises(UsageError, match="no_login"):
        train(copying(alpha=0.3, track=True))
    assert sent["config"]["alpha"] == 0.3 and sent["config"]["versions"]["torch"] == torch.__version__
    assert not Path("runs").exists()


def test_what_is_not_finite_ends_a_run_and_is_no_result(monkeypatch):
    """tanh hides an infinite action from the simulator: in the buffer it would end the run, or every resumed one."""
    _, whole = train(copying())
    monkeypatch.setattr(meow_isaacgym.FlowPolicy, "forward", lambda self, obs, z: torch.full_like(z, math.inf))
    with pytest.raises(FloatingPointError, match="not finite"):
        train(copying(random_steps=11, checkpoint_frequency=12))
    with pytest.raises(FloatingPointError, match="not finite at step 30"):
        train(copying(random_steps=11, exp_name="without a checkpoint"))
    monkeypatch.setattr(meow_isaacgym.Agent, "act", lambda self, obs, deterministic: obs * math.nan)
    with pytest.raises(FloatingPointError, match="a return is not finite"):
        played(whole.dir)


def test_a_compiled_run_is_the_eager_run_to_rounding(monkeypatch):
    eager, _ = train(copying())
    accelerated = meow_isaacgym.accelerated
    monkeypatch.setattr(meow_isaacgym, "accelerated", lambda args, device, steps: accelerated(args, device, 20_000))
    compiled, _ = train(copying())
    difference = (compiled.policy.vector - eager.policy.vector).abs()
    assert difference.max() < 1e-3  # Adam moves each by 1e-3 a step
    assert 0 < difference.mean() < 1e-5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_on_mujoco_resumes_bit_for_bit(number, tmp_path):
    flags = [*MUJOCO, *SMALL, "--total-vector-steps", "250", "--log-frequency", "50", "--checkpoint-frequency", "30"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert run(*flags, cwd=whole, script=SCRIPT).returncode == 0
    child = subprocess.Popen([sys.executable, str(SCRIPT), *flags], cwd=cut)
    while len(list(cut.glob("runs/*/replay_*.pt"))) < 4:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    assert child.wait(60) == (130 if number == signal.SIGINT else -number)
    (run_dir,), (reference,) = cut.glob("runs/*"), whole.glob("runs/*")
    assert run("--resume", f"runs/{run_dir.name}", cwd=cut, script=SCRIPT).returncode == 0
    assert table(run_dir) == table(reference) and len(table(run_dir)) == 5
    for name, tensor in weights(reference).items():
        assert torch.equal(tensor, weights(run_dir)[name]), name


def script(capfd, monkeypatch, *flags):
    """`python meow_isaacgym.py ...`, but, for speed, in this process."""
    monkeypatch.setattr(sys, "argv", ["meow_isaacgym.py", *map(str, flags)])
    capfd.readouterr()
    return subprocess.CompletedProcess(flags, meow_isaacgym.main(), *capfd.readouterr())


ODD = ["--make", "test_isaacgym:make_copying", "--task", "Copying", "--total-vector-steps", "30", *SMALL]
REFUSED = {
    "": "--make isaacgymenvs:make --make-kwargs {} must make; isaacgym: ModuleNotFoundError; simulators.mujoco:make",
    "--make nothing": "':' in make must hold, not --make nothing",
    "--make :make": "--make :make",
    "--make json:nothing": "--make json:nothing --make-kwargs {} must make --task Ant here: AttributeError",
    'MUJOCO --make-kwargs {"length":500}': "TypeError; length",
    "MUJOCO --task Walker": "must make --task Walker; AntMujoco, HumanoidMujoco",
    "MUJOCO --random-steps 0 --learning-starts 0": "1 <= learning_starts; --learning-starts 0",
    "MUJOCO --buffer-steps 3 --num-envs 8": "<= num_envs * buffer_steps; --buffer-steps 3",
    "MUJOCO --learning-starts 50": "--random-steps 100; --learning-starts 50",
    "MUJOCO --buffer-steps 100000000": "--buffer-steps; GB",
    "--resume runs/none": "--resume must name",
    "--evaluate none.pt": "--evaluate must name",
    'ODD --make-kwargs {"odd":"default_type"}': "--make test_isaacgym:make_copying; default type",
    'ODD --make-kwargs {"odd":"gradients"}': "--make test_isaacgym:make_copying; gradients",
}


@pytest.mark.parametrize("flags, words", REFUSED.items())
def test_bad_input_is_refused_before_any_work(flags, words, capfd, monkeypatch):
    given = []
    for flag in flags.split():
        given += {"MUJOCO": MUJOCO, "ODD": ODD}.get(flag, [flag.replace("_", " ") if "odd" in flag else flag])
    result = script(capfd, monkeypatch, *given)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words.split("; ")), result.stderr
    assert not Path("runs").exists()


def test_a_resumed_run_keeps_its_settings_and_a_run_of_the_other_script_is_refused(capfd, monkeypatch):
    _, ours = train(copying())
    _, other = meow_continuous_action.train(small_args(total_timesteps=60))
    result = script(capfd, monkeypatch, "--resume", ours.dir, "--seed", 2)
    assert result.returncode == 2 and "--seed must stay 1 with --resume" in result.stderr
    for flag in ("--resume", "--evaluate"):
        result = script(capfd, monkeypatch, flag, other.dir)
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and str(other.dir) in result.stderr
        assert "meow_continuous_action.py wrote it" in result.stderr


def test_a_simulator_that_goes_to_another_folder_or_quits_in_the_middle(capfd, monkeypatch, tmp_path):
    result = script(capfd, monkeypatch, *ODD, "--make-kwargs", '{"odd": "folder"}')
    assert result.returncode == 0 and Path.cwd() == tmp_path and len(list(Path("runs").iterdir())) == 1
    result = script(capfd, monkeypatch, *ODD, "--exp-name", "second", "--make-kwargs", '{"odd": "quits"}')
    assert result.returncode == 1 and result.stderr.endswith("SystemExit()\n")
    assert "continue with: python meow_isaacgym.py --resume runs/Copying__second" in result.stdout
