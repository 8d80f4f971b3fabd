#!/usr/bin/env bash
# Packs everything that a bare GPU machine needs into one archive of at most 64 MiB: the program and
# the kernel tests for CUDA, golden files and assets, the scripts that run them and their torch side.
#
# Usage: scripts/gpu/pack.sh [--built FOLDER] [--profile NAME] [--features LIST] [ARCHIVE]
#
# Builds both programs first (`--profile release --features cuda,nccl`; scripts/gpu/llvm.sh comes
# before it). `--built` takes them from cargo's folder of a finished build, such as target/release.
# ARCHIVE is favonius-gpu.tar.xz by default. On the GPU machine:
#
#   tar xf favonius-gpu.tar.xz && python3 favonius-gpu/scripts/gpu/run.py --out results
#
# Needs xz, strip and python3; the assets from FAVONIUS_ASSETS, else ../shared/assets.
set -euo pipefail

limit=$((64 << 20))
profile=release
features=cuda,nccl
built=
archive=favonius-gpu.tar.xz
while [ $# -gt 0 ]; do
    case $1 in
    --built) built=$(cd "$2" && pwd) && shift 2 ;;
    --profile) profile=$2 && shift 2 ;;
    --features) features=$2 && shift 2 ;;
    -*) echo "pack.sh: $1 is not known; see the head of the script" >&2 && exit 2 ;;
    *) archive=$1 && shift ;;
    esac
done
case $archive in /*) ;; *) archive=$PWD/$archive ;; esac

cd "$(dirname "$0")/../.."
assets=${FAVONIUS_ASSETS:-../shared/assets}
if [ ! -d "$assets/models" ]; then
    echo "pack.sh: no assets in $assets (set FAVONIUS_ASSETS)" >&2
    exit 1
fi

if [ -z "$built" ]; then
    # One command, so that both share one build of the libraries.
    cargo build --profile "$profile" --features "$features" -p favonius -p favonius-kernels \
        --bin favonius --test cube
    folder=$profile
    if [ "$profile" = dev ]; then folder=debug; fi
    built=${CARGO_TARGET_DIR:-target}/$folder
else
    profile=$(basename "$built")
fi
# Cargo adds a hash to the name of a test program; the newest one counts.
kernels=$(find "$built/deps" -maxdepth 1 -name 'cube-*' -type f -executable -printf '%T@ %p\n' |
    sort -n | tail -1 | cut -d' ' -f2-)
if [ -z "$kernels" ] || [ ! -x "$built/favonius" ]; then
    echo "pack.sh: $built has no programs \`favonius\` and \`deps/cube-…\`" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/favonius-gpu
mkdir -p "$root"/{bin,scripts/golden,scripts/gpu,tests/golden,assets/tokenizers,assets/models}
strip -o "$root/bin/favonius" "$built/favonius"
strip -o "$root/bin/kernels" "$kernels"
cp scripts/gpu/*.py "$root/scripts/gpu"
cp scripts/synthetic_mistral_7b.py "$root/scripts"
cp scripts/golden/{random_mistral,runs}.py "$root/scripts/golden"
for name in $(cd scripts/gpu && python3 -c 'import golden_names; print(*golden_names.RUNS)'); do
    cp "tests/golden/trl_$name.json" "$root/tests/golden"
done
cp -r "$assets/data" "$root/assets"
cp -r "$assets/models/stories260k" "$root/assets/models"
cp -r "$assets/tokenizers/mistral-7b-v0.1" "$root/assets/tokenizers"
chmod -R u+w "$root"
commit=$(git describe --always --dirty)
printf '{"commit": "%s", "profile": "%s"}\n' "$commit" "$profile" >"$root/PACK.json"

# The programs come last and next to each other: they share libraries, and a dictionary as large as
# both finds what they have in common.
(cd "$work" && find favonius-gpu -type f -not -path '*/bin/*' | sort >list &&
    find favonius-gpu/bin -type f | sort >>list)
tar -C "$work" -cf - -T "$work/list" | xz -T1 --lzma2=preset=6,dict=512MiB >"$archive"

echo "bytes before compression:"
(cd "$root" && du -sb bin/* assets/* scripts tests | awk '{printf "%12d  %s\n", $1, $2}')
size=$(stat -c %s "$archive")
printf '%s: %d bytes (%.1f MiB of at most 64), commit %s, profile %s\n' "$archive" "$size" \
    "$(awk "BEGIN {print $size / 1048576}")" "$commit" "$profile"
if [ "$size" -gt "$limit" ]; then
    echo "pack.sh: the archive is larger than 64 MiB" >&2
    exit 1
fi
