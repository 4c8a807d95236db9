#!/usr/bin/env bash
# SAC with learnable reward shifting added to its critics (Fig. A4), against SAC and MEow, 5 seeds.
#
#     benchmark/figA4_sac_lrs.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: LRS helps SAC little, for its critic is no flow whose determinants could blow up. SAC is Fig. A2's ECGA, MEow Fig. 3's.
# Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 3 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 3.0 hours with SAC, 4.9 SAC + LRS, 1.7 MEow (benchmark/SPEED.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python benchmark/baselines/actor_critic.py --exp-name ecga --critic energy --actor gaussian" \
  "python benchmark/baselines/actor_critic.py --exp-name sac_lrs --critic energy --actor gaussian --lrs" \
  "python meow_continuous_action.py --exp-name meow"

draw
