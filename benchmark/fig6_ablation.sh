#!/usr/bin/env bash
# Fig. 6: ablation on five MuJoCo environments: MEow without shifts, + LRS (one shift), + LRS and SCDQ (two shifts), 5 seeds.
#
#     benchmark/fig6_ablation.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: vanilla below + LRS below + LRS and SCDQ. The last system is Fig. 3's MEow and shares its runs.
# Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 3 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 0.7 hours without shifts, 1.2 with one and 1.7 with two (benchmark/README.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python meow_continuous_action.py --exp-name meow_vanilla --env-id Hopper-v4 --num-shifts 0 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_vanilla --env-id HalfCheetah-v4 --num-shifts 0 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_vanilla --env-id Walker2d-v4 --num-shifts 0 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_vanilla --env-id Ant-v4 --num-shifts 0 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_vanilla --env-id Humanoid-v4 --num-shifts 0 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_lrs --env-id Hopper-v4 --num-shifts 1 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_lrs --env-id HalfCheetah-v4 --num-shifts 1 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_lrs --env-id Walker2d-v4 --num-shifts 1 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_lrs --env-id Ant-v4 --num-shifts 1 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_lrs --env-id Humanoid-v4 --num-shifts 1 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3"

draw fig6_ablation --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow_vanilla meow_lrs meow
