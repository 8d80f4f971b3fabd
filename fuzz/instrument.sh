#!/usr/bin/env bash
# A wrapper of rustc: the library, the parsers that it uses, and the fuzz targets count their
# branches for libFuzzer. Only crates for the target (`--target`) do: build scripts and macros are
# linked without libFuzzer.
set -euo pipefail
arguments=" $* "
crate=${arguments#* --crate-name }
crate=${crate%% *}
flags=()
if [[ $arguments == *" --target "* ]]; then
    case $crate in
    favonius | favonius_fuzz | minijinja | minijinja_contrib | serde_json | serde_saphyr | \
        granit_parser | safetensors | parquet | protobuf | tokenizers | config | events | jsonl | \
        mark | prompts | recipe | shard_index | template | tokenizer)
        flags=(
            -Cpasses=sancov-module
            -Cllvm-args=-sanitizer-coverage-level=4
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
            -Cllvm-args=-sanitizer-coverage-pc-table
            -Cllvm-args=-sanitizer-coverage-trace-compares
        )
        ;;
    esac
fi
exec "$@" "${flags[@]}"
