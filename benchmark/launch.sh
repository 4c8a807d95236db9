# What the launchers (fig*.sh) share; each of them sources this. Options of every launcher:
#
#   --seeds N    seeds of every system (the paper: 5)       default 5; with --quick or --smoke 1
#   --workers N  runs at a time, one thread each            default 1
#   --quick      the same pipeline in minutes: its curves say nothing about the algorithms
#   --smoke      the same pipeline in seconds, for tests: the first environment only (or that of --env-id)
#   --steps N    runs of N steps instead of the paper's length, evaluated as often as the paper's
#   --env-id ID  this environment or task only
#   --dry-run    print what would run
#   --           and then options of benchmark/tools/run.py, such as --ray auto

set -euo pipefail
launcher=$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() { echo "$1" >&2; exit 2; }

seeds="" workers=1 scale=paper steps="" only="" runner=()
while (($#)); do
  case $1 in
    --seeds | --workers | --steps)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || refuse "$1 must be an integer of at least 1, got ${2:-nothing}"
      declare "${1#--}=$2"; shift ;;
    --env-id) only=${2:-}; [[ $only ]] || refuse "--env-id must be followed by an environment or task"; shift ;;
    --quick | --smoke) scale=${1#--} ;;
    --dry-run) runner+=(--dry-run) ;;
    --) runner+=("${@:2}"); break ;;
    --help) awk '!/^#/ { nextfile } !/^#!/ { print substr($0, 3) }' "benchmark/$launcher" benchmark/launch.sh; exit ;;
    *) refuse "$1 is not an option of $launcher, see --help" ;;
  esac
  shift
done
[[ -z $steps || $steps -gt 10000 ]] || refuse "--steps must be above 10000, got $steps"
[[ -z $steps || $scale == paper ]] || refuse "--steps and --$scale must not be given together"
[[ " ${runner[*]} " != *" --o"[nu]* ]] || refuse "--output and --only-job are set by $launcher itself"

# What a scale appends to the command lines: the last of two equal flags counts.
mujoco_flags="" parallel_flags=""
case $scale in
  paper)
    [[ $steps ]] && scale=$steps mujoco_flags="--total-timesteps $steps" parallel_flags="--total-vector-steps $steps" ;;
  quick)
    mujoco_flags="--total-timesteps 1000 --learning-starts 300 --eval-frequency 500 --eval-episodes 2"
    parallel_flags="--num-envs 16 --batch-size 64 --total-vector-steps 2000 --log-frequency 200" ;;
  smoke)
    mujoco_flags="--total-timesteps 320 --learning-starts 190 --eval-frequency 160 --eval-episodes 1"
    parallel_flags="--num-envs 16 --batch-size 16 --total-vector-steps 300 --random-steps 240 --learning-starts 250"
    parallel_flags+=" --log-frequency 100" ;;
esac
[[ $scale == @(quick|smoke) ]] && : "${seeds:=1}"
output=runs/benchmark/$scale # one folder for all launchers: figures share their runs

# train "ENVIRONMENT ..." COMMAND...: runs each command, with the flags of the scale, on each environment with each seed;
# skips what is finished. Sets `failed` to 1 if a run failed.
train() {
  local commands=() command env_flag=env-id
  env_ids=($1) systems=() failed=0
  [[ $scale == smoke ]] && : "${only:=${env_ids[0]}}"
  if [[ $only ]]; then
    [[ " $1 " == *" $only "* ]] || refuse "--env-id must be an environment or task of $launcher ($1), got $only"
    env_ids=("$only")
  fi
  for command in "${@:2}"; do
    [[ $command =~ --exp-name\ ([^ ]+) ]] && systems+=("${BASH_REMATCH[1]}")
    case $command in
      *_isaacgym.py*) commands+=("$command $parallel_flags") env_flag=task ;;
      *"--algo ppo"*) commands+=("$command ${mujoco_flags/--learning-starts ??? /}") ;; # it has none
      *) commands+=("$command $mujoco_flags") ;;
    esac
  done
  python benchmark/tools/run.py --env-flag $env_flag --env-ids "${env_ids[@]}" --num-seeds "${seeds:-5}" \
    --workers "$workers" --output "$output" --command "${commands[@]}" "${runner[@]}" &
  trap "kill $!; echo 'stopped: the same line continues' >&2" INT TERM
  wait $! || failed=$?
  trap - INT TERM
  ((failed < 2)) || exit $failed
  case " ${runner[*]} " in
    *" --dry-run "*) exit ;;
    *" --slurm-"*)
      ((failed)) || echo "when the array has ended, the same line without Slurm's options runs what failed and draws the figure"
      exit $failed ;;
  esac
}

# draw [OPTIONS OF benchmark/tools/plot.py]: the figure of what was trained. A launcher's last step.
draw() {
  local figure=$output/figures/${launcher%.sh} what=(--env-ids "${env_ids[@]##*:}" --systems "${systems[@]}")
  python benchmark/tools/plot.py --runs "$output" --output "$figure" "${what[@]}" "$@"
  echo "figure: $figure.png"
  exit $failed
}
