#!/usr/bin/env bash
# Zephyr-7B-β's DPO on 2 hosts of 8 GPUs with mpirun: 16 ranks × 2 pairs = 32 pairs per step.
# Usage: scripts/ranks.sh HOST1 HOST2 [--key=value …]
#
# The program must be built with `--features nccl`. Program, recipe, model, data and output_dir must
# have the same paths on both hosts. The ranks of NCCL connect to port 29501 of HOST1.
set -euo pipefail
first=$1
second=$2
shift 2

exec mpirun -n 16 --host "$first:8,$second:8" --map-by ppr:8:node --bind-to none \
    -x NCCL_COMM_ID="$first:29501" \
    favonius dpo recipes/zephyr-7b-beta/dpo/published.yaml --device=cuda "$@"
