"""Compares the speed and memory of Favonius and TRL on one machine: the same rows, model, batches
and number of threads.

usage: bench.py --assets DIR [--smollm2 DIR] [--favonius PROGRAM] [--python PYTHON] [--pairs 3]
                [--sgemm GFLOPS] [--out RESULTS.md] [CASE ...]

Each case runs both programs alternately, `--pairs` times each. A ratio is the median over the pairs
of runs, with its range. If the losses of any step differ by more than 1e-4, the ratio is void. Our
time is that of the steps plus that of the reference pass over the rows of these steps. PYTHON is a
Python with torch, transformers, trl, datasets, accelerate and peft. Cases: see CASES.
"""
import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import around
import both
from both import CHATS, PREFERENCES

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WRAPPED, BFD = dict(packing=True, packing_strategy="wrapped"), dict(packing=True, packing_strategy="bfd")
LORA = both.LORA
# The cases, with the goals for the ratios of speed and of peak memory. `rows` is the number of rows
# that are read from the data set.
CASES = {
    "dpo_smollm2": dict(model="smollm2", data=PREFERENCES, rows=14, batch=4, length=1024, steps=2, speed=4.0, memory=0.35),
    "dpo_lora": dict(model="smollm2", data=PREFERENCES, rows=14, batch=4, length=1024, steps=2, speed=6.0, memory=0.3, more=LORA),
    "dpo_mistral": dict(model="mistral", data=PREFERENCES, rows=50, batch=8, length=1024, steps=6, speed=5.0, memory=0.35),
    "sft_same_tokens": dict(model="mistral", data=CHATS, rows=60, batch=4, length=512, steps=6, speed=1.0, more=WRAPPED),
    "sft_bfd": dict(model="mistral", data=CHATS, rows=120, batch=4, length=1024, steps=6, speed=1.3, more=BFD),
}


def theirs(case, arguments, model, work):
    config = both.TRAIN | case.get("more", {}) | dict(
        per_device_train_batch_size=case["batch"], max_length=case["length"], max_steps=case["steps"])
    result = both.peer(arguments, work, kind="train", model=model, train=both.train_file(arguments, case["data"]), config=config,
                       rows=case["rows"], columns=["chosen", "rejected"] if case["data"] == PREFERENCES else ["messages"])
    return dict(seconds=sum(result["step_seconds"]), losses=result["losses"], peak=result["peak"])


def ours(case, arguments, model, work):
    recipe = both.TRAIN | case.get("more", {}) | dict(
        max_train_samples=case["rows"], per_device_train_batch_size=case["batch"], max_length=case["length"], max_steps=case["steps"],
        train_sampling_strategy="sequential")
    return both.ours(arguments, work, "dpo" if case["data"] == PREFERENCES else "sft", model, case["data"], recipe)


def furthest_apart(ours, theirs):
    return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(ours["losses"], theirs["losses"], strict=True))


def run_case(name, arguments, models, work):
    case = CASES[name]
    pairs = []
    for _ in range(arguments.pairs):
        pair = [side(case, arguments, models[case["model"]], work) for side in (theirs, ours)]
        pairs.append(pair)
        print(name, *(f"{run['seconds']:.1f} s {run['peak'] / 1e9:.2f} GB" for run in pair), flush=True)
    speeds = [their["seconds"] / our["seconds"] for their, our in pairs]
    peaks = [our["peak"] / their["peak"] for their, our in pairs]
    apart = max(furthest_apart(our, their) for their, our in pairs)
    median = statistics.median
    their_seconds, our_seconds = (median(run[side]["seconds"] for run in pairs) / case["steps"] for side in (0, 1))
    ratio = f"{median(speeds):.2f} × ({min(speeds):.2f}–{max(speeds):.2f})" if apart < 1e-4 else "void"
    memory = f"{median(peaks):.2f} ×" + (f" (goal ≤ {case['memory']})" if "memory" in case else "")
    return (f"| `{name}` | {their_seconds:.2f} | {our_seconds:.2f} | {ratio} | ≥ {case['speed']} × | {memory} | {apart:.1e} |")


def machine(arguments):
    versions = "import torch, transformers, trl; print(torch.__version__, transformers.__version__, trl.__version__)"
    torch, transformers, trl = subprocess.run([arguments.python, "-c", versions], capture_output=True, text=True,
                                              check=True).stdout.split()
    with open("/proc/cpuinfo") as file:
        cpu = re.search(r"model name\s*: (.*)", file.read())[1]
    return (f"{time.strftime('%Y-%m-%d')}, {cpu}, {arguments.threads} threads, {platform.system()}; TRL {trl}, transformers "
            f"{transformers}, torch {torch}; float32, {arguments.pairs} pair(s) of runs.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES) + ", around, adapters (a part of around)")
    parser.add_argument("--assets", default=os.environ.get("FAVONIUS_ASSETS"), help="default: FAVONIUS_ASSETS")
    parser.add_argument("--smollm2", help="folder of SmolLM2-135M-Instruct; without it, its cases are skipped")
    parser.add_argument("--favonius", default=os.path.join(ROOT, "target/release/favonius"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sgemm", type=float, default=0.0, help="GFLOP/s of an sgemm that is faster than torch's, if you have one")
    parser.add_argument("--out", default=os.path.join(ROOT, "benches/RESULTS.md"))
    arguments = parser.parse_args()
    if not arguments.assets:
        parser.error("--assets or FAVONIUS_ASSETS is needed")
    names = arguments.cases or [name for name, case in CASES.items() if case["model"] != "smollm2" or arguments.smollm2] + ["around"]
    head = f"# Favonius against TRL\n\nMade by `scripts/bench_vs_trl/bench.py`. {machine(arguments)}\n"
    cases = ["| case | TRL, s per step | Favonius, s per step | speed (range) | goal | peak memory | losses differ by |",
             "|---|---|---|---|---|---|---|"]
    around_them = []
    with tempfile.TemporaryDirectory() as work:
        mistral = os.path.join(work, "mistral")
        maker = os.path.join(ROOT, "scripts/golden/random_mistral.py")
        subprocess.run([arguments.python, maker, mistral, "--assets", arguments.assets], check=True)
        models = dict(smollm2=arguments.smollm2, mistral=mistral)
        for name in names:
            if name in ("around", "adapters"):
                around_them = ["", "| measurement | TRL | Favonius | ratio | goal |", "|---|---|---|---|---|"]
                around_them += [f"| {' | '.join(row)} |" for row in around.PARTS[name](arguments, models, work)]
            else:
                cases.append(run_case(name, arguments, models, work))
            write(arguments.out, "\n".join([head, *cases, *around_them, ""]))
    with open(arguments.out) as out:
        print(out.read())


def write(path, text):
    """Called after each case, so that an interrupted benchmark keeps the results so far."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as out:
        out.write(text)


if __name__ == "__main__":
    main()
