#!/usr/bin/env bash
# Fig. 4: return against vector steps on six GPU-parallel tasks: MEow and SAC, 5 seeds.
#
#     benchmark/fig4_isaacgym.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#     benchmark/fig4_mujoco_tasks.sh ...     the same on MuJoCo's Ant and Humanoid, without Isaac Gym
#
# Needs Isaac Gym and isaacgymenvs (README). Expect (the paper's last values, MEow / SAC): Ant 7,990 / 7,650, Humanoid
# 4,650 / 3,920, Ingenuity 5,260 / 5,300, ANYmal 49 / 11, AllegroHand 586 / 288, FrankaCabinet 3,160 / 1,700, from another
# simulator (Omniverse) whose Ingenuity, ANYmal and FrankaCabinet differ: not comparable there. Hardware: one NVIDIA GPU.
# Length: 2 systems x 5 seeds x 0.5M or 1M vector steps; hours not measured.
source "$(dirname "$0")/launch.sh"

train "$parallel_flags" \
  "python meow_isaacgym.py --exp-name meow --task Ant --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.075 --tau 0.0005 --sigma-min -5 --sigma-max 2" \
  "python meow_isaacgym.py --exp-name meow --task Humanoid --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.25 --tau 0.00025 --sigma-min -5 --sigma-max -0.3" \
  "python meow_isaacgym.py --exp-name meow --task Ingenuity --num-envs 128 --batch-size 1024 --total-vector-steps 500000 --alpha 0.025 --tau 0.0025 --sigma-min -4 --sigma-max -0.3" \
  "python meow_isaacgym.py --exp-name meow --task Anymal --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.00075 --tau 0.025 --sigma-min -5 --sigma-max -1" \
  "python meow_isaacgym.py --exp-name meow --task AllegroHand --num-envs 512 --batch-size 256 --total-vector-steps 1000000 --alpha 0.1 --tau 0.001 --sigma-min -4 --sigma-max -0.3" \
  "python meow_isaacgym.py --exp-name meow --task FrankaCabinet --num-envs 512 --batch-size 256 --total-vector-steps 1000000 --alpha 0.075 --tau 0.01 --sigma-min -5 --sigma-max -0.3" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task Ant --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.4 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task Humanoid --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.025 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task Ingenuity --num-envs 128 --batch-size 1024 --total-vector-steps 500000 --alpha 0.1 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task Anymal --num-envs 128 --batch-size 1024 --total-vector-steps 1000000 --alpha 0.01 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task AllegroHand --num-envs 512 --batch-size 256 --total-vector-steps 1000000 --alpha 0.1 --tau 0.0025" \
  "python benchmark/sac_isaacgym.py --exp-name sac --task FrankaCabinet --num-envs 512 --batch-size 256 --total-vector-steps 1000000 --alpha 0.1 --tau 0.025"

draw fig4_isaacgym --env-ids Ant Humanoid Ingenuity Anymal AllegroHand FrankaCabinet --systems meow sac
