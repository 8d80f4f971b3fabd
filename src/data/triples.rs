//! Rows for TPO: preference pairs with a third response, the gold response, in the column
//! `reference`.

use std::path::Path;

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::Splits;
use super::Tokenizer;
use super::load::{length_settings, preference_rules};
use super::loader::{Failure, Loader};
use super::mixture::RowRef;
use super::preference::PreferenceRules;
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use super::row_list::RowList;
use super::set::Set;
use super::splits::Made;
use super::unfinished::Hold;
use crate::recipe::{Objective, Recipe, TpoSettings};

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
    let rules = preference_rules(&recipe.data, &tpo.lengths, tokenizer);
    let loader = Loader::open(&recipe.data, tokenizer, cache, progress, "triples", &settings(tpo))?;
    loader.load(|split, rows, base| {
        let (triples, report) =
            triples(&loader, &rules, tpo.has_nll(), split, rows, Hold::of(base))?;
        Ok(Made { rows: triples.into_rows(), report })
    })
}

/// The settings that rows depend on, as part of a key.
pub(super) fn settings(tpo: &TpoSettings) -> String {
    format!("{} gold {}", length_settings(&tpo.lengths), tpo.has_nll())
}

/// Makes the pairs of a split, with their gold responses or without.
pub(super) fn triples(
    loader: &Loader,
    rules: &PreferenceRules,
    keeps_gold: bool,
    split: &'static str,
    rows: &[RowRef],
    hold: Hold<PreferencePair>,
) -> Result<(RowList<PreferencePair>, RowReport), Failure> {
    let columns = |set: &Set| {
        set.columns_of(
            &["chosen", "rejected", "reference"],
            &["prompt"],
            "a data set for TPO has `chosen`, `rejected` and a third response, `reference`, and \
             may have `prompt`",
        )
    };
    loader.rows(split, rows, hold, columns, |set, _, cells, values| {
        let mut cells = cells.into_iter();
        match (cells.next(), cells.next(), cells.next(), cells.next()) {
            (Some(chosen), Some(rejected), Some(gold), prompt) => {
                set.note_unread_prompt(&chosen, prompt.as_ref());
                rules.triple([chosen, rejected, gold], prompt, keeps_gold, values)
            }
            _ => Ok(Outcome::Bad(BadRow::MissingField("reference".to_owned()))),
        }
    })
}
