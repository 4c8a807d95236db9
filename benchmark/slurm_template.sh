#!/bin/bash
# A Slurm job array of run.py, which fills in the double braces. Add what your cluster asks for: --partition,
# --account, --time, --gpus=1 ... Any --time above the minutes between two checkpoints (10,000 steps) will do: a job
# resumes from its checkpoint as often as needed.
#SBATCH --job-name=meow
#SBATCH --array={{array}}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={{threads}}
#SBATCH --chdir="{{cwd}}"
#SBATCH --output="{{output}}/slurm_%a.out"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60

# A minute before the time limit Slurm sends SIGUSR1 to this script alone: the job ends, and this task of the array is
# queued again, to resume from the job's checkpoint.
{{command}} --only-job "$SLURM_ARRAY_TASK_ID" &
trap "kill $!; scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" USR1
wait $!
