"""LoRA adapters for the golden runs: settings, and initial values that the program makes too.

usage: adapters.py --out DIR [--assets DIR]

Writes to DIR the adapter that the golden run `dpo_lora_continued` and tests/adapters.rs start from:
    adapter_model.safetensors, adapter_config.json   as PEFT saves them, for stories260k; rank 2 on
        q_proj and v_proj, rank 3 on the q_proj of layer 1, with B by the formula of A
    logits.json      token ids, and the logits of PEFT's model after each of them

The values of A: for the parameter `model.layers.0.self_attn.q_proj.lora_A.weight` [r, in] let
    key   = splitmix64(seed ^ fnv1a(name))
    u_i   = (splitmix64(key + i) >> 40) / 2^24
    A_i   = (2 u_i - 1) / sqrt(in), rounded once to float32
which has PEFT's distribution. src/model/adapter/lora.rs has the same formula.
"""
import argparse
import json
import math
import os

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from random_mistral import assets_argument, splitmix64

KEYS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "use_rslora",
        "lora_target_modules": "target_modules", "lora_modules_to_save": "modules_to_save"}


def lora_config(settings):
    """Takes the keys of LoRA out of a recipe's settings. None if the recipe trains all weights."""
    on = settings.pop("use_peft", False)
    fields = {field: settings.pop(key) for key, field in KEYS.items() if key in settings}
    return LoraConfig(task_type="CAUSAL_LM", **fields) if on else None


def fnv1a(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def initial(seed, name, shape):
    key = splitmix64(np.array([seed ^ fnv1a(name)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        bits = splitmix64(key + np.arange(math.prod(shape), dtype=np.uint64)) >> np.uint64(40)
    values = (bits.astype(np.float64) / 2.0**24 * 2.0 - 1.0) / math.sqrt(shape[1])
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def set_initial_values(model, seed, matrices=("lora_A",)):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".{matrix}." in name for matrix in matrices):
                plain = name.removeprefix("base_model.model.").replace(".default.", ".")
                parameter.copy_(initial(seed, plain, tuple(parameter.shape)))


def adapter_state(model):
    """The tensors of the adapter's file."""
    return get_peft_model_state_dict(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    assets_argument(parser)
    arguments = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(os.path.join(arguments.assets, "models/stories260k"), dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"],
                        rank_pattern={"layers.1.self_attn.q_proj": 3})
    model = get_peft_model(base, config)
    set_initial_values(model, 7, ("lora_A", "lora_B"))
    model.eval()
    model.peft_config["default"].base_model_name_or_path = "stories260k"
    model.save_pretrained(arguments.out)
    os.remove(os.path.join(arguments.out, "README.md"))
    ids = [1, 403, 407, 261, 378, 20, 311, 8, 260, 500]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    with open(os.path.join(arguments.out, "logits.json"), "w") as file:
        rows = [[float(f"{x:.7g}") for x in row] for row in logits[:, ::8].tolist()]
        json.dump(dict(ids=ids, every=8, logits=rows), file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
