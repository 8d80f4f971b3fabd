#!/usr/bin/env python3
"""DPO with transformers and torch on the rows of `rows.py`, padded or packed. Reads a job as JSON
and prints a line of JSON for each layout.

    scripts/gpu/torch_dpo.py '{"model": DIR, "rows": FILE, "device": "cuda", "dtype": "bfloat16",
        "micro_batch": 8, "accumulation": 2, "steps": 5, "beta": 0.1, "learning_rate": 1e-6,
        "max_length": 1024, "lora_r": null, "layouts": ["padded", "packed"]}'

Both layouts compute what TRL computes: chosen and rejected sequences with their prompts, whole
logits, gradient checkpointing. The log-probs of the frozen reference come from a pass before the
steps. Full training keeps float32 master weights and moments (fused AdamW) beside the model's type.
`packed` puts the sequences of a micro-batch end to end, and attention goes from segment to segment
(torch's `varlen_attn`, or one fused call for each segment). If memory does not suffice, the
micro-batch is halved and the accumulation doubled.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AttentionInterface, AutoModelForCausalLM

SEED = 42


@dataclass(frozen=True)
class Job:
    model: str
    rows: str
    device: str
    dtype: str
    micro_batch: int
    accumulation: int
    steps: int
    beta: float
    learning_rate: float
    max_length: int
    lora_r: int | None
    layouts: list[str]

    @property
    def is_on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def halved(self) -> "Job":
        """The same steps with smaller micro-batches."""
        half = self.micro_batch // 2
        accumulation = self.accumulation * self.micro_batch // half
        return replace(self, micro_batch=half, accumulation=accumulation)


@dataclass(frozen=True)
class Sequence:
    """A prompt with one of its responses."""

    ids: list[int]
    prompt: int
    """Tokens of the prompt."""


def read_pairs(job: Job) -> list[tuple[Sequence, Sequence]]:
    """Chosen and rejected sequences, tokenized as TRL does it."""
    tokenizer = Tokenizer.from_file(f"{job.model}/tokenizer.json")
    end = tokenizer.token_to_id("</s>")
    pairs = []
    for line in Path(job.rows).open():
        row = json.loads(line)
        prompt = len(tokenizer.encode(row["prompt"]).ids)
        texts = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        ids = [(tokenizer.encode(text).ids + [end])[:job.max_length] for text in texts]
        pairs.append(tuple(Sequence(of, prompt) for of in ids))
    return pairs


class Segments:
    """Attention of transformers over sequences that lie end to end in one row."""

    NAME = "segments"

    def __init__(self, device: str):
        self.ends: list[int] = [0]
        self.kernel = self.choose(device)

    def set(self, lengths: list[int], device: str) -> None:
        self.ends = [0]
        for length in lengths:
            self.ends.append(self.ends[-1] + length)
        self.longest = max(lengths)
        self.cumulative = torch.tensor(self.ends, dtype=torch.int32, device=device)

    def choose(self, device: str) -> str:
        """`varlen` if torch has it for this device, else `loop`."""
        self.set([3, 2], device)
        try:
            q = torch.zeros(5, 4, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
            self.varlen(q, q, q, None).sum().backward()
            return "varlen"
        except Exception:  # the reasons differ with torch's version and the device
            return "loop"

    def varlen(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
               scale: float | None) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        where = (self.cumulative, self.cumulative, self.longest, self.longest)
        return varlen_attn(q, k, v, *where, scale=scale, window_size=(-1, 0))

    def loop(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
             scale: float | None) -> torch.Tensor:
        parts = []
        for start, end in zip(self.ends, self.ends[1:]):
            q_part, k_part, v_part = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(q_part, k_part, v_part, is_causal=True,
                                                 scale=scale)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    def __call__(self, module, query, key, value, mask, scaling=None, dropout=0.0, **_):
        """Queries `[1, heads, tokens, e]`, keys and values with fewer heads."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        repeat = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeat, dim=1) for x in (k, v))
        out = (self.varlen if self.kernel == "varlen" else self.loop)(q, k, v, scaling)
        return out[None], None


def log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probs of the next tokens, one sequence at a time in float32."""
    def of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, ids[:, None])[:, 0].float() - logits.float().logsumexp(dim=1)

    return torch.stack([of(*row) for row in zip(logits, ids)])


def padded_log_probs(model, sequences: list[Sequence], job: Job) -> torch.Tensor:
    """The log-prob of each response, `[sequences]`, from rows that are padded to the longest."""
    longest = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    scored = torch.zeros(len(sequences), longest)
    for row, sequence in enumerate(sequences):
        end = len(sequence.ids)
        ids[row, :end] = torch.tensor(sequence.ids)
        mask[row, :end] = 1
        scored[row, sequence.prompt:end] = 1
    ids, mask, scored = (x.to(job.device) for x in (ids, mask, scored))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return (log_probs(logits[:, :-1], ids[:, 1:]) * scored[:, 1:]).sum(dim=1)


def packed_log_probs(model, sequences: list[Sequence], job: Job,
                     segments: Segments) -> torch.Tensor:
    """The log-prob of each response, `[sequences]`, from sequences that lie end to end."""
    lengths = [len(sequence.ids) for sequence in sequences]
    segments.set(lengths, job.device)
    ids = torch.tensor([id for sequence in sequences for id in sequence.ids], device=job.device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(job.device)
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
    sums = []
    for start, length, sequence in zip(segments.ends, lengths, sequences):
        # The token before each response token predicts it.
        part = slice(start + sequence.prompt - 1, start + length - 1)
        targets = ids[start + sequence.prompt:start + length]
        sums.append(log_probs(logits[None, part], targets[None]).sum())
    return torch.stack(sums)


class Master:
    """AdamW on float32 copies of weights in a shorter type, one tensor at a time."""

    def __init__(self, parameters: list[torch.Tensor], job: Job):
        self.parameters = parameters
        self.copies = [p.detach().float().clone() for p in parameters]
        self.optimizers = [torch.optim.AdamW([copy], lr=job.learning_rate, weight_decay=0.0,
                                             fused=job.is_on_gpu) for copy in self.copies]

    @torch.no_grad()
    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for parameter, copy, optimizer in zip(self.parameters, self.copies, self.optimizers):
            copy.grad, parameter.grad = parameter.grad.float(), None
            optimizer.step()
            copy.grad = None
            parameter.copy_(copy)


def prepare(job: Job):
    """The model, and the parameters that are trained."""
    dtype = getattr(torch, job.dtype)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, attn_implementation="sdpa")
    model.to(job.device).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if job.lora_r:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(
            r=job.lora_r, lora_alpha=job.lora_r, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    return model, [p for p in model.parameters() if p.requires_grad]


def train(model, parameters: list[torch.Tensor], pairs: list, job: Job,
          responses: Callable[[list[Sequence]], torch.Tensor]) -> dict:
    """The reference pass and all steps."""
    wait = torch.cuda.synchronize if job.is_on_gpu else lambda: None
    batches = [pairs[i:i + job.micro_batch] for i in range(0, len(pairs), job.micro_batch)]
    batches = [[row[side] for side in (0, 1) for row in batch] for batch in batches]

    def timed(f: Callable[[], object]) -> tuple[float, object]:
        wait()
        started = time.perf_counter()
        result = f()
        wait()
        return time.perf_counter() - started, result

    def reference() -> list[torch.Tensor]:
        frozen = model.disable_adapter() if job.lora_r else contextlib.nullcontext()
        with torch.no_grad(), frozen:
            return [responses(batch) for batch in batches]

    reference_seconds, references = timed(reference)
    optimizer = Master(parameters, job)

    def step(first: int) -> list[float]:
        losses, chosen_log_probs = [], []
        for index in range(first, first + job.accumulation):
            policy = responses(batches[index])
            chosen, rejected = (policy - references[index]).chunk(2)
            loss = -F.logsigmoid(job.beta * (chosen - rejected)).mean() / job.accumulation
            loss.backward()
            losses.append(loss.detach())
            chosen_log_probs.append(policy.detach().chunk(2)[0].mean() / job.accumulation)
        optimizer.step()
        return [torch.stack(values).sum().item() for values in (losses, chosen_log_probs)]

    steps = [timed(lambda: step(i)) for i in range(0, len(batches), job.accumulation)]
    return dict(
        reference_seconds=reference_seconds, step_seconds=[seconds for seconds, _ in steps],
        losses=[values[0] for _, values in steps], logps_chosen=[values[1] for _, values in steps])


def restart(model, job: Job) -> None:
    """Adapters begin as nothing again, and the peak of the memory is forgotten."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    if job.is_on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_layout(layout: str, model, parameters: list, pairs: list, job: Job,
               segments: Segments) -> dict:
    """One layout, with smaller micro-batches if memory does not suffice."""
    base = model.get_base_model() if job.lora_r else model
    base.set_attn_implementation("sdpa" if layout == "padded" else Segments.NAME)
    while True:
        def responses(sequences: list[Sequence], job: Job = job) -> torch.Tensor:
            if layout == "padded":
                return padded_log_probs(model, sequences, job)
            return packed_log_probs(model, sequences, job, segments)

        restart(model, job)
        try:
            measured = train(model, parameters, pairs, job, responses)
        except torch.OutOfMemoryError:
            if job.micro_batch == 1:
                return dict(layout=layout, error="out of memory with one pair at a time")
            model.zero_grad(set_to_none=True)
            job = job.halved()
            continue
        peak = torch.cuda.max_memory_reserved() if job.is_on_gpu else (
            1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        kernel = "sdpa" if layout == "padded" else segments.kernel
        made = dict(layout=layout, micro_batch=job.micro_batch, attention=kernel, peak=peak)
        return made | measured


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    torch.manual_seed(SEED)
    segments = Segments(job.device)
    AttentionInterface.register(Segments.NAME, segments)
    pairs = read_pairs(job)[:job.steps * job.micro_batch * job.accumulation]
    started = time.perf_counter()
    model, parameters = prepare(job)
    print(json.dumps(dict(layout="load", seconds=time.perf_counter() - started)), flush=True)
    for layout in job.layouts:
        print(json.dumps(run_layout(layout, model, parameters, pairs, job, segments)), flush=True)


if __name__ == "__main__":
    main()
