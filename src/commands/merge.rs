//! `favonius merge`: adds an adapter to the weights of its base model.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::DType;
use clap::{Args, ValueEnum};

use super::ending::Ending;
use crate::hub::resolve::resolve_model;
use crate::model::adapter::merge::{merge, stored_dtype};
use crate::model::adapter::{AdapterError, ModelSource};
use crate::report::screen::Screen;

#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The adapter: the output_dir of a run, a folder of PEFT, or a hub id
    adapter: String,
    /// The folder of the full model; it must be empty or not exist
    out: PathBuf,
    /// The base model, a folder or a hub id; by default the one that the adapter names
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// The type of the written weights; by default that in which the base is stored
    #[arg(long, alias = "save-dtype", value_name = "DTYPE")]
    save_dtype: Option<SaveDtype>,
}

/// A type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SaveDtype {
    Float32,
    Bfloat16,
    Float16,
}

impl From<SaveDtype> for DType {
    fn from(dtype: SaveDtype) -> Self {
        match dtype {
            SaveDtype::Float32 => DType::F32,
            SaveDtype::Bfloat16 => DType::BF16,
            SaveDtype::Float16 => DType::F16,
        }
    }
}

/// Merges the adapter and writes the full model.
pub fn run(arguments: &MergeArguments) -> anyhow::Result<Ending> {
    let out = &arguments.out;
    check_empty(out)?;
    let folder = resolve_model(&arguments.adapter, "main")?;
    let source = match &arguments.base {
        Some(base) => ModelSource::on_base(&folder, &resolve_model(base, "main")?)?,
        None => ModelSource::of(&folder)?,
    };
    if source.outermost().is_none() {
        return Err(AdapterError::NoAdapter(folder).into());
    }
    let dtype = match arguments.save_dtype {
        Some(dtype) => dtype.into(),
        None => stored_dtype(&source)?,
    };
    let screen = Screen::detect(true);
    for adapter in &source.adapters {
        screen.line(&format!("merging {}", adapter.folder.display()))?;
    }
    screen.line(&format!("into {}", source.base.display()))?;
    merge(&source, out, dtype, |_, _| ())
        .with_context(|| format!("{} cannot be merged", arguments.adapter))?;
    screen.line(&format!("wrote {}", out.display()))?;
    Ok(Ending::Done)
}

/// Fails if `out` holds anything: the new model would be mixed with it.
fn check_empty(out: &Path) -> anyhow::Result<()> {
    let mut entries = match std::fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", out.display()))?,
    };
    if entries.next().is_some() {
        bail!("{} is not empty\nhelp: name a folder that does not exist yet", out.display());
    }
    Ok(())
}
