"""The runs of trl_runs.py: trainer, model and recipe keys of each."""

ASSISTANT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Starts with BOS and ends with EOS. The trainers of trl.experimental add them if they are missing;
# DPOTrainer adds neither.
CLOSED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{% endfor %}"
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
# Two epochs. The last batch and the last accumulation window are short, and the number of steps
# follows from the number of rows.
EPOCHS = dict(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, warmup_steps=0.1, eval_strategy="epoch")
# Evaluations at the steps 4, 6, 8, 10 and 12; the rate falls after one without a clear improvement.
PLATEAU = dict(lr_scheduler_type="reduce_lr_on_plateau", warmup_steps=0, learning_rate=3e-3, max_steps=12,
               lr_scheduler_kwargs=dict(patience=0, factor=0.3, threshold=0.2), eval_strategy="steps", eval_steps=2, eval_delay=4)


def objective(**keys):
    """Eight steps of DPOTrainer with the settings of `dpo_stories` and these keys."""
    return "dpo", "stories260k", DPO | SHORT | keys


def reference_free(kind, **keys):
    """Eight steps of ORPO or CPO. SimPO is a loss_type of CPO."""
    return kind, "stories260k", DPO | SHORT | dict(chat_template=CLOSED_TEMPLATE) | keys


def tpo(**keys):
    """Eight steps of TPO on the rows of triples.py."""
    return "tpo", "stories260k", DPO | SHORT | keys


def kto(**keys):
    """Eight steps of KTO on the pairs split into single responses: first all chosen, then all
    rejected."""
    return "kto", "stories260k", DPO | SHORT | keys


TRAINING = {
    "dpo_stories": ("dpo", "stories260k", DPO | EVAL | dict(weight_decay=0.01)),
    "dpo_mistral": ("dpo", "random_mistral", DPO | EVAL | MISTRAL | dict(gradient_accumulation_steps=2)),
    "sft_stories": ("sft", "stories260k", SFT | EVAL | dict(gradient_accumulation_steps=2, weight_decay=0.01)),
    "sft_mistral": ("sft", "random_mistral", SFT | EVAL | MISTRAL | dict(lr_scheduler_type="linear")),
    "dpo_rmsprop": objective(optim="rmsprop", learning_rate=1e-5),
    "dpo_no_clipping": objective(max_grad_norm=0.0, lr_scheduler_type="constant", warmup_steps=0, learning_rate=1e-4,
                                 adam_beta2=0.95, beta=0.05),
    "dpo_epochs": ("dpo", "stories260k", DPO | EPOCHS),
    "dpo_logged_by_3": objective(logging_steps=3, gradient_accumulation_steps=2, per_device_train_batch_size=2),
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
    "sft_dft": ("sft", "stories260k", SFT | SHORT | dict(loss_type="dft")),
    "sft_plateau": ("sft", "stories260k", SFT | SHORT | PLATEAU),
    "sft_label_smoothing": ("sft", "stories260k", SFT | SHORT | dict(label_smoothing_factor=0.1, gradient_accumulation_steps=2,
                                                                     prediction_loss_only=True, eval_strategy="steps", eval_steps=4)),
    "sft_label_smoothing_mistral": ("sft", "random_mistral", SFT | SHORT | MISTRAL | dict(label_smoothing_factor=0.3)),
    "sft_shuffled_bfd": ("sft", "stories260k", SFT | SHORT | PACKED | dict(shuffle_dataset=True, packing_strategy="bfd")),
    "sft_grouped": ("sft", "stories260k", SFT | EPOCHS | dict(train_sampling_strategy="group_by_length")),
    "sft_neftune": ("sft", "stories260k", SFT | SHORT | dict(neftune_noise_alpha=15.0)),
    "sft_nesterov": ("sft", "stories260k", SFT | SHORT | dict(optim="sgd", optim_args="momentum=0.9,nesterov=true", learning_rate=0.03)),
    "sft_lion": ("sft", "stories260k", SFT | SHORT | dict(optim="lion_32bit", learning_rate=1e-4, weight_decay=0.1)),
    "sft_adafactor": ("sft", "stories260k", SFT | SHORT | dict(optim="adafactor", weight_decay=0.1)),
    "dpo_drop_last": ("dpo", "stories260k", DPO | EPOCHS | dict(dataloader_drop_last=True)),
    "sft_window": ("sft", "random_mistral", SFT | SHORT | MISTRAL),
}
OBJECTIVES = {
    "dpo_label_smoothing": objective(label_smoothing=0.1),
    "dpo_hinge": objective(loss_type="hinge"),
    "dpo_ipo": objective(loss_type="ipo", learning_rate=1e-4),
    "dpo_exo_pair": objective(loss_type="exo_pair", label_smoothing=1e-3),
    "dpo_nca_pair": objective(loss_type="nca_pair"),
    "dpo_robust": objective(loss_type="robust", label_smoothing=0.1),
    "dpo_bco_pair": objective(loss_type="bco_pair"),
    "dpo_sppo_hard": objective(loss_type="sppo_hard", learning_rate=1e-4),
    "dpo_aot": objective(loss_type="aot"),
    "dpo_aot_unpaired": objective(loss_type="aot_unpaired", label_smoothing=0.1),
    "dpo_apo_zero": objective(loss_type="apo_zero"),
    "dpo_apo_down": objective(loss_type="apo_down"),
    "dpo_discopop": objective(loss_type="discopop", discopop_tau=0.5, learning_rate=5e-5),
    "dpo_sft": objective(loss_type="sft"),
    "dpo_sigmoid_norm": objective(loss_type="sigmoid_norm", beta=0.5, learning_rate=5e-5),
    "dpo_forward_kl": objective(f_divergence_type="forward_kl", learning_rate=1e-5),
    "dpo_js_divergence": objective(f_divergence_type="js_divergence"),
    "dpo_alpha_divergence": objective(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3, learning_rate=5e-6),
    "dpo_js_ipo": objective(f_divergence_type="js_divergence", loss_type="ipo", learning_rate=1e-4),
    "dpo_ld_alpha": objective(ld_alpha=0.5),
    "dpo_use_weighting": objective(use_weighting=True),
    "dpo_sync_ref_model": objective(sync_ref_model=True, ref_model_sync_steps=3, ref_model_mixup_alpha=0.6,
                                    per_device_train_batch_size=2, gradient_accumulation_steps=2),
    "dpo_rpo": objective(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], per_device_train_batch_size=2,
                         gradient_accumulation_steps=2),
    "dpo_mpo": objective(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
    "dpo_reference_free": objective(reference_free=True),
    "orpo": reference_free("orpo", eval_strategy="steps", eval_steps=4),
    "cpo": reference_free("cpo", label_smoothing=0.1, per_device_train_batch_size=2, gradient_accumulation_steps=2),
    "cpo_hinge": reference_free("cpo", loss_type="hinge", cpo_alpha=0.5),
    "cpo_ipo": reference_free("cpo", loss_type="ipo", learning_rate=1e-4),
    "simpo": reference_free("cpo", loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0, eval_strategy="steps", eval_steps=4),
    "tpo": tpo(label_smoothing=0.1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
               eval_strategy="steps", eval_steps=4),
    "tpo_hinge": tpo(loss_type="hinge", tpo_alpha=0.0),
    "tpo_ipo": tpo(loss_type="ipo", tpo_alpha=0.5, learning_rate=1e-4),
    "tpo_l": tpo(loss_type="tpo-l", beta=2.0, tpo_l_gamma=1.0, eval_strategy="steps", eval_steps=4),
    "kto": kto(loss_type="kto"),
    "kto_weights": kto(loss_type="kto", desirable_weight=1.33, undesirable_weight=0.8, gradient_accumulation_steps=2),
    "kto_apo_zero_unpaired": kto(loss_type="apo_zero_unpaired"),
    "kto_bco": kto(loss_type="bco", gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=4),
}
LORA = dict(use_peft=True, lora_r=4, lora_alpha=8, lora_dropout=0.0, max_steps=20)
ADAPTERS = {
    "sft_lora": ("sft", "stories260k", SFT | EVAL | LORA | dict(weight_decay=0.01)),
    "dpo_lora": ("dpo", "stories260k", DPO | EVAL | LORA | dict(lora_dropout=0.05)),
    "sft_lora_mistral": ("sft", "random_mistral", SFT | LORA | MISTRAL),
    "sft_lora_all_linear": ("sft", "stories260k", SFT | SHORT | LORA | dict(max_steps=8, lora_target_modules="all-linear")),
    "dpo_lora_rslora": ("dpo", "stories260k", DPO | SHORT | LORA | dict(
        max_steps=8, use_rslora=True, lora_target_modules=["q_proj", "k_proj", "down_proj"])),
    "sft_lora_saved": ("sft", "stories260k", SFT | SHORT | LORA | dict(max_steps=8, lora_modules_to_save=["lm_head", "embed_tokens"])),
    "dpo_qlora": ("dpo", "stories260k", DPO | SHORT | LORA | dict(max_steps=10, load_in_4bit=True, lora_target_modules="all-linear")),
    "dpo_qlora_nested": ("dpo", "random_mistral", DPO | SHORT | LORA | MISTRAL | dict(
        max_steps=10, load_in_4bit=True, use_bnb_nested_quant=True)),
    # Without `use_peft` the adapter of tests/golden/adapter is trained further.
    "dpo_lora_continued": ("dpo", "stories260k", DPO | SHORT),
}
CONTINUED = {"dpo_lora_continued"}
# Five steps of SFT and of DPO with a small model of each family. The differences of config.json
# from random_mistral.py's; logits.py uses them too.
FAMILIES = {
    "qwen3": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32, rms_norm_eps=1e-6, rope_theta=1000000.0,
                  attention_bias=False, sliding_window=None, use_sliding_window=False, max_window_layers=2,
                  tie_word_embeddings=True),
    "smollm3": dict(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", num_hidden_layers=5, rms_norm_eps=1e-6,
                    rope_theta=5000000.0, attention_bias=False, mlp_bias=False, no_rope_layers=[1, 1, 1, 0, 1],
                    no_rope_layer_interval=4, use_sliding_window=False, sliding_window=None, tie_word_embeddings=True),
    "olmo2": dict(architectures=["Olmo2ForCausalLM"], model_type="olmo2", rms_norm_eps=1e-6, rope_theta=500000.0,
                  attention_bias=False, tie_word_embeddings=False),
    "granite": dict(architectures=["GraniteForCausalLM"], model_type="granite", rms_norm_eps=1e-5, rope_theta=10000.0,
                    attention_bias=False, mlp_bias=False, embedding_multiplier=12.0, attention_multiplier=0.015625,
                    residual_multiplier=0.22, logits_scaling=8.0, tie_word_embeddings=True),
    "gemma": dict(architectures=["GemmaForCausalLM"], model_type="gemma", head_dim=32, hidden_act="gelu_pytorch_tanh",
                  hidden_activation=None, rms_norm_eps=1e-6, rope_theta=10000.0, attention_bias=False, tie_word_embeddings=True),
    "gemma3_text": dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", num_hidden_layers=4, head_dim=32,
                        hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=1000000.0,
                        rope_local_base_freq=10000.0, rope_scaling=dict(factor=8.0, rope_type="linear"), attention_bias=False,
                        query_pre_attn_scalar=64, sliding_window=24, sliding_window_pattern=3, attn_logit_softcapping=None,
                        final_logit_softcapping=None, tie_word_embeddings=True),
    # The caps are low, so that scores and logits of random weights reach them.
    "gemma2": dict(architectures=["Gemma2ForCausalLM"], model_type="gemma2", num_hidden_layers=3, hidden_activation="gelu_pytorch_tanh",
                   hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=10000.0, attention_bias=False, query_pre_attn_scalar=24,
                   sliding_window=24, attn_logit_softcapping=1.0, final_logit_softcapping=2.0, tie_word_embeddings=True),
    # Partial rotary embedding and `longrope`, as in Phi-4-mini, and a window, as in Phi-3-mini.
    "phi3": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rms_norm_eps=1e-5, rope_theta=10000.0, partial_rotary_factor=0.75,
                 rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 3.0], long_factor=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
                 original_max_position_embeddings=256, attention_bias=False, sliding_window=64, tie_word_embeddings=True),
    "starcoder2": dict(architectures=["Starcoder2ForCausalLM"], model_type="starcoder2", hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5,
                       rope_theta=100000.0, use_bias=True, sliding_window=48, residual_dropout=0.0, embedding_dropout=0.0,
                       tie_word_embeddings=True),
    "mixtral": dict(architectures=["MixtralForCausalLM"], model_type="mixtral", rms_norm_eps=1e-5, rope_theta=1000000.0,
                    sliding_window=None, num_local_experts=4, num_experts_per_tok=2, output_router_logits=False,
                    router_aux_loss_coef=0.02, router_jitter_noise=0.0, tie_word_embeddings=False),
}
# Families whose attention torch's fused attention cannot compute.
EAGER = {"gemma2"}
SMALL = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, pad_token_id=0)
FEW = dict(max_steps=5, warmup_steps=1, max_length=192, per_device_train_batch_size=2, learning_rate=1e-3)
FAMILY_RUNS = {f"{kind}_{family}": (kind, "random_mistral", (SFT if kind == "sft" else DPO) | FEW)
               for family in FAMILIES for kind in ("sft", "dpo")}
# The load-balancing loss of experts: its weight in a window, in an evaluation and in each objective.
# TRL adds it to SFT, DPO and KTO by default, to ORPO with `output_router_logits` in config.json.
EXPERT_RUNS = {
    "sft_mixtral_window": ("sft", "random_mistral", SFT | FEW | dict(
        router_aux_loss_coef=0.3, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2)),
    "sft_mixtral_smoothed": ("sft", "random_mistral", SFT | FEW | dict(label_smoothing_factor=0.1, max_steps=3)),
    "dpo_mixtral_plain": ("dpo", "random_mistral", DPO | FEW | dict(router_aux_loss_coef=0.0)),
    "kto_mixtral": ("kto", "random_mistral", DPO | FEW | dict(loss_type="kto", router_aux_loss_coef=0.3)),
    "orpo_mixtral": ("orpo", "random_mistral", DPO | FEW | dict(chat_template=CLOSED_TEMPLATE)),
    "dpo_mixtral_lora": ("dpo", "random_mistral", DPO | FEW | LORA | dict(
        max_steps=5, router_aux_loss_coef=0.3, lora_target_modules=["q_proj", "v_proj", "o_proj"])),
}
# Sequences on both sides of the length from which `longrope` has other factors. transformers chooses
# them for a whole batch, so the batches have one row.
LONG_RUNS = {f"{kind}_phi3_long": (kind, "random_mistral", (SFT if kind == "sft" else DPO) | FEW | dict(per_device_train_batch_size=1))
             for kind in ("sft", "dpo")}
PHI3_LONG = FAMILIES["phi3"] | dict(original_max_position_embeddings=128, sliding_window=None)
RUNS = TRAINING | OBJECTIVES | ADAPTERS | FAMILY_RUNS | EXPERT_RUNS | LONG_RUNS
MODEL_CONFIG = {"sft_window": dict(sliding_window=64)} | {
    f"{kind}_{family}": SMALL | config for family, config in FAMILIES.items() for kind in ("sft", "dpo")} | {
    name: SMALL | FAMILIES["mixtral"] for name in EXPERT_RUNS}
MODEL_CONFIG |= {name: SMALL | PHI3_LONG for name in LONG_RUNS}
MODEL_CONFIG["orpo_mixtral"] = MODEL_CONFIG["orpo_mixtral"] | dict(output_router_logits=True)
# Keys that TRL gets instead of the recipe's. None means that TRL does not get the key.
INSTEAD = {
    # TRL reads `label_smoothing` in `robust`, not in `sigmoid`. Conservative DPO,
    # -(1-e) l(x) - e l(-x), equals `robust` with the smoothing -e / (1 - 2 e).
    "dpo_label_smoothing": dict(loss_type="robust", label_smoothing=-0.125),
    # TRL no longer has `reference_free`. The run sets the stored reference log-probs to 0.
    "dpo_reference_free": dict(precompute_ref_log_probs=True, reference_free=None),
    # TRL no longer has BCOTrainer; `Bco` in trl_runs.py puts its loss into KTOTrainer.
    "kto_bco": dict(loss_type="apo_zero_unpaired"),
}
# KTO: TRL drops pairs whose prompt leaves no room, which leaves 9 pairs or 18 rows. So one batch
# has both labels, and the last batch has two rows.
TRAIN_ROWS = {"sft_grouped": 26, "sft_shuffled_bfd": 30, "dpo_epochs": 34, "dpo_drop_last": 34, "sft_epochs": 26, "sft_bfd": 30, "sft_wrapped": 40, "kto": 13, "kto_weights": 13,
              "kto_apo_zero_unpaired": 13, "kto_bco": 13, "kto_mixtral": 13}
# TRL drops rows whose prompt leaves no room, which leaves 16. TRL's eval metrics are means over
# batches, so a short last batch would have the same weight as a full one.
EVAL_ROWS = {"kto_bco": 17, "dpo_stories": 17, "dpo_lora": 17, "dpo_epochs": 17, "dpo_drop_last": 18, "orpo": 17, "simpo": 17}
