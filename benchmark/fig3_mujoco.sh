#!/usr/bin/env bash
# Fig. 3: return against steps on five MuJoCo environments: MEow, SAC, TD3, DDPG, PPO and SQL, 5 seeds.
#
#     benchmark/fig3_mujoco.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect (the paper's last values, MEow / SAC): Hopper 3,490 / 3,370, HalfCheetah 11,330 / 12,250, Walker2d 5,530 / 5,450,
# Ant 6,520 / 6,110, Humanoid 6,810 / 6,450. Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 6 systems x 5 seeds x 16M steps. A seed of Hopper-v4 takes one core 1.7 hours with MEow, 3.5 SAC, 3.2 TD3, 2.9 DDPG,
# 0.3 PPO, 2.1 SQL (benchmark/README.md), one of Humanoid-v4 10 hours with MEow (README).
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
  "python benchmark/baselines.py --algo sac --exp-name sac --env-id Humanoid-v4 --total-timesteps 5000000" \
  "python benchmark/baselines.py --algo td3 --exp-name td3 --env-id Hopper-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo td3 --exp-name td3 --env-id HalfCheetah-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo td3 --exp-name td3 --env-id Walker2d-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo td3 --exp-name td3 --env-id Ant-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo td3 --exp-name td3 --env-id Humanoid-v4 --total-timesteps 5000000" \
  "python benchmark/baselines.py --algo ddpg --exp-name ddpg --env-id Hopper-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo ddpg --exp-name ddpg --env-id HalfCheetah-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo ddpg --exp-name ddpg --env-id Walker2d-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo ddpg --exp-name ddpg --env-id Ant-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo ddpg --exp-name ddpg --env-id Humanoid-v4 --total-timesteps 5000000" \
  "python benchmark/baselines.py --algo ppo --exp-name ppo --env-id Hopper-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo ppo --exp-name ppo --env-id HalfCheetah-v4 --total-timesteps 1500000" \
  "python benchmark/baselines.py --algo ppo --exp-name ppo --env-id Walker2d-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo ppo --exp-name ppo --env-id Ant-v4 --total-timesteps 4000000" \
  "python benchmark/baselines.py --algo ppo --exp-name ppo --env-id Humanoid-v4 --total-timesteps 5000000" \
  "python benchmark/sql_continuous_action.py --exp-name sql --env-id Hopper-v4 --total-timesteps 1500000" \
  "python benchmark/sql_continuous_action.py --exp-name sql --env-id HalfCheetah-v4 --total-timesteps 1500000" \
  "python benchmark/sql_continuous_action.py --exp-name sql --env-id Walker2d-v4 --total-timesteps 4000000" \
  "python benchmark/sql_continuous_action.py --exp-name sql --env-id Ant-v4 --total-timesteps 4000000" \
  "python benchmark/sql_continuous_action.py --exp-name sql --env-id Humanoid-v4 --total-timesteps 5000000"

draw fig3_mujoco --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow sac td3 ddpg ppo sql
