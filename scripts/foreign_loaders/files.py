"""Checks that the files of a checkpoint folder are consistent. Reads headers and JSON only, so it
is fast for any size.

usage: files.py FOLDER

Prints a line for each check. The exit code is 1 if a check failed. Needs transformers and
safetensors.
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
    """The header of each weight file: tensor name → dtype and shape."""
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
    """Checks of the weight files, their index and config.json."""
    files = headers(folder)
    yield "the folder has weights", bool(files), ", ".join(files)
    marks = [header.pop("__metadata__", {}) for header in files.values()]
    yield "each file's metadata says format: pt", all(mark.get("format") == "pt" for mark in marks), marks[:1]
    tensors = [(name, entry) for header in files.values() for name, entry in header.items()]
    names = [name for name, _ in tensors]
    yield "no tensor occurs twice", len(set(names)) == len(names), f"{len(names)} tensors"
    dtypes = {entry["dtype"] for _, entry in tensors}
    stated = config.get("dtype") or config.get("torch_dtype")
    yield "config.json names the dtype of all tensors", {NAMES.get(d) for d in dtypes} == {stated}, f"{stated}, tensors {sorted(dtypes)}"
    if config.get("dtype") and config.get("torch_dtype"):
        yield "dtype and torch_dtype agree", config["dtype"] == config["torch_dtype"], config["torch_dtype"]
    if config.get("tie_word_embeddings"):
        yield "tied weights have no lm_head", "lm_head.weight" not in names, ""
    index = read(folder, "model.safetensors.index.json")
    yield "an index exists exactly if the weights are sharded", (index is None) == (list(files) == ["model.safetensors"]), ""
    if index is None:
        return
    here = {name: file for file, header in files.items() for name in header}
    yield "the index maps each tensor to its file", index["weight_map"] == here, f"{len(here)} tensors, {len(files)} files"
    size = sum(elements(entry["shape"]) * WIDTHS[entry["dtype"]] for _, entry in tensors)
    yield "total_size of the index is the size of the tensors", index["metadata"]["total_size"] == size, size
    numbered = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    yield "the file names of shards are numbered", sorted(files) == numbered, ""


def several(ids):
    return ids if isinstance(ids, list) else [ids]


def tokens(folder, config):
    """Checks of special tokens and the template against config.json and generation_config.json."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = read(folder, "generation_config.json")
    yield "generation_config.json exists", generation is not None, ""
    generation = generation or {}
    eos = tokenizer.eos_token_id
    yield "the tokenizer has an EOS token", eos is not None, f"{tokenizer.eos_token!r}, {eos}"
    for name, ends in [("config.json", config.get("eos_token_id")), ("generation_config.json", generation.get("eos_token_id"))]:
        yield f"{name} lists the tokenizer's EOS", eos in several(ends), ends
    for kind in ("bos", "pad"):
        id = getattr(tokenizer, f"{kind}_token_id")
        for name, ids in [("config.json", config), ("generation_config.json", generation)]:
            stated = ids.get(f"{kind}_token_id")
            yield f"{name} has the tokenizer's {kind.upper()}", stated == id or id is None, f"{stated}, tokenizer {id}"
    yield "the tokenizer has a PAD token for batches", tokenizer.pad_token_id is not None, tokenizer.pad_token
    most = max(tokenizer.get_vocab().values())
    yield "every token has an embedding", most < config["vocab_size"], f"{most} of {config['vocab_size']}"
    yield "the tokenizer has a chat template", bool(tokenizer.chat_template), ""
    if tokenizer.chat_template:
        yield from template(tokenizer, eos)


def template(tokenizer, eos):
    def ids(chat, prompt):
        return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt), add_special_tokens=False).input_ids
    prompt, whole = ids(CHAT[:1], True), ids(CHAT, False)
    yield "the ids of a prompt are a prefix of the whole chat's", whole[:len(prompt)] == prompt, f"{len(prompt)} ids"
    yield "the template ends an answer with EOS", eos in whole[len(prompt):], tokenizer.decode(whole[len(prompt):])


def check(folder):
    """Yields (description, whether it holds, found value) for each check."""
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
