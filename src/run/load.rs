//! Loading the weights of a run, with a progress bar.

use std::path::Path;

use burn::tensor::{DType, Device};

use super::error::RunError;
use crate::model::adapter::ModelSource;
use crate::model::adapter::peft::AdapterFiles;
use crate::model::adapter::source::{Outermost, attach_from};
use crate::model::decoder::Decoder;
use crate::model::weights::{WeightFiles, WeightFormat, WeightsError};
use crate::plan::Plan;
use crate::train::event::{Event, Observer};
use crate::train::optimizer::Optimizer;

/// Loads a model onto `device`, in `format`.
///
/// # Errors
/// The weights cannot be read, or do not fit the configuration.
pub fn load_model(
    source: &ModelSource,
    outermost: Outermost,
    device: &Device,
    format: WeightFormat,
    observer: &mut dyn Observer,
) -> Result<Decoder, RunError> {
    observed(observer, |progress| source.load(outermost, device, format, progress))
}

/// Loads the model that the plan trains. `values` is a checkpoint of the run; without it the model
/// is that before the first step.
///
/// # Errors
/// The weights cannot be read, or do not fit the configuration.
pub fn load_policy(
    plan: &Plan,
    values: Option<&Path>,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Decoder, RunError> {
    observed(observer, |progress| policy(plan, values, device, progress))
}

/// [`load_policy`] without a progress bar.
///
/// # Errors
/// As [`load_policy`].
pub fn policy(
    plan: &Plan,
    values: Option<&Path>,
    device: &Device,
    progress: impl FnMut(usize, usize),
) -> Result<Decoder, WeightsError> {
    let Some(adapter) = &plan.adapter else {
        return Decoder::load(values.unwrap_or(&plan.model_folder), device, plan.dtype, progress);
    };
    let mut model =
        plan.source.load(adapter.outermost(), device, plan.weight_format(), progress)?;
    match values.or(adapter.from.as_deref()) {
        Some(folder) => {
            let files = AdapterFiles::open(folder, &adapter.config, &model.config)?;
            attach_from(&mut model, &adapter.config, &files)?;
        }
        None => model.attach_new(&adapter.config, plan.recipe.train.seed)?,
    }
    model.set_dropout(adapter.dropout);
    Ok(model)
}

/// Gives the optimizer the weights of the model's files in float32, if the model has fewer bits.
/// An adapter is float32 in every model.
///
/// # Errors
/// The weights cannot be read.
pub fn set_masters(
    plan: &Plan,
    model: &Decoder,
    optimizer: &mut Optimizer,
) -> Result<(), WeightsError> {
    if plan.dtype == DType::F32 || plan.adapter.is_some() || !plan.source.adapters.is_empty() {
        return Ok(());
    }
    let files = WeightFiles::open_model(&plan.source.base, &model.config)?;
    optimizer.set_masters(model, |parameter| {
        files.read_unless(plan.dtype, &parameter.name, &parameter.shape)
    })
}

/// Runs `load` with a progress bar of its tensors.
fn observed(
    observer: &mut dyn Observer,
    load: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<Decoder, WeightsError>,
) -> Result<Decoder, RunError> {
    const NAME: &str = "loading weights";
    let mut observed = Ok(());
    let model = load(&mut |done, total| {
        if done == 1 {
            let total = total as u64;
            observed = observer.on(&Event::Phase { name: NAME, total, unit: "tensors" });
        }
        if observed.is_ok() {
            let done = done as u64;
            observed = observer.on(&Event::Advance { name: NAME, done, message: "" });
        }
    })?;
    observed?;
    observer.on(&Event::PhaseEnd { name: NAME })?;
    Ok(model)
}
