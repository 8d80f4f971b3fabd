"""Golden numbers of bitsandbytes' NF4 on the CPU, with which tests/quantized.rs compares.

usage: nf4.py --out tests/golden [--assets DIR]

Writes to the folder OUT:
    nf4.json            `tensors`: SHA-256 (16 digits) of codes, absmax and, with double quantization, of the
                        codes of the scales (`nested_codes`), their absmax and map, and the offset,
                        of tensors made by a formula (`kind`, `place`, `shape`); `dequantized` is
                        the SHA-256 of the float32 values. `real`: the same of the linear layers of
                        stories260k. `models`: log-probs and logits of the two folders below.
                        `merged`: the same of stories260k in NF4 after PEFT has merged the adapter
                        of tests/golden/adapter into it
    nf4_llama, nf4_qwen2_nested
                        tiny models as transformers and bitsandbytes save them

torch runs on one thread: the offset of double quantization is a mean, and with more than 32,768
scales torch's order of summation depends on the number of threads.
"""
import argparse
import hashlib
import json
import os
import shutil
import tempfile

import bitsandbytes
import numpy as np
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from logits import short, summary
from random_mistral import assets_argument, random_model, tensor

torch.set_num_threads(1)
ADAPTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/adapter")

# kind, shape. The kinds: `uniform` is u of random_mistral.py; `cubed` is u * u * u, whose blocks
# differ more; `bfloat16` is u rounded to bfloat16; `zeros` has blocks of zeros, and `equal` equal
# blocks, whose scales are all the offset.
TENSORS = [("uniform", [96, 576]), ("cubed", [300, 640]), ("uniform", [3, 50]), ("cubed", [5, 13]), ("uniform", [1, 1]),
           ("bfloat16", [192, 576]), ("zeros", [70, 64]), ("equal", [20, 64]), ("cubed", [4, 120]), ("uniform", [2048, 1280])]
TINY = dict(vocab_size=64, hidden_size=40, intermediate_size=58, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, hidden_act="silu", max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
            rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="float32")
MODELS = {
    "nf4_llama": (TINY | dict(architectures=["LlamaForCausalLM"], model_type="llama"), False),
    "nf4_qwen2_nested": (TINY | dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False,
                                     sliding_window=None), True),
}


def made(kind, place, shape):
    u = tensor(place, "", shape, 1.0)
    if kind == "cubed":
        return u * u * u
    if kind == "bfloat16":
        return u.to(torch.bfloat16)
    if kind == "zeros":
        u[1::3] = 0.0
    if kind == "equal":
        u[:] = u[0]
    return u


def sha256(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]


def digest(x, nested):
    codes, state = quantize_4bit(x, quant_type="nf4", compress_statistics=nested)
    out = dict(nested=nested, codes=sha256(codes), dequantized=sha256(dequantize_4bit(codes, state).float()))
    if nested:
        return out | dict(nested_codes=sha256(state.absmax), nested_absmax=sha256(state.state2.absmax),
                          map=sha256(state.state2.code), offset=float(state.offset))
    return out | dict(absmax=sha256(state.absmax))


def of_formula():
    return [dict(kind=kind, place=place, shape=shape) | digest(made(kind, place, shape), nested)
            for place, (kind, shape) in enumerate(TENSORS) for nested in (False, True)]


def of_stories(assets):
    weights = load_file(os.path.join(assets, "models/stories260k/model.safetensors"))
    return {name: [digest(weight, nested) for nested in (False, True)]
            for name, weight in sorted(weights.items()) if "_proj." in name}


def of_model(name, out):
    config, nested = MODELS[name]
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                             bnb_4bit_compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as work:
        random_model(work, config, 0.5).save_pretrained(work)
        model = AutoModelForCausalLM.from_pretrained(work, quantization_config=how, dtype=torch.float32, device_map="cpu")
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()
    ids = [(i * 7919 + 13) % config["vocab_size"] for i in range(60)]
    return dict(scale=0.5, nested=nested, config=config, ids=ids) | summary(model, ids)


def of_merged(assets, nested):
    """PEFT merges into a 4-bit base by dequantizing, adding and quantizing again."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                             bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(os.path.join(assets, "models/stories260k"), quantization_config=how,
                                                dtype=torch.float32, device_map="cpu")
    model = PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().eval()
    ids = [(i * 7919 + 13) % 512 for i in range(60)]
    return dict(nested=nested, ids=ids) | summary(model, ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    assets_argument(parser)
    arguments = parser.parse_args()
    versions = {module.__name__: module.__version__ for module in (bitsandbytes, transformers, torch)}
    golden = dict(made_with=versions, tensors=of_formula(), real=of_stories(arguments.assets),
                  models={name: of_model(name, arguments.out) for name in MODELS},
                  merged=[of_merged(arguments.assets, nested) for nested in (False, True)])
    with open(os.path.join(arguments.out, "nf4.json"), "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
