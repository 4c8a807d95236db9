#!/usr/bin/env bash
# Fig. 6: ablation on five MuJoCo environments: MEow without shifts, + LRS (one shift), + LRS and SCDQ (two shifts), 5 seeds.
#
#     benchmark/fig6_ablation.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: vanilla below + LRS below + LRS and SCDQ. The last system is Fig. 3's MEow and shares its runs.
# Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 3 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 0.7 hours without shifts, 1.2 with one and 1.7 with two (benchmark/SPEED.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python meow_continuous_action.py --exp-name meow_vanilla --num-shifts 0" \
  "python meow_continuous_action.py --exp-name meow_lrs --num-shifts 1" \
  "python meow_continuous_action.py --exp-name meow"

draw
