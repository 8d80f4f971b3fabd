"""Scores a checkpoint with lm-eval on a small task of this repository, through transformers, on the
CPU and offline.

usage: with_lm_eval.py FOLDER [OUT.json] [--tasks favonius_manners] [--device cpu]

Needs lm-eval, torch, transformers and accelerate. The chat template is applied, so a checkpoint
without one fails. `acc` is the share of rows whose right answer has the highest log-prob,
`acc_norm` the same with log-probs per character. With four answers per row, chance is 0.25.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

TASKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lm_eval_task")


def scores(folder, tasks, device):
    """The results of lm-eval: {task: {metric: value}} under "results", and its version."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={os.path.abspath(folder)},dtype=float32",
                   "--tasks", tasks, "--include_path", TASKS, "--device", device, "--batch_size", "8", "--apply_chat_template",
                   "--output_path", scratch]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": os.path.join(scratch, "cache")}
        done = subprocess.run(command, cwd=TASKS, env=offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        files = glob.glob(os.path.join(scratch, "**", "results_*.json"), recursive=True)
        if done.returncode or not files:
            sys.exit(f"lm-eval failed:\n{done.stdout[-3000:]}")
        with open(files[0]) as file:
            return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--tasks", default="favonius_manners")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    results = scores(arguments.folder, arguments.tasks, arguments.device)
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(results, file)
    for task, found in results["results"].items():
        for name, value in found.items():
            metric, _, kind = name.partition(",")
            if kind and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{kind}")
                print(f"{task}  {metric}  {value:.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
