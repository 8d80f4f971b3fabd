"""Speed of `favonius evaluate` against lm-eval (with transformers on the CPU): the same documents, prompts and number format.

usage: bench_evaluate.py MODEL DATA [--favonius PROGRAM] [--tasks mmlu_anatomy,hellaswag,arc_challenge,gsm8k] [--limit N]
                         [--threads 2] [--batch 8] [--out results.json]

MODEL is a folder; DATA holds the data sets under their hub ids (cais/mmlu/anatomy/test-….parquet, …). Nothing is downloaded.
Both programs answer the first N documents of each task with the examples of the Open LLM Leaderboard. Times are those of
answering, without the start of the program, the loading of the model and the building of the prompts by lm-eval. Memory is the
largest resident size of the process. The scores of both programs are compared, so that the table is one of equal work.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

SHOTS = dict(arc_challenge=25, hellaswag=10, winogrande=5, truthfulqa_mc2=0, gsm8k=5, drop=3)
FOLDERS = dict(arc_challenge="allenai/ai2_arc/ARC-Challenge", hellaswag="Rowan/hellaswag/data", winogrande="allenai/winogrande/winogrande_xl",
               truthfulqa_mc2="truthfulqa/truthful_qa/multiple_choice", gsm8k="openai/gsm8k/main", drop="EleutherAI/drop/data")


def shots(task):
    return SHOTS.get(task, 5)


def peer(arguments):
    """Runs in a process of its own: one task with lm-eval. Prints a line of JSON."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    import resource

    import torch
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    torch.set_num_threads(arguments.threads)
    name = arguments.peer
    folder = os.path.join(arguments.data, FOLDERS.get(name) or "cais/mmlu/" + name.removeprefix("mmlu_"))
    files = {file.split("-")[0]: os.path.join(folder, file) for file in sorted(os.listdir(folder))}
    entry = TaskManager().task_index[name]
    config = load_yaml(entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path, resolve_func=True)
    config.update(dataset_path="parquet", dataset_name=None, dataset_kwargs={"data_files": files})
    for key in ("tag", "group"):
        config.pop(key, None)
    task = ConfigurableTask(config=config)
    task.set_config("num_fewshot", shots(name))
    task.set_fewshot_seed(seed=1234)
    model = HFLM(pretrained=arguments.model, dtype="float32", device="cpu", batch_size=arguments.batch)
    spent = [0.0]

    def timed(call):
        def inner(*args, **kwargs):
            start = time.time()
            result = call(*args, **kwargs)
            spent[0] += time.time() - start
            return result
        return inner

    model.loglikelihood, model.generate_until = timed(model.loglikelihood), timed(model.generate_until)
    results = evaluator.evaluate(lm=model, task_dict={name: task}, limit=arguments.limit, log_samples=True, bootstrap_iters=0)
    scores = {key: value for key, value in results["results"][name].items() if isinstance(value, float)}
    print("RESULT " + json.dumps(dict(
        seconds=spent[0], documents=len({sample["doc_id"] for sample in results["samples"][name]}), scores=scores,
        megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))


def theirs(arguments, task):
    command = [sys.executable, __file__, arguments.model, arguments.data, "--peer", task, "--threads", str(arguments.threads),
               "--batch", str(arguments.batch), "--limit", str(arguments.limit)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[len("RESULT "):])


def ours(arguments, task):
    with tempfile.TemporaryDirectory() as out:
        command = [arguments.favonius, "evaluate", arguments.model, "--tasks", task, "--limit", str(arguments.limit),
                   "--num_fewshot", str(shots(task)), "--data", arguments.data, "--out", out, "--quiet"]
        environment = dict(os.environ, RAYON_NUM_THREADS=str(arguments.threads), HF_HUB_OFFLINE="1")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{' '.join(command)}\n{process.stdout.read()}{process.stderr.read()}")
        with open(os.path.join(out, "results.json")) as file:
            results = json.load(file)
    facts = results["favonius"]["tasks"][task]
    scores = {key: value for key, value in results["results"][task].items() if isinstance(value, float)}
    return dict(seconds=facts["seconds"], documents=facts["documents"], scores=scores, megabytes=usage.ru_maxrss / 1024,
                tokens=facts["tokens"], tokens_without_sharing=facts["tokens_without_sharing"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--favonius", default="target/release/favonius")
    parser.add_argument("--tasks", default="mmlu_anatomy,hellaswag,arc_challenge,gsm8k")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return peer(arguments)
    rows = {}
    print(f"{'task':<16}{'documents':>10}{'lm-eval/s':>11}{'favonius/s':>12}{'times':>7}{'tokens':>9}{'of':>9}{'MB':>7}{'MB lm-eval':>12}  scores")
    for task in arguments.tasks.split(","):
        a, b = theirs(arguments, task), ours(arguments, task)
        shared = {key: (value, b["scores"].get(key)) for key, value in a["scores"].items() if "stderr" not in key}
        same = all(mine is not None and abs(value - mine) < 1e-9 for value, mine in shared.values())
        speeds = [x["documents"] / x["seconds"] for x in (a, b)]
        print(f"{task:<16}{b['documents']:>10}{speeds[0]:>11.3f}{speeds[1]:>12.3f}{speeds[1] / speeds[0]:>7.2f}{b['tokens']:>9}"
              f"{b['tokens_without_sharing']:>9}{b['megabytes']:>7.0f}{a['megabytes']:>12.0f}  {'equal' if same else shared}", flush=True)
        rows[task] = dict(lm_eval=a, favonius=b, times=speeds[1] / speeds[0])
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
