"""What a loader says of a checkpoint: the chats that each of them answers, and the file that it writes.

The file is what ../check_checkpoint.py --against reads, {"prompts": [{"text", "ids", "greedy_ids", "last_logits"}]}, with the loader's
name, its version and the ids that it ends and begins texts with.
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
    """The likeliest token each time, `count` of them or up to an end, and the logits behind `ids`. `next_logits`: of a list of ids."""
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
