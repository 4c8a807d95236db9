#!/usr/bin/env bash
# Fig. 1: products of the Jacobian determinants while MEow learns Hopper-v4 with affine couplings, with and without LRS.
#
#     benchmark/fig1_jacobian.sh [--seeds N] [--workers N] [--quick | --smoke | --steps N] ...     (--help: all options)
#
# Expect: without shifts the flow itself has to carry the size of the return, so the product over the non-linear layers
# grows and decays by orders of magnitude; with shifts it stays tame (the paper; not so in our 200,000 steps, see RESULTS.md).
# Hardware: one CPU core per worker, 1 GB of memory.
# Length: 2 systems x 5 seeds x 1.5M steps, on one core about 2 hours per seed with shifts and less without (benchmark/SPEED.md).
source "$(dirname "$0")/launch.sh"

train "Hopper-v4" \
  "python meow_continuous_action.py --exp-name meow_affine --coupling affine" \
  "python meow_continuous_action.py --exp-name meow_affine_no_lrs --coupling affine --num-shifts 0"

draw --key flow/log_det_nonlinear flow/log_det_linear
