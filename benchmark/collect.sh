#!/usr/bin/env bash
# Copies what can be committed of the runs of one scale into benchmark/results, as ENV/SYSTEM/seed_N: the command, commit,
# hardware and times (job.json), settings and versions (config.json), every return and the averages plot.py exported.
#
#     benchmark/collect.sh runs/benchmark/1000000 [ENV/SYSTEM ...]     # none: all
set -euo pipefail
(($#)) || { echo "usage: benchmark/collect.sh runs/benchmark/SCALE [ENV/SYSTEM ...]" >&2; exit 2; }
from=${1%/} results=$(dirname "${BASH_SOURCE[0]}")/results
shift
[[ -d $from ]] || { echo "runs/benchmark/SCALE must be a folder, got $from" >&2; exit 2; }
(($#)) || set -- $(cd "$from" && ls -d */*/ | grep -v '^figures/')
for system in "$@"; do
  compgen -G "$from/${system%/}/seed_*/job.json" >/dev/null || { echo "ENV/SYSTEM must have runs in $from, got $system" >&2; exit 2; }
done
for system in "$@"; do
  for job in "$from/${system%/}"/seed_*/; do
    [[ -d $job/runs ]] || continue # it never started
    to=$results/${system%/}/$(basename "$job")
    mkdir -p "$to"
    cp "$job/job.json" "$to"
    for name in config.json evaluations.csv returns.csv scalars.csv; do
      find "$job"runs -name $name -exec cp {} "$to" \;
    done
    echo "$to"
  done
done
