"""Measurements other than whole training runs: data preparation, start-up time, FLOP/s of a step
compared with the peak of the machine, adapters compared with full training, and scaling."""
import json
import os
import re
import shutil
import statistics
import subprocess
import time

import both

ROWS_TO_PREPARE = 10_000
# Tokens per row in the runs that measure FLOP/s and scaling. All rows have this length, so that
# every step does the same work.
LENGTH = 512


def spread(values, form):
    """Median and range, formatted for the table."""
    return f"{statistics.median(values):{form}} × ({min(values):{form}}–{max(values):{form}})"


def many_rows(arguments, work):
    """A parquet file with ROWS_TO_PREPARE rows, the chats repeated."""
    folder = os.path.join(work, "many")
    os.makedirs(folder, exist_ok=True)
    code = ("import sys, pyarrow.parquet as pq, pyarrow as pa\n"
            "table = pq.read_table(sys.argv[1], columns=['prompt', 'prompt_id', 'messages'])\n"
            "rows = int(sys.argv[3]); whole = pa.concat_tables([table] * (rows // len(table) + 1)).slice(0, rows)\n"
            "pq.write_table(whole, sys.argv[2])")
    target = os.path.join(folder, "train_sft.parquet")
    subprocess.run([arguments.python, "-c", code, both.train_file(arguments, both.CHATS), target, str(ROWS_TO_PREPARE)], check=True)
    return folder, target


def preparation(arguments, models, work):
    """Rows per second from parquet to token ids (reading, chat template, tokenizer), without
    caches."""
    folder, file = many_rows(arguments, work)
    config = dict(max_length=1024, dataset_num_proc=2)

    def theirs():
        shutil.rmtree(os.path.join(work, "datasets"), ignore_errors=True)
        return ROWS_TO_PREPARE / both.peer(arguments, work, kind="prepare", model=models["mistral"], train=file, config=config)["seconds"]

    def ours():
        shutil.rmtree(os.path.join(work, "cache"), ignore_errors=True)
        recipe = both.write_recipe(work, dict(model_name_or_path=models["mistral"], dataset_name=folder, dataset_train_split="train_sft",
                                              max_length=1024, output_dir=os.path.join(work, "out")))
        started = time.perf_counter()
        both.measured([arguments.favonius, "plan", recipe, "--stage", "sft"], both.environment(arguments, work))
        return ROWS_TO_PREPARE / (time.perf_counter() - started)

    pairs = [(theirs(), ours()) for _ in range(arguments.pairs)]
    their, our = (statistics.median(side) for side in zip(*pairs))
    return ("rows/s from parquet to token ids, cold (TRL: 2 processes)", f"{their:.0f}", f"{our:.0f}",
            spread([b / a for a, b in pairs], ".1f"), "≥ 10 ×")


def first_step(arguments, models, work):
    """Seconds from the start of the program to the start of the first step, with warm caches."""
    model = models["smollm2"]
    config = dict(both.TRAIN, per_device_train_batch_size=1, max_length=LENGTH, max_steps=1)

    def theirs():
        job = dict(kind="start", model=model, train=both.train_file(arguments, both.CHATS), config=config, began=time.time())
        return both.peer(arguments, work, **job)["seconds"]

    def ours():
        out = os.path.join(work, "out")
        shutil.rmtree(out, ignore_errors=True)
        recipe = both.write_recipe(work, dict(config, model_name_or_path=model, dataset_name=os.path.join(arguments.assets, both.CHATS),
                                              dataset_train_split="train_sft", logging_steps=1, save_strategy="no", output_dir=out))
        started = time.perf_counter()
        process = subprocess.Popen([arguments.favonius, "sft", recipe, "--quiet"], stdout=subprocess.PIPE, text=True,
                                   env=os.environ | both.environment(arguments, work))
        logged = next(time.perf_counter() for line in process.stdout if re.search(r"\bloss\b", line))
        process.stdout.read()
        if process.wait():
            raise SystemExit("the run failed")
        return logged - started - both.history(out)[-1]["train_runtime"]

    theirs(), ours()  # fills the caches
    pairs = [(theirs(), ours()) for _ in range(arguments.pairs)]
    their, our = (statistics.median(side) for side in zip(*pairs))
    return ("start to first step, warm caches, SmolLM2-135M", f"{their:.2f} s", f"{our:.2f} s",
            spread([b / a for a, b in pairs], ".3f"), "≤ 0.2 ×")


def fixed_length_run(arguments, model, work, steps, **settings):
    """Runs our SFT on rows of LENGTH tokens. Returns losses, seconds and peak bytes."""
    recipe = dict(both.TRAIN, packing=True, packing_strategy="wrapped", max_length=LENGTH, max_steps=steps,
                  train_sampling_strategy="sequential", max_train_samples=200, **settings)
    return both.ours(arguments, work, "sft", model, both.CHATS, recipe)


def seconds_a_step(arguments, model, work, **settings):
    """Seconds per step of `fixed_length_run`, in several pairs of runs. The first step is left out,
    as it warms up."""
    def pair():
        one, four = (fixed_length_run(arguments, model, work, steps, **settings)["seconds"] for steps in (1, 4))
        return (four - one) / 3

    return [pair() for _ in range(arguments.pairs)]


def flops(arguments, models, work):
    """FLOP/s of the matrix products of a step, compared with the fastest float32 matrix product."""
    with open(os.path.join(models["smollm2"], "config.json")) as file:
        c = json.load(file)
    d, f, rows = c["hidden_size"], c["intermediate_size"], 4
    e = c.get("head_dim") or d // c["num_attention_heads"]
    heads, kv = c["num_attention_heads"] * e, c["num_key_value_heads"] * e
    weights = c["num_hidden_layers"] * (2 * d * heads + 2 * d * kv + 3 * d * f) + c["vocab_size"] * d
    tokens = rows * LENGTH
    # Attention scores and weighted values; causal attention sees half of the keys on average.
    attention = c["num_hidden_layers"] * rows * LENGTH ** 2 / 2 * heads * 2 * 2
    needed = 3 * (2 * weights * tokens + attention)
    seconds = seconds_a_step(arguments, models["smollm2"], work, per_device_train_batch_size=rows, gradient_checkpointing=False)
    peak = max(both.peer(arguments, work, kind="sgemm")["flops"], arguments.sgemm * 1e9)
    return ("FLOP/s of a step against the best sgemm, SmolLM2-135M", f"{peak / 1e9:.0f} GFLOP/s (sgemm)",
            f"{needed / statistics.median(seconds) / 1e9:.0f} GFLOP/s", spread([needed / s / peak for s in seconds], ".2f"), "≥ 0.6")


def adapters(arguments, models, work):
    """DPO with LoRA against our own full training on the same rows, and a 4-bit base against a
    float32 base."""
    common = both.TRAIN | dict(max_train_samples=14, per_device_train_batch_size=4, max_length=1024, max_steps=2,
                               train_sampling_strategy="sequential")
    kinds = dict(full={}, lora=both.LORA, qlora=both.LORA | dict(load_in_4bit=True))
    many = [{kind: both.ours(arguments, work, "dpo", models["smollm2"], both.PREFERENCES, common | more) for kind, more in kinds.items()}
            for _ in range(arguments.pairs)]

    def row(what, base, kind, goals):
        seconds = [statistics.median(some[which]["seconds"] for some in many) / 2 for which in (base, kind)]
        peaks = [statistics.median(some[which]["peak"] for some in many) / 1e9 for which in (base, kind)]
        speed = spread([some[base]["seconds"] / some[kind]["seconds"] for some in many], ".2f")
        memory = spread([some[kind]["peak"] / some[base]["peak"] for some in many], ".2f")
        return (what, f"{seconds[0]:.2f} s, {peaks[0]:.2f} GB", f"{seconds[1]:.2f} s, {peaks[1]:.2f} GB",
                f"speed {speed}, memory {memory}", goals)

    return [row("DPO step, SmolLM2-135M: our full training, our LoRA", "full", "lora", "≥ 1.4 ×, ≤ 0.6 ×"),
            row("the same: our LoRA, our QLoRA", "lora", "qlora", "–")]


def scaling(arguments, models, work):
    """Time of a step with twice and four times the tokens; memory with twice and four times the
    rows, in micro-batches of the same size."""
    model = models["mistral"]
    times = [seconds_a_step(arguments, model, work, per_device_train_batch_size=2 * n) for n in (1, 2, 4)]
    peaks = [fixed_length_run(arguments, model, work, 4, per_device_train_batch_size=4, gradient_accumulation_steps=2 * n)["peak"]
             for n in (1, 2, 4)]
    return [
        ("s per step with 1, 2, 4 × the tokens", "–", ", ".join(f"{statistics.median(t):.2f}" for t in times),
         ", ".join(spread([t / s for t, s in zip(some, times[0])], ".2f") for some in times[1:]), "linear: 2, 4 ×"),
        ("peak GB with 1, 2, 4 × the rows per step, same micro-batches", "–", ", ".join(f"{p / 1e9:.2f}" for p in peaks),
         ", ".join(f"{p / peaks[0]:.2f} ×" for p in peaks), "flat"),
    ]


def table(arguments, models, work):
    """Rows of the table: (measurement, TRL, Favonius, ratio, goal)."""
    rows = [preparation(arguments, models, work)]
    if arguments.smollm2:
        rows += [first_step(arguments, models, work), flops(arguments, models, work), *adapters(arguments, models, work)]
    return rows + scaling(arguments, models, work)


PARTS = dict(around=table, adapters=adapters)
