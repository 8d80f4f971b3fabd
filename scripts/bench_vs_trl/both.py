"""Starts runs of either program and measures them."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PREFERENCES, CHATS = "data/ultrafeedback_binarized_like", "data/ultrachat_200k_like"
TRAIN = dict(learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch", gradient_accumulation_steps=1,
             gradient_checkpointing=True)
LORA = dict(use_peft=True, lora_r=16, lora_alpha=16, lora_dropout=0.0, lora_target_modules="all-linear", learning_rate=1e-4)


def measured(command, env):
    """The output of a program and its peak resident memory in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        out.seek(0), err.seek(0)
        text, errors = out.read().decode(), err.read().decode()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-2000:]}\n{errors[-4000:]}")
    return text, usage.ru_maxrss * 1024


def train_file(arguments, data):
    folder = os.path.join(arguments.assets, data, "data")
    return next(os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.startswith("train"))


def peer(arguments, work, **job):
    """The measurements of peer.py, and its peak memory."""
    job = dict(threads=arguments.threads, out=work) | job
    env = {"HF_DATASETS_CACHE": os.path.join(work, "datasets"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    text, peak = measured([arguments.python, os.path.join(HERE, "peer.py"), json.dumps(job)], env)
    return json.loads(text.strip().splitlines()[-1]) | dict(peak=peak)


def environment(arguments, work):
    return {"RAYON_NUM_THREADS": str(arguments.threads), "FAVONIUS_CACHE": os.path.join(work, "cache")}


def write_recipe(work, recipe):
    file = os.path.join(work, "recipe.yaml")
    with open(file, "w") as target:
        json.dump(recipe, target)  # JSON is YAML
    return file


def history(out):
    with open(os.path.join(out, "trainer_state.json")) as state:
        return json.load(state)["log_history"]


def ours(arguments, work, stage, model, data, recipe):
    """One run of Favonius without caches. Returns the seconds of its steps (and of the reference
    pass over their rows), the losses and the peak memory in bytes."""
    out = os.path.join(work, "out")
    for folder in [out, os.path.join(work, "cache")]:
        shutil.rmtree(folder, ignore_errors=True)
    file = write_recipe(work, recipe | dict(
        model_name_or_path=model, dataset_name=os.path.join(arguments.assets, data),
        dataset_train_split="train_prefs" if data == PREFERENCES else "train_sft", logging_steps=1, save_strategy="no", output_dir=out))
    text, peak = measured([arguments.favonius, stage, file, "--quiet"], environment(arguments, work))
    rows = history(out)
    seconds = rows[-1]["train_runtime"]
    reference = re.search(r"reference log-probs \(train\): (\d+) pairs in ([\d.]+) s", text)
    if stage == "dpo" and not reference:
        sys.exit(f"the run did not print the time of its reference pass:\n{text[-2000:]}")
    if reference:
        # The pass covers all rows that were kept, but the steps use only the first of them.
        seconds += float(reference[2]) * min(1.0, recipe["per_device_train_batch_size"] * recipe["max_steps"] / int(reference[1]))
    return dict(seconds=seconds, losses=[row["loss"] for row in rows if "loss" in row], peak=peak)
