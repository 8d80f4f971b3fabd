"""Does a checkpoint's folder say one thing in all its files? Reads headers and JSON only, so that it is quick on any size.

usage: files.py FOLDER

Prints a line for each check and ends with 1 where one failed. Needs transformers and safetensors.
"""
import glob
import json
import os
import sys

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good evening."}]


def read(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        return json.load(file)


def headers(folder):
    """Of each weight file, name → (dtype, shape)."""
    files = {}
    for path in sorted(glob.glob(os.path.join(folder, "model*.safetensors"))):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        files[os.path.basename(path)] = header
    return files


def elements(shape):
    count = 1
    for length in shape:
        count *= length
    return count


def weights(folder, config):
    """The weight files against each other, the index and config.json."""
    files = headers(folder)
    yield "weights are there", bool(files), ", ".join(files)
    marks = [header.pop("__metadata__", {}) for header in files.values()]
    yield "each file's metadata says format: pt", all(mark.get("format") == "pt" for mark in marks), marks[:1]
    tensors = [(name, entry) for header in files.values() for name, entry in header.items()]
    names = [name for name, _ in tensors]
    yield "no tensor is there twice", len(set(names)) == len(names), f"{len(names)} tensors"
    dtypes = {entry["dtype"] for _, entry in tensors}
    said = config.get("dtype") or config.get("torch_dtype")
    yield "config.json names the dtype of all tensors", {NAMES.get(d) for d in dtypes} == {said}, f"{said}, tensors {sorted(dtypes)}"
    if config.get("dtype") and config.get("torch_dtype"):
        yield "dtype and torch_dtype agree", config["dtype"] == config["torch_dtype"], config["torch_dtype"]
    if config.get("tie_word_embeddings"):
        yield "tied weights have no lm_head", "lm_head.weight" not in names, ""
    index = read(folder, "model.safetensors.index.json")
    yield "an index where there are shards, none where there are not", (index is None) == (list(files) == ["model.safetensors"]), ""
    if index is None:
        return
    here = {name: file for file, header in files.items() for name in header}
    yield "the index has each tensor in its file", index["weight_map"] == here, f"{len(here)} tensors, {len(files)} files"
    size = sum(elements(entry["shape"]) * WIDTHS[entry["dtype"]] for _, entry in tensors)
    yield "the index's total_size is that of the tensors", index["metadata"]["total_size"] == size, size
    numbered = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    yield "shards are numbered", sorted(files) == numbered, ""


def several(ids):
    return ids if isinstance(ids, list) else [ids]


def tokens(folder, config):
    """Special tokens and the template against config.json and generation_config.json."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = read(folder, "generation_config.json")
    yield "generation_config.json is there", generation is not None, ""
    generation = generation or {}
    eos = tokenizer.eos_token_id
    yield "the tokenizer has an EOS token", eos is not None, f"{tokenizer.eos_token!r}, {eos}"
    for name, ends in [("config.json", config.get("eos_token_id")), ("generation_config.json", generation.get("eos_token_id"))]:
        yield f"{name} ends texts with the tokenizer's EOS", eos in several(ends), ends
    for kind in ("bos", "pad"):
        id = getattr(tokenizer, f"{kind}_token_id")
        for name, ids in [("config.json", config), ("generation_config.json", generation)]:
            said = ids.get(f"{kind}_token_id")
            yield f"{name} has the tokenizer's {kind.upper()}", said == id or id is None, f"{said}, tokenizer {id}"
    yield "a PAD token, so that batches can be padded", tokenizer.pad_token_id is not None, tokenizer.pad_token
    most = max(tokenizer.get_vocab().values())
    yield "every token has an embedding", most < config["vocab_size"], f"{most} of {config['vocab_size']}"
    yield "a chat template", bool(tokenizer.chat_template), ""
    if tokenizer.chat_template:
        yield from template(tokenizer, eos)


def template(tokenizer, eos):
    def ids(chat, prompt):
        return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt), add_special_tokens=False).input_ids
    prompt, whole = ids(CHAT[:1], True), ids(CHAT, False)
    yield "a prompt is where its answer's text begins", whole[:len(prompt)] == prompt, f"{len(prompt)} ids"
    yield "the template ends an answer with EOS", eos in whole[len(prompt):], tokenizer.decode(whole[len(prompt):])


def check(folder):
    """(what, whether it is so, what was found) for each check."""
    config = read(folder, "config.json") or {}
    yield "config.json has an architecture", bool(config.get("architectures")), config.get("architectures")
    yield from weights(folder, config)
    yield from tokens(folder, config)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    failed = 0
    for what, is_so, found in check(sys.argv[1]):
        failed += not is_so
        print(f"{'ok   ' if is_so else 'WRONG'} {what}: {found!r}".removesuffix(": ''"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
