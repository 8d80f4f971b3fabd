"""DPO of a random 7B model against transformers: full training with as many layers as fit, and LoRA
on all layers."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import rows
from context import Context
from operations import json_lines
from results import Row
from work import pair_lengths, training_flops

BETA, LEARNING_RATE = 0.1, 1e-6
DTYPE = "bfloat16"
# The share of the GPU's memory that a run may take by its plan.
FILLED = 0.9
# The share of the layers that is tried after the plan was wrong.
FEWER = 0.6
UNITS = {"MB": 1e6, "GB": 1e9}
REFERENCE = re.compile(r"reference log-probs \(train\): (\d+) pairs in ([\d.]+) s")


@dataclass
class Measured:
    """The times of one program."""

    step_seconds: list[float] = field(default_factory=list)
    """All steps but the first, which compiles kernels and allocates."""
    reference_seconds: float | None = None
    """The reference pass over all pairs."""
    peak: float | None = None
    """Bytes of the GPU's memory."""
    logps: float | None = None
    """Mean log-prob of the chosen responses in the first step."""
    note: str = ""

    @property
    def step(self) -> float | None:
        return mean(self.step_seconds) if self.step_seconds else None


class NoStep(RuntimeError):
    """A run ended before two steps."""


def model_folder(context: Context, layers: int) -> Path:
    """The model with this many layers. Only one is on the disk at a time."""
    folder = context.work / f"model-{layers}"
    if not folder.exists():
        for other in context.work.glob("model-*"):
            shutil.rmtree(other)
        config = context.training.config | {"num_hidden_layers": layers}
        rows.make_model(folder, context.assets / context.training.tokenizer, config)
    return folder


def rows_file(context: Context) -> Path:
    file = context.work / "rows/train.jsonl"
    if not file.exists():
        rows.write_pairs(file.parent, context.assets / context.training.tokenizer, context.training)
    return file


def recipe_of(context: Context, model: Path, **more) -> dict:
    """The recipe of a run over all rows."""
    shape = context.training
    return {
        "model_name_or_path": str(model), "dataset_name": str(rows_file(context).parent),
        "dataset_train_split": "train", "dtype": DTYPE, "bf16": True,
        "device": context.device,
        "max_length": shape.max_length, "per_device_train_batch_size": shape.micro_batch,
        "gradient_accumulation_steps": shape.accumulation, "max_steps": shape.steps,
        "gradient_checkpointing": True, "train_sampling_strategy": "sequential", "beta": BETA,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "optim": "adamw_torch",
        "logging_steps": 1, "report_to": "jsonl", "eval_strategy": "no", "save_strategy": "no",
    } | more


def lora_keys(context: Context) -> dict:
    r = context.training.lora_r
    return dict(use_peft=True, lora_r=r, lora_alpha=r, lora_dropout=0.0,
                lora_target_modules="all-linear")


def write_recipe(context: Context, name: str, recipe: dict) -> Path:
    """Writes the recipe. Returns its file. The run's folder has its name without the suffix."""
    file = context.work / f"{name}.yaml"
    out = file.with_suffix("")
    shutil.rmtree(out, ignore_errors=True)
    file.write_text(json.dumps(recipe | {"output_dir": str(out)}))  # JSON is YAML
    return file


def planned_peak(context: Context, recipe: Path) -> float:
    """The peak that `favonius plan` predicts, in bytes."""
    finished = context.favonius("plan", recipe, "--stage", "dpo")
    found = re.search(r"\n  peak\s+([\d.]+) (MB|GB)", finished.text)
    if not found:
        raise RuntimeError(f"no peak in the plan: {finished.trouble()}")
    return float(found[1]) * UNITS[found[2]]


def layers_that_fit(context: Context) -> tuple[int, float]:
    """The most layers whose full training fits the GPU by the plan, and the plan's peak. The plan
    needs no weights."""
    most = context.training.config["num_hidden_layers"]
    folder = context.work / "outline"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(context.assets / context.training.tokenizer, folder)

    def peak(layers: int) -> float:
        config = context.training.config | {"num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config))
        recipe = write_recipe(context, "outline-run", recipe_of(context, folder))
        return planned_peak(context, recipe)

    one, two = peak(1), peak(2)
    room = FILLED * (context.machine.memory or float("inf"))
    fits = min(most, int((room - one) / (two - one)) + 1 if room < float("inf") else most)
    if fits < 1:
        raise RuntimeError(f"one layer takes {one / 1e9:.0f} GB, and {room / 1e9:.0f} GB are free")
    return fits, peak(fits)


def events(out: Path) -> list[dict]:
    file = out / "metrics.jsonl"
    return json_lines(file.read_text()) if file.exists() else []


def train(context: Context, recipe: Path, most: float) -> Measured:
    """Runs Favonius. Steps that ended before a limit or a failure count."""
    # A cache of its own, so that every run computes its reference log-probs.
    cache = str(recipe.with_suffix(".cache"))
    finished = context.favonius("dpo", recipe, "--quiet", most=most, FAVONIUS_CACHE=cache)
    logged = [event for event in events(recipe.with_suffix("")) if "train/loss" in event]
    times = [event["time"] for event in logged]
    measured = Measured(peak=finished.peak or None, note=finished.trouble(3))
    measured.step_seconds = [after - before for before, after in zip(times, times[1:])]
    measured.logps = logged[0].get("train/logps/chosen") if logged else None
    if found := REFERENCE.search(finished.text):
        measured.reference_seconds = float(found[2])
    return measured


def train_torch(context: Context, model: Path, lora_r: int | None) -> dict[str, Measured]:
    """Runs the peer in both layouts."""
    shape = context.training
    job = dict(
        model=str(model), rows=str(rows_file(context)), device=context.torch_device,
        dtype=DTYPE, micro_batch=shape.micro_batch, accumulation=shape.accumulation,
        steps=shape.steps, beta=BETA, learning_rate=LEARNING_RATE, max_length=shape.max_length,
        lora_r=lora_r, layouts=["padded", "packed"])
    finished = context.python("gpu/torch_dpo.py", json.dumps(job))
    by_layout = {layout: Measured(note=finished.trouble(2)) for layout in job["layouts"]}
    for row in json_lines(finished.text):
        if row["layout"] not in by_layout:
            continue
        if "error" in row:
            by_layout[row["layout"]] = Measured(note=row["error"])
            continue
        by_layout[row["layout"]] = Measured(
            row["step_seconds"][1:], row["reference_seconds"], row["peak"] or None,
            row["logps_chosen"][0],
            f"{row['micro_batch']} pairs of a micro-batch, attention by {row['attention']}")
    return by_layout


def utilization(context: Context, measured: Measured, layers: int, *, is_shared: bool,
                is_lora: bool) -> float | None:
    """Model FLOPs utilization of the measured steps."""
    limits = context.machine.limits
    if limits is None or measured.step is None:
        return None
    count = context.training.pairs_a_step
    lengths = pair_lengths(rows_file(context))[count:count * (1 + len(measured.step_seconds))]
    flops = training_flops(context.training.config, layers, lengths, is_shared_prompt=is_shared,
                           trains_base=not is_lora)
    return flops / sum(measured.step_seconds) / limits.of(DTYPE)


def tokens_a_second(context: Context, measured: Measured) -> float | None:
    """Tokens of the rows a second: a prompt counts for each of its responses, as in TRL."""
    if measured.step is None:
        return None
    lengths = pair_lengths(rows_file(context))
    tokens = mean(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths)
    return context.training.pairs_a_step * tokens / measured.step


def against(what: str, unit: str, ours: float | None, torch: float | None, *,
            is_speed: bool = True) -> Row:
    """A row with the ratio of both numbers: above 1 Favonius is faster, or needs less."""
    row = Row(what, unit, ours, torch)
    if ours and torch:
        row.faster = ours / torch if is_speed else torch / ours
    return row


def speed_rows(context: Context, what: str, ours: Measured, torch: dict[str, Measured], layers: int,
               is_lora: bool) -> Iterator[Row]:
    pairs = context.training.pairs_a_step
    speed = pairs / ours.step if ours.step else None
    own_share = utilization(context, ours, layers, is_shared=True, is_lora=is_lora)
    for layout, measured in torch.items():
        peer = pairs / measured.step if measured.step else None
        row = against(f"{what}: steps, against {layout} torch", "pairs/s", speed, peer)
        row.share = own_share
        row.torch_share = utilization(context, measured, layers, is_shared=False, is_lora=is_lora)
        if layout == "padded" and row.faster and context.machine.limits:
            row.goal, row.is_met = "≥ 3 ×", row.faster >= 3
        notes = [("", ours.note), ("torch: ", measured.note)]
        row.note = "; ".join(f"{side}{note}" for side, note in notes if note)
        yield row
        yield against(f"{what}: tokens of the rows, against {layout} torch", "tokens/s",
                      tokens_a_second(context, ours), tokens_a_second(context, measured))
        count = context.training.pairs
        pass_of = f"{what}: reference pass of {count} pairs, against {layout} torch"
        row = against(pass_of, "s", ours.reference_seconds, measured.reference_seconds,
                      is_speed=False)
        row.note = "with the time to compile kernels"
        yield row
    if own_share is not None:
        row = Row(f"{what}: model FLOPs utilization", "%", 100 * own_share)
        if not is_lora:
            row.goal, row.is_met = "≥ 35 %", own_share >= 0.35
        yield row


def memory_rows(context: Context, what: str, ours: Measured, torch: dict[str, Measured],
                planned: float) -> Iterator[Row]:
    own = ours.peak / 1e9 if ours.peak else None
    for layout, measured in torch.items():
        peer = measured.peak / 1e9 if measured.peak else None
        yield against(f"{what}: peak memory, against {layout} torch", "GB", own, peer,
                      is_speed=False)
    row = Row(f"{what}: peak memory by `favonius plan`", "GB", planned / 1e9, goal="within 10 %")
    if ours.peak:
        # Without a GPU the program itself is most of the memory.
        row.is_met = None if context.is_rehearsal else abs(planned / ours.peak - 1) <= 0.1
        row.note = f"{planned / ours.peak - 1:+.1%} from the measured peak"
    yield row


def agreement_row(what: str, ours: Measured, torch: dict[str, Measured]) -> Row:
    """Whether both programs compute the same log-probs of chosen responses in the first step."""
    theirs = torch["padded"].logps
    row = Row(f"{what}: log-probs of the chosen responses, first step", "nats", ours.logps, theirs,
              goal="within 1 %")
    if ours.logps is not None and theirs:
        row.is_met = abs(ours.logps / theirs - 1) <= 0.01
        row.note = f"{ours.logps / theirs - 1:+.2%}"
    return row


def compare(context: Context, what: str, name: str, layers: int, *, is_lora: bool) -> Iterator[Row]:
    """One kind of training against the peer. Without a step of Favonius, full training ends before
    the peer runs."""
    what = f"{what}, {layers} layers"
    model = model_folder(context, layers)
    keys = lora_keys(context) if is_lora else {}
    recipe = write_recipe(context, name, recipe_of(context, model, **keys))
    planned = planned_peak(context, recipe)
    ours = train(context, recipe, most=context.left() * 0.6)
    shutil.rmtree(recipe.with_suffix(""), ignore_errors=True)
    if not ours.step_seconds and not is_lora:
        raise NoStep(f"{layers} layers: {ours.note}")
    torch = train_torch(context, model, context.training.lora_r if is_lora else None)
    yield from speed_rows(context, what, ours, torch, layers, is_lora)
    yield from memory_rows(context, what, ours, torch, planned)
    yield agreement_row(what, ours, torch)
    if not ours.step_seconds:
        raise NoStep(f"no step was measured: {ours.note}")


def lora(context: Context) -> Iterator[Row]:
    """LoRA on all layers."""
    layers = context.training.config["num_hidden_layers"]
    yield from compare(context, f"LoRA r {context.training.lora_r}", "lora", layers, is_lora=True)


def full(context: Context) -> Iterator[Row]:
    """Full training of as many layers as fit by the plan; if they do not, of fewer."""
    layers, planned = layers_that_fit(context)
    yield Row("layers whose full training fits by the plan", ours=layers,
              note=f"the plan's peak: {planned / 1e9:.1f} GB")
    try:
        yield from compare(context, "full training", "full", layers, is_lora=False)
    except NoStep as failure:
        fewer = int(layers * FEWER)
        if fewer < 1:
            raise
        yield Row(f"full training, {layers} layers", goal="runs", is_met=False, note=str(failure))
        yield from compare(context, "full training", "full", fewer, is_lora=False)
