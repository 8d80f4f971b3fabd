"""Golden runs of TRL for tests/golden_trl.rs: on the CPU, in float32, with the rows in order.

usage: trl_runs.py --out DIR [--assets DIR] [--attention sdpa|eager] [--threads N] [NAME ...]

Writes trl_NAME.json to DIR for each run of runs.py, or for the named ones. A golden file holds
    recipe       the keys for both programs; the files and the numbers of rows are in `rows`
    instead      keys that TRL got instead of the recipe's, because TRL's have another meaning
    adapter      whether the run continues the adapter of tests/golden/adapter
    model        stories260k or random_mistral (by the formula of random_mistral.py), with the
                 changes in `model_config`
    first_rows   the token ids of the first rows after truncation and packing; `rows.packed_lengths`
                 holds the document lengths of every packed row
    log          trainer.state.log_history without times, in TRL's order of keys; floats with 9
                 digits
    torch_grad_norms  the gradient norms that torch's own clipping computes, see ExactNorm
    weights      for each tensor (of an adapter, for those of its file) the norm after training, the norm of its change, and both at the 8
                 places (2 i + 1) * size // 16 for i = 0..7
Another attention implementation or number of threads gives the same numbers up to rounding. The
difference shows how accurate the numbers are.
"""
import argparse
import glob
import json
import os
import tempfile
import types

import torch
import transformers
import trl
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.data_utils import extract_prompt
from trl.trainer import kto_trainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from random_mistral import assets_argument, named_tensors, random_mistral
from adapters import adapter_state, lora_config, set_initial_values
from neftune import use_own_noise
from runs import CONTINUED, EAGER, EVAL_ROWS, INSTEAD, MODEL_CONFIG, RUNS, TRAIN_ROWS

PAIRS = ("data/ultrafeedback_binarized_like/data/{}_prefs-*.parquet", ["chosen", "rejected"])
CONVERSATIONS = ("data/ultrachat_200k_like/data/{}_sft-*.parquet", ["messages"])
FIRST = 3
TRIPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/tpo")
ADAPTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/adapter")


class ExactNorm:
    """Clips by the norm computed in float64, and logs it. torch sums squares in float32 on the CPU,
    and loses up to 5e-4 of the norm of a tensor with 8 million values."""

    def _clip_grad_norm(self, model):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.torch_grad_norms.append(torch.nn.utils.get_total_norm(gradients).item())
        norm = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm


class Dpo(ExactNorm, DPOTrainer):
    def _precompute_ref_logps(self, dataset, name, batch_size):
        """Only `reference_free` runs call this. Their reference log-probs are 0."""
        zeros = [0.0] * len(dataset)
        return dataset.add_column("ref_chosen_logps", zeros).add_column("ref_rejected_logps", zeros)


class Kto(ExactNorm, KTOTrainer):
    pass


class Bco(Kto):
    """The loss of BCO in TRL's KTOTrainer, as TRL's former BCOTrainer had it: δ is the running mean of
    the rewards of all training rows. `loss_type` is apo_zero_unpaired, whose sigmoids see the rewards."""
    total, count = 0.0, 0

    def _compute_loss(self, model, inputs, return_outputs):
        seen = []
        kto_trainer.F = types.SimpleNamespace(sigmoid=lambda x: seen.append(x) or torch.sigmoid(x))
        _, outputs = super()._compute_loss(model, inputs, True)
        kto_trainer.F = torch.nn.functional
        labels = inputs["label"].bool()
        chosen = seen.pop(0) if labels.any() else torch.zeros(0)
        rejected = seen.pop(0) if (~labels).any() else torch.zeros(0)
        if self.model.training:
            rewards = torch.cat([chosen, rejected]).detach().double()
            self.total, self.count = self.total + rewards.sum().item(), self.count + len(rewards)
        delta = self.total / self.count if self.count else 0.0
        logsigmoid = torch.nn.functional.logsigmoid
        loss = -torch.cat([logsigmoid(chosen - delta), logsigmoid(delta - rejected)]).mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        del metrics["kl"]
        metrics["delta"].append(delta)
        return (loss, outputs) if return_outputs else loss


class Orpo(ExactNorm, ORPOTrainer):
    pass


class Cpo(ExactNorm, CPOTrainer):
    pass


class Tpo(ExactNorm, TPOTrainer):
    pass


class SeededGroups(LengthGroupedSampler):
    """The permutation of each epoch has a seed of its own, as accelerate seeds random orders.
    transformers takes it from torch's global generator."""
    seed, epoch = 0, 0

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        return super().__iter__()


class Sft(ExactNorm, SFTTrainer):
    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.__class__ = SeededGroups
            sampler.seed = self.args.seed
        return sampler


TRAINERS = {"dpo": (DPOConfig, Dpo), "kto": (KTOConfig, Kto), "orpo": (ORPOConfig, Orpo), "cpo": (CPOConfig, Cpo),
            "tpo": (TPOConfig, Tpo), "sft": (SFTConfig, Sft)}


def load_tokenizer(folder, template):
    """The tokenizer exactly as tokenizer.json defines it. LlamaTokenizer of transformers 5 would
    replace its normalizer."""
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
    if kind == "tpo":
        data = load_dataset("json", data_files=os.path.join(TRIPLES, f"{split}.jsonl"), split="train")
        return data.select(range(min(count, len(data)))), f"tpo/{split}.jsonl"
    pattern, columns = CONVERSATIONS if kind == "sft" else PAIRS
    [file] = glob.glob(os.path.join(assets, pattern.format(split)))
    data = load_dataset("parquet", data_files=file, split="train")
    return data.select(range(min(count, len(data)))).select_columns(columns), os.path.relpath(file, assets)


def with_room(data, tokenizer, max_length):
    """The pairs whose prompt leaves room for a response, as DPO and KTO select them. ORPO, CPO
    and TPO would keep the others with empty responses, whose mean log-prob is 0 / 0."""
    def fits(row):
        prompt = tokenizer.apply_chat_template(extract_prompt(row)["prompt"], add_generation_prompt=True)["input_ids"]
        return len(prompt) < max_length
    return data.filter(fits)


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
    """Floats with 9 significant digits, which distinguish every float32 value."""
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, dict):
        return {key: short(value) for key, value in x.items()}
    return [short(value) for value in x] if isinstance(x, list) else x


def seen_ids(ids, attention, response):
    """The ids of the prompt and of the response of one padded row, without padding."""
    seen = [(i, r) for i, a, r in zip(ids.tolist(), attention.tolist(), response.tolist()) if a]
    return [i for i, r in seen if not r], [i for i, r in seen if r]


def first_rows(kind, dataset, collator):
    """The model inputs of the first rows, made by the trainer's collator from one row at a time."""
    out = []
    for row in dataset.select(range(FIRST)):
        batch = collator([row])
        if kind == "dpo":
            (prompt, chosen), (same, rejected) = map(
                seen_ids, batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
            assert prompt == same
            out.append(dict(prompt=prompt, chosen=chosen, rejected=rejected))
        elif kind == "tpo":
            sides = list(map(seen_ids, batch["input_ids"], batch["attention_mask"], batch["completion_mask"]))
            assert all(prompt == sides[0][0] for prompt, _ in sides)
            out.append(dict(prompt=sides[0][0]) | {name: response for name, (_, response) in zip(
                ("chosen", "rejected", "reference"), sides)})
        elif kind == "kto":
            sides = [seen_ids(*(batch[prefix + key][0] for key in ("input_ids", "attention_mask", "completion_mask")))
                     for prefix in ("", "KL_") if f"{prefix}input_ids" in batch]
            out.append(dict(prompt=sides[0][0], completion=sides[0][1], label=bool(row["label"]))
                       | (dict(mismatched=sides[1][1]) if len(sides) > 1 else {}))
        elif kind in ("orpo", "cpo"):
            (prompt, chosen), (same, rejected) = (
                seen_ids(batch[f"{side}_input_ids"][0], batch[f"{side}_attention_mask"][0], batch[f"{side}_labels"][0] != -100)
                for side in ("chosen", "rejected"))
            assert prompt == same
            out.append(dict(prompt=prompt, chosen=chosen, rejected=rejected))
        else:
            labels = batch["labels"][0].tolist()
            out.append(dict(ids=batch["input_ids"][0].tolist(), lengths=row.get("seq_lengths") or [len(labels)],
                            unlabelled=[i for i, label in enumerate(labels) if label == -100]))
    return out


def quantization_config(settings):
    """Takes the keys of 4-bit weights out of a recipe's settings. None if no weight is quantized."""
    on, nested = settings.pop("load_in_4bit", False), settings.pop("use_bnb_nested_quant", False)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                              bnb_4bit_compute_dtype=torch.get_default_dtype()) if on else None


def in_float32(model):
    """DPOTrainer rounds the adapters on a quantized base to bfloat16. Ours are float32, as PEFT's."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.get_default_dtype())


def run(name, assets, folder, attention):
    kind, model_name, recipe = RUNS[name]
    if MODEL_CONFIG.get(name, {}).get("model_type") in EAGER:
        attention = "eager"
    settings = {key: value for key, value in (recipe | INSTEAD.get(name, {})).items()
                if key != "chat_template" and value is not None}
    lora = lora_config(settings)
    quantization = quantization_config(settings)
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    train, train_file = load_rows(assets, kind, "train", TRAIN_ROWS.get(name, batch * settings["max_steps"] + 8))
    test, test_file = load_rows(assets, kind, "test", EVAL_ROWS.get(name, 16))
    rows = dict(train_file=train_file, train_read=len(train))
    eval_rows = dict(eval_file=test_file, eval_read=len(test))
    evaluates = "eval_strategy" in settings
    tokenizer = load_tokenizer(folder, recipe.get("chat_template"))
    if kind in ("orpo", "cpo", "tpo"):
        train, test = (with_room(data, tokenizer, settings["max_length"]) for data in (train, test))
    Config, Trainer = TRAINERS[kind]
    if recipe.get("loss_type") == "bco":
        Trainer = Bco
    config = Config(output_dir=tempfile.mkdtemp(), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **settings)

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.get_default_dtype(), attn_implementation=attention,
                                                    **(dict(quantization_config=quantization, device_map="cpu") if quantization else {}))

    model = load()
    if name in CONTINUED:
        model = PeftModel.from_pretrained(model, ADAPTER, is_trainable=True)
    reference = dict(ref_model=load()) if kind in ("dpo", "kto") and not lora and name not in CONTINUED else {}
    trainer = Trainer(model=model, args=config, processing_class=tokenizer, train_dataset=train,
                      eval_dataset=test if evaluates else None, **reference, **(dict(peft_config=lora) if lora else {}))
    if lora:
        in_float32(trainer.model)
        set_initial_values(trainer.model, config.seed)
    state = adapter_state if lora or name in CONTINUED else named_tensors
    before = {key: value.detach().clone() for key, value in state(trainer.model).items()}
    trainer.torch_grad_norms = []
    if config.neftune_noise_alpha:
        use_own_noise(config.seed)
    trainer.train()
    after = {key: value.detach() for key, value in state(trainer.model).items()}
    log = [{key: value for key, value in row.items() if not key.endswith(("_runtime", "_per_second", "_flos"))}
           for row in trainer.state.log_history]
    keys = recipe | dict(max_train_samples=rows["train_read"])
    rows["train_kept"] = len(trainer.train_dataset)
    if "seq_lengths" in trainer.train_dataset.column_names:
        rows["packed_lengths"] = trainer.train_dataset["seq_lengths"][:]
    if evaluates:
        incomplete = len(trainer.eval_dataset) % settings["per_device_eval_batch_size"]
        assert incomplete == 0 or settings.get("dataloader_drop_last"), "batches of equal size"
        rows |= eval_rows | dict(eval_kept=len(trainer.eval_dataset))
        keys["max_eval_samples"] = eval_rows["eval_read"]
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    return dict(made_with=versions, kind=kind, model=model_name, adapter=name in CONTINUED, model_config=MODEL_CONFIG.get(name, {}), recipe=keys,
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
    parser.add_argument("--float64", action="store_true", help="compute in float64, and write float64_NAME.json with the log only")
    assets_argument(parser)
    arguments = parser.parse_args()
    if arguments.float64:
        torch.set_default_dtype(torch.float64)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.names or RUNS:
            golden = run(name, arguments.assets, start_folder(name, arguments.assets, work), arguments.attention)
            if arguments.float64:
                golden = {key: golden[key] for key in ("made_with", "rows", "log")}
            with open(os.path.join(arguments.out, f"{'float64' if arguments.float64 else 'trl'}_{name}.json"), "w") as file:
                json.dump(golden, file, separators=(",", ":"))
                file.write("\n")
            print(name, golden["rows"], golden["log"][-1], flush=True)


if __name__ == "__main__":
    main()
