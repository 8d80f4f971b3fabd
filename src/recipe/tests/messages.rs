//! Every kind of error, with the message that a user sees.

use super::*;

/// One error: its first line, the caret's line in full, and the help.
#[track_caller]
fn check(more: &str, stage: Stage, first: &str, help: &str) {
    let shown = bad(more, stage);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], first, "{shown}");
    let last = lines[lines.len() - 1];
    assert_eq!(last.strip_prefix("  help: ").unwrap_or(""), help, "{shown}");
    let heads = lines.iter().filter(|line| line.starts_with("r.yaml:")).count();
    assert_eq!(heads, 1, "one error only:\n{shown}");
}

#[test]
fn an_error_shows_the_line_and_a_caret() {
    let expected = "r.yaml:3:7: `beta` must be above 0, not `-0.1`\n    \
                    beta: -0.1   # low\n          ^^^^";
    assert_eq!(bad("beta: -0.1   # low\n", Stage::Dpo), expected);
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let shown = bad("learning_rat: 1\nbeta: 0\nseed: x\nloss_type: [a]\n", Stage::Dpo);
    let heads: Vec<&str> = shown.lines().filter(|line| line.starts_with("r.yaml")).collect();
    assert_eq!(
        heads,
        [
            "r.yaml:3:1: `learning_rat` is not a known key",
            "r.yaml:4:7: `beta` must be above 0, not `0`",
            "r.yaml:5:7: `seed` needs a whole number, not `x`",
            "r.yaml:6:13: `loss_type` must be one of sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, \
             sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, sft, sigmoid_norm, kto_pair, not `a`",
        ]
    );
}

#[test]
fn unknown_keys_have_a_nearest_one() {
    check(
        "lerning_rate: 1\n",
        Stage::Sft,
        "r.yaml:3:1: `lerning_rate` is not a known key",
        "did you mean `learning_rate`?",
    );
    check(
        "temperature: 1\n",
        Stage::Sft,
        "r.yaml:3:1: `temperature` is not a known key",
        "the nearest known key is `report_to`",
    );
    check(
        "lr_scheduler_kwargs: {min_lrr: 1}\n",
        Stage::Sft,
        "r.yaml:3:23: `lr_scheduler_kwargs.min_lrr` is not a known key",
        "did you mean `min_lr`?",
    );
}

#[test]
fn keys_of_the_other_stage() {
    check(
        "beta: 0.1\n",
        Stage::Sft,
        "r.yaml:3:1: `beta` is a key of DPO recipes, but this recipe is read as SFT",
        "remove it, or run the recipe with `favonius dpo`",
    );
    check(
        "rpo_alpha: 1\n",
        Stage::Sft,
        "r.yaml:3:1: `rpo_alpha` is a key of DPO recipes, but this recipe is read as SFT",
        "remove it, or run the recipe with `favonius dpo`",
    );
    check(
        "packing: true\n",
        Stage::Dpo,
        "r.yaml:3:1: `packing` is a key of SFT recipes, but this recipe is read as DPO",
        "remove it, or run the recipe with `favonius sft`",
    );
}

#[test]
fn wrong_types() {
    check(
        "learning_rate: fast\n",
        Stage::Sft,
        "r.yaml:3:16: `learning_rate` needs a number, not `fast`",
        "",
    );
    check(
        "learning_rate: [1]\n",
        Stage::Sft,
        "r.yaml:3:16: `learning_rate` needs a number, not a list",
        "",
    );
    check(
        "learning_rate: .nan\n",
        Stage::Sft,
        "r.yaml:3:16: `learning_rate` needs a number, not `.nan`",
        "",
    );
    check(
        "per_device_train_batch_size: 2.5\n",
        Stage::Sft,
        "r.yaml:3:30: `per_device_train_batch_size` needs a whole number, not `2.5`",
        "",
    );
    check(
        "packing: maybe\n",
        Stage::Sft,
        "r.yaml:3:10: `packing` needs true or false, not `maybe`",
        "",
    );
    check(
        "output_dir: {a: b}\n",
        Stage::Sft,
        "r.yaml:3:13: `output_dir` needs a text, not a mapping",
        "",
    );
    check("output_dir: \"\"\n", Stage::Sft, "r.yaml:3:13: `output_dir` is empty", "");
    check(
        "lr_scheduler_kwargs: 3\n",
        Stage::Sft,
        "r.yaml:3:22: `lr_scheduler_kwargs` must be a mapping, not `3`",
        "",
    );
    check(
        "resume_from_checkpoint: [1]\n",
        Stage::Sft,
        "r.yaml:3:25: `resume_from_checkpoint` needs true, false or a checkpoint's folder, not a list",
        "",
    );
}

#[test]
fn impossible_values() {
    check(
        "learning_rate: -1e-5\n",
        Stage::Sft,
        "r.yaml:3:16: `learning_rate` must be 0 or above, not `-1e-5`",
        "",
    );
    check("beta: 0\n", Stage::Dpo, "r.yaml:3:7: `beta` must be above 0, not `0`", "");
    check(
        "label_smoothing: 0.5\n",
        Stage::Dpo,
        "r.yaml:3:18: `label_smoothing` must be at least 0 and below 0.5, not `0.5`",
        "",
    );
    check(
        "per_device_train_batch_size: 0\n",
        Stage::Sft,
        "r.yaml:3:30: `per_device_train_batch_size` must be at least 1, not `0`",
        "",
    );
    check(
        "gradient_accumulation_steps: 0\n",
        Stage::Sft,
        "r.yaml:3:30: `gradient_accumulation_steps` must be at least 1, not `0`",
        "",
    );
    check(
        "adam_beta2: 1.0\n",
        Stage::Sft,
        "r.yaml:3:13: `adam_beta2` must be at least 0 and below 1, not `1.0`",
        "",
    );
    check(
        "num_train_epochs: 0\n",
        Stage::Sft,
        "r.yaml:3:19: `num_train_epochs` must be above 0 and at most a million, not `0`",
        "",
    );
    check(
        "num_train_epochs: 1e300\n",
        Stage::Sft,
        "r.yaml:3:19: `num_train_epochs` must be above 0 and at most a million, not `1e300`",
        "",
    );
    check(
        "warmup_ratio: 1.5\n",
        Stage::Sft,
        "r.yaml:3:15: `warmup_ratio` must be from 0 to 1, not `1.5`",
        "",
    );
    check(
        "max_bad_rows: 2\n",
        Stage::Sft,
        "r.yaml:3:15: `max_bad_rows` must be from 0 to 1, not `2`",
        "",
    );
    check(
        "save_total_limit: 0\n",
        Stage::Sft,
        "r.yaml:3:19: `save_total_limit` must be at least 1, not `0`",
        "",
    );
    check(
        "max_length: 0\n",
        Stage::Sft,
        "r.yaml:3:13: `max_length` must be at least 1, not `0`",
        "",
    );
    check(
        "max_steps: 0\n",
        Stage::Sft,
        "r.yaml:3:12: `max_steps` needs a whole number of at least 1, or -1 for no limit, not `0`",
        "",
    );
    check(
        "logging_steps: 0\n",
        Stage::Sft,
        "r.yaml:3:16: `logging_steps` must be above 0, not `0`",
        "",
    );
    check(
        "save_steps: 2.5\n",
        Stage::Sft,
        "r.yaml:3:13: `save_steps` must be whole, or a share below 1, not `2.5`",
        "",
    );
    check(
        "warmup_steps: 2.5\n",
        Stage::Sft,
        "r.yaml:3:15: `warmup_steps` must be whole, or a share below 1, not `2.5`",
        "",
    );
    check(
        "device: gpu\n",
        Stage::Sft,
        "r.yaml:3:9: `device` must be one of cpu, tch, cuda, cuda:N, not `gpu`",
        "",
    );
    check(
        "report_to: [tensorbord]\n",
        Stage::Sft,
        "r.yaml:3:13: `report_to` must be one of none, all, tensorboard, wandb, trackio, mlflow, jsonl, not `tensorbord`",
        "",
    );
    check(
        "report_to: [wandb, all]\n",
        Stage::Sft,
        "r.yaml:3:20: `report_to: all` cannot be combined with other loggers",
        "write `all` alone, or remove it from the list",
    );
}

#[test]
fn one_word_out_of_a_few() {
    check(
        "lr_scheduler_type: cosin\n",
        Stage::Sft,
        "r.yaml:3:20: `lr_scheduler_type` must be one of linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay, not `cosin`",
        "did you mean `cosine`?",
    );
    check(
        "lr_scheduler_type: greedy\n",
        Stage::Sft,
        "r.yaml:3:20: `lr_scheduler_type: greedy` is not supported",
        "supported: linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay",
    );
    check(
        "optim: lomo\n",
        Stage::Sft,
        "r.yaml:3:8: `optim: lomo` is not supported",
        "supported: adamw_torch, adam, rmsprop, adagrad, sgd, lion_32bit, adafactor",
    );
    check(
        "optim: ademamix_8bit\n",
        Stage::Sft,
        "r.yaml:3:8: `optim: ademamix_8bit` is not supported",
        "supported: adamw_torch, adam, rmsprop, adagrad, sgd, lion_32bit, adafactor",
    );
    check(
        "optim: [adam]\n",
        Stage::Sft,
        "r.yaml:3:8: `optim` needs one of adamw_torch, adam, rmsprop, adagrad, sgd, lion_32bit, adafactor, not a list",
        "",
    );
    check(
        "loss_type: simpo\n",
        Stage::Orpo,
        "r.yaml:3:1: `loss_type` is a key of DPO recipes, but this recipe is read as ORPO",
        "remove it, or run the recipe with `favonius dpo`",
    );
    check(
        "loss_type: robust\n",
        Stage::Cpo,
        "r.yaml:3:12: `loss_type` must be one of sigmoid, hinge, ipo, simpo, not `robust`",
        "",
    );
    check(
        "loss_type: ipo\n",
        Stage::Kto,
        "r.yaml:3:12: `loss_type` must be one of kto, apo_zero_unpaired, bco, not `ipo`",
        "did you mean `kto`?",
    );
    check(
        "torch_dtype: float64\n",
        Stage::Sft,
        "r.yaml:3:14: `dtype: float64` is not supported",
        "supported: float32, bfloat16, float16, auto",
    );
    check(
        "train_sampling_strategy: batch_rebalance\n",
        Stage::Sft,
        "r.yaml:3:26: `train_sampling_strategy: batch_rebalance` is not supported",
        "supported: random, sequential, group_by_length",
    );
}

#[test]
fn settings_that_would_change_the_numbers() {
    let cases = [
        (Stage::Sft, "fp16: true", "supported: `bf16: true`, or neither for float32"),
        (Stage::Sft, "load_in_8bit: true", "supported: `load_in_4bit: true`, or neither"),
    ];
    for (stage, line, help) in cases {
        let column = line.find(": ").expect("a key") + 3;
        check(
            &format!("{line}\n"),
            stage,
            &format!("r.yaml:3:{column}: `{line}` is not supported"),
            help,
        );
    }
    check(
        "dataset_kwargs: {append_concat_token: true}\n",
        Stage::Sft,
        "r.yaml:3:39: `dataset_kwargs.append_concat_token: true` is not supported",
        "supported: false; the chat template writes the special tokens",
    );
    check(
        "model_init_kwargs: {dtype: bfloat16}\n",
        Stage::Sft,
        "r.yaml:3:20: `model_init_kwargs` is not supported",
        "write its entries as keys of the recipe: `dtype`, `model_revision`",
    );
}

#[test]
fn other_types_than_nf4() {
    check(
        "load_in_4bit: true\nbnb_4bit_quant_type: fp4\n",
        Stage::Dpo,
        "r.yaml:4:22: `bnb_4bit_quant_type: fp4` is not supported",
        "supported: nf4",
    );
    check(
        "load_in_4bit: true\ndtype: bfloat16\nbnb_4bit_compute_dtype: float32\n",
        Stage::Dpo,
        "r.yaml:5:25: `bnb_4bit_compute_dtype` differs from `dtype`",
        "remove it: as in TRL, `dtype` is the type in which quantized layers compute",
    );
}

#[test]
fn orpo_reads_the_load_balancing_loss_from_the_model() {
    check(
        "router_aux_loss_coef: 0.01\n",
        Stage::Orpo,
        "r.yaml:3:23: `router_aux_loss_coef` cannot be set for ORPO and CPO",
        "they read `router_aux_loss_coef` and `output_router_logits` of the model's config.json",
    );
}

#[test]
fn mistakes_in_the_keys_of_lora() {
    check(
        "use_peft: true\nuse_dora: true\n",
        Stage::Sft,
        "r.yaml:4:11: `use_dora: true` is not supported",
        "DoRA is not implemented: remove the key to train LoRA",
    );
    check(
        "use_peft: true\nlora_task_type: SEQ_CLS\n",
        Stage::Sft,
        "r.yaml:4:17: `lora_task_type: SEQ_CLS` is not supported",
        "supported: CAUSAL_LM",
    );
    check(
        "use_peft: true\nlora_target_parameters: [experts.up]\n",
        Stage::Sft,
        "r.yaml:4:25: `lora_target_parameters` is not supported",
        "write `lora_target_modules`: linear layers",
    );
    check(
        "use_peft: true\nlora_r: 0\n",
        Stage::Sft,
        "r.yaml:4:9: `lora_r` must be at least 1, not `0`",
        "",
    );
    check(
        "use_peft: true\nlora_dropout: 1\n",
        Stage::Sft,
        "r.yaml:4:15: `lora_dropout` must be at least 0 and below 1, not `1`",
        "",
    );
    check(
        "use_peft: true\nsync_ref_model: true\n",
        Stage::Dpo,
        "r.yaml:4:17: `sync_ref_model` cannot be used with `use_peft`: the reference is the model \
         without its adapter, which does not change",
        "remove `sync_ref_model`, or train all weights with `use_peft: false`",
    );
}

#[test]
fn duplicates_and_two_spellings() {
    check(
        "seed: 1\nseed: 1\n",
        Stage::Sft,
        "r.yaml:4:1: `seed` is given twice",
        "keep one of the two",
    );
    check(
        "max_length: 512\nmax_seq_length: 1024\n",
        Stage::Sft,
        "r.yaml:4:1: `max_seq_length` is `1024`, but `max_length`, another spelling of the same key, is `512`",
        "keep one of the two",
    );
    check(
        "eval_strategy: epoch\nevaluation_strategy: steps\n",
        Stage::Sft,
        "r.yaml:4:1: `evaluation_strategy` is `steps`, but `eval_strategy`, another spelling of the same key, is `epoch`",
        "keep one of the two",
    );
    good("eval_strategy: epoch\nevaluation_strategy: epoch\n", Stage::Sft);
}

#[test]
fn keys_that_do_not_fit_together() {
    check(
        "max_steps: 10\nwarmup_steps: 20\n",
        Stage::Sft,
        "r.yaml:4:15: `warmup_steps` is 20, more than `max_steps`, which is 10",
        "lower `warmup_steps`: the learning rate would never reach its peak",
    );
    check(
        "max_length: 512\nmax_prompt_length: 512\n",
        Stage::Dpo,
        "r.yaml:4:20: `max_prompt_length` is 512, which leaves no room for a response in `max_length` 512",
        "lower `max_prompt_length` or raise `max_length`",
    );
    check(
        "packing: true\nmax_length: null\n",
        Stage::Sft,
        "r.yaml:3:10: `packing` needs `max_length`, the number of tokens in a row",
        "",
    );
    check(
        "lr_scheduler_type: cosine_with_min_lr\n",
        Stage::Sft,
        "r.yaml:3:20: `cosine_with_min_lr` needs `min_lr` or `min_lr_rate` in `lr_scheduler_kwargs`, which has neither",
        "for example lr_scheduler_kwargs: {min_lr_rate: 0.1}",
    );
    check(
        "lr_scheduler_kwargs: {min_lr: 1e-6}\n",
        Stage::Sft,
        "r.yaml:3:22: `lr_scheduler_kwargs.min_lr` is not read by this `lr_scheduler_type`",
        "`linear` reads no entries",
    );
    check(
        "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {timescale: 3}\n",
        Stage::Sft,
        "r.yaml:4:22: `lr_scheduler_kwargs.timescale` is not read by this `lr_scheduler_type`",
        "`polynomial` reads lr_end, power",
    );
    check(
        "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_end: 0.1}\n",
        Stage::Sft,
        "r.yaml:3:20: `polynomial` ends at `lr_end`, 0.1, which is not below `learning_rate`",
        "lower `lr_end` in `lr_scheduler_kwargs`",
    );
    check(
        "lr_scheduler_type: warmup_stable_decay\n",
        Stage::Sft,
        "r.yaml:3:20: `warmup_stable_decay` needs `num_decay_steps` in `lr_scheduler_kwargs`",
        "for example lr_scheduler_kwargs: {num_decay_steps: 100}",
    );
    check(
        "lr_scheduler_type: reduce_lr_on_plateau\n",
        Stage::Sft,
        "r.yaml:3:20: `reduce_lr_on_plateau` follows the evaluations, but `eval_strategy` is no",
        "write `eval_strategy: steps` or `epoch`",
    );
}

#[test]
fn the_best_model_must_be_evaluated() {
    let help = "every checkpoint must have been evaluated: use the same strategy, and save every eval_steps or a multiple";
    let best = |rest: &str, problem: &str| {
        let first = format!("r.yaml:3:25: `load_best_model_at_end` cannot work: {problem}");
        check(&format!("load_best_model_at_end: true\n{rest}\n"), Stage::Sft, &first, help);
    };
    best("", "nothing is evaluated: `eval_strategy` is no");
    best("eval_strategy: epoch", "`eval_strategy` and `save_strategy` differ");
    best(
        "eval_strategy: steps\neval_steps: 300",
        "`save_steps` 500 is not a multiple of `eval_steps` 300",
    );
    best(
        "eval_strategy: steps\neval_steps: 0.1",
        "`save_steps` is 500 and `eval_steps` is 0.1: one is a share, the other a number of steps",
    );
}

#[test]
fn best_is_a_strategy_of_saving() {
    let needs = "for example metric_for_best_model: loss";
    check(
        "save_strategy: best\neval_strategy: epoch\n",
        Stage::Sft,
        "r.yaml:3:16: `save_strategy: best` needs `metric_for_best_model`",
        needs,
    );
    check(
        "save_strategy: best\nmetric_for_best_model: loss\n",
        Stage::Sft,
        "r.yaml:3:16: `save_strategy: best` saves nothing: `eval_strategy` is no",
        "write `eval_strategy: steps` or `epoch`",
    );
    check(
        "eval_strategy: best\n",
        Stage::Sft,
        "r.yaml:3:16: `eval_strategy` must be one of no, steps, epoch, not `best`",
        "",
    );
}

#[test]
fn a_recipe_needs_a_model_and_data() {
    let shown = parse("", Stage::Sft, &[]).expect_err("empty").to_string();
    assert_eq!(
        shown,
        "r.yaml: `model_name_or_path` is missing\n  help: write the hub id or the folder of the model to train\n\
        r.yaml: no data set is named\n  help: write `dataset_mixer` with `dataset_splits`, `dataset_mixture`, `datasets`, or `dataset_name`"
    );
    let shown = parse("- a\n- b\n", Stage::Sft, &[]).expect_err("a list").to_string();
    assert!(shown.contains("r.yaml:1:1: this must be `key: value` lines, not a list"), "{shown}");
}

#[test]
fn yaml_that_is_none() {
    let shown = parse("a: 1\n b: 2\n", Stage::Sft, &[]).expect_err("indentation").to_string();
    assert!(shown.starts_with("r.yaml:2:"), "{shown}");
    assert!(shown.contains(": this is not YAML: "), "{shown}");
    assert!(
        shown.ends_with(
            "help: check quotes, brackets, colons and indentation here and on the line before"
        ),
        "{shown}"
    );
    let tab = parse("a:\n\t- 1\n", Stage::Sft, &[]).expect_err("a tab").to_string();
    assert!(tab.contains("this is not YAML"), "{tab}");
}

#[test]
fn files_that_are_none() {
    let shown =
        Recipe::load(Path::new("no/such.yaml"), Stage::Sft, &[]).expect_err("missing").to_string();
    assert!(shown.starts_with("no/such.yaml: cannot be read: "), "{shown}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("r.yaml");
    std::fs::write(&path, b"a: \xff").expect("a file");
    let shown = Recipe::load(&path, Stage::Sft, &[]).expect_err("bytes").to_string();
    assert!(shown.ends_with("is not a text file: byte 4 is not UTF-8"), "{shown}");
    check(
        "chat_template: zephyr.jinja\n",
        Stage::Sft,
        "r.yaml:3:16: `chat_template` is neither Jinja text nor a file: `zephyr.jinja`",
        "write the template itself, the name of its file (tokenizers use chat_template.jinja), or the \
         folder or hub id of a tokenizer",
    );
}

#[test]
fn a_long_line_is_cut_around_the_caret() {
    let shown = bad(
        &format!("lr_scheduler_kwargs: {{min_lr: {}, oops: 1}}\n", "1".repeat(200)),
        Stage::Sft,
    );
    assert!(shown.lines().all(|line| line.chars().count() < 140), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    let caret =
        lines.iter().position(|line| line.trim_start().starts_with("^^^^")).expect("a caret");
    let at = lines[caret].find('^').expect("a caret");
    let pointed: String = lines[caret - 1].chars().skip(at).take(4).collect();
    assert_eq!(pointed, "oops");
}

#[test]
fn preference_settings_that_do_not_go_together() {
    check(
        "loss_type: [sigmoid, sft]\nloss_weights: [1.0]\n",
        Stage::Dpo,
        "r.yaml:4:15: `loss_weights` has 1 weights for 2 losses",
        "write one weight for each loss of `loss_type`, in the same order",
    );
    check("loss_type: []\n", Stage::Dpo, "r.yaml:3:12: `loss_type` is an empty list", "");
    check(
        "loss_type: exo_pair\n",
        Stage::Dpo,
        "r.yaml:3:12: `loss_type: exo_pair` needs a `label_smoothing` above 0: its loss contains ln ε",
        "the paper uses label_smoothing: 1e-3",
    );
    check(
        "loss_type: aot\nuse_weighting: true\n",
        Stage::Dpo,
        "r.yaml:4:16: `use_weighting` cannot be used with the losses aot and aot_unpaired",
        "they sort the pairs of a micro-batch, so a weight would apply to another pair's loss",
    );
    check(
        "loss_type: nca_pair\nf_divergence_type: forward_kl\n",
        Stage::Dpo,
        "r.yaml:4:20: this `f_divergence_type` cannot be used with every loss of `loss_type`",
        "supported with it: sigmoid, sigmoid_norm, hinge, ipo, exo_pair, robust, discopop, sft",
    );
    for stage in [Stage::Dpo, Stage::Kto] {
        check(
            "sync_ref_model: true\nprecompute_ref_log_probs: true\n",
            stage,
            "r.yaml:3:17: `sync_ref_model` cannot be used with `precompute_ref_log_probs`",
            "precomputed log-probs are those of the initial reference: set one of the two to false",
        );
    }
    check(
        "sync_ref_model: true\nreference_free: true\n",
        Stage::Dpo,
        "r.yaml:3:17: `sync_ref_model` cannot be used with `reference_free`, which has no reference",
        "",
    );
    check(
        "per_device_train_batch_size: 1\n",
        Stage::Kto,
        "r.yaml:3:30: `loss_type: kto` needs a `per_device_train_batch_size` of at least 2",
        "its KL is estimated from prompts paired with responses of other rows in the micro-batch",
    );
}

#[test]
fn preference_keys_that_nothing_reads_are_named() {
    let notes = |more: &str, stage| good(more, stage).notes.join("; ");
    let text = notes(
        "discopop_tau: 0.1\nref_model_sync_steps: 3\nf_alpha_divergence_coef: 0.1\n",
        Stage::Dpo,
    );
    for key in ["discopop_tau", "ref_model_sync_steps", "f_alpha_divergence_coef"] {
        assert!(text.contains(&format!("`{key}` has no effect")), "{text}");
    }
    assert!(notes("loss_type: hinge\nlabel_smoothing: 0.1\n", Stage::Dpo).contains("no effect"));
    assert!(notes("label_smoothing: 0.1\n", Stage::Dpo).contains("conservative DPO"));
    assert!(notes("simpo_gamma: 1.0\n", Stage::Cpo).contains("only `loss_type: simpo`"));
    assert!(notes("loss_type: simpo\n", Stage::Cpo).contains("the paper has `cpo_alpha: 0`"));
}

#[test]
fn arguments_of_sgd() {
    let sgd = |arguments: &str, message: &str, help: &str| {
        let text = format!("optim: sgd\noptim_args: {arguments}\n");
        check(&text, Stage::Sft, &format!("r.yaml:4:13: {message}"), help);
    };
    sgd("momentum=2", "`optim_args.momentum` must be at least 0 and below 1, not `2`", "");
    sgd("momentum", "`optim_args` needs pairs `name=value`, not `momentum`", "");
    sgd(
        "alpha=0.9",
        "`optim_args`: `alpha` is not an argument of sgd",
        "supported: momentum, dampening, nesterov",
    );
    sgd(
        "nesterov=true",
        "`optim_args`: nesterov needs a momentum and no dampening",
        "for example optim_args: momentum=0.9,nesterov=true",
    );
}
