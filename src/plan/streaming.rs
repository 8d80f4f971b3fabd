//! The rows of a recipe with `streaming: true`.

use std::path::Path;

use super::data_progress::DataProgress;
use super::error::PlanError;
use super::rows::Rows;
use crate::data::{
    Limits, PreferencePair, SftRow, Streaming, Tokenizer, TwoResponses, stream_pairs, stream_sft,
};
use crate::model::config::ModelConfig;
use crate::recipe::{Objective, Recipe};
use crate::train::event::Observer;
use crate::train::steps::Sharing;

/// Starts to read the training rows, and loads the held-out rows. `tokenizers`: the run's, and one
/// for the thread that reads.
///
/// # Errors
/// The data cannot be read, or has too few rows.
pub(super) fn stream_rows(
    recipe: &Recipe,
    config: &ModelConfig,
    (tokenizer, own): (&Tokenizer, Tokenizer),
    cache: &Path,
    sharing: Sharing,
    observer: &mut dyn Observer,
) -> Result<Rows, PlanError> {
    let Some(steps) = recipe.train.max_steps else {
        return Err(PlanError::Streaming("needs `max_steps`"));
    };
    let rows = usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(sharing.rows());
    let limits = Limits {
        model: recipe.model.model_name_or_path.clone(),
        vocab_size: config.vocab_size,
        tokens: recipe.train.max_tokens_per_microbatch,
    };
    let progress = DataProgress::new(observer);
    let splits = match &recipe.objective {
        Objective::Sft(_) => {
            let check = check_documents;
            let streaming =
                Streaming { tokenizer: own, rows, check, limits, cache, progress: &progress };
            stream_sft(recipe, tokenizer, streaming).map(Rows::Sft)
        }
        Objective::Kto(_) => return Err(PlanError::Streaming("cannot be used with KTO")),
        _ => {
            let check = check_pair;
            let streaming =
                Streaming { tokenizer: own, rows, check, limits, cache, progress: &progress };
            stream_pairs(recipe, tokenizer, streaming).map(Rows::Pairs)
        }
    };
    progress.finish()?;
    Ok(splits?)
}

fn check_documents(row: &SftRow, limits: &Limits) -> Result<(), String> {
    let ids = row.documents.iter().flat_map(|document| &document.ids);
    check(ids, row.tokens(), limits)
}

fn check_pair(pair: &PreferencePair, limits: &Limits) -> Result<(), String> {
    check(pair.parts().into_iter().flatten(), pair.tokens(), limits)
}

/// Refuses a row with these token ids and this many tokens if the model or the recipe does not
/// allow it.
fn check<'a>(
    mut ids: impl Iterator<Item = &'a u32>,
    tokens: usize,
    limits: &Limits,
) -> Result<(), String> {
    let Limits { model, vocab_size, tokens: most } = limits;
    if let Some(id) = ids.find(|id| **id as usize >= *vocab_size) {
        return Err(format!(
            "the token id {id} is outside the vocabulary of `{model}`, which has {vocab_size} \
             tokens; the tokenizer does not belong to the model"
        ));
    }
    if let Some(most) = most.filter(|most| tokens > *most) {
        return Err(format!(
            "it has {tokens} tokens, more than `max_tokens_per_microbatch: {most}`; a row is \
             never divided"
        ));
    }
    Ok(())
}
