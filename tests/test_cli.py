"""The script as a user runs it: `python meow_continuous_action.py ...` in a folder of their own."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import imageio.v3
import mujoco
import pytest
import torch

import meow_continuous_action as meow

SCRIPT = Path(__file__).parent.parent / "meow_continuous_action.py"
SHORT = "--total-timesteps=300 --learning-starts=250 --eval-frequency=150 --eval-episodes=2".split()


def run(*flags, cwd, script=SCRIPT, timeout=300, **env):
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | env
    env.pop("DISPLAY", None)
    command = [sys.executable, str(script), *flags]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def assert_refused(result, flag, cwd, *words):
    """Exit code 2, one sentence with the flag and what is allowed, and no work started."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    for word in (flag, *words):
        assert word in result.stderr
    assert not list(Path(cwd).glob("runs/*"))


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v5"])
def test_the_papers_environments_train_from_the_command_line(env_id, script):
    result = script("--env-id", env_id, *SHORT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("eval return") == 3
    (run_dir,) = Path("runs").iterdir()
    assert re.fullmatch(rf"{env_id}__meow_continuous_action__1__\d+", run_dir.name)
    assert {path.name for path in run_dir.iterdir()} >= {"config.json", "evaluations.csv", "model.pt", "model_best.pt"}


def test_help_names_every_flag_its_meaning_and_its_source(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for field in fields(meow.Args):
        assert re.search(rf"--{field.name.replace('_', '-')}\b.*\n? +.*\w", result.stdout), field.name
    assert result.stdout.count("Table A") >= 8 and "Sec. 3.2" in result.stdout


def test_capture_video_of_mujoco_plays_or_says_what_is_missing(tmp_path):
    flags = "--total-timesteps=60 --learning-starts=50 --eval-episodes=1 --capture-video".split()
    result = run("--env-id", "Hopper-v4", *flags, cwd=tmp_path)
    videos = list((tmp_path / "videos").rglob("*.mp4"))
    if result.returncode == 0:
        assert videos and imageio.v3.imread(videos[0])[-1].std() > 1
    else:  # a machine without any OpenGL library
        assert_refused(result, "MUJOCO_GL", tmp_path)


def test_the_filming_camera_follows_the_body(tmp_path):
    env = meow.make_env("Hopper-v4", str(tmp_path / "film"))
    camera = env.unwrapped.model.cam(env.unwrapped.mujoco_renderer.camera_id)
    assert camera.mode == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    env.close()


BAD_FLAGS = """
--total-timesteps=0; --buffer-size=-5; --batch-size=0; --eval-frequency=0; --eval-episodes=-1; --torch-threads=0
--torch-threads=1025; --checkpoint-frequency=0; --seed=-1; --seed=4294967296; --learning-starts=-1
--learning-rate=0; --learning-rate=nan
--max-grad-norm=-1; --alpha=-0.1; --alpha=inf; --tau=0; --tau=1.5; --gamma=1.1; --sigma-min=-0.3; --sigma-max=-6
--sigma-max=inf; --learning-starts=1500000; --buffer-size=255; --buffer-size=1000000000000 GB; --coupling=spline affine
--num-shifts=3 '0', '1', '2'; --resume=none none; --evaluate=none none; --resume= ; --evaluate= ; --save-model
--track=True --no-track; --compile=False without a value
--stochastic; --env-id=Hoper-v4 Hopper; --env-id=Hopper-v9 v5
--env-id=FetchReach-v4 PACKAGE:ID
--env-id=no_such_module:Env-v0 no_such_module; --env-id=CartPole-v1 Discrete; --env-id=Discrete-v0 bounded 1-D Box
--env-id=Unbounded-v0 bounded 1-D Box; --env-id=IntegerAction-v0 of float actions; --env-id=MatrixAction-v0 (2, 2)
--env-id=Image-v0 (8, 8, 3)
"""


@pytest.mark.parametrize("line", re.split(r"[;\n]\s*", BAD_FLAGS.strip()))
def test_bad_values_are_refused_before_any_work(line, script, tmp_path, monkeypatch):
    """Each line: a flag, which the sentence must name, and what else it must say."""
    monkeypatch.setattr(meow, "evaluate", None)  # what is not refused fails, and does not train
    flags = re.findall(r"--\S+", line)
    words = line.split(flags[-1])[1].strip()
    assert_refused(script(*flags), flags[0].partition("=")[0], tmp_path, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, flag", [("runs", "runs/"), ("videos", "--capture-video")])
def test_a_folder_that_cannot_be_written_is_refused(name, flag, script, tmp_path):
    Path(name).write_text("in the way")  # permissions would not stop root
    assert_refused(script("--env-id", "Pendulum-v1", *SHORT, "--capture-video"), flag, tmp_path, name)


def test_an_experiment_stays_in_the_folder_of_runs_whatever_its_name(script, tmp_path):
    assert script("--env-id", "Pendulum-v1", *SHORT, "--exp-name", "../../x").returncode in (0, 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"} and len(list(tmp_path.glob("runs/*"))) <= 1


def test_tracking_without_a_login_is_refused(tmp_path):
    nowhere = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": ""}
    result = run("--env-id", "Pendulum-v1", "--track", cwd=tmp_path, **nowhere, WANDB_BASE_URL="http://127.0.0.1:1")
    assert_refused(result, "--track", tmp_path, "WANDB_MODE=offline")


def test_a_gpu_that_pytorch_cannot_use_is_left_alone(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("CUDA was initialised"))
    result = script("--env-id", "Pendulum-v1", *SHORT)
    assert result.returncode == 0, result.stderr
