"""Loading, checkpoint and resume of a model with a few layers on the device."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from context import Context
from process import Finished
from results import Row
from training import events, model_folder, recipe_of, write_recipe

# Layers of the model: a checkpoint has 14 bytes of each weight.
LAYERS = 4
STEPS = 4
SAVED = 2


def losses(out: Path) -> list[float]:
    return [event["train/loss"] for event in events(out) if "train/loss" in event]


def folder_bytes(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def time_of(log: list[dict], kind: str) -> float:
    """The time of the first event of a kind; a step is of the kind `log`."""
    return next(event["time"] for event in log if event["event"] == kind)


def checked(finished: Finished) -> Finished:
    if finished.code:
        raise RuntimeError(finished.trouble())
    return finished


def checkpoint(context: Context) -> Iterator[Row]:
    """A run of four steps, and the same run that ends after two and continues."""
    layers = min(LAYERS, context.training.config["num_hidden_layers"])
    model = model_folder(context, layers)
    shape = dict(per_device_train_batch_size=1, gradient_accumulation_steps=1, save_steps=SAVED,
                 save_strategy="steps", max_train_samples=STEPS)
    whole = write_recipe(context, "whole", recipe_of(context, model, max_steps=STEPS, **shape))
    first = checked(context.favonius("dpo", whole, "--quiet"))
    expected, log = losses(whole.with_suffix("")), events(whole.with_suffix(""))
    size = folder_bytes(whole.with_suffix("") / f"checkpoint-{SAVED}")
    second = next(i for i, event in enumerate(log) if event.get("step") == SAVED)
    saving = time_of(log[second:], "saved") - log[second]["time"]
    weights = folder_bytes(model)
    yield Row(f"{layers} layers: start to the first step", "s",
              first.seconds - (time_of(log[::-1], "end") - time_of(log, "log")),
              note=f"{weights / 1e9:.1f} GB of weights, with hashing, reference pass and compiling")
    yield Row("writing a checkpoint", "GB/s", size / 1e9 / max(saving, 1e-9),
              note=f"{size / 1e9:.2f} GB in {saving:.1f} s")
    shutil.rmtree(whole.with_suffix(""))

    recipe = recipe_of(context, model, max_steps=SAVED, **shape)
    part = write_recipe(context, "part", recipe)
    checked(context.favonius("dpo", part, "--quiet"))
    resumed = checked(context.favonius("dpo", part, "--quiet", f"--max_steps={STEPS}"))
    ours = losses(part.with_suffix(""))
    yield Row("losses after resuming", ours=ours[-1], torch=None, goal="the same bits",
              is_met=ours == expected, note=f"{ours} for {expected}" if ours != expected else "")
    yield Row("the resumed run, from its start to its end", "s", resumed.seconds)
    shutil.rmtree(part.with_suffix(""))
