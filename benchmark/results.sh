#!/usr/bin/env bash
# Draws the figures of benchmark/results (except Fig. 2) and writes the tables of README.md and benchmark/RESULTS.md, from
# the raw files in benchmark/results and the curves of the paper and of others.
set -euo pipefail
cd "$(dirname "$0")/.."
results=benchmark/results

plot() { # FOLDER/NAME OPTIONS...
  python benchmark/tools/plot.py --output "$results/$1" "${@:2}"
}

plot fig3_mujoco --runs $results/*-v4 --env-ids Hopper-v4 HalfCheetah-v4 Walker2d-v4 Ant-v4 Humanoid-v4 --systems meow \
  --peers SAC SimbaV2 FlashSAC
plot Hopper-v4/fig3_baselines --runs $results/Hopper-v4 --systems meow sac td3 --max-steps 500000
plot Hopper-v4/fig6_ablation --runs $results/Hopper-v4 --systems meow_vanilla meow_lrs meow --max-steps 200000
plot Hopper-v4/figA1_affine --runs $results/Hopper-v4 --systems meow meow_affine --max-steps 200000
plot Hopper-v4/fig1_jacobian --runs $results/Hopper-v4 --systems meow_affine meow_affine_no_lrs --max-steps 200000 \
  --key flow/log_det_nonlinear flow/log_det_linear
plot mujoco-4.0.0/curve --runs $results/mujoco-4.0.0
plot rewritten/curve --runs $results/rewritten --env-ids Hopper-v4 HalfCheetah-v4
plot AntMujoco/curve --runs $results/AntMujoco
plot HalfCheetah-v5/curve --runs $results/HalfCheetah-v5
plot CartpoleSwingup/curve --runs $results/CartpoleSwingup
python benchmark/tools/report.py --pages README.md benchmark/RESULTS.md
