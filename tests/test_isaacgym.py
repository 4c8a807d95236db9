"""meow_isaacgym.py: what it stores, how it learns, and that it shares its classes with the other script."""

import ast
import contextlib
import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cli import run

import meow_isaacgym
from meow_isaacgym import Args, EpisodeStatistics, RunningNormalizer, Transitions, VectorReplayBuffer, load_file, train

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "meow_isaacgym.py"
STAND_IN = str(ROOT / "tests" / "standin")
MUJOCO = ["--make", "benchmark.simulators.mujoco:make", "--task", "AntMujoco"]
SMALL = ["--num-envs", "8", "--batch-size", "32", "--random-steps", "5", "--learning-starts", "10"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])


# One algorithm in two files


def definitions(path):
    """{name: source text} of what a script defines, with the comments right above it."""
    lines, found = path.read_text().splitlines(), {}
    for node in ast.parse("\n".join(lines)).body:
        name = getattr(node, "name", None) or getattr(getattr(node, "targets", [None])[0], "id", None)
        if name is not None:
            first = node.lineno - 1
            while lines[first - 1].startswith("#"):
                first -= 1
            found[name] = "\n".join(lines[first : node.end_lineno])
    return found


def test_what_both_scripts_define_is_the_same_word_for_word_and_in_the_same_order():
    ours, other = definitions(SCRIPT), definitions(ROOT / "meow_continuous_action.py")
    own = {"SHARED_SETTINGS", "PAPER_SETTINGS", "Args", "train", "paper_row", "RULES", "make_env"}
    own |= {"MAY_CHANGE", "MAY_CHANGE_TOO", "check_script", "stored_args", "play", "main"}
    shared = [name for name in ours if name in other and name not in own]
    assert {"FlowPolicy", "Transitions", "Adam", "update", "CompiledStep", "CapturedStep", "Run"} <= set(shared)
    for name in shared:
        assert ours[name] == other[name], name
    assert shared == [name for name in other if name in shared]


def test_the_script_parses_on_python_3_8_and_needs_nothing_newer():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    files = [SCRIPT, ROOT / "benchmark/tools/speed_parallel.py", ROOT / "benchmark/baselines/sac_isaacgym.py"]
    command = [str(Path(sys.executable).with_name("vermin")), "--target=3.8-", "--violations", "--eval-annotations"]
    result = subprocess.run([*command, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    source = SCRIPT.read_text()
    assert "import gymnasium" not in source
    assert source.index("import isaacgym") < source.index("import torch")
    assert not re.search(r"zip\([^)]*strict", source)


def test_a_step_reads_nothing_back_from_its_device(monkeypatch):
    """On the meta device there is no number to read: every synchronisation of the loop's parts would fail."""
    monkeypatch.setattr(meow_isaacgym, "check_flat", lambda module: None)  # meta tensors have no memory
    network = {"obs_dim": 4, "act_dim": 2, "alpha": 0.1}
    agent, target = meow_isaacgym.Agent(network).to("meta"), meow_isaacgym.FlowPolicy(**network).to("meta")
    for module in (agent.policy, target):
        meow_isaacgym.flatten(module)
    optimizer = meow_isaacgym.Adam(agent.policy.vector, 1e-3)
    rb, statistics = VectorReplayBuffer(100, 4, 2, "meta"), EpisodeStatistics(8, "meta")
    obs, reward = torch.empty(8, 4, device="meta"), torch.empty(8, device="meta")
    done = reward > 0
    rb.add(obs, obs, agent.policy.draw(obs), reward, done, done)
    statistics.add(reward, done, done)
    agent.normalizer.update(obs)
    data = rb.sample(16)
    data = data._replace(obs=agent.normalizer(data.obs), next_obs=agent.normalizer(data.next_obs))
    rates, dropout = (0.99, 0.005, 30.0), meow_isaacgym.dropout_masks(agent.policy, 16)
    result = meow_isaacgym.update(agent.policy, target, optimizer, data, *rates, dropout)
    assert all(tensor.device.type == "meta" for tensor in result)


def test_the_step_needs_nothing_newer_than_torch_2_0(monkeypatch, capsys):
    """torch.compiler came with 2.1, and what compiling needs with 2.13: then the step says so and is eager."""
    monkeypatch.delattr(torch, "compiler")
    policy, target = (meow_isaacgym.flatten(meow_isaacgym.FlowPolicy(4, 2, 0.1)) for _ in range(2))
    optimizer, before = meow_isaacgym.Adam(policy.vector, 1e-3), policy.vector.clone()
    obs = torch.randn(16, 4)
    data = Transitions(obs, obs, torch.randn(16, 2), torch.randn(16, 1), torch.zeros(16, 1))
    meow_isaacgym.CompiledStep(meow_isaacgym.update)(policy, target, optimizer, data, 0.9, 0.1, 30.0, None)
    assert not torch.equal(policy.vector, before)
    assert "--compile: running eager, for compiling failed" in capsys.readouterr().out


# What is stored


def stand_in(*flags, cwd):
    return run(*flags, cwd=cwd, script=SCRIPT, PYTHONPATH=STAND_IN)


def stored(run_dir):
    """All stored transitions of a run of the stand-in whose buffer never turned over, and the checkpoint."""
    state = load_file(run_dir / "checkpoint.pt", "--resume", dict)
    files = [load_file(run_dir / f"replay_{a}_{b}.pt", "--resume", torch.clone) for a, b in state["replay"]]
    return Transitions(*torch.cat(files).split((4, 4, 2, 1, 1), dim=1)), state


def run_stand_in(tmp_path, *flags, task="Ant"):
    often = "--checkpoint-frequency", "7"  # the first is at step 1, the last at step 120
    result = stand_in("--task", task, *SMALL, "--total-vector-steps", "120", *often, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    return run_dir, result


# Whose first observation has t = 0, for the simulator resets after its physics, and whose has t = 1
FIRST_T = {"Ant": 0, "FrankaCabinet": 0, "Anymal": 0, "AllegroHand": 1, "Ingenuity": 1}


@pytest.mark.parametrize("task, first_t", FIRST_T.items())
def test_no_pair_crosses_an_episode_every_last_observation_is_stored_once_and_falls_cut(task, first_t, tmp_path):
    data, _ = stored(run_stand_in(tmp_path, task=task)[0])
    env, episode, t, _ = data.obs.T
    next_env, next_episode, next_t, given = data.next_obs.T
    assert torch.equal(env, next_env) and torch.equal(episode, next_episode) and torch.equal(t + 1, next_t)
    assert torch.equal(given, torch.tanh(data.u)[:, 0])  # this very step's action: nothing stored was changed later
    assert torch.equal(data.reward[:, 0], 1000 * env + next_t + 0.5)
    falls = ((env + episode) % 2 == 0) & (next_t == 7)
    assert torch.equal(data.terminated[:, 0].bool(), falls) and falls.any()
    fell_at_the_limit = (env == 3) & (episode == 2) & (next_t == 10)
    assert fell_at_the_limit.sum() == 1 and data.terminated[fell_at_the_limit].item() == 0  # reads as a time-out
    seen = {}
    for e, k, stop in zip(env.tolist(), episode.tolist(), next_t.tolist(), strict=True):
        seen.setdefault((e, k), []).append(stop)
    finished = 0
    for (e, k), stops in seen.items():
        last = 7 if (e + k) % 2 == 0 else 10
        whole = list(range(first_t + 1, last + 1))
        assert stops == whole[: len(stops)]
        finished += stops == whole
    assert finished >= 8 * 8
    assert (next_t == 10).any()  # time limits, which do not cut


@pytest.mark.parametrize("task", FIRST_T)
def test_returns_are_those_of_whole_episodes(task, tmp_path):
    run_dir, _ = run_stand_in(tmp_path, "--log-frequency", "60", "--num-envs", "1", task=task)
    with open(run_dir / "returns.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "seconds", "mean", "std", "episodes"]
    assert [row["step"] for row in rows] == ["60", "120"]
    # environment 0: episodes of 7 and 10 steps in turn, with returns 31.5 and 60. Ant needs one more step to reset,
    # Anymal two after a fall
    falls, whole = (4, 3) if FIRST_T[task] else (3, 3)
    assert float(rows[0]["episodes"]) == falls + whole
    assert float(rows[0]["mean"]) == pytest.approx((falls * 31.5 + whole * 60) / (falls + whole))
    result = stand_in("--evaluate", str(run_dir), "--seed", "5", "--eval-episodes", "3", cwd=tmp_path)
    lines = [f"episode {i}: {7 * 1000 * i + 31.5 if i % 2 == 0 else 10060:.1f}" for i in range(3)]
    assert result.stdout.splitlines()[1:4] == lines
    assert "3 deterministic episodes: mean 8041.0" in result.stdout
    result = stand_in("--evaluate", str(run_dir), "--eval-episodes", "3", "--eval-max-steps", "2", cwd=tmp_path)
    assert "3 deterministic episodes (3 cut at --eval-max-steps 2): mean" in result.stdout


def test_ingenuity_is_made_in_a_folder_of_its_own_beside_isaacs_assets(tmp_path, monkeypatch):
    """It writes ./ingenuity.xml, whose meshes are in ../assets: jobs side by side must not share that file."""

    def make(seed, task, num_envs, rl_device, **_):
        folders.append(Path.cwd())
        assert Path("../assets/mesh").read_text() == "a mesh" and not list(Path.cwd().iterdir())
        Path("ingenuity.xml").touch()
        if seed == 3:
            raise RuntimeError("no GPU")
        return Copying(num_envs, rl_device)

    folders, isaac = [], tmp_path / "IsaacGymEnvs"
    for folder in ("assets", "isaacgymenvs"):
        (isaac / folder).mkdir(parents=True)
    (isaac / "assets" / "mesh").write_text("a mesh")
    module = SimpleNamespace(make=make, __file__=str(isaac / "isaacgymenvs" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "isaacgymenvs", module)
    with contextlib.ExitStack() as stack:
        for seed in (1, 2):
            meow_isaacgym.make_env(Args(task="Ingenuity", seed=seed), 8, torch.device("cpu"), stack)
        with pytest.raises(meow_isaacgym.UsageError, match="no GPU"):
            meow_isaacgym.make_env(Args(task="Ingenuity", seed=3), 8, torch.device("cpu"), stack)
        assert all(folder.exists() for folder in folders)  # PyTorch's compiler starts a process there, which needs it
    assert len(set(folders)) == 3 and not any(folder.parent.exists() for folder in folders)
    assert Path.cwd() == tmp_path and os.listdir(tmp_path) == ["IsaacGymEnvs"]
    assert (isaac / "assets" / "mesh").exists()


def test_the_launcher_finds_what_is_installed_beside_isaacs_python(tmp_path):
    """gymtorch is compiled at its import, by the ninja on PATH, also where that environment is not activated."""
    for name in ("benchmark", "meow_isaacgym.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, line in (("python", f"command -v beside >> {tmp_path}/found; exit 1"), ("beside", "")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["ISAAC_PYTHON"] = str(tmp_path / "bin" / "python")
    subprocess.run(["bash", str(tmp_path / "benchmark" / "fig4_isaacgym.sh"), "--smoke"], env=env, capture_output=True)
    assert (tmp_path / "found").read_text().splitlines() == [str(tmp_path / "bin" / "beside")] * 2


def test_the_papers_conventions_store_what_it_stored(tmp_path):
    flags = ["--timeouts-terminate", "--keep-spurious", "--normalize-samples", "--clamp-actions"]
    data, _ = stored(run_stand_in(tmp_path, *flags)[0])
    assert len(data.obs) == 120 * 8  # every step of every environment
    last = (data.next_obs[:, 2] == 10) | (data.next_obs[:, 2] == 7) & ((data.obs[:, 0] + data.obs[:, 1]) % 2 == 0)
    spurious = data.next_obs[:, 2] == 0
    assert spurious.sum() > 50
    assert torch.equal(data.terminated[:, 0].bool(), last)
    limit = math.atanh(1 - 1e-5)
    assert data.u.abs().max().item() == pytest.approx(limit, abs=0.01)  # float32 ends near it
    (tmp_path / "ours").mkdir()
    assert stored(run_stand_in(tmp_path / "ours")[0])[0].u.abs().max() > limit + 1


def test_normalizer_learns_from_each_new_observation_or_as_the_paper_from_samples(tmp_path):
    _, state = stored(run_stand_in(tmp_path)[0])
    assert state["learned"][7] == pytest.approx(120 * 8, abs=1e-3)
    assert state["learned"][5][0] == pytest.approx(3.5, abs=1e-3)
    (tmp_path / "paper").mkdir()
    _, state = stored(run_stand_in(tmp_path / "paper", "--normalize-samples")[0])
    assert state["learned"][7] == pytest.approx((120 - 10) * 2 * 32, abs=1e-3)


def test_an_infinite_action_ends_the_run(monkeypatch):
    """tanh hides it from the simulator: in the buffer it would end the run when it is drawn, or every resumed one."""
    monkeypatch.setattr(meow_isaacgym.FlowPolicy, "forward", lambda self, obs, z: torch.full_like(z, math.inf))
    with pytest.raises(FloatingPointError, match="before vector step 12"):
        train(copying(random_steps=11, log_frequency=12))


def test_the_stand_in_insists_on_the_import_order(tmp_path):
    code = "import torch, meow_isaacgym as m; m.train(m.Args())"
    env = os.environ | {"PYTHONPATH": f"{STAND_IN}:{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "PyTorch was imported before isaacgym" in result.stderr


# The parts


def test_vector_replay_buffer_stores_what_is_valid_keeps_the_newest_and_draws_uniformly():
    rb, expected = VectorReplayBuffer(10, 1, 1), []
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        x = torch.arange(4.0)[:, None] + 10 * step
        valid = torch.rand(4, generator=generator) < 0.6
        rb.add(x, x + 1, -x, x[:, 0], valid, valid)
        expected += x[valid, 0].tolist()
        assert rb.added == len(expected)
        assert rb.get_rows(max(0, rb.added - 10), rb.added)[:, 0].tolist() == expected[-10:]
    data = rb.sample(40_000)
    values, counts = data.obs[:, 0].unique(return_counts=True)
    assert values.tolist() == expected[-10:] and (counts > 3_700).all() and (counts < 4_300).all()
    assert torch.equal(data.next_obs, data.obs + 1) and torch.equal(data.u, -data.obs)
    assert torch.equal(data.reward, data.obs) and (data.terminated == 1).all()
    other = VectorReplayBuffer(10, 1, 1)
    for first, stop in ((rb.added - 10, rb.added - 4), (rb.added - 4, rb.added)):
        other.set_rows(first, rb.get_rows(first, stop))
    assert torch.equal(other.rows, rb.rows) and other.added == rb.added


def test_normalizer_has_the_moments_of_all_it_saw():
    x = 7 + 3 * torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    normalizer = RunningNormalizer(5)
    for part in x.split([1, 2, 397, 600]):
        normalizer.update(part)
    torch.testing.assert_close(normalizer.mean, x.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.var, x.double().var(0, unbiased=False), rtol=1e-4, atol=1e-4)
    assert normalizer(x).std() == pytest.approx(1.0, abs=0.02) and normalizer(1000 + x).max() == 5


def test_episode_statistics_equal_a_count_by_hand():
    statistics, generator = EpisodeStatistics(6, "cpu"), torch.Generator().manual_seed(0)
    running, finished, spurious = [[0.0, 0] for _ in range(6)], [], torch.ones(6, dtype=torch.bool)
    for _ in range(200):
        reward, done = torch.randn(6, generator=generator), torch.rand(6, generator=generator) < 0.2
        statistics.add(reward, done, ~spurious)
        for i in range(6):
            if not spurious[i]:
                running[i] = [running[i][0] + reward[i].item(), running[i][1] + 1]
                if done[i]:
                    finished.append(running[i])
            if done[i]:
                running[i] = [0.0, 0]
        spurious = done
    assert len(finished) > 100
    returns, lengths = np.array(finished[-100:]).T
    np.testing.assert_allclose(statistics.last(), [returns, lengths], rtol=1e-9)
    assert EpisodeStatistics(6, "cpu").last().shape == (2, 0)


# Learning, resuming, playing


class Copying:
    """Reward -|a - s|^2 for a new random s every step, 10 steps an episode: at best 0, at random -13.3 an episode.

    The observation is 5 + 3 * s, so that something has to normalise it.
    """

    def __init__(self, num_envs, device):
        self.observation_space, self.action_space = SimpleNamespace(shape=(2,)), SimpleNamespace(shape=(2,))
        self.t = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.obs, self.done = torch.zeros(num_envs, 2, device=device), torch.ones_like(self.t)

    def reset(self):
        return {"obs": self.obs}

    def step(self, actions):
        self.t = torch.where(self.done.bool(), 0, self.t + 1)
        reward = -(actions - (self.obs - 5) / 3).square().sum(dim=1)
        self.obs = 5 + 3 * (2 * torch.rand_like(self.obs) - 1)
        self.done = (self.t == 10).long()
        return {"obs": self.obs}, reward, self.done, {"time_outs": self.done.bool()}


def make_copying(seed, task, num_envs, rl_device, **_):
    return Copying(num_envs, rl_device)


def copying(**settings):
    few = {"num_envs": 8, "batch_size": 16, "total_vector_steps": 30, "random_steps": 5, "learning_starts": 20}
    return Args(**{"make": "test_isaacgym:make_copying", "task": "Copying", "alpha": 0.1, **few, **settings})


def stored_args(run_dir, **settings):
    return Args(**{**vars(meow_isaacgym.stored_args(Args(evaluate=str(run_dir)))), **settings})


def test_it_learns_a_task_with_a_known_optimum():
    settings = {"num_envs": 32, "batch_size": 256, "total_vector_steps": 1_500, "random_steps": 50, "tau": 0.01}
    settings |= {"learning_starts": 60, "alpha": 0.01, "log_frequency": 50, "gamma": 0.9}
    _, result = train(copying(**settings))
    rows = list(csv.DictReader(result.state["table"].splitlines()))
    means = [float(row["mean"]) for row in rows]
    assert means[0] < -10 and means[-1] > -2  # random actions; sampled ones at the end
    greedy = meow_isaacgym.play(stored_args(result.dir, eval_episodes=50))
    assert greedy.mean() > -1.0  # a random policy's is -13.3
    sampled = meow_isaacgym.play(stored_args(result.dir, eval_episodes=50, eval_deterministic=False))
    assert sampled.mean() < greedy.mean()
    about = load_file(result.dir / "model_best.pt", "--evaluate", dict)["about"]
    assert about["score"] == max(float(row["mean"]) for row in rows if row["episodes"] == "100")
    assert about["args"]["gamma"] == 0.9 and about["network"]["obs_dim"] == 2


def test_every_flag_of_the_algorithm_reaches_it(monkeypatch):
    def record(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout):
        calls.append(
            (
                optimizer.param_groups[0]["lr"],
                gamma,
                tau,
                max_grad_norm,
                len(data.obs),
                dropout.shape[-2],
                dropout.shape[1],
            )
        )
        return update(policy, target, optimizer, data, gamma, tau, max_grad_norm, dropout)

    calls, update = [], meow_isaacgym.update
    monkeypatch.setattr(meow_isaacgym, "update", record)
    rates = {"learning_rate": 0.002, "gamma": 0.8, "tau": 0.3, "max_grad_norm": 4.0}
    network = {"alpha": 0.7, "sigma_min": -2.0, "sigma_max": 1.0, "coupling": "affine", "num_shifts": 1}
    agent, result = train(copying(**rates, **network, batch_size=24, buffer_steps=7))
    assert calls == [(0.002, 0.8, 0.3, 4.0, 24, 24, 2)] * 10  # one a step from learning_starts = 20 on
    policy = agent.policy
    assert (policy.alpha, policy.sigma_min, policy.sigma_max, len(policy.shifts)) == (0.7, -2.0, 1.0, 1)
    assert len(result.rb.rows) == 7 * 8
    first = Transitions(*result.rb.rows.split(result.rb.widths, dim=1))
    assert first.u.isfinite().all()


def test_tracking_sends_every_setting_under_its_own_name_and_leaves_nothing_where_it_fails(monkeypatch):
    def init(**kwargs):
        sent.update(kwargs)
        raise RuntimeError("no login")

    sent = {}
    monkeypatch.setattr("wandb.init", init)
    with pytest.raises(meow_isaacgym.UsageError, match="no login"):
        train(copying(alpha=0.3, track=True))
    assert sent["config"]["alpha"] == 0.3 and sent["config"]["versions"]["torch"] == torch.__version__
    assert not Path("runs").exists()


def test_playing_with_a_model_that_diverged_is_no_result(monkeypatch):
    _, result = train(copying())
    monkeypatch.setattr(meow_isaacgym.Agent, "act", lambda self, obs, deterministic: obs * math.nan)
    with pytest.raises(FloatingPointError, match="a return is not finite"):
        meow_isaacgym.play(stored_args(result.dir))


def test_a_compiled_run_is_the_eager_run_to_rounding(monkeypatch):
    eager, _ = train(copying())
    accelerated = meow_isaacgym.accelerated
    monkeypatch.setattr(meow_isaacgym, "accelerated", lambda args, device, steps: accelerated(args, device, 20_000))
    compiled, _ = train(copying())
    difference = (compiled.policy.vector - eager.policy.vector).abs()
    assert difference.max() < 1e-3  # Adam moves each by 1e-3 a step
    assert 0 < difference.mean() < 1e-5


def leftovers(run_dir):
    with open(run_dir / "returns.csv") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return rows, load_file(run_dir / "model.pt", "--evaluate", dict)["state_dict"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_on_mujoco_resumes_bit_for_bit(number, tmp_path):
    flags = [*MUJOCO, *SMALL, "--total-vector-steps", "250", "--log-frequency", "50", "--checkpoint-frequency", "30"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    result = run(*flags, cwd=whole, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    child = subprocess.Popen([sys.executable, str(SCRIPT), *flags], cwd=cut, stdout=subprocess.PIPE, text=True)
    while len(list(cut.glob("runs/*/replay_*.pt"))) < 3:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    (run_dir,) = cut.glob("runs/*")
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert out.strip().endswith(f"continue with: python {SCRIPT} --resume runs/{run_dir.name}")
    result = run("--resume", f"runs/{run_dir.name}", cwd=cut, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    (reference,) = whole.glob("runs/*")
    rows, weights = leftovers(run_dir)
    assert rows == leftovers(reference)[0] and len(rows) == 5
    for name, tensor in leftovers(reference)[1].items():
        assert torch.equal(tensor, weights[name]), name
    result = run("--resume", f"runs/{run_dir.name}", "--seed", "2", cwd=cut, script=SCRIPT)
    assert result.returncode == 2 and "--seed must stay 1 with --resume" in result.stderr


@pytest.mark.parametrize("task", ["Ant", "AllegroHand"])
def test_a_simulator_that_cannot_be_restored_begins_new_episodes(task, tmp_path):
    run_dir, _ = run_stand_in(tmp_path, "--log-frequency", "7", task=task)
    before, _ = stored(run_dir)
    result = stand_in("--resume", str(run_dir), "--total-vector-steps", "160", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not bit for bit as before, new episodes begin" in result.stdout
    data, _ = stored(run_dir)
    assert len(data.obs) > len(before.obs)
    assert torch.equal(data.obs[: len(before.obs)], before.obs)
    assert torch.equal(data.obs[:, :2], data.next_obs[:, :2]) and torch.equal(data.obs[:, 2] + 1, data.next_obs[:, 2])
    with open(run_dir / "returns.csv") as file:
        means = [float(row["mean"]) % 1000 for row in csv.DictReader(file) if float(row["episodes"]) <= 100]
    returns = load_file(run_dir / "checkpoint.pt", "--resume", dict)["learned"][8][:100, 0] % 1000
    assert means and set(returns.tolist()) <= {31.5, 60.0}  # of whole episodes: none was carried across


# The command line


def refused(flags, cwd, *words, **env):
    result = run(*flags, cwd=cwd, script=SCRIPT, **env)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr
    assert not list(cwd.glob("runs/*"))


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            [],
            [
                "--make isaacgymenvs:make --make-kwargs {} must make",
                "isaacgym: ModuleNotFoundError",
                "benchmark.simulators.mujoco:make",
            ],
        ),
        (["--make", "nothing"], ["':' in make must hold, not --make nothing"]),
        (["--make", ":make"], ["--make :make"]),
        (
            ["--make", "json:nothing"],
            ["--make json:nothing --make-kwargs {} must make --task Ant here: AttributeError"],
        ),
        ([*MUJOCO, *SMALL, "--total-vector-steps", "120", "--make-kwargs", '{"length": 500}'], ["TypeError", "length"]),
        ([*MUJOCO[:3], "Walker"], ["must make --task Walker", "AntMujoco, HumanoidMujoco"]),
        ([*MUJOCO, "--random-steps", "0", "--learning-starts", "0"], ["1 <= learning_starts", "--learning-starts 0"]),
        ([*MUJOCO, "--num-envs", "0"], ["--num-envs 0"]),
        (
            [*MUJOCO, *SMALL, "--buffer-steps", "3", "--total-vector-steps", "20"],
            ["<= num_envs * buffer_steps", "--buffer-steps 3"],
        ),
        ([*MUJOCO, "--learning-starts", "50"], ["--random-steps 100", "--learning-starts 50"]),
        ([*MUJOCO, "--buffer-steps", "100000000"], ["--buffer-steps", "GB"]),
        ([*MUJOCO, "--sigma-min", "3"], ["--sigma-min 3"]),
        ([*MUJOCO, "--tau", "0"], ["0 < tau <= 1 must hold, not --tau 0"]),
        ([*MUJOCO, "--alpha", "inf"], ["--alpha inf"]),
        (["--resume", "runs/none"], ["--resume must name"]),
        (["--evaluate", "none.pt"], ["--evaluate must name"]),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, words, tmp_path):
    refused(flags, tmp_path, *words)


def test_a_simulator_that_quits_is_told(tmp_path):
    refused(["--task", "Unknown"], tmp_path, "must make --task Unknown here: SystemExit", PYTHONPATH=STAND_IN)


def test_the_papers_settings_are_used_and_told(tmp_path):
    assert (Args(task="AllegroHand").num_envs, Args(task="AllegroHand").batch_size) == (512, 256)
    assert (Args(task="AntMujoco").sigma_max, Args().tau, Args(task="Anymal").alpha) == (2.0, 0.0005, 0.00075)
    assert Args(task="Ingenuity").total_vector_steps == 500_000 and Args(task="Humanoid").sigma_max == -0.3
    assert Args().max_grad_norm == 2 * 30  # their loss is the mean over both shifts, ours the sum
    _, result = run_stand_in(tmp_path)
    assert "Ant settings, flags win" in result.stdout and "num_envs=8," in result.stdout
