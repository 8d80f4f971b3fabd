"""Answers and scores of lm-eval with real models, for tests/evaluate.rs and for tests of the engine.

usage: eval_models.py --out tests/golden/eval_models.json --smollm2 FOLDER [--assets DIR]

stories260k has 512 positions, so its tasks have no or few examples. SmolLM2-135M has the examples of
the leaderboard, on few documents. Float32 on the CPU, one request at a time.
"""
import argparse
import importlib.metadata
import json
import os
import tempfile

from eval import evaluated, numbers, task_files
import torch
from lm_eval.models.huggingface import HFLM

from random_mistral import assets_argument
from trl_runs import load_tokenizer

STORIES = dict(arc_challenge=(1, 12), hellaswag=(0, 12), truthfulqa_mc2=(0, 6), winogrande=(3, 12), mmlu_global_facts=(0, 12), gsm8k=(0, 2))
SMOLLM2 = dict(winogrande=(5, 4), truthfulqa_mc2=(0, 2), mmlu_global_facts=(5, 2), drop=(3, 1), hellaswag=(10, 1), arc_challenge=(25, 1), gsm8k=(5, 1))


def answers(samples):
    """The answers of each document: [log-likelihood, greedy] for each request, or a text."""
    return [[one[0] if isinstance(one[0], str) else [float(f"{float(one[0][0]):.9g}"), bool(one[0][1])] for one in sample["resps"]] for sample in samples]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--smollm2", required=True)
    assets_argument(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    golden = dict(made_with={name: importlib.metadata.version(name) for name in ["lm-eval", "torch", "transformers"]}, models={})
    models = dict(stories260k=(os.path.join(arguments.assets, "models/stories260k"), STORIES), smollm2=(arguments.smollm2, SMOLLM2))
    with tempfile.TemporaryDirectory() as folder:
        manager = task_files(arguments.assets, folder)
        for model, (path, tasks) in models.items():
            lm = HFLM(pretrained=path, tokenizer=load_tokenizer(path, None), dtype="float32", device="cpu", batch_size=1)
            sections = golden["models"].setdefault(model, {})
            for name, (shots, documents) in tasks.items():
                out = evaluated(manager, [f"excerpt_{name}"], shots, documents, model=lm)
                samples = out["samples"][f"excerpt_{name}"]
                first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
                first.sort(key=lambda sample: sample["doc_id"])
                sections[name] = dict(num_fewshot=shots, documents=documents, answers=answers(first), results=numbers(out["results"][f"excerpt_{name}"]))
                print(model, name, sections[name]["results"], flush=True)
                with open(arguments.out, "w") as file:
                    json.dump(golden, file, indent=0, default=float, ensure_ascii=False)
                    file.write("\n")
    print(os.path.getsize(arguments.out), "bytes")


if __name__ == "__main__":
    main()
