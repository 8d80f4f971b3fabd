"""Golden runs of TRL on the CPU, float32, rows in their order: what tests/golden_trl.rs compares with.

usage: trl_runs.py --out DIR [--assets DIR] [--attention sdpa|eager] [--threads N] [NAME ...]

DIR receives trl_NAME.json for each run of RUNS (or for those named). A golden file holds
    recipe       the keys that drive both programs; the files and counts of rows are in `rows`
    instead      keys that TRL was given in place of the recipe's, where TRL's own mean something else
    model        stories260k or random_mistral (by the formula of random_mistral.py), with `model_config` changed
    first_rows   the token ids of the first rows after truncation and packing; `rows.packed_lengths` has the documents' lengths
                 in every packed row
    log          trainer.state.log_history without times, in TRL's order of keys; floats with 9 digits
    torch_grad_norms  the norms of the gradients as torch's own clipping has them, see ExactNorm
    weights      of each tensor the norm after training, the norm of how far it moved, and both at 8 places:
                 (2 i + 1) * size // 16 for i = 0..7
Another attention or number of threads gives the same numbers up to rounding: that is how well they are determined.
"""
import argparse
import glob
import json
import os
import tempfile

import torch
import transformers
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from random_mistral import assets_argument, random_mistral

FILES = {
    "dpo": ("data/ultrafeedback_binarized_like/data/{}_prefs-*.parquet", ["chosen", "rejected"]),
    "sft": ("data/ultrachat_200k_like/data/{}_sft-*.parquet", ["messages"]),
}
ASSISTANT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ALWAYS = dict(logging_steps=1, seed=42, train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False,
              optim="adamw_torch", gradient_accumulation_steps=1, weight_decay=0.0)
DPO = ALWAYS | dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=5e-4,
                    lr_scheduler_type="linear", warmup_steps=3, beta=0.1, max_length=384, max_grad_norm=1.0, max_steps=30)
SFT = ALWAYS | dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-3,
                    lr_scheduler_type="cosine", warmup_steps=3, max_length=384, max_grad_norm=1.0, max_steps=30)
EVAL = dict(eval_strategy="steps", eval_steps=10)
SHORT = dict(max_steps=8, warmup_steps=2)
MISTRAL = dict(max_length=256, per_device_train_batch_size=2, learning_rate=1e-4)
PACKED = dict(packing=True, per_device_train_batch_size=2)
# Two epochs whose last batch and last accumulation window are short; the number of steps follows from the rows.
EPOCHS = dict(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, warmup_steps=0.1, eval_strategy="epoch")
# name: (kind, model, recipe keys)
RUNS = {
    "dpo_stories": ("dpo", "stories260k", DPO | EVAL | dict(weight_decay=0.01)),
    "dpo_mistral": ("dpo", "random_mistral", DPO | EVAL | MISTRAL | dict(gradient_accumulation_steps=2)),
    "sft_stories": ("sft", "stories260k", SFT | EVAL | dict(gradient_accumulation_steps=2, weight_decay=0.01)),
    "sft_mistral": ("sft", "random_mistral", SFT | EVAL | MISTRAL | dict(lr_scheduler_type="linear")),
    "dpo_label_smoothing": ("dpo", "stories260k", DPO | SHORT | dict(label_smoothing=0.1)),
    "dpo_hinge": ("dpo", "stories260k", DPO | SHORT | dict(loss_type="hinge")),
    "dpo_ipo": ("dpo", "stories260k", DPO | SHORT | dict(loss_type="ipo", learning_rate=1e-4)),
    "dpo_rmsprop": ("dpo", "stories260k", DPO | SHORT | dict(optim="rmsprop", learning_rate=1e-5)),
    "dpo_no_clipping": ("dpo", "stories260k", DPO | SHORT | dict(max_grad_norm=0.0, lr_scheduler_type="constant", warmup_steps=0,
                                                                 learning_rate=1e-4, adam_beta2=0.95, beta=0.05)),
    "dpo_epochs": ("dpo", "stories260k", DPO | EPOCHS),
    "dpo_logged_by_3": ("dpo", "stories260k", DPO | SHORT | dict(logging_steps=3, gradient_accumulation_steps=2,
                                                                 per_device_train_batch_size=2)),
    "sft_bfd": ("sft", "random_mistral", SFT | SHORT | PACKED | dict(packing_strategy="bfd", learning_rate=3e-4)),
    "sft_wrapped": ("sft", "stories260k", SFT | SHORT | PACKED | dict(packing_strategy="wrapped",
                                                                      lr_scheduler_type="inverse_sqrt")),
    "sft_assistant_only": ("sft", "stories260k", SFT | SHORT | dict(assistant_only_loss=True, chat_template=ASSISTANT_TEMPLATE,
                                                                    lr_scheduler_type="constant_with_warmup")),
    "sft_min_lr": ("sft", "stories260k", SFT | SHORT | dict(lr_scheduler_type="cosine_with_min_lr",
                                                            lr_scheduler_kwargs=dict(min_lr_rate=0.1))),
    "sft_rmsprop": ("sft", "stories260k", SFT | SHORT | dict(optim="rmsprop", learning_rate=1e-4, weight_decay=0.1)),
    "sft_adamw": ("sft", "stories260k", SFT | SHORT | dict(adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, weight_decay=0.1)),
    "sft_epochs": ("sft", "stories260k", SFT | EPOCHS),
    "sft_window": ("sft", "random_mistral", SFT | SHORT | MISTRAL),
}
MODEL_CONFIG = {"sft_window": dict(sliding_window=64)}
# TRL reads `label_smoothing` in `robust`, not in `sigmoid`. Conservative DPO, -(1-e) l(x) - e l(-x), is `robust` with
# the smoothing -e / (1 - 2 e).
INSTEAD = {"dpo_label_smoothing": dict(loss_type="robust", label_smoothing=-0.125)}
TRAIN_ROWS = {"dpo_epochs": 34, "sft_epochs": 26, "sft_bfd": 30, "sft_wrapped": 40}
# 16 rows after TRL has dropped those whose prompt has no room. TRL's eval metrics are means of the batches' means, so a
# short last batch would weigh as much as a whole one.
EVAL_ROWS = {"dpo_stories": 17, "dpo_epochs": 17}
FIRST = 3


class ExactNorm:
    """Clips by the norm in float64, and logs that. torch sums squares in float32 on the CPU, where a tensor of 8 million values
    loses up to 5e-4 of its norm."""

    def _clip_grad_norm(self, model):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.torch_grad_norms.append(torch.nn.utils.get_total_norm(gradients).item())
        norm = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm


class Dpo(ExactNorm, DPOTrainer):
    pass


class Sft(ExactNorm, SFTTrainer):
    pass


def load_tokenizer(folder, template):
    """Exactly what tokenizer.json says: LlamaTokenizer of transformers 5 replaces its normalizer."""
    with open(os.path.join(folder, "tokenizer_config.json")) as file:
        config = json.load(file)
    special = {key: value["content"] if isinstance(value, dict) else value for key, value in config.items()
               if key.endswith("_token") and value and not isinstance(value, bool)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"),
                                        clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = template or config.get("chat_template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_rows(assets, kind, split, count):
    """The first rows of a split, and the name of its file under the assets."""
    pattern, columns = FILES[kind]
    [file] = glob.glob(os.path.join(assets, pattern.format(split)))
    data = load_dataset("parquet", data_files=file, split="train")
    return data.select(range(min(count, len(data)))).select_columns(columns), os.path.relpath(file, assets)


def digest(before, after):
    out = {}
    for name in sorted(after):
        end, start = after[name].double().flatten(), before[name].double().flatten()
        places = [(2 * i + 1) * end.numel() // 16 for i in range(8)]
        moved = end - start
        out[name] = dict(norm=end.norm().item(), moved=moved.norm().item(), values=end[places].tolist(),
                         changes=moved[places].tolist())
    return out


def short(x):
    """Floats with 9 significant digits, which tell every float32 from its neighbours."""
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, dict):
        return {key: short(value) for key, value in x.items()}
    return [short(value) for value in x] if isinstance(x, list) else x


def first_rows(kind, dataset, collator):
    """What the model sees of the first rows, taken through the trainer's own collator one row at a time."""
    out = []
    for row in dataset.select(range(FIRST)):
        batch = collator([row])
        if kind == "dpo":
            split = [(ids[seen.bool()].tolist(), mask[seen.bool()].tolist()) for ids, mask, seen in zip(
                batch["input_ids"], batch["completion_mask"], batch["attention_mask"])]
            prompts = [[i for i, response in zip(*side) if not response] for side in split]
            assert prompts[0] == prompts[1]
            chosen, rejected = ([i for i, response in zip(*side) if response] for side in split)
            out.append(dict(prompt=prompts[0], chosen=chosen, rejected=rejected))
        else:
            labels = batch["labels"][0].tolist()
            out.append(dict(ids=batch["input_ids"][0].tolist(), lengths=row.get("seq_lengths") or [len(labels)],
                            unlabelled=[i for i, label in enumerate(labels) if label == -100]))
    return out


def run(name, assets, folder, attention):
    kind, model_name, recipe = RUNS[name]
    settings = {key: value for key, value in (recipe | INSTEAD.get(name, {})).items() if key != "chat_template"}
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    train, train_file = load_rows(assets, kind, "train", TRAIN_ROWS.get(name, batch * settings["max_steps"] + 8))
    test, test_file = load_rows(assets, kind, "test", EVAL_ROWS.get(name, 16))
    evaluates = "eval_strategy" in settings
    config = (DPOConfig if kind == "dpo" else SFTConfig)(
        output_dir=tempfile.mkdtemp(), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **settings)

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)

    model = load()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainer = (Dpo if kind == "dpo" else Sft)(
        model=model, args=config, processing_class=load_tokenizer(folder, recipe.get("chat_template")),
        train_dataset=train, eval_dataset=test if evaluates else None, **(dict(ref_model=load()) if kind == "dpo" else {}))
    trainer.torch_grad_norms = []
    trainer.train()
    after = {key: value.detach() for key, value in model.named_parameters()}
    log = [{key: value for key, value in row.items() if not key.endswith(("_runtime", "_per_second", "_flos"))}
           for row in trainer.state.log_history]
    rows = dict(train_file=train_file, train_read=len(train), train_kept=len(trainer.train_dataset))
    keys = recipe | dict(max_train_samples=len(train))
    if "seq_lengths" in trainer.train_dataset.column_names:
        rows["packed_lengths"] = trainer.train_dataset["seq_lengths"][:]
    if evaluates:
        assert len(trainer.eval_dataset) % settings["per_device_eval_batch_size"] == 0, "batches of equal size"
        rows |= dict(eval_file=test_file, eval_read=len(test), eval_kept=len(trainer.eval_dataset))
        keys["max_eval_samples"] = len(test)
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    return dict(made_with=versions, kind=kind, model=model_name, model_config=MODEL_CONFIG.get(name, {}), recipe=keys,
                instead=INSTEAD.get(name, {}), rows=rows,
                steps=dict(max_steps=trainer.state.max_steps, warmup_steps=config.get_warmup_steps(trainer.state.max_steps)),
                first_rows=first_rows(kind, trainer.train_dataset, trainer.data_collator), log=short(log),
                torch_grad_norms=short(trainer.torch_grad_norms), weights=short(digest(before, after)))


def start_folder(name, assets, work):
    """The folder of the model that a run starts from."""
    model = RUNS[name][1]
    if model != "random_mistral":
        return os.path.join(assets, "models", model)
    folder = os.path.join(work, "mistral")
    random_mistral(folder, assets, MODEL_CONFIG.get(name))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *RUNS], metavar="NAME")
    parser.add_argument("--out", required=True)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--threads", type=int, default=2)
    assets_argument(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.names or RUNS:
            golden = run(name, arguments.assets, start_folder(name, arguments.assets, work), arguments.attention)
            with open(os.path.join(arguments.out, f"trl_{name}.json"), "w") as file:
                json.dump(golden, file, separators=(",", ":"))
                file.write("\n")
            print(name, golden["rows"], golden["log"][-1], flush=True)


if __name__ == "__main__":
    main()
