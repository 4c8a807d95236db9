#!/usr/bin/env bash
# Fig. 7: MEow evaluated by its deterministic actions (z = 0, Sec. 3.3) and by samples of its policy, 5 seeds.
#
#     benchmark/fig7_deterministic.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: deterministic above stochastic. Training is the same: the deterministic system is Fig. 3's MEow and shares its runs.
# Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 2 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 1.7 hours (benchmark/README.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python meow_continuous_action.py --exp-name meow --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_stochastic --env-id Hopper-v4 --no-eval-deterministic --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_stochastic --env-id HalfCheetah-v4 --no-eval-deterministic --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_stochastic --env-id Walker2d-v4 --no-eval-deterministic --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_stochastic --env-id Ant-v4 --no-eval-deterministic --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_stochastic --env-id Humanoid-v4 --no-eval-deterministic --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3"

draw fig7_deterministic --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow meow_stochastic
