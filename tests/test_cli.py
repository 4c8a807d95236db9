"""The script as a user runs it: `python meow_continuous_action.py ...` in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import imageio.v3
import mujoco
import pytest

from meow_continuous_action import make_env

SCRIPT = Path(__file__).parent.parent / "meow_continuous_action.py"
FIVE = ["Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid"]
SHORT = ["--total-timesteps", "300", "--learning-starts", "250", "--eval-frequency", "150", "--eval-episodes", "2"]


def run(*flags, cwd, script=SCRIPT, **env):
    env = (
        {name: value for name, value in os.environ.items() if name != "DISPLAY"}
        | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        | env
    )
    command = [sys.executable, str(script), *flags]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def run_counting(*flags, cwd, **env):
    """The script with the environments of conftest.py registered, by --env-id conftest:NAME."""
    return run(*flags, cwd=cwd, PYTHONPATH=str(Path(__file__).parent), **env)


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("name", FIVE)
def test_the_papers_environments_train_from_the_command_line(name, version, tmp_path):
    result = run("--env-id", f"{name}-{version}", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("eval return") == 3
    assert f"the paper's settings for {name}-v4" in result.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith(f"{name}-{version}__meow_continuous_action__1__")
    assert {path.name for path in run_dir.iterdir()} >= {"config.json", "evaluations.csv", "model.pt"}


def test_help_names_every_flag_and_its_source(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for flag in ("--env-id", "--num-shifts", "--coupling", "--eval-deterministic", "--learning-rate", "--sigma-max"):
        assert flag in result.stdout
    assert result.stdout.count("Table A") >= 8 and "Sec. 3.2" in result.stdout


def test_wandb_offline_records_the_run(tmp_path):
    flags = ["--env-id", "Pendulum-v1", *SHORT, "--track"]
    flags += ["--capture-video"]  # W&B's own video hooks fail on gymnasium 1.x and are not used
    result = run(*flags, cwd=tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", SDL_VIDEODRIVER="dummy")
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "videos").rglob("*.mp4"))
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = offline.glob("*.wandb")
    content = record.read_bytes()
    assert b"eval/episodic_return" in content and b"learning_rate" in content


def is_video(path):
    frames = imageio.v3.imread(path)
    return frames.ndim == 4 and len(frames) > 1 and frames[0].std() > 1


def test_the_filming_camera_follows_the_body(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = make_env("Hopper-v4", 0, 0, True, "film")()
    model = env.unwrapped.model
    assert model.cam(env.unwrapped.mujoco_renderer.camera_id).mode == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    env.close()


def test_capture_video_writes_a_file_that_plays(tmp_path):
    result = run("--env-id", "Pendulum-v1", *SHORT, "--capture-video", cwd=tmp_path, SDL_VIDEODRIVER="dummy")
    assert result.returncode == 0, result.stderr
    videos = list((tmp_path / "videos").rglob("*.mp4"))
    assert videos and all(is_video(path) for path in videos)


def test_capture_video_of_mujoco_plays_or_says_what_is_missing(tmp_path):
    flags = ["--total-timesteps", "60", "--learning-starts", "50", "--eval-episodes", "1"]
    result = run("--env-id", "Hopper-v4", *flags, "--capture-video", cwd=tmp_path)
    if result.returncode == 0:
        videos = list((tmp_path / "videos").rglob("*.mp4"))
        assert videos and all(is_video(path) for path in videos)
    else:  # a machine without any OpenGL library
        assert_refused(result, "--capture-video", tmp_path)


def assert_refused(result, flag, cwd, *words):
    """Exit code 2, one sentence with the flag and what is allowed, and no work started."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    for word in (flag, *words):
        assert word in result.stderr
    assert not list(Path(cwd).glob("runs/*/*"))


BAD_FLAGS = [
    ("--total-timesteps", "0", "at least 1"),
    ("--buffer-size", "-5", "at least 1"),
    ("--batch-size", "0", "at least 1"),
    ("--eval-frequency", "0", "at least 1"),
    ("--eval-episodes", "-1", "at least 1"),
    ("--seed", "-1", "from 0 to 2**32 - 1"),
    ("--seed", "4294967296", "from 0 to 2**32 - 1"),
    ("--exp-name", "../x", "without /"),
    ("--learning-starts", "-1", "at least 0"),
    ("--learning-rate", "0", "above 0"),
    ("--learning-rate", "nan", "above 0"),
    ("--max-grad-norm", "-1", "above 0"),
    ("--alpha", "-0.1", "above 0"),
    ("--alpha", "inf", "finite"),
    ("--tau", "0", "at most 1"),
    ("--tau", "1.5", "at most 1"),
    ("--gamma", "1.1", "between 0 and 1"),
    ("--sigma-min", "-0.3", "below --sigma-max"),
    ("--sigma-max", "-6", "--sigma-min"),
    ("--sigma-max", "inf", "finite"),
    ("--learning-starts", "1500000", "below --total-timesteps"),
    ("--buffer-size", "255", "at least --batch-size"),
    ("--buffer-size", "1000000000000", "GB"),
    ("--num-shifts", "3", "'0', '1', '2'"),
    ("--coupling", "spline", "affine"),
]


@pytest.mark.parametrize("flag, value, allowed", BAD_FLAGS)
def test_bad_values_are_refused_before_any_work(flag, value, allowed, tmp_path):
    # argparse reads a value such as -5 or -inf as a flag unless it is glued to its own
    assert_refused(run(f"{flag}={value}", cwd=tmp_path), flag, tmp_path, allowed)


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Hoper-v4", ["Hopper-v4"]),
        ("Hopper-v9", ["Hopper-v5"]),
        ("no_such_module:Env-v0", ["no_such_module"]),
        ("CartPole-v1", ["Discrete", "bounded 1-D Box"]),
        ("conftest:Discrete-v0", ["Discrete", "bounded 1-D Box"]),
        ("conftest:Unbounded-v0", ["inf", "bounded 1-D Box"]),
        ("conftest:IntegerAction-v0", ["int64", "bounded 1-D Box of floats"]),
        ("conftest:MatrixAction-v0", ["(2, 2)", "bounded 1-D Box"]),
        ("conftest:Image-v0", ["(8, 8, 3)", "1-D Box"]),
        ("conftest:Dict-v0", ["Dict", "1-D Box"]),
    ],
)
def test_unusable_environments_are_refused(env_id, words, tmp_path):
    assert_refused(run_counting("--env-id", env_id, cwd=tmp_path), "--env-id", tmp_path, *words)


def test_a_runs_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "runs").write_text("in the way")  # permissions would not stop root
    assert_refused(run("--env-id", "Pendulum-v1", *SHORT, cwd=tmp_path), "runs/", tmp_path, "writable")


def test_a_videos_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "videos").write_text("in the way")
    result = run("--env-id", "Pendulum-v1", *SHORT, "--capture-video", cwd=tmp_path, SDL_VIDEODRIVER="dummy")
    assert_refused(result, "--capture-video", tmp_path, "videos/")


def test_tracking_without_a_login_is_refused(tmp_path):
    nowhere = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": ""}
    nowhere["WANDB_BASE_URL"] = "http://127.0.0.1:1"
    result = run("--env-id", "Pendulum-v1", *SHORT, "--track", cwd=tmp_path, **nowhere)
    assert_refused(result, "--track", tmp_path, "WANDB_MODE=offline")
    assert not list((tmp_path / "runs").iterdir())


def test_a_diverged_run_stops_with_one_sentence(tmp_path):
    flags = ["--total-timesteps", "300", "--learning-starts", "100", "--eval-episodes", "1"]
    result = run_counting("--env-id", "conftest:Poisoned-obs-v0", *flags, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "is not finite at step 11" in result.stderr and "look at the environment" in result.stderr
    assert list(tmp_path.glob("runs/*/events*"))
