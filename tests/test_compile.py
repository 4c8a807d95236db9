"""--compile: a compiled run is the eager run, and runs that cannot or need not be compiled are eager."""

import contextlib
from dataclasses import replace

import pytest
import torch
from test_checkpoints import assert_same, content
from test_cli import run

import meow_continuous_action as meow
from meow_continuous_action import Args, train

LONG = {"total_timesteps": 20_000, "learning_starts": 19_994, "eval_frequency": 20_000, "eval_episodes": 1}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flags(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("coupling, num_shifts, alpha, gamma", [("additive", 2, 0.25, 0.99), ("affine", 0, 0.5, 0.8)])
def test_compiled_runs_of_one_process_equal_eager_ones(coupling, num_shifts, alpha, gamma, capsys):
    """The compiled code checks nothing, so the second run must not meet the settings of the first."""
    args = Args(**LONG, coupling=coupling, num_shifts=num_shifts, alpha=alpha, gamma=gamma)
    (compiled, compiled_run), (eager, eager_run) = train(args), train(replace(args, compile=False, exp_name="eager"))
    assert "running eager" not in capsys.readouterr().out
    assert not torch.equal(compiled.vector, eager.vector)  # they did take two paths
    torch.testing.assert_close(compiled.vector, eager.vector, atol=2e-3, rtol=0)  # Adam moves each by 1e-3 a step
    assert (compiled.vector - eager.vector).abs().mean() < 1e-5
    rows = (each.rb.rows[19_994:20_000] for each in (compiled_run, eager_run))
    torch.testing.assert_close(*rows, atol=1e-3, rtol=1e-3)


def test_a_compiled_run_resumes_bit_for_bit():
    settings = {**LONG, "eval_frequency": 20_060, "batch_size": 8, "buffer_size": 2000, "checkpoint_frequency": 19_990}
    whole, cut = (Args(**settings | {"total_timesteps": total}, exp_name=f"{total}") for total in (20_100, 20_060))
    (_, whole), (_, cut) = train(whole), train(cut)
    assert 19_994 < torch.load(cut.dir / "checkpoint.pt", weights_only=True)["step"] < 20_060
    train(replace(meow.stored_args(Args(resume=str(cut.dir))), total_timesteps=20_100))
    expected = content(whole.dir)
    assert_same(content(cut.dir), {**expected, "args": {**expected["args"], "exp_name": "20060"}})


def test_without_a_compiler_the_script_says_so_in_one_line_and_runs_eager(tmp_path):
    no_compiler = {"CXX": "no-such-compiler", "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = run("--env-id=Pendulum-v1", *flags(LONG), cwd=tmp_path, **no_compiler)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "--compile" in line]  # of the update and of acting
    assert len(lines) == 2 and all(line.startswith("--compile: running eager") for line in lines)
    assert all("C++ compiler" in line for line in lines)
    assert "step 20,000: eval return" in result.stdout


@pytest.mark.parametrize("changes", [{"total_timesteps": 19_999}, {"compile": False}])
def test_short_runs_and_no_compile_do_not_compile(changes, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", None)
    train(Args(**{"env_id": "Pendulum-v1", **LONG, **changes}))
    assert "compiling" not in capsys.readouterr().out


def test_matrix_products_stay_those_of_float32_and_settings_are_as_before_afterwards():
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        meow.set_up_torch(Args(torch_threads=3), torch.device("cpu"), stack)
        assert torch.get_num_threads() == 3
        x = torch.randn(256, 256)
        assert (x @ x - x.double() @ x.double()).abs().max() < 1e-3
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == (before, threads)
