"""Writes the golden file of tests/data_real.rs: chat texts and token ids of real rows, computed by
transformers and tokenizers.

usage: template_and_ids.py ASSETS OUT.json

ASSETS contains tokenizers/mistral-7b-v0.1 and data/{ultrachat,ultrafeedback_binarized}_like. For
each row the file holds the 64-bit FNV-1a hashes (hex) of the chat's text and of its token ids
(little-endian u32). There are 300 chats and 200 preference pairs. A pair has hashes of the chosen
side, of its prompt with the generation prompt, and of the rejected side. Needs transformers,
tokenizers and pyarrow.
"""
import json, struct, sys
from pathlib import Path

import pyarrow.parquet as pq
import tokenizers, transformers
from transformers import PreTrainedTokenizerFast

assets, out = Path(sys.argv[1]), Path(sys.argv[2])
folder = assets / "tokenizers/mistral-7b-v0.1"
config = json.loads((folder / "tokenizer_config.json").read_text())
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"),
    clean_up_tokenization_spaces=False,
    **{name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")},
)
tokenizer.chat_template = config["chat_template"]
raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def digest(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def hashes(messages, add_generation_prompt=False):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    ids = raw.encode(text, add_special_tokens=False).ids
    return digest(text.encode()) + digest(struct.pack(f"<{len(ids)}I", *ids))


def rows(name, split, columns, count):
    (path,) = sorted((assets / "data" / name / "data").glob(f"{split}-*.parquet"))
    return pq.read_table(path, columns=columns).slice(0, count).to_pylist()


golden = {
    "made_by": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
    "chats": [hashes(row["messages"]) for row in rows("ultrachat_200k_like", "train_sft", ["messages"], 300)],
    "pairs": [
        hashes(row["chosen"]) + hashes(row["chosen"][:-1], True) + hashes(row["rejected"])
        for row in rows("ultrafeedback_binarized_like", "train_prefs", ["chosen", "rejected"], 200)
    ],
}
out.write_text(json.dumps(golden, indent=0) + "\n")
