"""FLOPs and bytes that the mathematics of an operation or of a training step needs. Recomputation
is not counted, nor are tokens of padding."""

import json
from pathlib import Path

from shapes import OperationShape

# Forward and backward pass of attention, in forward passes: FlashAttention's convention (arXiv
# 2205.14135), two matrix products forward and five backward.
ATTENTION_BOTH = 3.5


def visible_keys(length: int, prefix: int = 0) -> int:
    """Pairs of a query and a key that it sees, for `length` causal queries behind `prefix` keys."""
    return length * prefix + length * (length + 1) // 2


def token_ids(count: int, vocabulary: int) -> list[int]:
    """The ids of `Setting::ids` of the Rust program."""
    return [row * 7919 % 2**32 % 4001 % vocabulary for row in range(count)]


def pairs_of(shape: OperationShape, tokens: int) -> tuple[int, int]:
    """Preference pairs in a batch, and the length of a prompt or response."""
    part = shape.sequence // 2
    return tokens // (3 * part), part


def operation_work(name: str, shape: OperationShape, tokens: int, size: int) -> tuple[float, float]:
    """FLOPs and bytes of an operation with elements of `size` bytes. Bytes are those of inputs and
    outputs, each once."""
    d, f, v, n = shape.width, shape.feed_forward, shape.vocabulary, shape.scored
    kind, _, rest = name.partition("/")
    both = "both" in name
    if kind == "product":
        widths = {"q_proj": (d, d), "k_proj": (d, shape.kv_heads * shape.head_dim),
                  "gate_proj": (d, f), "down_proj": (f, d)}
        inner, outer = widths[rest.split("/")[0]]
        moved = tokens * inner + inner * outer + tokens * outer
        return (3 if both else 1) * 2.0 * tokens * inner * outer, (3 if both else 1) * moved * size
    if kind == "attention":
        if rest.startswith("pairs"):
            pairs, part = pairs_of(shape, tokens)
            seen = pairs * (visible_keys(part) + 2 * visible_keys(part, part))
        else:
            seen = tokens // shape.sequence * visible_keys(shape.sequence)
        flops = 4.0 * seen * shape.heads * shape.head_dim
        moved = 2.0 * tokens * (shape.heads + shape.kv_heads) * shape.head_dim * size
        return (flops * ATTENTION_BOTH, 3 * moved) if both else (flops, moved)
    if kind == "rms_norm":
        return 0.0, (5 if both else 2) * tokens * d * size
    if kind == "swiglu":
        return 0.0, (8 if both else 3) * tokens * f * size
    if kind == "head":
        moved = (n * d + v * d) * size
        return (3 if both else 1) * 2.0 * n * d * v, (2 if both else 1) * moved
    if rest == "rows":
        return 0.0, 2.0 * tokens * d * size
    if rest == "gradient":
        rows = len(set(token_ids(tokens, v)))
        return 0.0, tokens * d * size + 2.0 * rows * d * 4
    vectors = {"sum of gradients": 3, "squares": 1, "AdamW": 7}
    return 0.0, vectors[rest] * d * f * 4.0


def is_shared(name: str) -> bool:
    """Whether torch's side of the operation computes each prompt twice."""
    return name.startswith("attention/pairs")


def matrix_weights(config: dict, layers: int) -> tuple[float, float]:
    """Weights of the linear layers of all layers, and of the head."""
    d, f = config["hidden_size"], config["intermediate_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    return layers * (2.0 * d * d + 2.0 * d * kv + 3.0 * d * f), float(d * config["vocab_size"])


def training_flops(config: dict, layers: int, lengths: list[tuple[int, int, int]], *,
                   is_shared_prompt: bool, trains_base: bool) -> float:
    """FLOPs of forward and backward passes over pairs of these lengths (prompt, chosen, rejected).
    The gradients of weights are not counted if the base is frozen. The head works on the tokens of
    responses."""
    weights, head = matrix_weights(config, layers)
    tokens = scored = seen = 0
    for prompt, chosen, rejected in lengths:
        scored += chosen + rejected
        if is_shared_prompt:
            tokens += prompt + chosen + rejected
            seen += (visible_keys(prompt) + visible_keys(chosen, prompt)
                     + visible_keys(rejected, prompt))
        else:
            tokens += 2 * prompt + chosen + rejected
            seen += visible_keys(prompt + chosen) + visible_keys(prompt + rejected)
    passes = 3.0 if trains_base else 2.0
    products = passes * 2.0 * (weights * tokens + head * scored)
    return products + ATTENTION_BOTH * 4.0 * seen * layers * config["hidden_size"]


def pair_lengths(rows: Path) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected response of the rows of `rows.py`."""
    return [tuple(json.loads(line)["tokens"]) for line in rows.open()]
