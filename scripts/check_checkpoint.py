"""Checks that transformers reads a checkpoint as Favonius does. Loads a Hugging Face folder on the
CPU in float32 and prints JSON. A folder with an adapter is loaded by PEFT, on the base that it names.

usage: check_checkpoint.py FOLDER [--prompt TEXT ...] [--tokens 24]
       check_checkpoint.py FOLDER --against FILE.json [--tolerance 1e-3]

The JSON has for each prompt: text, ids, greedy_ids, greedy_text, and a summary of the logits after
the prompt: their logsumexp and the five most likely ids. With --logits it also has last_logits, the
logits of the whole vocabulary.

--against FILE.json: the results of Favonius on the same folder, {"prompts": [{"text", "ids",
"greedy_ids", "last_logits"}]}; each key except `text` may be missing. Ids must be equal, and logits
must agree within the tolerance. Each greedy id must be the most likely one in transformers, or its
logit must be within the tolerance of the largest.

Exit codes: 0 no difference, 1 a difference or a loading error, 2 bad usage. Needs torch and
transformers.
"""
import argparse
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast


def load(folder):
    """Model, tokenizer and problems. There must be no missing or extra tensor and no wrong
    shape."""
    if os.path.exists(os.path.join(folder, "adapter_config.json")):
        model, problems = load_adapter(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), clean_up_tokenization_spaces=False)
        return model.eval(), tokenizer, problems
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = [f"{kind}: {sorted(map(str, report[kind]))}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
                  if report.get(kind)]
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        GenerationConfig.from_pretrained(folder)
    # It must load. Its ids may differ, because it replaces the normalizer of a Llama tokenizer.
    AutoTokenizer.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), clean_up_tokenization_spaces=False)
    return model.eval(), tokenizer, problems


def load_adapter(folder):
    from peft import PeftConfig, get_peft_model
    config = PeftConfig.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    model = get_peft_model(base, config)
    report = model.load_adapter(folder, "default")
    missing = [key for key in report.missing_keys if "lora_" in key or "modules_to_save" in key]
    problems = {"missing_keys": missing, "unexpected_keys": report.unexpected_keys}
    return model, [f"{kind}: {sorted(keys)}" for kind, keys in problems.items() if keys]


def end_ids(model):
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


@torch.no_grad()
def next_logits(model, ids):
    return model(torch.tensor([ids])).logits[0, -1].double()


def greedy(model, ids, count):
    new, ends = [], end_ids(model)
    while len(new) < count and (not new or new[-1] not in ends):
        new.append(next_logits(model, ids + new).argmax().item())
    return new


def describe(model, tokenizer, text, count, whole):
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        sys.exit(f"the prompt {text!r} has no tokens")
    logits, new = next_logits(model, ids), greedy(model, ids, count)
    top = logits.topk(5)
    out = dict(text=text, ids=ids, greedy_ids=new, greedy_text=tokenizer.decode(new), logsumexp=logits.logsumexp(0).item(),
               top_ids=top.indices.tolist(), top_logits=top.values.tolist())
    return out | (dict(last_logits=logits.tolist()) if whole else {})


def differences(model, tokenizer, answers, tolerance):
    """The differences in one prompt of Favonius's file, one line each."""
    text = answers["text"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if answers.get("ids", ids) != ids:
        yield f"{text!r}: ids {answers['ids']}, transformers has {ids}"
        return
    logits = next_logits(model, ids)
    theirs = torch.tensor(answers.get("last_logits", logits.tolist()), dtype=torch.float64)
    if theirs.shape != logits.shape:
        yield f"{text!r}: {len(theirs)} logits, transformers has {len(logits)}"
    else:
        off = (theirs - logits).abs()
        if not off.max() <= tolerance:
            place = off.argmax().item()
            yield f"{text!r}: logit {place} is {theirs[place]:.6f}, transformers has {logits[place]:.6f}"
    prefix, ends = list(ids), end_ids(model)
    for step, token in enumerate(answers.get("greedy_ids", [])):
        scores = next_logits(model, prefix)
        if not scores.max() - scores[token] <= tolerance:
            yield f"{text!r}: greedy token {step} is {token}, transformers has {scores.argmax().item()}"
            return
        prefix.append(token)
        if token in ends and step + 1 < len(answers["greedy_ids"]):
            yield f"{text!r}: greedy ids go on after the end token {token}"
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--logits", action="store_true", help="print the logits of the whole vocabulary")
    parser.add_argument("--against")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()
    if not arguments.prompt and not arguments.against:
        parser.error("give --prompt or --against")
    answers = []
    if arguments.against:
        with open(arguments.against) as file:
            answers = json.load(file)["prompts"]
        if not answers:
            parser.error(f"{arguments.against} has no prompts")
    model, tokenizer, wrong = load(arguments.folder)
    texts = arguments.prompt + [prompt["text"] for prompt in answers]
    described = [describe(model, tokenizer, text, arguments.tokens, arguments.logits) for text in texts]
    for prompt in answers:
        wrong.extend(differences(model, tokenizer, prompt, arguments.tolerance))
    print(json.dumps(dict(parameters=sum(p.numel() for p in model.parameters()), prompts=described), indent=1))
    for line in wrong:
        print(f"differs: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
