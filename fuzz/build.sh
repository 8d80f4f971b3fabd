#!/usr/bin/env bash
# Builds the fuzz targets with the repository's own toolchain. Only the library and the targets count
# their branches.
set -euo pipefail
cd "$(dirname "$0")"

# The versions of the program, and its release profile.
[ -e Cargo.lock ] || cp ../Cargo.lock Cargo.lock
profile=$(mktemp --suffix .toml)
trap 'rm -f "$profile"' EXIT
awk '/^\[/ { keep = /^\[profile\.release/ } keep' ../Cargo.toml >"$profile"

RUSTC_WRAPPER="$PWD/instrument.sh" cargo --config "$profile" build --release "$@"
