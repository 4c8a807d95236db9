"""--compile: a compiled run is the eager run, and runs that cannot or need not be compiled are eager."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoints import assert_same, content

import meow_continuous_action as meow
from meow_continuous_action import Args, train

SHORT = ["--env-id", "Pendulum-v1", "--total-timesteps", "130", "--learning-starts", "100", "--eval-episodes", "1"]


@pytest.fixture
def compiling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meow, "COMPILE_MIN_STEPS", 0)


@pytest.mark.parametrize("coupling, num_shifts, alpha, gamma", [("additive", 2, 0.25, 0.99), ("affine", 0, 0.5, 0.8)])
def test_compiled_runs_of_one_process_equal_eager_ones(coupling, num_shifts, alpha, gamma, compiling, capsys):
    """The compiled code checks nothing, so the second run must not meet the settings of the first."""
    args = Args(coupling=coupling, num_shifts=num_shifts, alpha=alpha, gamma=gamma, eval_episodes=1, buffer_size=256)
    args = replace(args, total_timesteps=66, learning_starts=60)
    (compiled, run), (eager, eager_run) = train(args), train(replace(args, compile=False, exp_name="eager"))
    assert "running eager" not in capsys.readouterr().out
    assert not torch.equal(compiled.vector, eager.vector)  # they did take two paths
    torch.testing.assert_close(compiled.vector, eager.vector, atol=2e-3, rtol=0)  # Adam moves each by 1e-3 a step
    assert (compiled.vector - eager.vector).abs().mean() < 1e-5
    torch.testing.assert_close(run.rb.rows[:66], eager_run.rb.rows[:66], atol=1e-3, rtol=1e-3)


def test_a_compiled_run_resumes_bit_for_bit(compiling):
    settings = {"learning_starts": 60, "eval_frequency": 40, "eval_episodes": 2, "batch_size": 8, "buffer_size": 256}
    whole, cut = (Args(**settings, total_timesteps=total, exp_name=f"{total}") for total in (160, 80))
    (_, whole), (_, cut) = train(whole), train(cut)
    train(replace(meow.stored_args(Args(resume=str(cut.dir))), total_timesteps=160))
    expected = content(whole.dir)
    assert_same(content(cut.dir), {**expected, "args": {**expected["args"], "exp_name": "80"}})


def test_without_a_compiler_the_script_says_so_in_one_line_and_runs_eager(tmp_path):
    code = "import sys, meow_continuous_action as m; m.COMPILE_MIN_STEPS = 0; sys.exit(m.main())"
    no_compiler = {"CXX": "no-such-compiler", "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    env = os.environ | no_compiler | {"PYTHONPATH": str(Path(meow.__file__).parent)}
    result = subprocess.run([sys.executable, "-c", code, *SHORT], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "--compile" in line]
    assert line.startswith("--compile: running eager") and "C++ compiler" in line
    assert "step 130: eval return" in result.stdout


@pytest.mark.parametrize("flags, min_steps", [([], 20_000), (["--no-compile"], 0)])
def test_short_runs_and_no_compile_do_not_compile(flags, min_steps, script, monkeypatch):
    assert meow.COMPILE_MIN_STEPS == 20_000
    monkeypatch.setattr(meow, "COMPILE_MIN_STEPS", min_steps)
    monkeypatch.setattr(torch, "compile", None)
    result = script(*SHORT, *flags)
    assert result.returncode == 0, result.stderr
    assert "compiling" not in result.stdout and "step 130: eval return" in result.stdout


def test_matrix_products_are_those_of_float32_whatever_onednn_takes(monkeypatch):
    product, precision = torch.Tensor.__matmul__, torch.get_float32_matmul_precision()
    try:
        meow.set_up_torch(Args())
        x = torch.randn(256, 256)
        assert (x @ x - x.double() @ x.double()).abs().max() < 1e-3

        monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a.double(), b.double()).to(a.dtype))
        meow.set_up_torch(Args())
        assert torch.get_float32_matmul_precision() == "medium"

        def on_amx(a, b):
            return product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)

        monkeypatch.setattr(torch.Tensor, "__matmul__", on_amx)
        meow.set_up_torch(Args())
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(precision)
