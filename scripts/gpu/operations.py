"""Each operation of the decoder against torch's, on the same shapes."""

import json
from collections.abc import Iterator

from context import Context
from results import Row
from work import is_shared, operation_work

# Shares of the part's time.
OURS = 0.6


def json_lines(text: str) -> list[dict]:
    """The objects in an output. Other text may come before an object in its line."""
    rows = []
    for line in text.splitlines():
        start = line.find("{")
        if start >= 0:
            try:
                rows.append(json.loads(line[start:]))
            except json.JSONDecodeError:
                continue
    return rows


def settings(context: Context) -> list[tuple[str, tuple[int, ...]]]:
    """Types and token counts: bfloat16 at all counts, float32 at the first."""
    counts = context.operations.token_counts
    if context.is_rehearsal:
        return [("bfloat16", counts[:1]), ("float32", counts[:1])]
    return [("bfloat16", counts), ("float32", counts[:1])]


def measure(context: Context) -> tuple[dict, dict, list[str]]:
    """Times of both sides by operation, type and tokens, and what went wrong."""
    tiny = ["--tiny"] if context.is_rehearsal else []
    seconds = "0.02" if context.is_rehearsal else "0.15"
    sides: list[dict] = [{}, {}]
    trouble = []
    for dtype, counts in settings(context):
        options = [*tiny, "--seconds", seconds, "--dtype", dtype]
        arguments = [context.device, *options, "--tokens", ",".join(map(str, counts))]
        half = context.left() * (OURS if dtype == "bfloat16" else 0.5)
        own = context.run(
            [context.programs / "kernels", "times_of_operations", "--exact", "--ignored",
             "--nocapture", "--test-threads=1"], half, FAVONIUS_MEASURE=" ".join(arguments))
        peer = context.python("gpu/torch_operations.py", context.torch_device, *options, "--tokens",
                              *map(str, counts), most=context.left())
        for side, finished in zip(sides, (own, peer)):
            trouble += [finished.trouble(2)] if finished.code else []
            for row in json_lines(finished.text):
                side[row["operation"], row["dtype"], row["tokens"]] = row
    return *sides, trouble


def row_of(context: Context, key: tuple[str, str, int], own: dict, peer: dict) -> Row:
    name, dtype, tokens = key
    row = Row(f"{name}, {dtype}, {tokens} tokens", unit="ms")
    flops, moved = operation_work(name, context.operations, tokens, 2 if dtype == "bfloat16" else 4)
    row.ours, row.torch = own.get("ms"), peer.get("ms")
    if row.ours and row.torch:
        row.faster = row.torch / row.ours
    limits = context.machine.limits
    if limits:
        least_ms = 1e3 * max(flops / limits.of(dtype), moved / limits.bandwidth)
        row.share = least_ms / row.ours if row.ours else None
        row.torch_share = least_ms / row.torch if row.torch else None
    rate = f"{flops / row.ours / 1e9:,.1f} TFLOP/s" if flops and row.ours else (
        f"{moved / row.ours / 1e6:,.0f} GB/s" if row.ours else "")
    notes = [rate, "torch computes each prompt twice" if is_shared(name) and peer else "",
             f"failed: {own['error']}" if "error" in own else "",
             f"torch failed: {peer['error']}" if "error" in peer else ""]
    row.note = "; ".join(note for note in notes if note)
    if name == "product/gate_proj/forward" and dtype == "bfloat16" and row.faster:
        row.goal, row.is_met = "≥ 0.7 × torch", row.faster >= 0.7
    return row


def operations(context: Context) -> Iterator[Row]:
    ours, torch, trouble = measure(context)
    for key in ours | torch:
        yield row_of(context, key, ours.get(key, {}), torch.get(key, {}))
    if trouble:
        raise RuntimeError("; ".join(trouble))
