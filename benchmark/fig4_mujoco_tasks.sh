#!/usr/bin/env bash
# Fig. 4's comparison without Isaac Gym: return against vector steps on MuJoCo's Ant and Humanoid, MEow and SAC, 5 seeds.
#
#     benchmark/fig4_mujoco_tasks.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Isaac's observations, rewards and resets on other physics: these are not the paper's curves. Hardware: one CPU core a
# worker, 5 GB of memory each. Length: 2 systems x 5 seeds x 1M vector steps; MEow does 57 vector steps/s on a
# core (README): 5 hours a seed.
source "$(dirname "$0")/launch.sh"

train "$parallel_flags" \
  "python meow_isaacgym.py --exp-name meow --make benchmark.simulators.mujoco:make --task AntMujoco --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.075 --tau 0.0005 --sigma-min -5 --sigma-max 2" \
  "python meow_isaacgym.py --exp-name meow --make benchmark.simulators.mujoco:make --task HumanoidMujoco --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.25 --tau 0.00025 --sigma-min -5 --sigma-max -0.3" \
  "python benchmark/sac_isaacgym.py --exp-name sac --make benchmark.simulators.mujoco:make --task AntMujoco --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.4 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --make benchmark.simulators.mujoco:make --task HumanoidMujoco --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.025 --tau 0.0025"

draw fig4_mujoco_tasks --env-ids AntMujoco HumanoidMujoco --systems meow sac
