"""Golden logits of transformers on the CPU in float32, with which tests compare the decoder.

usage: logits.py --out tests/golden/logits.json [--smollm2 DIR] [NAME ...]

The weights of MODELS come from the formula of random_mistral.py, with the `scale` in the golden
file, and the ids are `(i * 7919 + 13) % vocab`. The file holds the config.json of each model, as
transformers 4 (`config`) and as transformers 5 (`config_v5`) writes it. --smollm2 adds
SmolLM2-135M-Instruct (bfloat16 weights, computed in float32) on real text. With names, only these
models are computed, and the others in the file are kept.

For each model the file holds `logps`, log p(ids[i] | ids[..i]) for i ≥ 1; `logsumexp` of all
positions; and, for the last 8 positions, the logits at `places` and the five largest (`top_ids`,
`top_logits`). For SmolLM2 it also holds greedy continuations.
"""
import argparse
import json
import os
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from random_mistral import MISTRAL, random_model
from runs import FAMILIES, PHI3_LONG

SMALL = dict(vocab_size=1000, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, hidden_act="silu", max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
             torch_dtype="float32")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
# name: (config.json, scale of the weights, number of ids). The scales are large enough for
# attention to depend on the positions.
MODELS = {
    "mistral_sliding_window": (MISTRAL | dict(sliding_window=64), 0.25, 300),
    "llama_rope_llama3": (SMALL | dict(
        architectures=["LlamaForCausalLM"], model_type="llama", head_dim=16, rms_norm_eps=1e-5, rope_theta=500000.0,
        rope_scaling=LLAMA3, attention_bias=False, mlp_bias=False, tie_word_embeddings=True), 0.5, 200),
    "llama_plain": (SMALL | dict(
        architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None,
        attention_bias=False, mlp_bias=False, tie_word_embeddings=False), 0.5, 200),
    "qwen2_bias": (SMALL | dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=32,
        use_sliding_window=False, max_window_layers=1, tie_word_embeddings=False), 0.5, 200),
}
# Phi-3-mini: the whole heads are rotated, without scaling.
MODELS["phi3_mini"] = (SMALL | dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rms_norm_eps=1e-5, rope_theta=10000.0,
                                    rope_scaling=None, sliding_window=33, pad_token_id=0, tie_word_embeddings=False), 0.5, 200)
MODELS["phi3_long"] = (SMALL | dict(pad_token_id=0) | PHI3_LONG, 0.5, 200)
MODELS |= {name: (SMALL | dict(pad_token_id=0) | config, 0.25 if name == "gemma3_text" else 0.5, 200) for name, config in FAMILIES.items()}
PROMPTS = ["<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
           "The west wind is called"]
PASSAGE = ("Favonius was the Roman god of the west wind, the bringer of spring. His name means 'favourable'. "
           "He was thought to be gentle, and it was he who made flowers grow in the valleys beneath the mountains. " * 3)
TAIL = 8
GREEDY = 24


def short(values):
    return [short(v) for v in values] if isinstance(values, list) else float(f"{values:.9g}")


@torch.no_grad()
def summary(model, ids):
    logits = model(torch.tensor([ids])).logits[0].double()
    vocab = logits.shape[1]
    places = [(2 * i + 1) * vocab // 32 for i in range(16)]
    sums = logits.logsumexp(-1)
    logps = logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] - sums[:-1]
    top = logits[-TAIL:].topk(5)
    return dict(places=places, logps=short(logps.tolist()), logsumexp=short(sums.tolist()),
                logits=short(logits[-TAIL:][:, places].tolist()), top_ids=top.indices.tolist(),
                top_logits=short(top.values.tolist()))


@torch.no_grad()
def greedy(model, ids, count):
    """Greedy decoding without a cache, up to `count` ids or EOS."""
    new = []
    while len(new) < count and (not new or new[-1] != model.config.eos_token_id):
        new.append(model(torch.tensor([ids + new])).logits[0, -1].argmax().item())
    return new


def formula_model(config, scale, count):
    ids = [(i * 7919 + 13) % config["vocab_size"] for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(folder, config, scale)
    newer = json.loads(model.config.to_json_string(use_diff=True))
    return dict(config=config, config_v5=newer, scale=scale, ids=ids) | summary(model, ids)


def smollm2(folder):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), clean_up_tokenization_spaces=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    ids = tokenizer.encode(PASSAGE, add_special_tokens=False)
    prompts = []
    for text in PROMPTS:
        prompt = tokenizer.encode(text, add_special_tokens=False)
        new = greedy(model, prompt, GREEDY)
        prompts.append(dict(text=text, ids=prompt, greedy_ids=new, greedy_text=tokenizer.decode(new)))
    return dict(text=PASSAGE, ids=ids) | summary(model, ids) | dict(prompts=prompts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *MODELS], metavar="NAME")
    parser.add_argument("--out", required=True)
    parser.add_argument("--smollm2", help="SmolLM2-135M-Instruct in Hugging Face layout")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    golden = dict(made_with=dict(transformers=transformers.__version__, torch=torch.__version__), models={})
    if arguments.names:
        with open(arguments.out) as file:
            golden = json.load(file)
    golden["models"] |= {name: formula_model(*MODELS[name]) for name in arguments.names or MODELS}
    if arguments.smollm2:
        golden["models"]["smollm2_135m"] = smollm2(arguments.smollm2)
    with open(arguments.out, "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")
    for name, model in golden["models"].items():
        print(name, "mean log-prob", sum(model["logps"]) / len(model["logps"]), "top", model["top_ids"][-1])


if __name__ == "__main__":
    main()
