#!/usr/bin/env bash
# A wrapper of rustc: the library and the fuzz targets count their branches for libFuzzer.
set -euo pipefail
flags=()
case " $* " in
*" --crate-name favonius "* | *" fuzz_targets/"*)
    flags=(
        -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
    )
    ;;
esac
exec "$@" "${flags[@]}"
