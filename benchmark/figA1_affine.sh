#!/usr/bin/env bash
# Fig. A1: additive against affine couplings in MEow, 5 seeds.
#
#     benchmark/figA1_affine.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: additive as good as affine or better. The additive system is Fig. 3's MEow and shares its runs.
# Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 2 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 1.7 hours with additive couplings, 2.2 with affine ones (benchmark/SPEED.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python meow_continuous_action.py --exp-name meow" \
  "python meow_continuous_action.py --exp-name meow_affine --coupling affine"

draw
