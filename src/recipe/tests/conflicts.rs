//! Messages about keys that contradict each other, or that would change the numbers of a run.

use super::*;
use crate::recipe::{ReferenceKind, Sampling};

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
fn streams_have_one_order_and_a_known_length() {
    let cases = [
        ("", Stage::Sft, "needs `max_steps`"),
        ("shuffle_dataset: true\n", Stage::Sft, "cannot be used with `shuffle_dataset`"),
        ("", Stage::Kto, "cannot be used with KTO"),
        ("group_by_length: true\n", Stage::Sft, "cannot be used with rows that are grouped"),
        (
            "train_sampling_strategy: random\n",
            Stage::Dpo,
            "but `train_sampling_strategy` is random",
        ),
        ("dataset_mixer: {a/b: 1.0}\n", Stage::Dpo, "but this mixture has another order"),
    ];
    for (more, stage, problem) in cases {
        let data = if more.contains("dataset_mixer") { "" } else { "dataset_name: a/b\n" };
        let steps = if problem.contains("max_steps") { "" } else { "max_steps: 9\n" };
        let text = format!("model_name_or_path: m\n{data}streaming: true\n{steps}{more}");
        let errors = Recipe::parse(&text, Path::new("r.yaml"), stage, &[]).unwrap_err().to_string();
        assert!(errors.contains("`streaming: true` "), "{errors}");
        assert!(errors.contains(problem), "{more}: {errors}");
    }
    let recipe = good("streaming: true\nmax_steps: 9\n", Stage::Dpo);
    assert_eq!(recipe.train.train_sampling_strategy, Sampling::Sequential);
    assert!(matches!(recipe.reference_kind(), ReferenceKind::Resident));
}
