# Sourced by the launchers (fig*.sh), which run from the repository whatever the current directory:
#   options, `train` (command lines of training scripts, for every seed) and `draw` (the figure from what they wrote).
set -euo pipefail
launcher=$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: benchmark/$launcher [--seeds N] [--workers N] [--quick | --smoke | --steps N] [--env-id ID] [--dry-run]
           [-- OPTIONS OF benchmark/run.py]
  --seeds N    seeds of every system (the paper: 5)             default 5; with --quick or --smoke 1
  --workers N  runs at a time, one thread each                  default 1
  --quick      the same pipeline in minutes: its curves say nothing about the algorithms
  --smoke      the same pipeline in seconds, for tests: the first environment only (or that of --env-id)
  --steps N    runs of N steps instead of the paper's length, evaluated as often as the paper's
  --env-id ID  this environment or task only
  --dry-run    print what would run
  --           e.g. -- --ray auto, or -- --slurm-template-path benchmark/slurm_template.sh"
seeds="" workers=1 scale=paper steps="" only="" runner=()
while (($#)); do
  case $1 in
    --seeds | --workers | --steps)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "$1 must be an integer of at least 1, got ${2:-nothing}" >&2; exit 2; }
      declare "${1#--}=$2"; shift ;;
    --quick | --smoke) scale=${1#--} ;;
    --env-id) only=${2:-}; shift
      [[ $only ]] || { echo "--env-id must be followed by an environment or task" >&2; exit 2; } ;;
    --dry-run) runner+=(--dry-run) ;;
    --) shift; runner+=("$@"); break ;;
    *) [[ $1 == --help ]] && { echo "$usage"; exit 0; }
       echo "$1 is not an option of $launcher; $usage" >&2; exit 2 ;;
  esac
  shift
done
[[ -z $steps || $steps -gt 10000 ]] || { echo "--steps must be above 10000, got $steps" >&2; exit 2; }
[[ " ${runner[*]} " != *" --o"[nu]* ]] || { echo "--output and --only-job are set by $launcher itself" >&2; exit 2; }
[[ -z $steps || $scale == paper ]] || { echo "--steps and --$scale must not be given together" >&2; exit 2; }

# What a scale appends to the command lines: the last of two equal flags counts.
mujoco_flags="" parallel_flags=""
case $scale in
  paper) : "${seeds:=5}"
    if [[ $steps ]]; then
      scale=$steps mujoco_flags="--total-timesteps $steps" parallel_flags="--total-vector-steps $steps"
    fi ;;
  quick) : "${seeds:=1}"
    mujoco_flags="--total-timesteps 1000 --learning-starts 300 --eval-frequency 500 --eval-episodes 2"
    parallel_flags="--num-envs 16 --batch-size 64 --total-vector-steps 2000 --log-frequency 200" ;;
  smoke) : "${seeds:=1}"
    mujoco_flags="--total-timesteps 320 --learning-starts 190 --eval-frequency 160 --eval-episodes 1"
    parallel_flags="--num-envs 16 --batch-size 16 --total-vector-steps 300 --random-steps 240 --learning-starts 250"
    parallel_flags+=" --log-frequency 100" ;;
esac
output=runs/benchmark/$scale  # one folder for all launchers: figures share their runs

# train FLAGS COMMAND...: runs the command lines, with the flags of the scale appended, for every seed; skips what is
# finished. `failed` is 1 if a run failed.
failed=0
train() {
  local flags=$1 lines=() line env child
  shift
  for line in "$@"; do
    env=$(grep -oP -e '--(env-id|task) (\w+\.\w+:)?\K\S+' <<<"$line")
    [[ $scale == smoke ]] && : "${only:=$env}"
    [[ ${only:=} && $env != "$only" ]] && continue
    lines+=("$line $flags")
    [[ $line == *"--algo ppo"* ]] && lines[-1]=$(sed 's/--learning-starts [0-9]*//' <<<"${lines[-1]}") # it has none
  done
  ((${#lines[@]})) || { echo "--env-id must be an environment or task of $launcher, got $only" >&2; exit 2; }
  trap '' INT # a Ctrl-C reaches run.py too, which ends in order
  python benchmark/run.py --num-seeds "$seeds" --workers "$workers" --output "$output" --command "${lines[@]}" \
    "${runner[@]}" &
  child=$!
  trap 'kill -TERM $child' TERM
  wait $child || failed=$?
  while kill -0 $child 2>/dev/null; do wait $child || failed=$?; done # the first wait ends at SIGTERM
  trap - INT TERM
  ((failed < 2)) || exit $failed
  case " ${runner[*]} " in
    *" --dry-run "*) exit 0 ;;
    *" --slurm-"*) ((failed)) && exit $failed
      echo "when the array has ended, the same line without Slurm's options draws the figure"; exit 0 ;;
  esac
}

# draw NAME OPTIONS...: the figure of the runs that the options of benchmark/plot.py choose. A launcher's last step.
draw() {
  local name=$1
  shift
  mkdir -p "$output/figures"
  python benchmark/plot.py --runs "$output" --output "$output/figures/$name" "$@" ${only:+--env-ids "$only"}
  echo "figure: $output/figures/$name.png"
  exit $failed
}
