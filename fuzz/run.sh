#!/usr/bin/env bash
# usage: fuzz/run.sh TARGET [SECONDS]
# Runs a target that build.sh built, with the limits of README.md.
set -euo pipefail
target=$1 seconds=${2:-300}
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# The targets write files: a folder in memory is faster. It is removed at the end.
folder=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/fuzz-XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir -p "corpus/$target" "artifacts/$target"
# Words of the input's language, which change inputs more usefully than single bytes.
case $target in
template | recipe) dictionary=$target ;;
parquet | events) dictionary= ;;
*) dictionary=json ;;
esac
# The stack of the threads that tokenize rows.
ulimit -s 2048
TMPDIR=$folder "${CARGO_TARGET_DIR:-target}/$host/release/$target" \
    "corpus/$target" "seeds/$target" -artifact_prefix="artifacts/$target/" \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 \
    ${dictionary:+-dict="dictionaries/$dictionary"}
