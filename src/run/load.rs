//! Loading a model's weights, with a progress bar.

use std::path::Path;

use burn::tensor::Device;

use super::error::RunError;
use crate::model::decoder::Decoder;
use crate::model::weights::WeightFormat;
use crate::train::event::{Event, Observer};

/// Loads the model in `folder` onto `device`, in `format`.
///
/// # Errors
/// The weights cannot be read, or do not fit the configuration.
pub fn load_model(
    folder: &Path,
    device: &Device,
    format: WeightFormat,
    observer: &mut dyn Observer,
) -> Result<Decoder, RunError> {
    const NAME: &str = "loading weights";
    let mut observed = Ok(());
    let model = Decoder::load(folder, device, format, |done, total| {
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
