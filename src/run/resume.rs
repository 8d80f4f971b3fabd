//! Where a run goes on from, and how ranks share its steps then.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use super::mark;
use crate::recipe::{Recipe, Resume};
use crate::train::checkpoint;
use crate::train::event::{Event, Observer};

const OTHERS: &str = "\nhelp: name another one, or leave resume_from_checkpoint out: the newest whole one is taken then";

/// The checkpoint that the recipe's `resume_from_checkpoint` means, if any; damaged ones are named.
pub fn checkpoint_to_resume(
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> anyhow::Result<Option<PathBuf>> {
    let output_dir = recipe.output_dir();
    match &recipe.train.resume_from_checkpoint {
        Resume::Path(path) => {
            checkpoint::verify(path).map_err(|error| anyhow!("{error}{OTHERS}"))?;
            Ok(Some(path.clone()))
        }
        Resume::Fresh => {
            let old = checkpoint::list(output_dir);
            if !old.is_empty() && !recipe.train.overwrite_output_dir {
                bail!(
                    "{} holds {} checkpoint(s) of an earlier run; set overwrite_output_dir: true to remove \
                     them, or train into another output_dir",
                    output_dir.display(),
                    old.len()
                );
            }
            for (_, path) in old {
                std::fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
            mark::forget_finished(output_dir)?;
            Ok(None)
        }
        Resume::Auto => {
            let (found, refused) = checkpoint::newest(output_dir);
            for error in refused {
                observer.on(&Event::Message(&format!("{error}; it is not used")))?;
            }
            Ok(found)
        }
    }
}

/// Shares the rows of a step anew where a checkpoint of the same recipe was written on another number of
/// ranks, so that the run goes on with the same bits.
pub fn keep_rows_a_step(
    recipe: &mut Recipe,
    checkpoint: &Path,
    ranks: usize,
    observer: &mut dyn Observer,
) -> anyhow::Result<()> {
    let was = checkpoint::read_progress(checkpoint)?.sharing;
    let train = &mut recipe.train;
    let size = train.per_device_train_batch_size;
    let unchanged = size == was.per_device_train_batch_size
        && train.gradient_accumulation_steps == was.gradient_accumulation_steps;
    if ranks == was.ranks || !unchanged {
        return Ok(());
    }
    let (rows, micro_batches) = (was.rows(), was.rows() / size);
    if !micro_batches.is_multiple_of(ranks) {
        let fit = (1..=micro_batches).filter(|n| micro_batches.is_multiple_of(*n));
        let fit: Vec<String> = fit.map(|n| n.to_string()).collect();
        bail!(
            "{} was written with {rows} rows a step, {micro_batches} micro-batches of {size}, and {ranks} ranks \
             cannot share them evenly; start {} ranks",
            checkpoint.display(),
            fit.join(", ")
        );
    }
    train.gradient_accumulation_steps = micro_batches / ranks;
    let text = format!(
        "{} was written on {} rank(s); on {ranks} gradient_accumulation_steps becomes {} to keep {rows} rows a step",
        checkpoint.display(),
        was.ranks,
        train.gradient_accumulation_steps
    );
    Ok(observer.on(&Event::Message(&text))?)
}
