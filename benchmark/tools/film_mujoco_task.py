"""Films one deterministic episode of a model that meow_isaacgym.py trained on benchmark/simulators/mujoco.py.

    MUJOCO_GL=egl python benchmark/tools/film_mujoco_task.py --run runs/NAME --output ant.gif

Prints the episode's return and how far the torso went. Writes a GIF.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import imageio.v3
import mujoco
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.simulators.mujoco import CONTROL_SECONDS, make
from meow_isaacgym import load_agent


@dataclass
class Args:
    run: Path  # the run's folder, or a model file
    output: Path  # the film to write, NAME.gif
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
    """Writes args.output. Raises ValueError for a model of something else."""
    torch.set_num_threads(1)
    agent, about = load_agent(args.run)
    task = about["args"]["task"]
    if not task.endswith("Mujoco"):
        raise ValueError(f"--run must name a run on a task of benchmark/simulators/mujoco.py, not {task}")
    env = make(seed=args.seed, task=task, num_envs=1, sim_device="cpu", rl_device="cpu")
    total, states = play(agent, env)
    metres = (states[-1][:2] - states[0][:2]).norm().item()
    print(f"model after {about['step']:,} vector steps: return {total:.1f}, {len(states)} steps, {metres:.1f} m")

    data, camera, pictures = mujoco.MjData(env.model), mujoco.MjvCamera(), []
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, env.model.body("torso").id
    camera.distance, camera.elevation, camera.azimuth = 4.0, -20.0, 120.0
    try:
        renderer = mujoco.Renderer(env.model, height=160, width=240)
    except Exception as error:  # every renderer fails in its own way
        raise ValueError(f"MuJoCo cannot render here, MUJOCO_GL must be egl or osmesa: {error}") from error
    for qpos in states[:360:5]:  # 6 seconds, 12 pictures per second
        data.qpos[:] = qpos
        mujoco.mj_forward(env.model, data)
        renderer.update_scene(data, camera)
        pictures.append(renderer.render().copy())
    imageio.v3.imwrite(args.output, pictures, duration=5_000 * CONTROL_SECONDS, loop=0)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
