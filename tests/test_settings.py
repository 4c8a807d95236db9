"""The paper's settings table, the two dependency lists and the README's commands."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import meow_continuous_action as meow
from meow_continuous_action import Args, describe_settings, train

ROOT = Path(__file__).parent.parent
# Table A3 and the authors' launch settings, typed again from the paper's page
PAPER = {
    "Hopper": (0.25, 0.005, -5, -0.3, 5_000, 1_500_000),
    "HalfCheetah": (0.25, 0.003, -5, 2.0, 10_000, 1_500_000),
    "Walker2d": (0.1, 0.005, -5, -0.3, 10_000, 4_000_000),
    "Ant": (0.05, 0.0001, -5, -0.3, 5_000, 4_000_000),
    "Humanoid": (0.125, 0.0005, -5, -0.3, 5_000, 5_000_000),
}


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("name", PAPER)
def test_each_environment_has_the_papers_settings(name, version):
    args = Args(env_id=f"{name}-{version}")
    found = (args.alpha, args.tau, args.sigma_min, args.sigma_max, args.learning_starts, args.total_timesteps)
    assert found == PAPER[name]
    shared = (args.learning_rate, args.max_grad_norm, args.gamma, args.buffer_size, args.batch_size)
    assert shared == (1e-3, 30, 0.99, 1_000_000, 256)  # Table A1
    assert (args.eval_frequency, args.eval_episodes, args.eval_deterministic) == (10_000, 10, True)


@pytest.mark.parametrize("env_id", ["Humanoid", "gymnasium.envs.mujoco:Humanoid-v4", "Humanoid-v5"])
def test_every_spelling_of_an_environment_has_its_row(env_id):
    assert Args(env_id=env_id).alpha == 0.125


@pytest.mark.parametrize("env_id", ["HumanoidStandup-v4", "mine/Humanoid-v4", "Humanoid-v4-v4", "Pendulum-v1"])
def test_no_other_environment_has_a_row(env_id):
    assert meow.paper_row(env_id) is None


def test_a_flag_always_wins_and_is_shown():
    args = Args(env_id="Humanoid-v5", alpha=0.25, tau=0.0005)  # alpha: the shared default, not Humanoid's
    assert (args.alpha, args.tau, args.learning_starts) == (0.25, 0.0005, 5_000)
    text = describe_settings(args)
    assert "alpha = 0.25 (set by you; the table has 0.125)" in text and "tau = 0.0005\n" in text
    assert "Humanoid-v5: the paper's settings for Humanoid-v4" in text


def test_an_environment_without_a_row_takes_the_shared_defaults_and_says_so():
    args = Args(env_id="Pendulum-v1")
    assert (args.alpha, args.tau, args.sigma_max) == (0.25, 0.005, -0.3)
    assert "Pendulum-v1 is not in the paper" in describe_settings(args)


def test_another_mujoco_is_told_in_one_line(monkeypatch):
    assert "mujoco" not in describe_settings(Args())
    monkeypatch.setattr(meow.mujoco, "__version__", "3.5.0")
    (line,) = [line for line in describe_settings(Args()).splitlines() if "mujoco" in line]
    assert "3.5.0" in line and "do not compare with the paper's" in line


def test_every_flag_has_a_meaning():
    (args,) = [n for n in ast.parse(Path(meow.__file__).read_text()).body if getattr(n, "name", "") == "Args"]
    for field, doc in zip(args.body, args.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(doc, ast.Expr) and len(doc.value.value) > 10, field.target.id


def test_inline_script_metadata_equals_requirements():
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", Path(meow.__file__).read_text())
    metadata = tomllib.loads("".join(line[2:] for line in block["content"].splitlines(keepends=True)))
    assert metadata["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert metadata["requires-python"] == ">=3.11,<3.14"
    assert all("==" in dependency for dependency in metadata["dependencies"])


def test_importing_the_script_runs_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import meow_continuous_action"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, list(tmp_path.iterdir())) == (0, "", [])


def test_the_readmes_snippets_run_and_its_command_is_the_main_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"total_timesteps": 60, "learning_starts": 50, "batch_size": 8, "eval_episodes": 1}
    run_dir = train(Args(env_id="Hopper-v4", **settings)).run_dir
    readme = (ROOT / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(snippets) == 2 and "runs/NAME/model_best.pt" in "".join(snippets)
    for snippet in snippets:
        code = snippet.replace("runs/NAME", str(tmp_path / run_dir))
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert "pip install -r requirements.txt && python meow_continuous_action.py --env-id Humanoid-v4\n" in readme
