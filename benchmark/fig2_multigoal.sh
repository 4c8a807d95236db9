#!/usr/bin/env bash
# Fig. 2: the 2-D multi-goal task. (a) contour of the learnt V with trajectories from the centre, (b) errors of Monte
# Carlo estimates of V against MEow's exact one.
#
#     benchmark/fig2_multigoal.sh [--quick | --smoke] ...     (--help: all options)
#
# Expect: all four goals are reached from the centre; SQL's estimate converges slowly, SAC's to a bias.
# Hardware: one CPU core. Length: 4,000 steps and the figure, about 2 minutes each, of one seed.
source "$(dirname "$0")/launch.sh"

[[ -z $steps ]] || refuse "--steps is not an option of $launcher: the paper's are 4000"
seeds=1 # a figure is that of one policy
[[ $scale == smoke ]] || mujoco_flags="" # the paper's length is quick enough
train "benchmark.multigoal:MultiGoal-v0" \
  "python meow_continuous_action.py --exp-name meow --total-timesteps 4000 --learning-starts 1000 --gamma 0.9 --tau 0.0005 --alpha 2.5 --sigma-min -2 --sigma-max 1 --eval-frequency 1000"
((failed)) && exit $failed

figure=$output/figures/fig2_multigoal size=()
[[ $scale == smoke ]] && size=(--trajectories 3 --max-samples 100 --repeats 10)
python benchmark/tools/fig2_multigoal.py --run "$(ls -d "$output"/MultiGoal-v0/meow/seed_1/runs/*)" --output "$figure" "${size[@]}"
echo "figure: $figure/fig2a.png and fig2b.png"
