"""Greedy text of transformers on 20 prompts, for tests/generation.rs: ten texts to continue and ten
chats to answer.

usage: generation.py --out tests/golden/generation.json [--assets DIR] [--model FOLDER] [--tokens N]

The default model is stories260k of the assets. `gap` is the smallest difference between the best
and the second-best logit of a text. Rounding can change the text only if the gap is below the
rounding error of the logits, about 1e-5.
"""
import argparse
import json
import os

import torch
import transformers
from transformers import AutoModelForCausalLM

from random_mistral import assets_argument
from trl_runs import load_tokenizer

TEXTS = [
    "Once upon a time", "Lily and Tom went to the park.", "The little dog was", "One day, a boy named Tim", "There was a big red ball",
    "Mom said,", "The sun was hot and", "A cat and a bird were friends.", "\"Can I have a cake?\" asked", "They lived in a small house",
]
CHATS = [
    "Tell me a story about a dog.", "What did the girl find?", "Who is in the garden?", "Why was the bird sad?", "Tell me about the sea.",
    "What is your name?", "Where does the cat sleep?", "Can you help me?", "What happened at the party?", "Say something nice.",
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=60)
    assets_argument(parser)
    arguments = parser.parse_args()
    folder = arguments.model or os.path.join(arguments.assets, "models/stories260k")
    tokenizer = load_tokenizer(folder, None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for raw, prompts in [(True, TEXTS), (False, CHATS)]:
        for prompt in prompts:
            if raw:
                ids = tokenizer(prompt).input_ids
            else:
                chat = [{"role": "user", "content": prompt}]
                text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
                ids = tokenizer(text, add_special_tokens=False).input_ids
            out = model.generate(torch.tensor([ids]), max_new_tokens=arguments.tokens, do_sample=False, repetition_penalty=1.0,
                                 eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
                                 return_dict_in_generate=True, output_logits=True)
            new = out.sequences[0, len(ids):].tolist()
            best = torch.stack(out.logits).squeeze(1).topk(2).values
            rows.append(dict(prompt=prompt, raw=raw, output=tokenizer.decode(new, skip_special_tokens=True),
                             gap=float(f"{(best[:, 0] - best[:, 1]).min().item():.3g}")))
    made_with = dict(transformers=transformers.__version__, torch=torch.__version__)
    with open(arguments.out, "w") as file:
        json.dump(dict(made_with=made_with, model=os.path.basename(folder.rstrip("/")), max_new_tokens=arguments.tokens, rows=rows),
                  file, indent=1)
        file.write("\n")
    print("smallest gap", min(row["gap"] for row in rows))


if __name__ == "__main__":
    main()
