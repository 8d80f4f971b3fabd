//! Every kind of error, with the message that a user sees.

use super::*;

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
        "r.yaml:3:9: `device` must be one of cpu, tch, tch:cuda:N, cuda, cuda:N, cube-cpu, not `gpu`",
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
fn gradients_are_sent_as_floats() {
    check(
        "gradient_reduce_dtype: quarter\n",
        Stage::Sft,
        "r.yaml:3:24: `gradient_reduce_dtype` must be one of float32, bfloat16, float16, auto, not `quarter`",
        "",
    );
}

#[test]
fn orpo_reads_the_load_balancing_loss_from_the_model() {
    check(
        "router_aux_loss_coef: 0.01\n",
        Stage::Orpo,
        "r.yaml:3:23: `router_aux_loss_coef` cannot be set for ORPO",
        "ORPO and CPO read `router_aux_loss_coef` and `output_router_logits` of the model's \
         config.json",
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
