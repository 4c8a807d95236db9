#!/usr/bin/env bash
# Fig. 3: return against steps on five MuJoCo environments: MEow, SAC, TD3, DDPG, PPO and SQL, 5 seeds.
#
#     benchmark/fig3_mujoco.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect (the paper's last values, MEow / SAC): Hopper 3,490 / 3,370, HalfCheetah 11,330 / 12,250, Walker2d 5,530 / 5,450,
# Ant 6,520 / 6,110, Humanoid 6,810 / 6,450. Hardware: one CPU core per worker, 1 to 5 GB of memory each.
# Length: 6 systems x 5 seeds x 16M steps. A seed of Hopper-v4 takes one core 1.7 hours with MEow, 3.5 SAC, 3.2 TD3, 2.9 DDPG,
# 0.3 PPO, 2.1 SQL (benchmark/SPEED.md), one of Humanoid-v4 10 hours with MEow.
source "$(dirname "$0")/launch.sh"

train "Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4" \
  "python meow_continuous_action.py --exp-name meow" \
  "python benchmark/baselines/sb3.py --algo sac --exp-name sac" \
  "python benchmark/baselines/sb3.py --algo td3 --exp-name td3" \
  "python benchmark/baselines/sb3.py --algo ddpg --exp-name ddpg" \
  "python benchmark/baselines/sb3.py --algo ppo --exp-name ppo" \
  "python benchmark/baselines/sql.py --exp-name sql"

draw
