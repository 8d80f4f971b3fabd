#!/usr/bin/env python3
"""Compares the memory that `favonius plan` predicts with the memory of real runs.

For three small random models, SFT and DPO, with and without gradient checkpointing (on the CPU), it
compares the predicted peak with the process's largest resident set, and prints a table.

    scripts/memory_check.py [--binary target/release/favonius] [--assets FOLDER]
                            [--models 30M,68M,127M] [--dtype float32]

Needs numpy. The rows and the tokenizer are those of the assets (`FAVONIUS_ASSETS`, else
../shared/assets). The exit code is 1 if a prediction is more than 15 % off.
"""

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ALLOWED = 0.15

# hidden_size, intermediate_size, layers, heads, key-value heads, vocabulary, tied
MODELS = {
    "30M": (512, 1408, 8, 8, 4, 4096, False),
    "68M": (768, 2048, 8, 12, 4, 24576, True),
    "127M": (768, 3072, 10, 12, 12, 20480, False),
}
# Stage, rows per micro-batch, micro-batches per step.
RUNS = [("sft", 8, 1), ("sft", 4, 2), ("dpo", 4, 1)]


def write_model(folder, shape, tokenizer):
    d, f, layers, heads, kv, vocab, tied = shape
    head = d // heads
    folder.mkdir(parents=True)
    for file in tokenizer.iterdir():
        if file.name.startswith(("token", "special")):
            shutil.copy(file, folder / file.name)
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": tied, "hidden_act": "silu", "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, d)
    for i in range(layers):
        part = f"model.layers.{i}."
        for name, of in {
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv * head, d),
            "self_attn.v_proj": (kv * head, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        }.items():
            shapes[f"{part}{name}.weight"] = of
    header, at = {}, 0
    for name, of in shapes.items():
        size = 4 * int(np.prod(of))
        header[name] = {"dtype": "F32", "shape": list(of), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, of in shapes.items():
            values = np.ones(of) if len(of) == 1 else 0.02 * rng.standard_normal(of)
            out.write(values.astype("<f4").tobytes())


def arguments(stage, model, out, assets, rows, accumulation, checkpointing, dtype):
    data, splits, more = {
        "sft": ("ultrachat_200k_like", "[train_sft, test_sft]", ["--packing=true", "--packing_strategy=bfd"]),
        "dpo": ("ultrafeedback_binarized_like", "[train_prefs, test_prefs]", ["--beta=0.1"]),
    }[stage]
    return [
        f"--model_name_or_path={model}", f"--output_dir={out}",
        f'--dataset_mixer={{"{assets}/data/{data}": 1.0}}', f"--dataset_splits={splits}", *more,
        "--max_length=512", "--max_train_samples=64", "--max_eval_samples=4", "--max_steps=5",
        "--chat_template={% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        f"--per_device_train_batch_size={rows}", f"--gradient_accumulation_steps={accumulation}",
        f"--gradient_checkpointing={str(checkpointing).lower()}", f"--dtype={dtype}",
        "--save_strategy=no", "--eval_strategy=no", "--do_eval=false", "--logging_steps=1",
    ]


def largest_resident_set(command):
    """Runs a command. Returns its largest resident set in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{error}")
    return usage.ru_maxrss * 1024


def predicted_peak(command):
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\n  peak\s+([0-9.]+) (MB|GB)", text)
    if not found:
        sys.exit(f"no `peak` in:\n{text}")
    return float(found[1]) * {"MB": 1e6, "GB": 1e9}[found[2]]


def main():
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=here / "target/release/favonius")
    parser.add_argument("--assets", default=os.environ.get("FAVONIUS_ASSETS", here / "../shared/assets"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--dtype", default="float32", help="the type in which the model computes: float32 or bfloat16")
    options = parser.parse_args()
    assets = Path(options.assets).resolve()
    worst = 0.0
    print("| model | stage | rows | checkpointing | predicted | measured | difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in options.models.split(","):
            model = folder / name
            write_model(model, MODELS[name], assets / "models/stories260k")
            for stage, rows, accumulation in RUNS:
                for checkpointing in (False, True):
                    out = folder / f"{name}-{stage}-{rows}-{checkpointing}"
                    recipe = folder / f"{stage}.yaml"
                    recipe.write_text("learning_rate: 1.0e-5\n")
                    settings = arguments(
                        stage, model, out, assets, rows, accumulation, checkpointing, options.dtype)
                    plan = [str(options.binary), "plan", str(recipe), "--stage", stage, *settings]
                    predicted = predicted_peak(plan)
                    measured = largest_resident_set([str(options.binary), stage, str(recipe), *settings])
                    difference = predicted / measured - 1
                    worst = max(worst, abs(difference))
                    print(
                        f"| {name} | {stage} | {rows} × {accumulation} | {'yes' if checkpointing else 'no'} "
                        f"| {predicted / 1e6:.0f} MB | {measured / 1e6:.0f} MB | {difference:+.1%} |",
                        flush=True,
                    )
                    shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(model)
    print(f"\nlargest difference: {worst:.1%}")
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
