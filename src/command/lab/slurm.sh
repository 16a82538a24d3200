#!/bin/bash
# {ID}, {GRID} grid: {CELLS} cells of {RUNS} runs, in {SHARDS} shards. Submit with: sbatch FILE
# If a task stops, submit it again unchanged: finished cells are kept. Once all have finished, LOOKS=2 sbatch FILE adds seeds to
# what they left open.
#SBATCH --job-name=headscope-{ID}
#SBATCH --array=1-{SHARDS}
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=headscope-{ID}-%a.log
set -euo pipefail

# All tasks must use the same folder. If they do not share a file system, copy the cells of all folders into one afterwards.
OUT="${OUT:-headscope-lab/{FOLDER}}"
export OMP_NUM_THREADS=1

headscope lab run {EXPERIMENT} --shard "$SLURM_ARRAY_TASK_ID/{SHARDS}" --threads "$SLURM_CPUS_PER_TASK" \
    --out "$OUT" --resume --looks "${LOOKS:-1}"

# When all tasks have finished: headscope lab verdict "$OUT" && headscope lab report "$OUT"
