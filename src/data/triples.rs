//! Rows for TPO: preference pairs with a third response, the gold response, in the column
//! `reference`.

use std::path::Path;

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::Splits;
use super::Tokenizer;
use super::load::{length_settings, preference_rules};
use super::loader::Loader;
use super::report::BadRow;
use super::row::Outcome;
use super::set::Set;
use super::splits::Made;
use crate::recipe::{Objective, Recipe};

/// The columns of a row, those that it must have first.
const COLUMNS: [&str; 4] = ["chosen", "rejected", "reference", "prompt"];
const NEEDED: usize = 3;

/// Loads the rows of a TPO recipe. Without an NLL (`tpo_alpha: 0`), their gold responses are empty,
/// as in TRL. `cache` is a folder that keeps token ids between runs.
///
/// # Errors
/// See [`DataError`].
///
/// # Panics
/// If the recipe is not for TPO.
pub fn load_triples(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<PreferencePair>, DataError> {
    let Objective::Tpo(tpo) = &recipe.objective else {
        panic!("triples are loaded for TPO recipes")
    };
    let keeps_gold = tpo.has_nll();
    let rules = preference_rules(&recipe.data, &tpo.lengths, tokenizer);
    let settings = format!("{} gold {keeps_gold}", length_settings(&tpo.lengths));
    let loader = Loader::open(&recipe.data, tokenizer, cache, progress, "triples", &settings)?;
    loader.load(|split, rows, base| {
        let (triples, report) =
            loader.rows(split, rows, base, columns, |set, _, cells, values| {
                let mut cells = cells.into_iter();
                match (cells.next(), cells.next(), cells.next(), cells.next()) {
                    (Some(chosen), Some(rejected), Some(gold), prompt) => {
                        set.note_unread_prompt(&chosen, prompt.as_ref());
                        rules.triple([chosen, rejected, gold], prompt, keeps_gold, values)
                    }
                    _ => Ok(Outcome::Bad(BadRow::MissingField("reference".to_owned()))),
                }
            })?;
        Ok(Made { rows: triples.into_rows(), report })
    })
}

/// The columns of a set that are read.
fn columns(set: &Set) -> Result<Vec<String>, DataError> {
    let has = |name: &&str| set.columns.iter().any(|column| column == name);
    let missing: Vec<&str> = COLUMNS[..NEEDED].iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        return Err(set.no_column(
            format!("`{}`", missing.join("` and no `")),
            "a data set for TPO has `chosen`, `rejected` and a third response, `reference`, and \
             may have `prompt`",
        ));
    }
    Ok(COLUMNS.into_iter().filter(has).map(str::to_owned).collect())
}
