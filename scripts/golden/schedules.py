"""Learning rates of transformers' schedules.

usage: schedules.py OUT.json

Each case is a schedule with its entries, warm-up steps and total steps. Its rates are those of the
optimizer before each step. `reduce_lr_on_plateau` takes a step after each evaluation; its rates are
those after each value of `evaluations`.
"""
import json
import sys

import torch
from transformers import get_scheduler

PEAK, WARMUP, TOTAL = 3e-4, 7, 40
EVALUATIONS = [1.0, 0.9, 0.9, 0.8999, 0.91, 0.85, 0.86, 0.87, 0.88, 0.7, 0.71, 0.72, 0.73, 0.74, 0.75]
CASES = [
    ("linear", {}),
    ("cosine", dict(num_cycles=1.5)),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", dict(num_cycles=3)),
    ("polynomial", {}),
    ("polynomial", dict(lr_end=1e-5, power=2.0)),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", dict(timescale=20)),
    ("cosine_with_min_lr", dict(min_lr=1e-5)),
    ("cosine_with_min_lr", dict(min_lr_rate=0.2, num_cycles=1.0)),
    ("cosine_warmup_with_min_lr", dict(min_lr=1e-5)),
    ("cosine_warmup_with_min_lr", dict(min_lr_rate=0.1, warmup_lr_rate=0.3)),
    ("warmup_stable_decay", dict(num_decay_steps=12)),
    ("warmup_stable_decay", dict(num_decay_steps=10, num_stable_steps=15, warmup_type="cosine", decay_type="1-sqrt",
                                 min_lr_ratio=0.1)),
    ("warmup_stable_decay", dict(num_decay_steps=10, warmup_type="1-sqrt", decay_type="linear")),
    ("warmup_stable_decay", dict(num_decay_steps=38, min_lr_ratio=0.05, num_cycles=1.0)),
]
PLATEAUS = [
    dict(patience=1),
    dict(patience=0, cooldown=1, factor=0.5),
    dict(patience=1, threshold=0.05, threshold_mode="abs", min_lr=1e-5),
    dict(mode="max", patience=2, threshold=0.1, factor=0.3),
    {},
]


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def rates(name, entries):
    steps = optimizer()
    schedule = get_scheduler(name, steps, WARMUP, TOTAL, entries)
    found = []
    for _ in range(TOTAL):
        found.append(steps.param_groups[0]["lr"])
        steps.step()
        schedule.step()
    return found


def after_evaluations(entries):
    steps = optimizer()
    schedule = get_scheduler("reduce_lr_on_plateau", steps, scheduler_specific_kwargs=entries)
    found = []
    for value in EVALUATIONS:
        schedule.step(value)
        found.append(steps.param_groups[0]["lr"])
    return found


def main():
    cases = [dict(schedule=name, kwargs=entries, rates=rates(name, entries)) for name, entries in CASES]
    plateaus = [dict(kwargs=entries, rates=after_evaluations(entries)) for entries in PLATEAUS]
    whole = dict(peak=PEAK, warmup=WARMUP, total=TOTAL, cases=cases, evaluations=EVALUATIONS, plateaus=plateaus)
    with open(sys.argv[1], "w") as out:
        json.dump(whole, out, separators=(",", ":"))


main()
