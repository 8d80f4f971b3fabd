"""Models whose weights come from a formula, so that the tests in Rust can make the same weights and
no file is needed.

usage: random_mistral.py OUT [--assets DIR] [--scale 0.125] [KEY=VALUE ...]

Writes the folder OUT: a Mistral in Hugging Face layout in float32, with the Mistral tokenizer of
ASSETS/tokenizers/mistral-7b-v0.1. KEY=VALUE changes a field of its configuration, such as
`sliding_window=64`.

The formula: sort the tensors by their Hugging Face names. Let j be the index of a tensor in that
order, and i the index of a value in the tensor, flattened in row-major order ([out, in] for
matrices). Then
    h = splitmix64(j * 2^32 + i)
    u = (h >> 40) / 2^24 - 1/2          in [-1/2, 1/2), exact in float32
    value = center + u * scale          center is 1 for names that end with `norm.weight`, else 0
and splitmix64(x), modulo 2^64, is
    z = x + 0x9E3779B97F4A7C15
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB
    z ^ z >> 31
`scale` is a power of two, so the product is exact and the sum is rounded once to float32. Every
program therefore gets the same bits. tests/common/mod.rs has the same formula.
"""
import argparse
import json
import os
import shutil

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runs import EAGER

TOKENIZER = "tokenizers/mistral-7b-v0.1"
MISTRAL = dict(
    architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=32000, hidden_size=256, intermediate_size=688,
    num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=32, hidden_act="silu",
    max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=None, tie_word_embeddings=False,
    attention_dropout=0.0, bos_token_id=1, eos_token_id=2, torch_dtype="float32")
SCALE = 0.125


def splitmix64(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def tensor(place, name, shape, scale):
    """The values of the tensor `name`, whose index in the sorted names is `place`."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        bits = splitmix64(np.arange(count, dtype=np.uint64) + np.uint64(place << 32)) >> np.uint64(40)
    uniform = bits.astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    center = np.float32(1.0 if name.endswith("norm.weight") else 0.0)
    return torch.from_numpy((center + uniform * np.float32(scale)).reshape(shape))


def named_tensors(model):
    """The parameters by the names that they have in files. transformers stacks Mixtral's experts; here
    each matrix of an expert is a view of a stack."""
    tensors = {}
    for name, parameter in model.named_parameters():
        stored = name.replace(".mlp.", ".block_sparse_moe.") if model.config.model_type == "mixtral" else name
        if stored.endswith(".experts.gate_up_proj"):
            for index, both in enumerate(parameter):
                prefix = f"{stored.removesuffix('gate_up_proj')}{index}"
                tensors[f"{prefix}.w1.weight"], tensors[f"{prefix}.w3.weight"] = both.chunk(2)
        elif stored.endswith(".experts.down_proj"):
            for index, down in enumerate(parameter):
                tensors[f"{stored.removesuffix('down_proj')}{index}.w2.weight"] = down
        else:
            tensors[stored] = parameter
    return tensors


def write_config(folder, config):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


def random_model(folder, config, scale=SCALE):
    """The float32 model of this config.json. Writes the file to `folder`, as transformers reads it
    from a folder."""
    write_config(folder, config)
    attention = "eager" if config["model_type"] in EAGER else "sdpa"
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32,
                                             attn_implementation=attention)
    with torch.no_grad():
        parameters = named_tensors(model)  # a tied head is one tensor, model.embed_tokens.weight
        for place, name in enumerate(sorted(parameters)):
            parameters[name].copy_(tensor(place, name, tuple(parameters[name].shape), scale))
    return model.eval()


def random_mistral(folder, assets, changes=None, scale=SCALE):
    """Writes the model and its tokenizer to `folder`."""
    config = MISTRAL | (changes or {})
    random_model(folder, config, scale).save_pretrained(folder)
    write_config(folder, config)  # instead of the file that transformers wrote
    source = os.path.join(assets, TOKENIZER)
    for name in os.listdir(source):
        shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))


def assets_argument(parser):
    parser.add_argument("--assets", default=os.environ.get("FAVONIUS_ASSETS"), required="FAVONIUS_ASSETS" not in os.environ,
                        help="the folder with data/, models/ and tokenizers/ (or FAVONIUS_ASSETS)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--scale", type=float, default=SCALE)
    assets_argument(parser)
    arguments = parser.parse_intermixed_args()
    changes = {key: json.loads(value) for key, value in (change.split("=", 1) for change in arguments.changes)}
    random_mistral(arguments.out, arguments.assets, changes, arguments.scale)
    print(arguments.out)


if __name__ == "__main__":
    main()
