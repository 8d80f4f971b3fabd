//! All keys except those in `preferences`. Each key is one line with its spellings, default and
//! range; `reader` does the rest.
//!
//! Defaults are those of TRL 1.16 on transformers 5, except that `bf16` is false: the default
//! device is a CPU in float32.

use std::path::PathBuf;

use super::adapters;
use super::chat_template::ChatTemplateKey;
use super::error::{RecipeError, RecipeErrors};
use super::evaluation::{self, TaskEvaluation};
use super::hub;
use super::lr_schedule::{LrSchedulerKwargs, Schedule};
use super::mixture;
use super::number::{AT_LEAST_1, BELOW_1, EPOCHS, NOT_NEGATIVE, OF_A_STEP, POSITIVE, SHARE};
use super::objectives::{Objective, Packing, SftLoss, SftSettings};
use super::optimizers;
use super::outside;
use super::preferences;
use super::quantization;
use super::reader::Reader;
use super::reporters;
use super::rules;
use super::settings::*;
use super::streaming;
use super::yaml::{Node, Place, Sources, Value};

/// Reads a whole recipe. `errors` are the errors found so far.
pub(super) fn read(
    root: Node,
    sources: &Sources,
    stage: Stage,
    errors: Vec<RecipeError>,
) -> Result<Recipe, RecipeErrors> {
    let whole = root.at;
    let mut r = Reader::new(root, sources, "");
    r.report.errors.extend(errors);
    let (model, data, train, objective, evaluation) = all_keys(&mut r, stage);
    let elsewhere = keys_of_other_stages(stage, whole, sources);
    for entry in r.leftovers() {
        let of = elsewhere.iter().find(|(_, known)| known.contains(&entry.key.as_str()));
        if let Some((other, _)) = of {
            let (key, other_name, this) = (&entry.key, other.name(), stage.name());
            r.error(
                entry.key_at,
                format!(
                    "`{key}` is a key of {other_name} recipes, but this recipe is read as {this}"
                ),
            );
            r.help(format!("remove it, or run the recipe with `favonius {}`", other.command()));
        } else {
            r.unknown(&entry);
        }
    }
    let mut report = r.report;
    if !report.errors.is_empty() {
        return Err(RecipeErrors::in_order(report.errors));
    }
    report.written.sort_by_key(|(at, ..)| *at);
    Ok(Recipe {
        stage,
        file: sources.file().to_owned(),
        model,
        data,
        train,
        objective,
        evaluation,
        written: report.written.into_iter().map(|(_, key, text)| (key, text)).collect(),
        filled: report.filled,
        notes: report.notes,
    })
}

/// The keys of recipes of other stages, DPO first and SFT last.
fn keys_of_other_stages(
    stage: Stage,
    whole: Place,
    sources: &Sources,
) -> Vec<(Stage, Vec<&'static str>)> {
    let [sft, preferences @ ..] = Stage::ALL;
    let others = preferences.into_iter().chain([sft]).filter(|other| *other != stage);
    let keys = others.map(|other| {
        let empty = Node { value: Value::Map(Vec::new()), at: whole };
        let mut reader = Reader::new(empty, sources, "");
        all_keys(&mut reader, other);
        (other, reader.known)
    });
    keys.collect()
}

fn all_keys(
    r: &mut Reader,
    stage: Stage,
) -> (ModelSettings, DataSettings, TrainSettings, Objective, Option<TaskEvaluation>) {
    let model = model(r, stage);
    let streaming = r.flag("streaming|dataset_streaming", false);
    let train = train(r, stage, streaming);
    let data = data(r, stage, &train, streaming);
    let objective = match stage {
        Stage::Sft => Objective::Sft(sft(r)),
        Stage::Dpo => Objective::Dpo(preferences::dpo(r)),
        Stage::Orpo => Objective::Orpo(preferences::orpo(r)),
        Stage::Cpo => Objective::Cpo(preferences::cpo(r)),
        Stage::Tpo => Objective::Tpo(preferences::tpo(r)),
        Stage::Kto => Objective::Kto(preferences::kto(r, &train)),
    };
    let evaluation = evaluation::read(r);
    rules::check(r, &model, &train, &objective);
    streaming::check(r, &data, &train, &objective);
    outside::read(r, stage);
    (model, data, train, objective, evaluation)
}

fn model(r: &mut Reader, stage: Stage) -> ModelSettings {
    let ChatTemplateKey { text: chat_template, eos_token: eos_of_template } =
        ChatTemplateKey::read(r);
    let dtype = r.choice("dtype|torch_dtype", Dtype::Float32);
    ModelSettings {
        model_name_or_path: r.required_text(
            "model_name_or_path",
            "write the hub id or the folder of the model to train",
        ),
        model_revision: r.text("model_revision", "main"),
        tokenizer_name_or_path: r.optional_text("tokenizer_name_or_path"),
        ref_model_name_or_path: match stage {
            Stage::Dpo | Stage::Kto => r.optional_text("ref_model_name_or_path"),
            Stage::Sft | Stage::Orpo | Stage::Cpo | Stage::Tpo => None,
        },
        dtype,
        quantization: quantization::read(r, dtype),
        eos_token: r.optional_text("eos_token").or(eos_of_template),
        chat_template,
        lora: adapters::read(r),
        keeps_dropout: adapters::keeps_dropout(r, stage),
        router_aux_loss_coef: router_aux_loss_coef(r, stage),
    }
}

/// As in TRL, ORPO and CPO read it from the model's `config.json`, and TPO has no such loss.
fn router_aux_loss_coef(r: &mut Reader, stage: Stage) -> Option<f64> {
    let key = "router_aux_loss_coef";
    let coef = r.optional_float(key, NOT_NEGATIVE);
    let help = match stage {
        Stage::Sft | Stage::Dpo | Stage::Kto => return coef,
        Stage::Orpo | Stage::Cpo => {
            "ORPO and CPO read `router_aux_loss_coef` and `output_router_logits` of the model's \
             config.json"
        }
        Stage::Tpo => "the loss of TPO does not balance the load of experts",
    };
    if coef.is_some() {
        r.error_on(key, format!("`{key}` cannot be set for {}", stage.name()));
        r.help(help);
    }
    None
}

fn data(r: &mut Reader, stage: Stage, train: &TrainSettings, streaming: bool) -> DataSettings {
    let preprocessing = match stage {
        Stage::Dpo => r.choice("preference_semantics", Preprocessing::Trl),
        Stage::Orpo | Stage::Cpo => r.choice("preference_semantics", Preprocessing::TrlText),
        Stage::Sft | Stage::Tpo | Stage::Kto => Preprocessing::Trl,
    };
    DataSettings {
        mixture: mixture::read(
            r,
            train.eval != Every::No || train.do_eval || train.eval_on_start,
            train.seed,
        ),
        streaming,
        max_train_samples: r.optional_count("max_train_samples", AT_LEAST_1),
        max_eval_samples: r.optional_count("max_eval_samples", AT_LEAST_1),
        max_bad_rows: r.float("max_bad_rows", 0.01, SHARE),
        dataset_num_proc: r
            .optional_count("dataset_num_proc|preprocessing_num_workers", AT_LEAST_1),
        // The version of the handbook with these semantics also inserted the empty system message.
        auto_insert_empty_system_msg: r
            .flag("auto_insert_empty_system_msg", preprocessing == Preprocessing::HandbookV1),
        preprocessing,
    }
}

fn train(r: &mut Reader, stage: Stage, streaming: bool) -> TrainSettings {
    let logging_steps = steps(r, "logging_steps", Some(10.0));
    let logging = every(r, "logging_strategy", Strategy::Steps, logging_steps);
    // As in transformers, evaluation uses the logging steps if it has none of its own.
    let eval_steps = steps(r, "eval_steps", None).or(logging_steps);
    let eval = every(r, "eval_strategy|evaluation_strategy", Strategy::No, eval_steps);
    let save_steps = steps(r, "save_steps", Some(500.0));
    let save = every(r, "save_strategy", Strategy::Steps, save_steps);
    let load_best_model_at_end = r.flag("load_best_model_at_end", false);
    let lr_scheduler_type = r.choice("lr_scheduler_type", Schedule::Linear);
    let metric = match load_best_model_at_end || lr_scheduler_type == Schedule::ReduceLrOnPlateau {
        true => Some(r.text("metric_for_best_model", "loss")),
        false => r.optional_text("metric_for_best_model"),
    };
    // As in transformers, `loss` and `eval_loss` name the same metric.
    let metric = metric.map(|name| name.strip_prefix("eval_").unwrap_or(&name).to_owned());
    let greater_is_better = r.optional_flag("greater_is_better");
    let (optim, sgd) = optimizers::read(r);
    TrainSettings {
        output_dir: PathBuf::from(r.text("output_dir", "trainer_output")),
        overwrite_output_dir: r.flag("overwrite_output_dir", false),
        seed: r.count("seed", 42, NOT_NEGATIVE) as u64,
        data_seed: r.optional_count("data_seed", NOT_NEGATIVE).map(|seed| seed as u64),
        do_train: r.flag("do_train", true),
        do_eval: r.flag("do_eval", eval != Every::No),
        num_train_epochs: r.float("num_train_epochs", 3.0, EPOCHS),
        max_steps: r.steps_limit("max_steps"),
        per_device_train_batch_size: r.count("per_device_train_batch_size", 8, OF_A_STEP),
        max_tokens_per_microbatch: r.optional_count("max_tokens_per_microbatch", AT_LEAST_1),
        per_device_eval_batch_size: r.count("per_device_eval_batch_size", 8, OF_A_STEP),
        gradient_accumulation_steps: r.count("gradient_accumulation_steps", 1, OF_A_STEP),
        gradient_checkpointing: r.flag("gradient_checkpointing|activation_checkpointing", true),
        bf16: r.flag("bf16", false),
        gradient_reduce_dtype: r.choice("gradient_reduce_dtype", Dtype::Auto),
        optim,
        sgd,
        learning_rate: r.float(
            "learning_rate",
            match stage {
                Stage::Sft => 2e-5,
                Stage::Tpo => 5e-7,
                _ => 1e-6,
            },
            NOT_NEGATIVE,
        ),
        adam_beta1: r.float("adam_beta1", 0.9, BELOW_1),
        adam_beta2: r.float("adam_beta2", 0.999, BELOW_1),
        adam_epsilon: r.float("adam_epsilon", 1e-8, NOT_NEGATIVE),
        weight_decay: r.float("weight_decay", 0.0, NOT_NEGATIVE),
        neftune_noise_alpha: r.optional_float("neftune_noise_alpha", NOT_NEGATIVE),
        max_grad_norm: r.float("max_grad_norm", 1.0, NOT_NEGATIVE),
        lr_scheduler_type,
        lr_scheduler_kwargs: LrSchedulerKwargs::read(r),
        warmup: warmup(r),
        logging,
        logging_first_step: r.flag("logging_first_step", false),
        eval,
        eval_delay: r.float("eval_delay", 0.0, NOT_NEGATIVE),
        eval_on_start: r.flag("eval_on_start", false),
        save,
        save_total_limit: r.optional_count("save_total_limit", AT_LEAST_1),
        save_only_model: r.flag("save_only_model", false),
        save_dtype: r.optional_choice("save_dtype"),
        load_best_model_at_end,
        greater_is_better: greater_is_better
            .or_else(|| metric.as_deref().map(|name| !name.ends_with("loss"))),
        metric_for_best_model: metric,
        train_sampling_strategy: sampling(r, stage, streaming),
        dataloader_drop_last: r.flag("dataloader_drop_last", false),
        resume_from_checkpoint: resume(r),
        report_to: reporters::read(r),
        logging_dir: r.optional_text("logging_dir").map(PathBuf::from),
        run_name: r.optional_text("run_name"),
        project: r.optional_text("project"),
        hub_model_id: r.optional_text("hub_model_id|push_to_hub_model_id"),
        push_to_hub: hub::read(r),
        device: device(r),
        disable_tqdm: r.flag("disable_tqdm", false),
    }
}

fn sft(r: &mut Reader) -> SftSettings {
    let packing = r.flag("packing", false);
    SftSettings {
        loss_type: r.choice("loss_type", SftLoss::Nll),
        max_length: r.limit("max_length|max_seq_length", 1024),
        packing,
        packing_strategy: r.choice("packing_strategy", Packing::Bfd),
        eval_packing: r.flag("eval_packing", packing),
        completion_only_loss: r.optional_flag("completion_only_loss"),
        assistant_only_loss: r.flag("assistant_only_loss", false),
        dataset_text_field: Some(r.text("dataset_text_field|text_column", "text")),
        shuffle_dataset: r.flag("shuffle_dataset", false),
        label_smoothing_factor: r.float("label_smoothing_factor", 0.0, SHARE),
    }
}

/// The order of the training rows. `group_by_length` is the key of transformers 4 for one of them.
/// Streamed rows are in the order of the files.
fn sampling(r: &mut Reader, stage: Stage, streaming: bool) -> Sampling {
    let grouped = match r.take("group_by_length") {
        Some(entry) => r.as_flag("group_by_length", &entry.value) == Some(true),
        None => false,
    };
    let default = match stage {
        _ if grouped => Sampling::GroupByLength,
        _ if streaming => Sampling::Sequential,
        Stage::Kto => Sampling::Sequential,
        _ => Sampling::Random,
    };
    r.choice("train_sampling_strategy", default)
}

/// `warmup_steps` if above 0, else `warmup_ratio`. Steps below 1 are a share, as in transformers 5.
fn warmup(r: &mut Reader) -> Warmup {
    let ratio = r.float("warmup_ratio", 0.0, SHARE);
    let steps = r.float("warmup_steps", 0.0, NOT_NEGATIVE);
    if steps >= 1.0 && steps.fract() != 0.0 {
        r.error_on(
            "warmup_steps",
            format!("`warmup_steps` must be whole, or a share below 1, not `{steps}`"),
        );
    }
    match steps {
        0.0 => Warmup::Ratio(ratio),
        steps if steps < 1.0 => Warmup::Ratio(steps),
        steps => Warmup::Steps(steps as u64),
    }
}

/// A number of steps, or below 1 a share of all steps. 0 is accepted only if a default exists.
fn steps(r: &mut Reader, key: &'static str, default: Option<f64>) -> Option<f64> {
    let steps = match default {
        Some(default) => Some(r.float(key, default, POSITIVE)),
        None => r.optional_float(key, NOT_NEGATIVE).filter(|steps| *steps > 0.0),
    };
    if let Some(steps) = steps.filter(|steps| *steps > 1.0 && steps.fract() != 0.0) {
        r.error_on(key, format!("`{key}` must be whole, or a share below 1, not `{steps}`"));
    }
    steps
}

fn every(r: &mut Reader, keys: &'static str, default: Strategy, steps: Option<f64>) -> Every {
    match r.choice(keys, default) {
        Strategy::No => Every::No,
        Strategy::Epoch => Every::Epoch,
        Strategy::Steps => Every::Steps(steps.unwrap_or(1.0)),
        Strategy::Best => Every::Best,
    }
}

fn resume(r: &mut Reader) -> Resume {
    match r.take("resume_from_checkpoint").map(|entry| entry.value) {
        None => {
            r.fill("resume_from_checkpoint", &"true");
            Resume::Auto
        }
        Some(node) => match node.text() {
            Some("false" | "False" | "no") => Resume::Fresh,
            Some("true" | "True" | "yes") => Resume::Auto,
            Some(path) => Resume::Path(PathBuf::from(path)),
            None if node.value == Value::Null => Resume::Auto,
            None => {
                r.error(
                    node.at,
                    format!(
                        "`resume_from_checkpoint` needs true, false or a \
                         checkpoint's folder, not {}",
                        node.kind()
                    ),
                );
                Resume::Auto
            }
        },
    }
}

fn device(r: &mut Reader) -> DeviceChoice {
    let name = r.text("device", "cpu");
    let device = DeviceChoice::from_name(&name);
    // An empty text already has an error.
    if device.is_none() && !name.is_empty() {
        r.error_on(
            "device",
            format!(
                "`device` must be one of cpu, tch, tch:cuda:N, cuda, cuda:N, cube-cpu, not `{name}`"
            ),
        );
    }
    device.unwrap_or(DeviceChoice::Cpu)
}
