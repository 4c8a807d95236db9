"""Films one deterministic episode of a model that meow_isaacgym.py trained on benchmark/simulators/mujoco.py.

    MUJOCO_GL=egl python benchmark/tools/film_mujoco_task.py --run runs/NAME --output ant.gif

Prints the episode's return and how far the torso went. A GIF or MP4, by the suffix.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import imageio.v3
import mujoco
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.simulators.mujoco import CONTROL_SECONDS, make  # noqa: E402
from meow_isaacgym import UsageError, load_agent  # noqa: E402


@dataclass
class Args:
    run: Path  # the run's folder, or a model file
    output: Path  # the film to write
    seconds: float = 6.0  # of the episode that are filmed; it is played to its end
    fps: int = 12  # pictures per second
    size: tuple[int, int] = (240, 160)  # width and height
    seed: int = 1  # of the episode's start


def play(agent, env):
    """One episode with deterministic actions: its return and the qpos of each step, tensors (nq,)."""
    obs, total, states = env.reset()["obs"], 0.0, []
    obs, _, done, _ = env.step(torch.zeros(1, *env.action_space.shape))  # the reset, which is no step of an episode
    while not states or not done.any():
        obs, reward, done, _ = env.step(agent.act(obs["obs"], deterministic=True))
        states.append(env.qpos[0].clone())
        total += reward.item()
    return total, states


def main(args):
    """Writes args.output. Raises UsageError for a model of something else."""
    torch.set_num_threads(1)
    agent, about = load_agent(args.run)
    if not about["args"]["task"].endswith("Mujoco"):
        raise UsageError(
            f"--run must name a run on a task of benchmark/simulators/mujoco.py, not {about['args']['task']}"
        )
    env = make(seed=args.seed, task=about["args"]["task"], num_envs=1, sim_device="cpu", rl_device="cpu")
    total, states = play(agent, env)
    steps = len(states)
    metres = (states[-1][:2] - states[0][:2]).norm().item()
    print(f"model after {about['step']:,} vector steps: return {total:.1f} in {steps} steps, {metres:.1f} m")

    data, camera, pictures = mujoco.MjData(env.model), mujoco.MjvCamera(), []
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, env.model.body("torso").id
    camera.distance, camera.elevation, camera.azimuth = 4.0, -20.0, 120.0
    try:
        renderer = mujoco.Renderer(env.model, height=args.size[1], width=args.size[0])
    except Exception as error:  # every renderer fails in its own way
        raise UsageError(f"MuJoCo cannot render here, MUJOCO_GL must be egl or osmesa: {error}") from error
    with renderer:
        for i in range(int(min(steps * CONTROL_SECONDS, args.seconds) * args.fps)):
            data.qpos[:] = states[min(round(i / args.fps / CONTROL_SECONDS), steps - 1)]
            mujoco.mj_forward(env.model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render().copy())
    timing = {"duration": 1000 / args.fps, "loop": 0} if args.output.suffix == ".gif" else {"fps": args.fps}
    imageio.v3.imwrite(args.output, pictures, **timing)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
