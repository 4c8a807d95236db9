"""The paper's settings table and the README's commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meow_continuous_action import Args, paper_row, train

ROOT = Path(__file__).parent.parent
# Table A3 and the authors' launch settings, typed again from the paper's page
PAPER = {
    "Hopper-v4": (0.25, 0.005, -5, -0.3, 5_000, 1_500_000),
    "HalfCheetah-v4": (0.25, 0.003, -5, 2.0, 10_000, 1_500_000),
    "Walker2d-v5": (0.1, 0.005, -5, -0.3, 10_000, 4_000_000),
    "Ant-v4": (0.05, 0.0001, -5, -0.3, 5_000, 4_000_000),
    "Humanoid-v5": (0.125, 0.0005, -5, -0.3, 5_000, 5_000_000),
}


@pytest.mark.parametrize("env_id", PAPER)
def test_each_environment_has_the_papers_settings(env_id):
    args = Args(env_id=env_id)
    found = (args.alpha, args.tau, args.sigma_min, args.sigma_max, args.learning_starts, args.total_timesteps)
    assert found == PAPER[env_id]
    shared = (args.learning_rate, args.max_grad_norm, args.gamma, args.buffer_size, args.batch_size)
    assert shared == (1e-3, 30, 0.99, 1_000_000, 256)  # Table A1
    assert (args.eval_frequency, args.eval_episodes, args.eval_deterministic) == (10_000, 10, True)


def test_every_spelling_of_an_environment_has_its_row_and_no_other_one():
    for env_id in ("Humanoid", "gymnasium.envs.mujoco:Humanoid-v4", "Humanoid-v5"):
        assert paper_row(env_id) == "Humanoid-v4"
    for env_id in ("HumanoidStandup-v4", "mine/Humanoid-v4", "Humanoid-v4-v4", "Pendulum-v1"):
        assert paper_row(env_id) is None


def test_a_flag_always_wins_and_every_setting_is_shown(script):
    args = Args(env_id="Humanoid-v5", alpha=0.25)  # the shared default, not Humanoid's
    assert (args.alpha, args.tau) == (0.25, 0.0005)
    flags = "--total-timesteps=60", "--learning-starts=50", "--eval-episodes=1", "--alpha=0.2"
    out = script("--env-id=Pendulum-v1", *flags).stdout
    assert re.search(r"alpha ?= ?0.2\b", out) and re.search(r"tau ?= ?0.005\b", out)
    assert re.search(r"sigma_max ?= ?-0.3\b", out) and "mujoco" not in out.lower()


def test_the_readmes_snippets_run_and_its_command_is_the_main_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, run = train(Args(env_id="Hopper-v4", total_timesteps=60, learning_starts=50, batch_size=8, eval_episodes=1))
    readme = (ROOT / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(snippets) == 3 and "runs/NAME/model_best.pt" in "".join(snippets)
    for snippet in snippets:
        code = snippet.replace("runs/NAME", str(run.dir))
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert "pip install -r requirements.txt && python meow_continuous_action.py --env-id Humanoid-v4\n" in readme
