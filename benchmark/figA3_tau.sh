#!/usr/bin/env bash
# Sensitivity of MEow to the target's rate tau (Fig. A3): the four rates of Table A3 on every environment, 5 seeds.
#
#     benchmark/figA3_tau.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: each environment's own rate (Hopper and Walker2d 0.005, HalfCheetah 0.003, Ant 0.0001, Humanoid 0.0005) near the best.
# Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 4 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 1.7 hours (benchmark/SPEED.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0001 --tau 0.0001" \
  "python meow_continuous_action.py --exp-name meow_tau_0.0005 --tau 0.0005" \
  "python meow_continuous_action.py --exp-name meow_tau_0.003 --tau 0.003" \
  "python meow_continuous_action.py --exp-name meow_tau_0.005 --tau 0.005"

draw
