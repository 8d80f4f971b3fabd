#!/usr/bin/env python3
"""Tests and measures on a GPU, in eight minutes: kernel tests, golden runs, operations and training
against torch, checkpoints. It runs from the unpacked archive of `scripts/gpu/pack.sh`:

    tar xf favonius-gpu.tar.xz && python3 favonius-gpu/scripts/gpu/run.py --out results

Writes `results/results.json`, `results/GPU.md` and `results/log.txt` after each part, and prints
the table. Each part has a time limit; what fails or takes too long costs its own part only. Needs a
CUDA toolkit's libdevice, torch, transformers, peft and numpy, but no network.

`--rehearse` runs all parts without a GPU: tiny shapes, the kernels on CubeCL's CPU runtime, torch
on the CPU.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import correctness
import machine
import operations
import training
from context import Context, environment_of
from results import PartResult, Row, document

ROOT = Path(__file__).resolve().parents[2]
# Seconds for everything.
LIMIT, REHEARSAL_LIMIT = 470.0, 3600.0
# Free bytes that a folder needs to hold the largest model and a finished run.
WORK_BYTES = 45e9


@dataclass(frozen=True)
class Part:
    name: str
    title: str
    limit: float
    rehearsal_limit: float
    rows: Callable[[Context], Iterator[Row]]


PARTS = [
    Part("started", "Program and device", 25, 120, correctness.started),
    Part("kernels", "Kernel tests", 70, 900, correctness.kernel_tests),
    Part("golden", "Golden runs of TRL", 75, 600, correctness.golden_runs),
    Part("operations", "Operations against torch", 85, 600, operations.operations),
    Part("lora", "LoRA on all layers", 120, 600, training.lora),
    Part("full", "Full training", 130, 600, training.full),
    Part("checkpoint", "Loading, checkpoint and resume", 60, 600, checkpoint.checkpoint),
]


def run_part(part: Part, context: Context, end: float) -> PartResult:
    """Runs a part within its limit and before `end`. Rows that it gave before it failed count."""
    limit = part.rehearsal_limit if context.is_rehearsal else part.limit
    limit = min(limit, end - time.monotonic())
    result = PartResult(part.name, part.title, limit)
    if limit < 5:
        result.state, result.message = "left out", "no time was left"
        return result
    started = time.monotonic()
    context.deadline = started + limit
    try:
        for row in part.rows(context):
            result.rows.append(row)
    except Exception as error:  # whatever happens, the other parts run
        result.state, result.message = "failed", f"{type(error).__name__}: {error}"
    result.seconds = time.monotonic() - started
    return result


def pack_facts(root: Path) -> dict:
    """Commit and profile of the programs, which the archive has in `PACK.json`."""
    file = root / "PACK.json"
    if file.exists():
        return json.loads(file.read_text())
    commit = machine.output("git", "-C", str(root), "describe", "--always", "--dirty").strip()
    return {"commit": commit or "unknown", "profile": "unknown"}


def work_folder() -> Path:
    """A new folder, in memory if enough is free there."""
    shared = Path("/dev/shm")
    fits = shared.is_dir() and shutil.disk_usage(shared).free > WORK_BYTES
    return Path(tempfile.mkdtemp(prefix="favonius-gpu-", dir=shared if fits else None))


def write(result: dict, out: Path) -> None:
    (out / "results.json").write_text(json.dumps(result, indent=1))
    (out / "GPU.md").write_text("\n".join(document(result)))


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--device", default="cuda", help="`cuda` or `cuda:N`")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS],
                        default=[part.name for part in PARTS])
    parser.add_argument("--programs", type=Path, default=ROOT / "bin",
                        help="the folder with `favonius` and `kernels`")
    assets = os.environ.get("FAVONIUS_ASSETS", ROOT / "assets")
    parser.add_argument("--assets", type=Path, default=Path(assets))
    parser.add_argument("--limit", type=float,
                        help=f"seconds for everything [default: {LIMIT:.0f}]")
    return parser.parse_args()


def context_of(arguments: argparse.Namespace, work: Path) -> Context:
    device = "cube-cpu" if arguments.rehearse else arguments.device
    index = None if arguments.rehearse else int(device.partition(":")[2] or 0)
    return Context(
        root=ROOT, programs=arguments.programs.resolve(), assets=arguments.assets.resolve(),
        work=work, log=arguments.out.resolve() / "log.txt", device=device,
        is_rehearsal=arguments.rehearse, machine=machine.describe(index),
        environment=environment_of(work))


def main() -> None:
    arguments = arguments_of()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "log.txt").unlink(missing_ok=True)
    end = time.monotonic() + (arguments.limit or (REHEARSAL_LIMIT if arguments.rehearse else LIMIT))
    work = work_folder()
    try:
        context = context_of(arguments, work)
        result = dict(date=time.strftime("%Y-%m-%d"), is_rehearsal=arguments.rehearse,
                      machine=context.machine.as_json(), parts=[], **pack_facts(ROOT))
        for part in PARTS:
            if part.name in arguments.parts:
                done = run_part(part, context, end)
                result["parts"].append(done.as_json())
                write(result, arguments.out)
                print(f"{part.name}: {done.state}, {done.seconds:.0f} s {done.message}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("\n".join(document(result)))


if __name__ == "__main__":
    main()
