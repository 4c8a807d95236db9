#!/usr/bin/env bash
# Fig. 4: return against vector steps on six GPU-parallel tasks: MEow and SAC, 5 seeds.
#
#     benchmark/fig4_isaacgym.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#     benchmark/fig4_mujoco_tasks.sh ...     the same on MuJoCo's Ant and Humanoid, without Isaac Gym
#
# Needs Isaac Gym and isaacgymenvs (benchmark/simulators/README.md) in a Python 3.8 whose path is in ISAAC_PYTHON; the
# launcher itself runs in the environment of benchmark/README.md. Expect (the paper's last values, MEow / SAC): Ant 7,990
# / 7,650, Humanoid 4,650 / 3,920, Ingenuity 5,260 / 5,300, ANYmal 49 / 11, AllegroHand 586 / 288, FrankaCabinet 3,160 /
# 1,700, from another simulator (Omniverse) whose Ingenuity, ANYmal and FrankaCabinet differ: not comparable there.
# Hardware: one NVIDIA GPU. Length: 2 systems x 5 seeds x 0.5M or 1M vector steps; hours not measured.
source "$(dirname "$0")/launch.sh"
isaac_python=${ISAAC_PYTHON:-python}
PATH+=":$(dirname "$(command -v "$isaac_python")")" # Isaac Gym compiles a part of itself by the ninja installed there

train "Ant Humanoid Ingenuity Anymal AllegroHand FrankaCabinet" \
  "$isaac_python meow_isaacgym.py --exp-name meow" \
  "$isaac_python benchmark/baselines/sac_isaacgym.py --exp-name sac"

draw
