"""What is measured beside whole training runs: preparing data, starting up, how near the machine's peak a step comes, how it scales."""
import json
import os
import re
import shutil
import statistics
import subprocess
import time

import runs

ROWS_TO_PREPARE = 10_000
# Tokens of the runs that show FLOP/s and scaling: rows of one length, so that every step has the same work.
LENGTH = 512


def spread(values, form):
    """Median and range, as the table shows them."""
    return f"{statistics.median(values):{form}} × ({min(values):{form}}–{max(values):{form}})"


def many_rows(arguments, work):
    """A parquet file of the chats again and again."""
    folder = os.path.join(work, "many")
    os.makedirs(folder, exist_ok=True)
    code = ("import sys, pyarrow.parquet as pq, pyarrow as pa\n"
            "table = pq.read_table(sys.argv[1], columns=['prompt', 'prompt_id', 'messages'])\n"
            "rows = int(sys.argv[3]); whole = pa.concat_tables([table] * (rows // len(table) + 1)).slice(0, rows)\n"
            "pq.write_table(whole, sys.argv[2])")
    target = os.path.join(folder, "train_sft.parquet")
    subprocess.run([arguments.python, "-c", code, runs.train_file(arguments, runs.CHATS), target, str(ROWS_TO_PREPARE)], check=True)
    return folder, target


def preparation(arguments, models, work):
    """Parquet → chat template → token ids, nothing cached: rows a second."""
    folder, file = many_rows(arguments, work)
    config = dict(max_length=1024, dataset_num_proc=2)

    def theirs():
        shutil.rmtree(os.path.join(work, "datasets"), ignore_errors=True)
        return ROWS_TO_PREPARE / runs.peer(arguments, work, kind="prepare", model=models["mistral"], train=file, config=config)["seconds"]

    def ours():
        shutil.rmtree(os.path.join(work, "cache"), ignore_errors=True)
        recipe = runs.write_recipe(work, dict(model_name_or_path=models["mistral"], dataset_name=folder, dataset_train_split="train_sft",
                                              max_length=1024, output_dir=os.path.join(work, "out")))
        started = time.perf_counter()
        runs.measured([arguments.favonius, "plan", recipe, "--stage", "sft"], runs.environment(arguments, work))
        return ROWS_TO_PREPARE / (time.perf_counter() - started)

    pairs = [(theirs(), ours()) for _ in range(arguments.pairs)]
    their, our = (statistics.median(side) for side in zip(*pairs))
    return ("rows/s from parquet to token ids, cold (TRL: 2 processes)", f"{their:.0f}", f"{our:.0f}",
            spread([b / a for a, b in pairs], ".1f"), "≥ 10 ×")


def first_step(arguments, models, work):
    """From the start of the program to the beginning of the first step, everything cached: seconds."""
    model = models["smollm2"]
    config = dict(runs.TRAIN, per_device_train_batch_size=1, max_length=LENGTH, max_steps=1)

    def theirs():
        job = dict(kind="start", model=model, train=runs.train_file(arguments, runs.CHATS), config=config, began=time.time())
        return runs.peer(arguments, work, **job)["seconds"]

    def ours():
        out = os.path.join(work, "out")
        shutil.rmtree(out, ignore_errors=True)
        recipe = runs.write_recipe(work, dict(config, model_name_or_path=model, dataset_name=os.path.join(arguments.assets, runs.CHATS),
                                              dataset_train_split="train_sft", logging_steps=1, save_strategy="no", output_dir=out))
        started = time.perf_counter()
        process = subprocess.Popen([arguments.favonius, "sft", recipe, "--quiet"], stdout=subprocess.PIPE, text=True,
                                   env=os.environ | runs.environment(arguments, work))
        logged = next(time.perf_counter() for line in process.stdout if re.search(r"\bloss\b", line))
        process.stdout.read()
        if process.wait():
            raise SystemExit("the run failed")
        return logged - started - runs.history(out)[-1]["train_runtime"]

    theirs(), ours()  # fills the caches
    pairs = [(theirs(), ours()) for _ in range(arguments.pairs)]
    their, our = (statistics.median(side) for side in zip(*pairs))
    return ("start to first step, warm caches, SmolLM2-135M", f"{their:.2f} s", f"{our:.2f} s",
            spread([b / a for a, b in pairs], ".3f"), "≤ 0.2 ×")


def fixed_length_run(arguments, model, work, steps, **settings):
    """Our SFT on rows of LENGTH tokens: its seconds and peak bytes."""
    recipe = dict(runs.TRAIN, packing=True, packing_strategy="wrapped", max_length=LENGTH, max_steps=steps,
                  train_sampling_strategy="sequential", max_train_samples=200, **settings)
    return runs.ours(arguments, work, "sft", model, runs.CHATS, recipe)


def seconds_a_step(arguments, model, work, **settings):
    """Of `fixed_length_run`, in some pairs of runs. The first step, which warms up, is left out."""
    def pair():
        one, four = (fixed_length_run(arguments, model, work, steps, **settings)["seconds"] for steps in (1, 4))
        return (four - one) / 3

    return [pair() for _ in range(arguments.pairs)]


def flops(arguments, models, work):
    """Matrix products of a step over its time, against the best float32 matrix product here."""
    with open(os.path.join(models["smollm2"], "config.json")) as file:
        c = json.load(file)
    d, f, rows = c["hidden_size"], c["intermediate_size"], 4
    e = c.get("head_dim") or d // c["num_attention_heads"]
    heads, kv = c["num_attention_heads"] * e, c["num_key_value_heads"] * e
    weights = c["num_hidden_layers"] * (2 * d * heads + 2 * d * kv + 3 * d * f) + c["vocab_size"] * d
    tokens = rows * LENGTH
    # Scores and weighted values over the visible half of the keys.
    attention = c["num_hidden_layers"] * rows * LENGTH ** 2 / 2 * heads * 2 * 2
    needed = 3 * (2 * weights * tokens + attention)
    seconds = seconds_a_step(arguments, models["smollm2"], work, per_device_train_batch_size=rows, gradient_checkpointing=False)
    peak = max(runs.peer(arguments, work, kind="sgemm")["flops"], arguments.sgemm * 1e9)
    return ("FLOP/s of a step against the best sgemm, SmolLM2-135M", f"{peak / 1e9:.0f} GFLOP/s (sgemm)",
            f"{needed / statistics.median(seconds) / 1e9:.0f} GFLOP/s", spread([needed / s / peak for s in seconds], ".2f"), "≥ 0.6")


def scaling(arguments, models, work):
    """Time of a step as its tokens double; memory as its rows double in micro-batches of one size."""
    model = models["mistral"]
    times = [seconds_a_step(arguments, model, work, per_device_train_batch_size=2 * n) for n in (1, 2, 4)]
    peaks = [fixed_length_run(arguments, model, work, 4, per_device_train_batch_size=4, gradient_accumulation_steps=2 * n)["peak"]
             for n in (1, 2, 4)]
    return [
        ("s a step with 1, 2, 4 × the tokens", "–", ", ".join(f"{statistics.median(t):.2f}" for t in times),
         ", ".join(spread([t / s for t, s in zip(some, times[0])], ".2f") for some in times[1:]), "linear: 2, 4 ×"),
        ("peak GB with 1, 2, 4 × the rows a step, micro-batches alike", "–", ", ".join(f"{p / 1e9:.2f}" for p in peaks),
         ", ".join(f"{p / peaks[0]:.2f} ×" for p in peaks), "flat"),
    ]


def table(arguments, models, work):
    """Rows `(what, TRL, Favonius, ratio, goal)`."""
    rows = [preparation(arguments, models, work)]
    if arguments.smollm2:
        rows += [first_step(arguments, models, work), flops(arguments, models, work)]
    return rows + scaling(arguments, models, work)
