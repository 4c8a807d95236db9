"""--compile: the compiled step is the eager step, and runs that cannot or need not be compiled are eager."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import meow_continuous_action as meow
from meow_continuous_action import Adam, Args, FlowPolicy, ReplayBuffer, SoftQLoss, learn_and_act, train

SCRIPT = Path(meow.__file__)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("coupling, num_shifts", [("additive", 2), ("affine", 0)])
def test_compiled_steps_equal_eager_steps(coupling, num_shifts, capsys):
    """The whole step at Hopper's size: Q, action, loss, gradient norm and, through Adam, every gradient."""
    args = Args(coupling=coupling, num_shifts=num_shifts)
    torch.manual_seed(0)
    policy, target = (FlowPolicy(11, 3, 0.25, coupling=coupling, num_shifts=num_shifts) for _ in range(2))
    target.requires_grad_(False)
    rb = ReplayBuffer(1000, 11, 3)
    rb.rows.uniform_(-0.9, 0.9)
    rb.rows[:, -1] = (rb.rows[:, -1] > 0.5).float()
    rb.filled.fill_(1000)
    nets = policy, target
    learner, twin = [(SoftQLoss(*pair), Adam(pair[0].vector, 1e-3)) for pair in (nets, copy.deepcopy(nets))]
    data = rb.sample(256)
    before, random_state = policy.vector.clone(), torch.get_rng_state()
    compiled = meow.compile_or_eager(args, learn_and_act, learner[0], data, torch.zeros(1, 11), torch.zeros(1, 3))
    assert compiled is not learn_and_act and "compiled in" in capsys.readouterr().out
    assert torch.equal(policy.vector, before) and torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(learner[1].beta_powers, torch.ones(2, dtype=torch.float64))
    for step in range(5):
        data, obs, z = rb.sample(256), torch.randn(1, 11), torch.randn(1, 3)
        dropout = policy.dropout_masks(256) if step else torch.ones_like(policy.dropout_masks(256))
        rates = 0.99, 0.005, 30.0, dropout
        q, numbers = compiled(*learner, data, *rates, obs, z)
        expected_q, expected_numbers = learn_and_act(*twin, data, *rates, obs, z)
        torch.testing.assert_close(q, expected_q, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(numbers, expected_numbers, atol=1e-3, rtol=1e-4)
        if step == 0:  # dropout off: 0.1 times the clipped gradient
            scale = twin[1].exp_avg.abs().max()
            torch.testing.assert_close(learner[1].exp_avg / scale, twin[1].exp_avg / scale, atol=1e-5, rtol=1e-4)
    assert (policy.vector - before).abs().max() > 1e-3
    for net, twin_net in [(policy, twin[0].policy), (target, twin[0].target)]:
        torch.testing.assert_close(net.vector, twin_net.vector, atol=2e-3, rtol=0)  # Adam moves each by 1e-3 a step
        assert (net.vector - twin_net.vector).abs().mean() < 1e-5


def test_runs_of_one_process_each_compile_their_own_settings():
    """The compiled code checks nothing, so a second run must not meet the first run's."""
    settings = {"env_id": "Counting-v0", "total_timesteps": 60, "learning_starts": 50, "batch_size": 8}
    for alpha, gamma in [(0.1, 0.9), (0.5, 0.8)]:
        runs = [
            train(Args(**settings, alpha=alpha, gamma=gamma, eval_episodes=1, compile_min_timesteps=n, exp_name=f"{n}"))
            for n in (0, 61)
        ]
        compiled, eager = (run.policy.vector for run in runs)
        torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=0)
        assert (compiled - eager).abs().mean() < 1e-5
        assert not torch.equal(compiled, eager)  # they did take two paths


def run_script(*flags, **variables):
    command = [sys.executable, str(SCRIPT), "--env-id", "Pendulum-v1", "--total-timesteps", "130", *flags]
    command += ["--learning-starts", "100", "--eval-episodes", "1"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


def test_without_a_compiler_the_script_says_so_in_one_line_and_runs_eager(tmp_path):
    no_compiler = {"CXX": "no-such-compiler", "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = run_script("--compile-min-timesteps", "0", **no_compiler)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "--compile" in line]
    assert line.startswith("--compile: running eager") and "C++ compiler" in line
    assert "step 130: eval return" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--compile-min-timesteps", "0", "--no-compile"]])
def test_short_runs_and_no_compile_do_not_compile(flags):
    result = run_script(*flags)
    assert result.returncode == 0, result.stderr
    assert "compil" not in result.stdout and "step 130: eval return" in result.stdout


def test_matrix_products_are_those_of_float32_whatever_onednn_takes(monkeypatch):
    product, cpu = torch.Tensor.__matmul__, torch.device("cpu")
    try:
        meow.use_onednn(cpu)
        x = torch.randn(256, 256)
        assert (x @ x - x.double() @ x.double()).abs().max() < 1e-3

        monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a.double(), b.double()).to(a.dtype))
        meow.use_onednn(cpu)
        assert torch.get_float32_matmul_precision() == "medium"

        def on_amx(a, b):
            return product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)

        monkeypatch.setattr(torch.Tensor, "__matmul__", on_amx)
        meow.use_onednn(cpu)
        assert torch.get_float32_matmul_precision() == "highest"
        torch.set_float32_matmul_precision("medium")
        meow.use_onednn(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
