"""Favonius against TRL on the same machine: the same rows, model, batches and number of threads, in turn.

usage: bench.py --assets DIR [--smollm2 DIR] [--favonius PROGRAM] [--python PYTHON] [--pairs 3] [--out RESULTS.md] [CASE ...]

Each case runs both sides `--pairs` times, one after the other. A ratio is the median over the pairs of runs, with its range. The losses of
all steps are compared: where they differ by more than 1e-4 the ratio is void. Our time is that of the steps and of the reference pass over
their rows. PYTHON is one that has torch, transformers, trl, datasets and accelerate. Cases: see CASES.
"""
import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PREFERENCES, CHATS = "data/ultrafeedback_binarized_like", "data/ultrachat_200k_like"
TRAIN = dict(learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch", gradient_accumulation_steps=1,
             gradient_checkpointing=True)
WRAPPED, BFD = dict(packing=True, packing_strategy="wrapped"), dict(packing=True, packing_strategy="bfd")
# What is compared, and the ratios (of speed, of peak memory) that we mean to reach. `rows` is what is read of the data set.
CASES = {
    "dpo_smollm2": dict(model="smollm2", data=PREFERENCES, rows=14, batch=4, length=1024, steps=3, speed=4.0, memory=0.35),
    "dpo_mistral": dict(model="mistral", data=PREFERENCES, rows=50, batch=8, length=1024, steps=6, speed=5.0, memory=0.35),
    "sft_same_tokens": dict(model="mistral", data=CHATS, rows=60, batch=4, length=512, steps=6, speed=1.0, more=WRAPPED),
    "sft_bfd": dict(model="mistral", data=CHATS, rows=120, batch=4, length=1024, steps=6, speed=1.3, more=BFD),
}


def measured(command, env):
    """Output and peak resident bytes of a program."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        out.seek(0), err.seek(0)
        text, errors = out.read().decode(), err.read().decode()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-2000:]}\n{errors[-4000:]}")
    return text, usage.ru_maxrss * 1024


def theirs(case, arguments, model, work):
    folder = os.path.join(arguments.assets, case["data"], "data")
    train = next(os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.startswith("train"))
    config = TRAIN | case.get("more", {}) | dict(
        per_device_train_batch_size=case["batch"], max_length=case["length"], max_steps=case["steps"])
    job = dict(kind="train", model=model, train=train, threads=arguments.threads, config=config, rows=case["rows"],
               columns=["chosen", "rejected"] if case["data"] == PREFERENCES else ["messages"], out=work)
    env = {"HF_DATASETS_CACHE": os.path.join(work, "datasets"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    text, peak = measured([arguments.python, os.path.join(HERE, "peer.py"), json.dumps(job)], env)
    result = json.loads(text.strip().splitlines()[-1])
    return dict(seconds=sum(result["step_seconds"]), losses=result["losses"], peak=peak)


def ours(case, arguments, model, work):
    is_dpo = case["data"] == PREFERENCES
    out = os.path.join(work, "out")
    for folder in [out, os.path.join(work, "cache")]:
        shutil.rmtree(folder, ignore_errors=True)
    recipe = TRAIN | case.get("more", {}) | dict(
        model_name_or_path=model, dataset_name=os.path.join(arguments.assets, case["data"]),
        dataset_train_split="train_prefs" if is_dpo else "train_sft", max_train_samples=case["rows"],
        per_device_train_batch_size=case["batch"], max_length=case["length"], max_steps=case["steps"], logging_steps=1,
        train_sampling_strategy="sequential", save_strategy="no", output_dir=out)
    file = os.path.join(work, "recipe.yaml")
    with open(file, "w") as target:
        json.dump(recipe, target)  # JSON is YAML
    env = {"RAYON_NUM_THREADS": str(arguments.threads), "FAVONIUS_CACHE": os.path.join(work, "cache")}
    text, peak = measured([arguments.favonius, "dpo" if is_dpo else "sft", file, "--quiet"], env)
    with open(os.path.join(out, "trainer_state.json")) as state:
        history = json.load(state)["log_history"]
    seconds = history[-1]["train_runtime"]
    reference = re.search(r"reference log-probs \(train\): (\d+) pairs in ([\d.]+) s", text)
    if reference:
        # The pass goes over all rows that were kept; the steps see the first ones.
        seconds += float(reference[2]) * min(1.0, case["batch"] * case["steps"] / int(reference[1]))
    return dict(seconds=seconds, losses=[row["loss"] for row in history if "loss" in row], peak=peak)


def furthest_apart(ours, theirs):
    return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(ours["losses"], theirs["losses"], strict=True))


def run_case(name, arguments, models, work):
    case = CASES[name]
    runs = []
    for _ in range(arguments.pairs):
        pair = [side(case, arguments, models[case["model"]], work) for side in (theirs, ours)]
        runs.append(pair)
        print(name, *(f"{run['seconds']:.1f} s {run['peak'] / 1e9:.2f} GB" for run in pair), flush=True)
    speeds = [their["seconds"] / our["seconds"] for their, our in runs]
    peaks = [our["peak"] / their["peak"] for their, our in runs]
    apart = max(furthest_apart(our, their) for their, our in runs)
    median = statistics.median
    their_seconds, our_seconds = (median(run[side]["seconds"] for run in runs) / case["steps"] for side in (0, 1))
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
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--assets", default=os.environ.get("FAVONIUS_ASSETS"), help="default: FAVONIUS_ASSETS")
    parser.add_argument("--smollm2", help="folder of SmolLM2-135M-Instruct; its case is left out without it")
    parser.add_argument("--favonius", default=os.path.join(ROOT, "target/release/favonius"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=os.path.join(ROOT, "benches/RESULTS.md"))
    arguments = parser.parse_args()
    if not arguments.assets:
        parser.error("--assets or FAVONIUS_ASSETS is needed")
    names = arguments.cases or [name for name, case in CASES.items() if case["model"] != "smollm2" or arguments.smollm2]
    lines = ["| case | TRL, s a step | Favonius, s a step | speed (range) | goal | peak memory | losses differ by |",
             "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as work:
        mistral = os.path.join(work, "mistral")
        maker = os.path.join(ROOT, "scripts/golden/random_mistral.py")
        subprocess.run([arguments.python, maker, mistral, "--assets", arguments.assets], check=True)
        for name in names:
            lines.append(run_case(name, arguments, dict(smollm2=arguments.smollm2, mistral=mistral), work))
            print(lines[-1], flush=True)
    text = f"# Favonius against TRL\n\nMade by `scripts/bench_vs_trl/bench.py`. {machine(arguments)}\n\n" + "\n".join(lines) + "\n"
    os.makedirs(os.path.dirname(arguments.out), exist_ok=True)
    with open(arguments.out, "w") as out:
        out.write(text)
    print(text)


if __name__ == "__main__":
    main()
