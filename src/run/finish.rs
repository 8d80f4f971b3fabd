//! What a finished stage leaves: the model in Hugging Face's layout, its record, its card.

use std::io;
use std::path::Path;

use anyhow::Context;
use burn::tensor::DType;
use serde_json::json;

use super::{identity, mark};
use crate::model::files::dtype_name;
use crate::model::weights::SHARD_BYTES;
use crate::plan::prepare::{Prepared, device_name};
use crate::recipe::{DatasetSpec, Mixture, Optim, Recipe, Schedule, TrainSettings, Warmup};
use crate::report::model_card::{CardFacts, CardLength, CardWarmup, Hyperparameters, Source, adam};
use crate::report::results::{Measure, row_metrics, save_metrics};
use crate::report::run_facts::{Facts, RunFacts, machine};
use crate::train::event::{Event, LogRow};
use crate::train::trainer::Trainer;

/// Writes `plan.json`: what this run is about to do, and where.
pub fn write_plan(prepared: &Prepared) -> anyhow::Result<()> {
    let recipe = &prepared.recipe;
    let plan = &prepared.plan;
    let [train_rows, test_rows] = prepared.row_counts;
    let facts = [
        ("recipe", recipe.file.display().to_string()),
        ("model", source(&recipe.model.model_name_or_path).name),
        ("architecture", format!("{:?}", prepared.config.architecture)),
        ("parameters", prepared.config.parameters().to_string()),
        ("computes in", dtype_name(prepared.dtype).into()),
        ("device", device_name(recipe.train.device, 0)),
        ("training rows", train_rows.to_string()),
        ("held-out rows", test_rows.to_string()),
        ("rows a step", plan.rows_a_step().to_string()),
        ("steps an epoch", plan.steps_per_epoch.to_string()),
        ("warm-up steps", plan.warmup.to_string()),
        ("steps", plan.total.to_string()),
    ];
    let output_dir = recipe.output_dir();
    let plan = RunFacts {
        stage: recipe.stage.command().into(),
        facts: facts.map(|(name, value)| (name.to_string(), value)).to_vec(),
        written: recipe.written.clone(),
        filled: recipe.filled.clone(),
        versions: versions(),
        machine: machine(),
    };
    plan.write(output_dir).with_context(|| format!("cannot write into {}", output_dir.display()))
}

fn versions() -> Facts {
    [("Favonius", env!("CARGO_PKG_VERSION")), ("Burn", "0.22.1"), ("Tokenizers", "0.22.2")]
        .map(|(name, version)| (name.to_string(), version.to_string()))
        .to_vec()
}

/// Writes everything into `output_dir`; the mark of a finished run comes last.
pub fn write(prepared: &Prepared, trainer: &mut Trainer) -> anyhow::Result<()> {
    let output_dir = prepared.recipe.output_dir();
    let failed = || format!("cannot write the model into {}", output_dir.display());
    std::fs::create_dir_all(output_dir).with_context(failed)?;
    write_model(prepared, trainer).with_context(failed)?;
    write_record(prepared, trainer).with_context(failed)?;
    let card = card(prepared, &trainer.state.log_history);
    card.write(&output_dir.join("README.md")).with_context(failed)?;
    let mark = json!({
        "favonius": env!("CARGO_PKG_VERSION"),
        "stage": prepared.recipe.stage,
        "global_step": trainer.state.global_step,
        "settings": identity::of_finished(&prepared.recipe),
    });
    mark::write_mark(output_dir, &mark).with_context(failed)?;
    trainer.observer.on(&Event::Saved { path: output_dir })?;
    Ok(())
}

/// The model is written into a hidden folder first, so that a kill leaves no half of it in place.
fn write_model(prepared: &Prepared, trainer: &Trainer) -> anyhow::Result<()> {
    let output_dir = prepared.recipe.output_dir();
    let hidden = tempfile::Builder::new().prefix(".model-").tempdir_in(output_dir)?;
    let dtype = prepared.saved_dtype();
    trainer.model.save_weights(hidden.path(), dtype, SHARD_BYTES)?;
    prepared.companions.write(&prepared.tokenizer, dtype, hidden.path())?;
    remove_old_weights(output_dir)?;
    for entry in std::fs::read_dir(hidden.path())? {
        let entry = entry?;
        std::fs::rename(entry.path(), output_dir.join(entry.file_name()))?;
    }
    Ok(())
}

/// Shards of an earlier run must not lie beside the new index.
fn remove_old_weights(output_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(output_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model")
            && (name.ends_with(".safetensors") || name.ends_with(".index.json"))
        {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// trainer_state.json and the result files, as transformers' example scripts write them.
fn write_record(prepared: &Prepared, trainer: &Trainer) -> anyhow::Result<()> {
    let output_dir = prepared.recipe.output_dir();
    trainer.state.write(&output_dir.join("trainer_state.json"))?;
    let [train_rows, test_rows] = prepared.row_counts;
    let history = &trainer.state.log_history;
    let last = |key: &str| history.iter().rev().find(|row| row.get(key).is_some());
    for (split, key, rows) in
        [("train", "train_loss", train_rows), ("eval", "eval_loss", test_rows)]
    {
        if let Some(row) = last(key) {
            let mut metrics = row_metrics(row);
            metrics.push((format!("{split}_samples"), Measure::from(rows as u64)));
            save_metrics(output_dir, split, &metrics)?;
        }
    }
    Ok(())
}

fn card(prepared: &Prepared, history: &[LogRow]) -> CardFacts {
    let recipe = &prepared.recipe;
    let [train_rows, test_rows] = prepared.row_counts;
    CardFacts {
        model_name: model_name(recipe),
        base_model: Some(source(&recipe.model.model_name_or_path)),
        datasets: datasets(&recipe.data.mixture),
        stage: recipe.stage.command().into(),
        license: None,
        tags: vec!["alignment-handbook".into()],
        architecture: Some(architecture(prepared)),
        train_rows: Some(train_rows as u64),
        eval_rows: Some(test_rows as u64),
        hyperparameters: hyperparameters(&recipe.train, prepared.dtype, prepared.plan.ranks)
            .pairs(),
        log_history: history.to_vec(),
        versions: versions(),
    }
}

fn model_name(recipe: &Recipe) -> String {
    let train = &recipe.train;
    let named = train.hub_model_id.as_deref().or(train.run_name.as_deref());
    let named = named.map(|name| name.rsplit('/').next().unwrap_or(name).to_string());
    let folder = || recipe.output_dir().file_name().map(|name| name.to_string_lossy().into_owned());
    named.or_else(folder).unwrap_or_else(|| "model".into())
}

fn architecture(prepared: &Prepared) -> String {
    let parameters = prepared.config.parameters() as f64;
    let size = match parameters {
        n if n >= 1e9 => format!("{:.1} billion", n / 1e9),
        n if n >= 1e6 => format!("{:.1} million", n / 1e6),
        n => format!("{:.0} thousand", n / 1e3),
    };
    format!("{:?}, {size} parameters", prepared.config.architecture)
}

/// A name on the hub keeps its owner; a local folder is named without its path.
fn source(name: &str) -> Source {
    let local = Path::new(name).exists() || name.matches('/').count() != 1 || name.starts_with('.');
    let short = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    Source { name: if local { short.into() } else { name.into() }, on_hub: !local }
}

fn datasets(mixture: &Mixture) -> Vec<Source> {
    let specs: Vec<&DatasetSpec> = match mixture {
        Mixture::Mixer { train, .. } => train.iter().collect(),
        Mixture::Pooled { sets, .. } => sets.iter().collect(),
        Mixture::Named { train, .. } => vec![train],
    };
    let mut sources: Vec<Source> = specs.into_iter().map(|spec| source(&spec.id)).collect();
    sources.dedup();
    sources
}

fn hyperparameters(train: &TrainSettings, dtype: DType, ranks: usize) -> Hyperparameters {
    let optimizer = match train.optim {
        Optim::RmsProp => "RMSprop with alpha=0.99 and epsilon=1e-08".to_string(),
        Optim::Adam => adam("Adam", train.adam_beta1, train.adam_beta2, train.adam_epsilon),
        Optim::AdamW => adam("AdamW", train.adam_beta1, train.adam_beta2, train.adam_epsilon),
    };
    Hyperparameters {
        learning_rate: train.learning_rate,
        train_batch_size: train.per_device_train_batch_size as u64,
        eval_batch_size: train.per_device_eval_batch_size as u64,
        seed: train.seed,
        distributed_type: None,
        num_devices: ranks as u64,
        gradient_accumulation_steps: train.gradient_accumulation_steps as u64,
        optimizer,
        lr_scheduler_type: schedule_name(train.lr_scheduler_type).into(),
        warmup: match train.warmup {
            Warmup::Ratio(ratio) => CardWarmup::Ratio(ratio),
            Warmup::Steps(steps) => CardWarmup::Steps(steps),
        },
        length: match train.max_steps {
            Some(steps) => CardLength::Steps(steps),
            None => CardLength::Epochs(train.num_train_epochs),
        },
        mixed_precision_training: (dtype == DType::BF16).then(|| "bf16".into()),
    }
}

fn schedule_name(schedule: Schedule) -> &'static str {
    match schedule {
        Schedule::Linear => "linear",
        Schedule::Cosine => "cosine",
        Schedule::Constant => "constant",
        Schedule::ConstantWithWarmup => "constant_with_warmup",
        Schedule::CosineWithMinLr => "cosine_with_min_lr",
        Schedule::InverseSqrt => "inverse_sqrt",
    }
}
