"""The chats that every loader answers, and the file of results that a loader writes.

The file has the format that ../check_checkpoint.py --against reads, {"prompts": [{"text", "ids",
"greedy_ids", "last_logits"}]}, plus the loader's name, its version and its BOS and EOS ids.
"""
import json

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Name three colours of the rainbow."},
     {"role": "assistant", "content": "Red, green and blue."},
     {"role": "user", "content": "And one more?"}],
    [{"role": "user", "content": "Größter Planet? 木星 \U0001fa90 def f(x):\n\n    return  x"}],
]
TOKENS = 24


def greedy(next_logits, ids, count, ends):
    """Greedy decoding: up to `count` tokens or one of `ends`. Returns the tokens and the logits
    after `ids`. `next_logits` maps a list of ids to the logits after them."""
    first = logits = next_logits(ids)
    new = []
    while True:
        new.append(int(logits.argmax()))
        if len(new) == count or new[-1] in ends:
            return new, [float(x) for x in first]
        logits = next_logits(ids + new)


def write(path, loader, version, prompts, **facts):
    with open(path, "w") as file:
        json.dump({"loader": loader, "version": version, **facts, "prompts": prompts}, file)
