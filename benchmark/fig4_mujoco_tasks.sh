#!/usr/bin/env bash
# Fig. 4's comparison without Isaac Gym: return against vector steps on MuJoCo's Ant and Humanoid, MEow and SAC, 5 seeds.
#
#     benchmark/fig4_mujoco_tasks.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Isaac's observations, rewards and resets on other physics: these are not the paper's curves. Hardware: one CPU core per
# worker, 5 GB of memory each. Length: 2 systems x 5 seeds x 1M vector steps; MEow does 57 vector steps/s on a core
# (benchmark/SPEED.md): 5 hours per seed.
source "$(dirname "$0")/launch.sh"

train "AntMujoco HumanoidMujoco" \
  "python meow_isaacgym.py --exp-name meow --make benchmark.simulators.mujoco:make" \
  "python benchmark/baselines/sac_isaacgym.py --exp-name sac --make benchmark.simulators.mujoco:make"

draw
