#!/usr/bin/env bash
# Builds the fuzz targets with the repository's own toolchain. Only the library, the parsers and the
# targets count their branches, and only the library checks its arithmetic for overflows.
set -euo pipefail
cd "$(dirname "$0")"

# The versions of the program, and its release profile. Most libraries only take long to build.
[ -e Cargo.lock ] || cp ../Cargo.lock Cargo.lock
profile=$(mktemp --suffix .toml)
trap 'rm -f "$profile"' EXIT
# These must run fast, besides the library.
optimized=(favonius-kernels granit-parser minijinja minijinja-contrib onig_sys parquet serde_json)
awk -v own="${optimized[*]}" '
    BEGIN { split(own, names, " "); for (i in names) is_own["[profile.release.package." names[i] "]"] }
    /^\[/ { keep = /^\[profile\.release/ && !($0 in is_own) }
    keep' ../Cargo.toml >"$profile"
{
    printf '[profile.release.package.favonius]\nopt-level = 2\noverflow-checks = true\n'
    printf '[profile.release.package.%s]\nopt-level = 2\n' "${optimized[@]}"
} >>"$profile"

# Not `mutate`, which has no libFuzzer to count for.
targets=(fuzz_targets/*.rs)
targets=("${targets[@]#fuzz_targets/}")

RUSTC_WRAPPER="$PWD/instrument.sh" cargo --config "$profile" \
    --config profile.release.opt-level=1 build --release \
    $(printf -- '--bin %s ' "${targets[@]%.rs}") \
    --target "$(rustc -vV | sed -n 's/^host: //p')" "$@"
