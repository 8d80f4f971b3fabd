#!/usr/bin/env python3
"""Compiles the GPU kernels offline and lists what each takes of a GPU, as a Markdown table.

Needs scripts/gpu/llvm.sh and a package of PyPI with ptxas and libdevice, but no GPU:

    pip install --target CUDA --no-deps nvidia-cuda-nvcc-cu12
    scripts/gpu/ptxas.py --cuda CUDA

Occupancy is the share of a multiprocessor's threads that can be resident, from registers, shared
memory and the threads of a block. A kernel that spills registers ends the script with an error, as
does a kernel on tensor cores without an instruction for them.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of a multiprocessor: threads, blocks, bytes of shared memory (each block takes 1 KiB more).
LIMITS = {80: (2048, 32, 164 << 10), 90: (2048, 32, 228 << 10)}
REGISTERS = 65536


def find(folder, name):
    """The file `name` somewhere in `folder`."""
    found = sorted(pathlib.Path(folder).rglob(name))
    if not found:
        sys.exit(f"{folder} has no file {name}; fill it with: pip install --target {folder} "
                 "--no-deps nvidia-cuda-nvcc-cu12")
    return found[0]


def write_ptx(folder, libdevice, architectures):
    """Writes all kernels as PTX to `folder`."""
    # The compiler looks for $CUDA_PATH/nvvm/libdevice/libdevice.10.bc.
    environment = dict(os.environ, CUDA_PATH=str(libdevice.parents[2]))
    command = ["cargo", "run", "--release", "--config", "scripts/gpu/unoptimized.toml",
               "--target-dir", "target/unoptimized", "-p", "favonius-kernels",
               "--features", "cube-cpu,ptx", "--example", "ptx", "--", folder]
    subprocess.run(command + [str(sm) for sm in architectures], check=True, cwd=ROOT,
                   env=environment)


def assemble(ptxas, file):
    """Registers and bytes of spills of the kernel in `file`."""
    # For sm_90 the compiler writes sm_90a, which has all instructions of that GPU.
    target = re.search(r"^\.target (\w+)", file.read_text(), re.MULTILINE)[1]
    command = [ptxas, "-v", f"-arch={target}", file, "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{file}: {result.stderr}")
    text = result.stderr

    def number(pattern):
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return number(r"Used (\d+) registers"), spills


def occupancy(sm, threads, registers, shared):
    """The share of a multiprocessor's threads that can be resident."""
    most_threads, most_blocks, memory = LIMITS[sm]
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    blocks = min(most_blocks, most_threads // (warps * 32), REGISTERS // (of_warp * warps),
                 memory // (shared + 1024))
    return blocks * warps * 32 / most_threads


def table(folder, ptxas, architectures):
    """The table as lines, and the faults of kernels."""
    lines = ["| kernel | GPU | threads | registers | shared memory | spills | occupancy |",
             "|---|---|---|---|---|---|---|"]
    faults = []
    for sm in architectures:
        for file in sorted(pathlib.Path(folder).glob(f"sm_{sm}_*.ptx")):
            heading = file.open().readline()
            name, threads, shared = heading.removeprefix("//").strip().rsplit(" | ", 2)
            registers, spills = assemble(ptxas, file)
            share = occupancy(sm, int(threads), registers, int(shared))
            lines.append(f"| {name.strip()} | sm_{sm} | {threads} | {registers} "
                         f"| {shared} B | {spills} B | {share:.0%} |")
            kernel = f"{name.strip()} on sm_{sm}"
            if spills:
                faults.append(f"{kernel} spills registers")
            if "tensor cores" in name and "mma.sync" not in file.read_text():
                faults.append(f"{kernel} has no mma.sync")
    return lines, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cuda", required=True, help="folder with nvidia-cuda-nvcc-cu12")
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90], choices=sorted(LIMITS))
    arguments = parser.parse_args()
    ptxas, libdevice = find(arguments.cuda, "ptxas"), find(arguments.cuda, "libdevice.10.bc")
    os.chmod(ptxas, 0o755)
    with tempfile.TemporaryDirectory() as folder:
        write_ptx(folder, libdevice, arguments.sm)
        lines, faults = table(folder, ptxas, arguments.sm)
    print("\n".join(lines))
    if faults:
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
