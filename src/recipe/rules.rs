//! Checks that involve several keys.

use super::choice::Choice;
use super::lr_schedule::{LR_END, Schedule};
use super::objectives::{Objective, ReferenceKind, SftLoss, SftSettings};
use super::reader::Reader;
use super::settings::{Every, ModelSettings, TrainSettings, Warmup};

/// Checks a recipe's settings against each other.
pub(super) fn check(
    r: &mut Reader,
    model: &ModelSettings,
    train: &TrainSettings,
    objective: &Objective,
) {
    output_is_not_an_input(r, model, train);
    warmup_fits(r, train);
    check_schedule(r, train);
    best_model_can_be_found(r, train);
    strategy_best_is_for_saving(r, train);
    micro_batch_can_be_split(r, train, objective);
    reference_fits_adapter(r, model, objective);
    if let Objective::Sft(sft) = objective {
        packing_has_a_length(r, sft);
        smoothing_has_an_effect(r, sft);
    }
}

/// The finished model replaces the files in `output_dir`, so it must not be the folder of an input
/// model.
fn output_is_not_an_input(r: &mut Reader, model: &ModelSettings, train: &TrainSettings) {
    let Ok(output_dir) = std::fs::canonicalize(&train.output_dir) else { return };
    let reference = model.ref_model_name_or_path.as_ref();
    for (key, name) in [
        ("model_name_or_path", Some(&model.model_name_or_path)),
        ("ref_model_name_or_path", reference),
    ] {
        let folder = name.and_then(|name| std::fs::canonicalize(name).ok());
        if folder.is_some_and(|folder| folder == output_dir) {
            r.error_on(
                "output_dir",
                format!(
                    "`output_dir` is the folder of `{key}`: the trained model would replace that \
                     model"
                ),
            );
            r.help("choose another output_dir");
        }
    }
}

fn warmup_fits(r: &mut Reader, train: &TrainSettings) {
    if let (Warmup::Steps(warmup), Some(max)) = (train.warmup, train.max_steps)
        && warmup > max
    {
        r.error_on(
            "warmup_steps",
            format!("`warmup_steps` is {warmup}, more than `max_steps`, which is {max}"),
        );
        r.help("lower `warmup_steps`: the learning rate would never reach its peak");
    }
}

fn best_model_can_be_found(r: &mut Reader, train: &TrainSettings) {
    if !train.load_best_model_at_end {
        return;
    }
    let problem = match (train.eval, train.save) {
        (Every::No, _) => Some("nothing is evaluated: `eval_strategy` is no".to_owned()),
        (_, Every::Best) | (Every::Epoch, Every::Epoch) => None,
        (Every::Steps(eval), Every::Steps(save)) => steps_do_not_meet(eval, save),
        _ => Some("`eval_strategy` and `save_strategy` differ".to_owned()),
    };
    if let Some(problem) = problem {
        r.error_on(
            "load_best_model_at_end",
            format!("`load_best_model_at_end` cannot work: {problem}"),
        );
        r.help(
            "every checkpoint must have been evaluated: use the same strategy, and save every \
             eval_steps or a multiple",
        );
    }
}

/// `best` is a strategy of saving only. It needs evaluations and the metric that they compare.
fn strategy_best_is_for_saving(r: &mut Reader, train: &TrainSettings) {
    for (key, every) in [("logging_strategy", train.logging), ("eval_strategy", train.eval)] {
        if every == Every::Best {
            r.error_on(key, format!("`{key}` must be one of no, steps, epoch, not `best`"));
        }
    }
    if train.save != Every::Best {
        return;
    }
    if train.eval == Every::No {
        let problem = "`save_strategy: best` saves nothing: `eval_strategy` is no";
        r.error_on("save_strategy", problem.to_owned());
        r.help("write `eval_strategy: steps` or `epoch`");
    }
    if train.metric_for_best_model.is_none() {
        let problem = "`save_strategy: best` needs `metric_for_best_model`";
        r.error_on("save_strategy", problem.to_owned());
        r.help("for example metric_for_best_model: loss");
    }
}

/// Why some checkpoints saved every `save` steps would not be evaluated every `eval` steps, or
/// `None`.
fn steps_do_not_meet(eval: f64, save: f64) -> Option<String> {
    if (eval < 1.0) != (save < 1.0) {
        return Some(format!(
            "`save_steps` is {save} and `eval_steps` is {eval}: one is a share, the other a number \
             of steps"
        ));
    }
    // Compare shares in millionths, as transformers does, to avoid rounding errors.
    let scale = if eval < 1.0 { 1e6 } else { 1.0 };
    let (eval_units, save_units) = ((eval * scale).round(), (save * scale).round());
    (eval_units < 1.0 || save_units % eval_units != 0.0)
        .then(|| format!("`save_steps` {save} is not a multiple of `eval_steps` {eval}"))
}

fn micro_batch_can_be_split(r: &mut Reader, train: &TrainSettings, objective: &Objective) {
    // Even a loss that is a mean over rows has a margin that compares the desirable and undesirable
    // rows of a micro-batch.
    let two_labels = || "KTO compares desirable with undesirable rows of a micro-batch".to_owned();
    let is_kto = matches!(objective, Objective::Kto(_));
    let Some(why) = objective.rows_meet().or_else(|| is_kto.then(two_labels)) else { return };
    if train.max_tokens_per_microbatch.is_some() {
        r.error_on(
            "max_tokens_per_microbatch",
            format!("`max_tokens_per_microbatch` cannot be used with this objective: {why}"),
        );
        r.help(
            "a micro-batch computed in parts would give another update: lower \
             `per_device_train_batch_size`",
        );
    }
}

/// As in TRL: with an adapter the reference is the model without it, so nothing can follow the
/// policy.
fn reference_fits_adapter(r: &mut Reader, model: &ModelSettings, objective: &Objective) {
    let follows = matches!(ReferenceKind::of(objective), ReferenceKind::Following(_));
    if model.lora.is_some() && follows {
        r.error_on(
            "sync_ref_model",
            "`sync_ref_model` cannot be used with `use_peft`: the reference is the model without \
             its adapter, which does not change"
                .to_owned(),
        );
        r.help("remove `sync_ref_model`, or train all weights with `use_peft: false`");
    }
}

/// As in TRL, `loss_type: dft` does not read `label_smoothing_factor`.
fn smoothing_has_an_effect(r: &mut Reader, sft: &SftSettings) {
    if sft.loss_type == SftLoss::Dft && sft.label_smoothing_factor > 0.0 {
        r.note("`label_smoothing_factor` has no effect: only `loss_type: nll` reads it".to_owned());
    }
}

fn packing_has_a_length(r: &mut Reader, sft: &SftSettings) {
    if (sft.packing || sft.eval_packing) && sft.max_length.is_none() {
        r.error_on(
            "packing",
            "`packing` needs `max_length`, the number of tokens in a row".to_owned(),
        );
    }
}

/// Checks the entries of the schedule: each is read, and none is missing.
fn check_schedule(r: &mut Reader, train: &TrainSettings) {
    let (schedule, given) = (train.lr_scheduler_type, train.lr_scheduler_kwargs);
    let word = schedule.word();
    let read = schedule.entries();
    for (key, _) in given.set_entries() {
        if !read.contains(&key) {
            r.error_on(
                "lr_scheduler_kwargs",
                format!("`lr_scheduler_kwargs.{key}` is not read by this `lr_scheduler_type`"),
            );
            match read {
                [] => r.help(format!("`{word}` reads no entries")),
                _ => r.help(format!("`{word}` reads {}", read.join(", "))),
            };
        }
    }
    if schedule.needs_min_lr() && given.min_lr.is_some() == given.min_lr_rate.is_some() {
        let has = if given.min_lr.is_some() { "has both" } else { "has neither" };
        r.error_on(
            "lr_scheduler_type",
            format!(
                "`{word}` needs `min_lr` or `min_lr_rate` in `lr_scheduler_kwargs`, which {has}"
            ),
        );
        r.help("for example lr_scheduler_kwargs: {min_lr_rate: 0.1}");
    }
    match schedule {
        Schedule::WarmupStableDecay if given.num_decay_steps.is_none() => {
            r.error_on(
                "lr_scheduler_type",
                format!("`{word}` needs `num_decay_steps` in `lr_scheduler_kwargs`"),
            );
            r.help("for example lr_scheduler_kwargs: {num_decay_steps: 100}");
        }
        Schedule::Polynomial if given.lr_end.unwrap_or(LR_END) >= train.learning_rate => {
            let end = given.lr_end.unwrap_or(LR_END);
            r.error_on(
                "lr_scheduler_type",
                format!("`{word}` ends at `lr_end`, {end}, which is not below `learning_rate`"),
            );
            r.help("lower `lr_end` in `lr_scheduler_kwargs`");
        }
        Schedule::ReduceLrOnPlateau if train.eval == Every::No => {
            r.error_on(
                "lr_scheduler_type",
                format!("`{word}` follows the evaluations, but `eval_strategy` is no"),
            );
            r.help("write `eval_strategy: steps` or `epoch`");
        }
        _ => {}
    }
}
