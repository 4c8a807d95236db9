#!/usr/bin/env bash
# Fig. 1: products of the Jacobian determinants while MEow learns Hopper-v4 with affine couplings, with and without LRS.
#
#     benchmark/fig1_jacobian.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] [-- OPTIONS OF benchmark/run.py]
#
# Expect: without shifts the flow itself has to carry the size of the return, so the product over the non-linear layers
# grows and decays by orders of magnitude; with shifts it stays tame (the paper; not so in our 200,000 steps, see README).
# Hardware: one CPU core a worker, 1 GB of memory.
# Length: 2 systems x 5 seeds x 1.5M steps, on one core about 2 hours a seed with shifts and less without (benchmark/README.md).
source "$(dirname "$0")/launch.sh"

train "$mujoco_flags" \
  "python meow_continuous_action.py --exp-name meow_affine --env-id Hopper-v4 --coupling affine --num-shifts 2 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3" \
  "python meow_continuous_action.py --exp-name meow_affine_no_lrs --env-id Hopper-v4 --coupling affine --num-shifts 0 --total-timesteps 1500000 --learning-starts 5000 --alpha 0.25 --tau 0.005 --sigma-min -5 --sigma-max -0.3"

draw fig1_jacobian --env-ids Hopper-v4 --systems meow_affine meow_affine_no_lrs --key flow/log_det_nonlinear flow/log_det_linear
