#!/usr/bin/env python3
"""Times torch's operations at the shapes of `operations_on_gpu`, and prints a line of JSON for
each: the same names, the same inputs.

    scripts/gpu/torch_operations.py cuda [--tiny] [--tokens 4096 8192] [--dtype bfloat16]

Each is what a user of transformers runs: `F.linear`, scaled dot-product attention with its fused
kernels (rotary embedding before it), `F.rms_norm`, `F.silu(gate) * up`, log-probs from whole
logits, fused AdamW.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from shapes import OPERATIONS, TINY_OPERATIONS, OperationShape
from work import pairs_of, token_ids

ROUNDS = 5
MOST = 200
Run = Callable[[], object]


class Inputs:
    """Random inputs of one setting."""

    def __init__(self, shape: OperationShape, tokens: int, device: str, dtype: torch.dtype):
        self.shape, self.tokens, self.device, self.dtype = shape, tokens, device, dtype

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        return torch.rand(rows, columns, device=self.device).sub(0.5).to(self.dtype)

    def vector(self) -> torch.Tensor:
        return torch.rand(self.shape.width * self.shape.feed_forward, device=self.device) - 0.5

    def ids(self, count: int) -> torch.Tensor:
        return torch.tensor(token_ids(count, self.shape.vocabulary), device=self.device)


def both(inputs: list[torch.Tensor], f: Callable[..., torch.Tensor]) -> Run:
    """`f` and its backward pass with a gradient of ones."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def run() -> None:
        out = f(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def forward(inputs: list[torch.Tensor], f: Callable[..., torch.Tensor]) -> Run:
    def run() -> None:
        with torch.no_grad():
            f(*inputs)

    return run


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `[batch, heads, length, e]`, in the rotate-half form."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def attention(inputs: Inputs, sequences: int, length: int) -> tuple[list[torch.Tensor], Callable]:
    """Causal attention over sequences of equal length."""
    shape, e = inputs.shape, inputs.shape.head_dim
    frequencies = 10000.0 ** (-torch.arange(0, e, 2, device=inputs.device) / e)
    angles = torch.arange(length, device=inputs.device)[:, None] * frequencies
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1).to(inputs.dtype)
                for f in (torch.cos, torch.sin))

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.view(sequences, length, -1, e).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v,
                                             is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(sequences * length, -1)

    heads = [shape.heads, shape.kv_heads, shape.kv_heads]
    return [inputs.matrix(sequences * length, count * e) for count in heads], run


def log_probs(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, head).float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


def adamw(inputs: Inputs) -> Run:
    parameter = torch.nn.Parameter(inputs.vector())
    parameter.grad = inputs.vector()
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True)
    return optimizer.step


def embedding_gradient(inputs: Inputs) -> Run:
    shape = inputs.shape
    total = torch.zeros(shape.vocabulary, shape.width, device=inputs.device)
    ids, rows = inputs.ids(inputs.tokens), inputs.matrix(inputs.tokens, shape.width)
    return lambda: total.index_add_(0, ids, rows.float())


def operations(inputs: Inputs) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names, and functions that make the inputs and return a function that runs the operation."""
    shape, tokens = inputs.shape, inputs.tokens
    d, f = shape.width, shape.feed_forward
    products = {"q_proj": (d, d), "k_proj": (d, shape.kv_heads * shape.head_dim),
                "gate_proj": (d, f), "down_proj": (f, d)}

    def linear(name: str) -> list[torch.Tensor]:
        inner, outer = products[name]
        return [inputs.matrix(tokens, inner), inputs.matrix(outer, inner)]

    for name in products:
        yield f"product/{name}/forward", lambda name=name: forward(linear(name), F.linear)
    yield "product/gate_proj/both", lambda: both(linear("gate_proj"), F.linear)

    pairs, part = pairs_of(shape, tokens)
    layouts = {"sequences": (tokens // shape.sequence, shape.sequence),
               "pairs": (2 * pairs, 2 * part)}
    for name, layout in layouts.items():
        for run in (forward, both):
            yield (f"attention/{name}/{run.__name__}",
                   lambda run=run, layout=layout: run(*attention(inputs, *layout)))

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (d,), weight.view(d), 1e-5)

    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(gate) * up

    n = shape.scored
    targets = inputs.ids(n)

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return log_probs(hidden, weight, targets)

    for run in (forward, both):
        yield (f"rms_norm/{run.__name__}",
               lambda run=run: run([inputs.matrix(tokens, d), inputs.matrix(1, d)], norm))
        yield (f"swiglu/{run.__name__}",
               lambda run=run: run([inputs.matrix(tokens, f), inputs.matrix(tokens, f)], swiglu))
        yield (f"head/{run.__name__}",
               lambda run=run: run([inputs.matrix(n, d), inputs.matrix(shape.vocabulary, d)], head))
    ids = inputs.ids(tokens)
    yield "embedding/rows", lambda: forward([inputs.matrix(shape.vocabulary, d)],
                                            lambda table: F.embedding(ids, table))
    yield "embedding/gradient", lambda: embedding_gradient(inputs)

    def gradient_sum() -> Run:
        total, gradient = inputs.vector(), inputs.vector()
        return lambda: total.add_(gradient)

    def squares() -> Run:
        gradient = inputs.vector()
        return lambda: torch.linalg.vector_norm(gradient).item()

    yield "vectors/sum of gradients", gradient_sum
    yield "vectors/squares", squares
    yield "vectors/AdamW", lambda: adamw(inputs)


def milliseconds(run: Run, wait: Callable[[], None], budget: float) -> dict:
    """Times of one run, as `clock.rs` takes them."""
    def of(repeats: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        return (time.perf_counter() - started) * 1e3 / repeats

    first = of(1)
    repeats = min(MOST, max(1, int(budget * 1e3 / ROUNDS / max(of(1), 1e-3))))
    times = sorted(of(repeats) for _ in range(ROUNDS))
    return dict(ms=statistics.median(times), least_ms=times[0], first_ms=first, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("device")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--only", default="", help="names begin so")
    parser.add_argument("--seconds", type=float, default=0.3)
    arguments = parser.parse_args()
    shape = TINY_OPERATIONS if arguments.tiny else OPERATIONS
    wait = torch.cuda.synchronize if arguments.device.startswith("cuda") else lambda: None
    for tokens in arguments.tokens or shape.token_counts:
        inputs = Inputs(shape, tokens, arguments.device, getattr(torch, arguments.dtype))
        for name, prepare in operations(inputs):
            if not name.startswith(arguments.only):
                continue
            dtype = "float32" if name.startswith("vectors/") else arguments.dtype
            row = dict(operation=name, dtype=dtype, tokens=tokens)
            try:
                row |= milliseconds(prepare(), wait, arguments.seconds)
            except RuntimeError as error:
                row["error"] = str(error).split("\n", 1)[0]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
