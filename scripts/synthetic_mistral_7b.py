#!/usr/bin/env python3
"""Writes a Mistral-7B with random bfloat16 weights, 14.5 GB in three shards, to test loading.

    scripts/synthetic_mistral_7b.py FOLDER [--layers 32]
    FAVONIUS_SEVEN_BILLION=FOLDER cargo test --release --test seven_billion -- --nocapture
    rm -r FOLDER

Needs numpy. Weights are slices of one block of random numbers (standard deviation 0.02); norm
weights are 1.
"""

import argparse
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 24


def shapes(config):
    """Names and shapes of the weights of the model with this config.json."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (v, d)
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (d,), "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
            "post_attention_layernorm": (d,), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (v, d)


def bfloat16(values):
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def write_shard(path, tensors, block):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for index, (_, shape) in enumerate(tensors):
            count = int(np.prod(shape))
            if len(shape) == 1:
                out.write(bfloat16(np.ones(count)).tobytes())
                continue
            start = (index * 7919) % BLOCK
            while count:
                part = block[start:start + count]
                out.write(part)
                count -= len(part)
                start = 0
    return at


def write_model(folder, config):
    """Writes weights and config.json to `folder`, which must not exist. Returns the bytes of the
    weights and the number of shards."""
    tensors = list(shapes(config))
    needed = 2 * sum(int(np.prod(shape)) for _, shape in tensors) + 1_000_000_000
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        folder.rmdir()
        raise OSError(f"{folder}: needs {needed / 1e9:.1f} GB of disk space, but only {free / 1e9:.1f} GB are free")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    block = bfloat16(0.02 * np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32))
    shards, filled = [[]], 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        if filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    total, places = 0, {}
    for index, of_shard in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        total += write_shard(folder / file, of_shard, block)
        places.update({name: file for name, _ in of_shard})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, len(shards)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer layers need less disk space")
    options = parser.parse_args()
    try:
        total, shards = write_model(options.folder, CONFIG | {"num_hidden_layers": options.layers})
    except OSError as error:
        sys.exit(str(error))
    print(f"{options.folder}: {total / 1e9:.2f} GB in {shards} shards")


if __name__ == "__main__":
    main()
