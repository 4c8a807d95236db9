#!/usr/bin/env bash
# Training curves of MEow and SAC (Fig. A5): returns of the training episodes, with sampled actions, five MuJoCo environments, 5 seeds.
#
#     benchmark/figA5_training_curves.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: below Fig. 3's evaluations, and noisier. The runs are Fig. 3's.
# Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 2 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 1.7 hours with MEow, 3.5 SAC (benchmark/README.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python meow_continuous_action.py --exp-name meow --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id Hopper-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id HalfCheetah-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id Walker2d-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id Ant-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id Humanoid-v4 --total-timesteps 5000000"

draw figA5_training_curves --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow sac --key charts/episodic_return
