"""One run of TRL for the benchmark. Reads a job as JSON and prints its measurements as JSON, in the
last line of its output.

usage: peer.py '{"kind": "train", "model": DIR, "train": FILE.parquet, "columns": […], "rows": N,
                 "threads": N, "out": DIR, "config": {…}}'

`config` holds fields of DPOConfig or SFTConfig, and the recipe's keys of LoRA. With LoRA, both
programs start from the same adapter, and the model without it is the reference. Rows keep their order, dropout is off, and
everything is computed in float32 on the CPU. The other kinds: `prepare` measures the preparation of
an SFT data set, `start` the time from `began` to the first step of SFT, and `sgemm` the faster
matrix product of torch's and numpy's.
"""
import json
import os
import sys
import time

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../golden"))
from adapters import lora_config, set_initial_values  # noqa: E402

SEED = 42


class Clock(TrainerCallback):
    def __init__(self):
        self.steps = []
        self.first = None

    def on_step_begin(self, *_, **__):
        self.first = self.first or time.time()
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.steps.append(time.perf_counter() - self.began)


def tokenizer(folder):
    """The tokenizer exactly as tokenizer.json defines it. LlamaTokenizer of transformers 5 would
    replace its normalizer."""
    with open(f"{folder}/tokenizer_config.json") as file:
        config = json.load(file)
    special = {key: value["content"] if isinstance(value, dict) else value for key, value in config.items()
               if key.endswith("_token") and value and not isinstance(value, bool)}
    made = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", clean_up_tokenization_spaces=False, **special)
    made.chat_template = config.get("chat_template")
    if made.pad_token is None:
        made.pad_token = made.eos_token
    return made


def train(job):
    is_dpo = job["columns"] == ["chosen", "rejected"]
    data = load_dataset("parquet", data_files=job["train"], split="train").select_columns(job["columns"])
    data = data.select(range(min(job["rows"], len(data))))
    lora = lora_config(job["config"])
    config = (DPOConfig if is_dpo else SFTConfig)(
        output_dir=job["out"], report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1,
        train_sampling_strategy="sequential", seed=SEED, **job["config"])

    def load():
        return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)

    clock = Clock()
    more = dict(peft_config=lora) if lora else dict(ref_model=load()) if is_dpo else {}
    trainer = (DPOTrainer if is_dpo else SFTTrainer)(
        model=load(), args=config, processing_class=tokenizer(job["model"]), train_dataset=data, callbacks=[clock], **more)
    if lora:
        set_initial_values(trainer.model, SEED)
    trainer.train()
    return dict(step_seconds=clock.steps, losses=[row["loss"] for row in trainer.state.log_history if "loss" in row])


def sft_trainer(job, model, **more):
    data = load_dataset("parquet", data_files=job["train"], split="train").select_columns(["messages"])
    config = SFTConfig(output_dir=job["out"], report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, **job["config"])
    return SFTTrainer(model=model, args=config, processing_class=tokenizer(job["model"]), train_dataset=data, **more)


def prepare(job):
    """Times reading, the chat template and tokenization. Loading the model is not timed."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    began = time.perf_counter()
    sft_trainer(job, model)
    return dict(seconds=time.perf_counter() - began)


def start(job):
    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    sft_trainer(job, model, callbacks=[clock]).train()
    return dict(seconds=clock.first - job["began"])


def sgemm(_):
    """The highest FLOP/s of both libraries over several sizes and attempts."""
    best = 0.0
    for size in (1024, 2048, 4096):
        tensors = torch.randn(2, size, size)
        for a, b in (tensors, tensors.numpy()):
            for _ in range(6):
                began = time.perf_counter()
                a @ b
                best = max(best, 2 * size ** 3 / (time.perf_counter() - began))
    return dict(flops=best)


def main():
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    kinds = dict(train=train, prepare=prepare, start=start, sgemm=sgemm)
    print(json.dumps(kinds[job["kind"]](job)))


if __name__ == "__main__":
    main()
