//! The facts of the model card, from the plan and the training record.

use burn::tensor::DType;

use super::facts::{source, versions};
use crate::plan::Plan;
use crate::recipe::{DatasetSpec, Mixture, Optim, Recipe, Warmup};
use crate::report::model_card::{CardFacts, CardLength, CardWarmup, Hyperparameters, Source, adam};
use crate::train::event::LogRow;

/// The facts of the model card. `history` is the training record.
pub fn card(plan: &Plan, history: &[LogRow]) -> CardFacts {
    let recipe = &plan.recipe;
    let [train_rows, test_rows] = plan.rows.counts();
    let base_model = match &plan.adapter {
        Some(adapter) => &adapter.config.base_model,
        None => &recipe.model.model_name_or_path,
    };
    CardFacts {
        model_name: model_name(recipe),
        base_model: Some(source(base_model)),
        is_adapter: plan.adapter.is_some(),
        datasets: datasets(&recipe.data.mixture),
        stage: recipe.stage.command().into(),
        license: None,
        tags: vec!["alignment-handbook".into()],
        architecture: Some(architecture(plan)),
        train_rows: Some(train_rows as u64),
        eval_rows: Some(test_rows as u64),
        hyperparameters: hyperparameters(plan).pairs(),
        log_history: history.to_vec(),
        versions: versions(),
    }
}

fn model_name(recipe: &Recipe) -> String {
    let train = &recipe.train;
    let given = train.hub_model_id.as_deref().or(train.run_name.as_deref());
    let given = given.map(|name| name.rsplit('/').next().unwrap_or(name).to_string());
    let folder = || recipe.output_dir().file_name().map(|name| name.to_string_lossy().into_owned());
    given.or_else(folder).unwrap_or_else(|| "model".into())
}

fn architecture(plan: &Plan) -> String {
    let parameters = plan.config.parameters() as f64;
    let size = match parameters {
        n if n >= 1e9 => format!("{:.1} billion", n / 1e9),
        n if n >= 1e6 => format!("{:.1} million", n / 1e6),
        n => format!("{:.0} thousand", n / 1e3),
    };
    format!("{:?}, {size} parameters", plan.config.family.architecture)
}

fn datasets(mixture: &Mixture) -> Vec<Source> {
    let specs: Vec<&DatasetSpec> = match mixture {
        Mixture::Mixer { train, .. } => train.iter().collect(),
        Mixture::Pooled { sets, .. } | Mixture::Listed { sets, .. } => sets.iter().collect(),
        Mixture::Named { train, .. } => vec![train],
    };
    let mut sources: Vec<Source> = specs.into_iter().map(|spec| source(&spec.id)).collect();
    sources.dedup();
    sources
}

fn hyperparameters(plan: &Plan) -> Hyperparameters {
    let train = &plan.recipe.train;
    let optimizer = match train.optim {
        Optim::RmsProp => "RMSprop with alpha=0.99 and epsilon=1e-08".to_string(),
        Optim::Adagrad => "Adagrad with epsilon=1e-10".to_string(),
        Optim::Adafactor => {
            "Adafactor with scale_parameter=False and relative_step=False".to_string()
        }
        Optim::Lion => format!("Lion with betas=({},{})", train.adam_beta1, train.adam_beta2),
        Optim::Sgd => format!("SGD with momentum={}", train.sgd.momentum),
        Optim::Adam => adam("Adam", train.adam_beta1, train.adam_beta2, train.adam_epsilon),
        Optim::AdamW => adam("AdamW", train.adam_beta1, train.adam_beta2, train.adam_epsilon),
    };
    Hyperparameters {
        learning_rate: train.learning_rate,
        train_batch_size: train.per_device_train_batch_size as u64,
        eval_batch_size: train.per_device_eval_batch_size as u64,
        seed: train.seed,
        distributed_type: None,
        num_devices: plan.sharing.ranks as u64,
        gradient_accumulation_steps: plan.sharing.gradient_accumulation_steps as u64,
        optimizer,
        lr_scheduler_type: train.lr_scheduler_type.name().into(),
        warmup: match train.warmup {
            Warmup::Ratio(ratio) => CardWarmup::Ratio(ratio),
            Warmup::Steps(steps) => CardWarmup::Steps(steps),
        },
        length: match train.max_steps {
            Some(steps) => CardLength::Steps(steps),
            None => CardLength::Epochs(train.num_train_epochs),
        },
        mixed_precision_training: (plan.dtype == DType::BF16).then(|| "bf16".into()),
    }
}
