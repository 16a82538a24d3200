#!/bin/bash
# {ID}, {GRID} grid: {CELLS} cells of {RUNS} runs, in {SHARDS} shards. Submit with: sbatch FILE
# A task that is stopped is submitted again as it is: finished cells are kept.
#SBATCH --job-name=headscope-{ID}
#SBATCH --array=1-{SHARDS}
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=headscope-{ID}-%a.log
set -euo pipefail

# The folder must be the same for all tasks. Elsewhere than on one file system, copy the folders' cells into one.
OUT="${OUT:-headscope-lab/{FOLDER}}"
export OMP_NUM_THREADS=1

headscope lab run {EXPERIMENT} --shard "$SLURM_ARRAY_TASK_ID/{SHARDS}" --threads "$SLURM_CPUS_PER_TASK" \
    --out "$OUT" --resume

# When all tasks are done: headscope lab verdict "$OUT" && headscope lab report "$OUT"
