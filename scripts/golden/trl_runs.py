"""Golden runs of TRL on the CPU, float32, rows in their order: what tests/golden_trl.rs compares with.

usage: trl_runs.py ASSETS OUT_DIR [NAME ...]

ASSETS holds data/, models/ and tokenizers/; OUT_DIR receives trl_NAME.json for each run below (or for those named). Needs
torch, transformers, trl, datasets, accelerate. A golden file holds the recipe (the same keys drive both programs), the log,
and a digest of the final weights.
"""
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

PREFERENCES = "data/ultrafeedback_binarized_like/data/{}_prefs-*.parquet"
CHATS = "data/ultrachat_200k_like/data/{}_sft-*.parquet"
ASSISTANT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DPO = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=5e-4, lr_scheduler_type="linear",
           warmup_steps=3, beta=0.1, max_length=384, max_grad_norm=1.0, max_steps=30)
SFT = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-3, lr_scheduler_type="cosine",
           warmup_steps=3, max_length=384, max_grad_norm=1.0, max_steps=30)
EVAL = dict(eval_strategy="steps", eval_steps=10)
SHORT = dict(max_steps=8, warmup_steps=2)
MISTRAL = dict(max_length=256, per_device_train_batch_size=2, per_device_eval_batch_size=4, learning_rate=1e-4)
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
    "dpo_no_clipping": ("dpo", "stories260k", DPO | SHORT | dict(max_grad_norm=0.0, lr_scheduler_type="constant",
                                                                 warmup_steps=0, adam_beta2=0.95, beta=0.5)),
    "sft_bfd": ("sft", "stories260k", SFT | SHORT | dict(packing=True, packing_strategy="bfd", per_device_train_batch_size=2)),
    "sft_wrapped": ("sft", "stories260k", SFT | SHORT | dict(packing=True, packing_strategy="wrapped", lr_scheduler_type="inverse_sqrt",
                                                             per_device_train_batch_size=2)),
    "sft_assistant_only": ("sft", "stories260k", SFT | SHORT | dict(assistant_only_loss=True, chat_template=ASSISTANT_TEMPLATE,
                                                                    lr_scheduler_type="constant_with_warmup")),
    "sft_min_lr": ("sft", "stories260k", SFT | SHORT | dict(lr_scheduler_type="cosine_with_min_lr",
                                                            lr_scheduler_kwargs=dict(min_lr_rate=0.1))),
}
EVAL_ROWS = 16


def splitmix64(x):
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def formula(seed, shape, name):
    """Weights that tests/common/mod.rs makes bit for bit: tensor `seed` is its place in the sorted list of names."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        bits = splitmix64(np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)) >> np.uint64(40)
    uniform = bits.astype(np.float32) / np.float32(16777216.0) - np.float32(0.5)
    centre = np.float32(1.0 if name.endswith("norm.weight") else 0.0)
    return torch.from_numpy((centre + uniform * np.float32(0.125)).reshape(shape))


def random_mistral(folder, tokenizer):
    config = MistralConfig(
        vocab_size=32000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=None,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    model = MistralForCausalLM(config).float()
    state = model.state_dict()
    for seed, name in enumerate(sorted(state)):
        state[name].copy_(formula(seed, tuple(state[name].shape), name))
    model.save_pretrained(folder)
    for file in os.listdir(tokenizer):
        shutil.copy(os.path.join(tokenizer, file), folder)


def load_tokenizer(folder, template):
    """Exactly what tokenizer.json says: LlamaTokenizer of transformers 5 replaces its normalizer."""
    config = json.load(open(os.path.join(folder, "tokenizer_config.json")))
    names = {k: (v["content"] if isinstance(v, dict) else v) for k, v in config.items()
             if k.endswith("_token") and v and not isinstance(v, bool)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"),
                                        clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template or config.get("chat_template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def rows(assets, kind, split, count):
    pattern = (PREFERENCES if kind == "dpo" else CHATS).format(split)
    data = load_dataset("parquet", data_files=os.path.join(assets, pattern), split="train")
    columns = ["chosen", "rejected"] if kind == "dpo" else ["messages"]
    return data.select(range(min(count, len(data)))).select_columns(columns)


def digest(before, after):
    out = {}
    for name in sorted(after):
        a, b = after[name].double().flatten(), before[name].double().flatten()
        places = [(2 * i + 1) * a.numel() // 16 for i in range(8)]
        moved = a - b
        out[name] = dict(norm=a.norm().item(), moved=moved.norm().item(),
                         values=[a[p].item() for p in places], changes=[moved[p].item() for p in places])
    return out


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


def run(assets, name, models):
    kind, model_name, keys = RUNS[name]
    folder = models[model_name]
    keys = dict(keys)
    template = keys.get("chat_template")
    settings = {k: v for k, v in keys.items() if k != "chat_template"}
    batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    train_rows = batch * settings["max_steps"] + 8
    if settings.get("packing"):
        train_rows = 120
    evaluates = "eval_strategy" in settings
    config = (DPOConfig if kind == "dpo" else SFTConfig)(
        output_dir=tempfile.mkdtemp(), logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=42, disable_tqdm=True, train_sampling_strategy="sequential", **settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    extra = {}
    if kind == "dpo":
        extra["ref_model"] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    trainer = (DPOTrainer if kind == "dpo" else SFTTrainer)(
        model=model, args=config, processing_class=load_tokenizer(folder, template),
        train_dataset=rows(assets, kind, "train", train_rows),
        eval_dataset=rows(assets, kind, "test", EVAL_ROWS) if evaluates else None, **extra)
    trainer.train()
    after = {k: v.detach() for k, v in model.named_parameters()}
    log = [{k: v for k, v in row.items() if not k.endswith(("_runtime", "_per_second", "_flos"))}
           for row in trainer.state.log_history]
    import transformers, trl
    recipe = keys | dict(gradient_checkpointing=False)
    if evaluates:
        recipe["max_eval_samples"] = EVAL_ROWS
    return dict(made_with=dict(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__),
                kind=kind, model=model_name, recipe=recipe | dict(max_train_samples=train_rows),
                log=rounded(log), weights=rounded(digest(before, after)))


def main():
    assets, out, *names = sys.argv[1:]
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as work:
        models = dict(stories260k=os.path.join(assets, "models/stories260k"), random_mistral=os.path.join(work, "mistral"))
        random_mistral(models["random_mistral"], os.path.join(assets, "tokenizers/mistral-7b-v0.1"))
        for name in names or RUNS:
            golden = run(assets, name, models)
            with open(os.path.join(out, f"trl_{name}.json"), "w") as file:
                json.dump(golden, file, separators=(",", ":"))
            print(name, golden["log"][-2].get("loss"))


if __name__ == "__main__":
    main()
