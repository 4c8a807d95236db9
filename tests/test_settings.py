"""The paper's settings table, the two dependency lists and the README's commands."""

import re
import subprocess
import sys
from pathlib import Path

import mujoco
import pytest

import meow_continuous_action as meow
from meow_continuous_action import Args, train

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


def test_a_flag_always_wins_and_every_setting_is_shown(script):
    args = Args(env_id="Humanoid-v5", alpha=0.25, tau=0.0005)  # alpha: the shared default, not Humanoid's
    assert (args.alpha, args.tau, args.learning_starts, args.total_timesteps) == (0.25, 0.0005, 5_000, 5_000_000)
    args = Args(env_id="Pendulum-v1", eval_frequency=70)
    assert (args.alpha, args.tau, args.sigma_max, args.checkpoint_frequency) == (0.25, 0.005, -0.3, 10_000)
    flags = "--total-timesteps=60", "--learning-starts=50", "--eval-episodes=1", "--alpha=0.2"
    out = script("--env-id=Pendulum-v1", *flags).stdout
    assert re.search(r"alpha ?= ?0.2\b", out) and re.search(r"tau ?= ?0.005\b", out) and "mujoco" not in out.lower()


def test_another_mujoco_is_told_in_one_line(script, monkeypatch):
    monkeypatch.setattr(mujoco, "__version__", "3.5.0")
    result = script("--total-timesteps=60", "--learning-starts=50", "--eval-episodes=1")
    (line,) = [line for line in result.stdout.splitlines() if "mujoco 3.5.0" in line]
    assert "compare" in line


def test_importing_the_script_runs_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import meow_continuous_action"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, list(tmp_path.iterdir())) == (0, "", [])


def test_the_readmes_snippets_run_and_its_command_is_the_main_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"total_timesteps": 60, "learning_starts": 50, "batch_size": 8, "eval_episodes": 1}
    _, run = train(Args(env_id="Hopper-v4", **settings))
    readme = (ROOT / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(snippets) == 3 and "runs/NAME/model_best.pt" in "".join(snippets)
    for snippet in snippets:
        code = snippet.replace("runs/NAME", str(tmp_path / run.dir))
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert "pip install -r requirements.txt && python meow_continuous_action.py --env-id Humanoid-v4\n" in readme
