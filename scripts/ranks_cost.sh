#!/usr/bin/env bash
# Measures the cost of ranks on this machine, on 1, 2 and 4 ranks with the same rows per step:
# resident memory per rank, and the share of time spent in collectives.
# Usage: scripts/ranks_cost.sh MODEL CHATS   (folders; build with --features mpi first)
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
chats=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

cat > "$work/recipe.yaml" <<RECIPE
model_name_or_path: $model
dataset_name: $chats
dataset_train_split: train_sft
max_train_samples: 60
packing: true
packing_strategy: wrapped
max_length: 256
max_steps: 3
per_device_train_batch_size: 1
optim: adamw_torch
learning_rate: 1.0e-5
save_strategy: "no"
report_to: [none]
RECIPE

for bf16 in false true; do
    for ranks in 1 2 4; do
        echo "$ranks rank(s), bf16: $bf16"
        mpirun --oversubscribe --bind-to none -n "$ranks" \
            python3 -c 'import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.2f} GB", flush=True)
sys.exit(code)' \
            target/release/favonius sft "$work/recipe.yaml" --quiet --output_dir="$work/$bf16-$ranks" \
            --gradient_accumulation_steps=$((4 / ranks)) --bf16=$bf16 2>&1 | grep -E "^peak|ranks:|train_runtime" | cut -c1-150
    done
done
