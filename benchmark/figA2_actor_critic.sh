#!/usr/bin/env bash
# Fig. A2: MEow against its actor-critic counterparts: energy (MLP) or flow critic, Gaussian or flow actor, 5 seeds.
#
#     benchmark/figA2_actor_critic.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: MEow at the top or near it. ECGA is SAC; the flow critics have MEow's shifts; MEow shares Fig. 3's runs.
# Hardware: one CPU core a worker, 1 to 5 GB of memory each.
# Length: 5 systems x 5 seeds x 16M steps. A seed of Hopper-v4 (1.5M) takes one core
# 3.0 hours with ECGA, 4.0 ECFA, 6.2 FCGA, 7.2 FCFA, 1.7 MEow (benchmark/README.md), one of Humanoid-v4 (5M) MEow 10 hours.
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecga --env-id Hopper-v4 --critic energy --actor gaussian --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecga --env-id HalfCheetah-v4 --critic energy --actor gaussian --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecga --env-id Walker2d-v4 --critic energy --actor gaussian --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecga --env-id Ant-v4 --critic energy --actor gaussian --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecga --env-id Humanoid-v4 --critic energy --actor gaussian --total-timesteps 5000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecfa --env-id Hopper-v4 --critic energy --actor flow --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecfa --env-id HalfCheetah-v4 --critic energy --actor flow --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecfa --env-id Walker2d-v4 --critic energy --actor flow --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecfa --env-id Ant-v4 --critic energy --actor flow --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name ecfa --env-id Humanoid-v4 --critic energy --actor flow --total-timesteps 5000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcga --env-id Hopper-v4 --critic flow --actor gaussian --lrs --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcga --env-id HalfCheetah-v4 --critic flow --actor gaussian --lrs --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcga --env-id Walker2d-v4 --critic flow --actor gaussian --lrs --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcga --env-id Ant-v4 --critic flow --actor gaussian --lrs --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcga --env-id Humanoid-v4 --critic flow --actor gaussian --lrs --total-timesteps 5000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcfa --env-id Hopper-v4 --critic flow --actor flow --lrs --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcfa --env-id HalfCheetah-v4 --critic flow --actor flow --lrs --total-timesteps 1500000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcfa --env-id Walker2d-v4 --critic flow --actor flow --lrs --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcfa --env-id Ant-v4 --critic flow --actor flow --lrs --total-timesteps 4000000" \
  "python benchmark/actor_critic_continuous_action.py --exp-name fcfa --env-id Humanoid-v4 --critic flow --actor flow --lrs --total-timesteps 5000000" \
  "python meow_continuous_action.py --exp-name meow --env-id Hopper-v4 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id HalfCheetah-v4 --total-timesteps 1500000 --learning-starts 10000 --alpha 0.25 --tau 0.003 --sigma-min -5 --sigma-max 2" \
  "python meow_continuous_action.py --exp-name meow --env-id Walker2d-v4 --total-timesteps 4000000 --learning-starts 10000 --alpha 0.1 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Ant-v4 --total-timesteps 4000000 --learning-starts 5000 --alpha 0.05 --tau 0.0001 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow --env-id Humanoid-v4 --total-timesteps 5000000 --learning-starts 5000 --alpha 0.125 --tau 0.0005 --sigma-min -5 --sigma-max -0.3"

draw figA2_actor_critic --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems ecga ecfa fcga fcfa meow
