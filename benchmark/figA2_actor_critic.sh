#!/usr/bin/env bash
# Fig. A2: MEow against its actor-critic counterparts: energy (MLP) or flow critic, Gaussian or flow actor, 5 seeds.
#
#     benchmark/figA2_actor_critic.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: MEow at the top or near it. ECGA is SAC; the flow critics have MEow's shifts; MEow shares Fig. 3's runs.
# Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 5 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 3.0 hours with ECGA, 4.0 ECFA, 6.2 FCGA, 7.2 FCFA, 1.7 MEow (benchmark/SPEED.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python benchmark/baselines/actor_critic.py --exp-name ecga --critic energy --actor gaussian" \
  "python benchmark/baselines/actor_critic.py --exp-name ecfa --critic energy --actor flow" \
  "python benchmark/baselines/actor_critic.py --exp-name fcga --critic flow --actor gaussian --lrs" \
  "python benchmark/baselines/actor_critic.py --exp-name fcfa --critic flow --actor flow --lrs" \
  "python meow_continuous_action.py --exp-name meow"

draw
