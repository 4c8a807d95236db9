#!/usr/bin/env bash
# Sensitivity of MEow to the target's rate tau (Fig. A3): the four rates of Table A3 on every environment, 5 seeds.
#
#     benchmark/figA3_tau.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: each environment's own rate (Hopper and Walker2d 0.005, HalfCheetah 0.003, Ant 0.0001, Humanoid 0.0005) near the best.
# Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 4 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 1.7 hours (benchmark/README.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.0001 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.0005 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.003 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.003 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.003 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.005 --sigma-min -5 --sigma-max -0.3"

draw figA3_tau --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow_tau_0.0001 meow_tau_0.0005 meow_tau_0.003 meow_tau_0.005
