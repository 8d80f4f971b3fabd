//! Loads a recipe's data as token ids of both splits.

use std::{path::Path, sync::Once};

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::SftDocument;
use super::SftRow;
use super::Tokenizer;
use super::loader::{Failure, Loader};
use super::mixture::RowRef;
use super::numpy_random::numpy_permutation;
use super::packing::{self, WINDOW};
use super::preference::PreferenceRules;
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use super::row_list::RowList;
use super::set::Set;
use super::sft::SftRules;
use super::splits::{Made, Rows, Splits};
use super::unfinished::Hold;
use crate::recipe::{DataSettings, Lengths, Objective, Packing, Recipe, SftSettings};

/// Loads the preference pairs of a DPO, ORPO or CPO recipe. `cache` is a folder that keeps token
/// ids between runs.
///
/// # Errors
/// See [`DataError`].
///
/// # Panics
/// If the recipe is for SFT.
pub fn load_preferences(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<PreferencePair>, DataError> {
    let lengths = recipe.objective.lengths().expect("an SFT recipe has no pairs");
    load_pairs(&recipe.data, lengths, tokenizer, cache, progress)
}

/// Loads the rows of an SFT recipe, packed if the recipe asks for it. `cache` is a folder that
/// keeps token ids between runs.
///
/// # Errors
/// See [`DataError`].
///
/// # Panics
/// If the recipe is not for SFT.
pub fn load_sft(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<SftRow>, DataError> {
    let Objective::Sft(sft) = &recipe.objective else {
        panic!("documents are loaded for SFT recipes")
    };
    load_documents(recipe, sft, tokenizer, cache, progress)
}

fn load_pairs(
    data: &DataSettings,
    lengths: &Lengths,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<PreferencePair>, DataError> {
    let rules = preference_rules(data, lengths, tokenizer);
    let settings = length_settings(lengths);
    let loader = Loader::open(data, tokenizer, cache, progress, "pairs", &settings)?;
    loader.load(|split, rows, base| {
        let (pairs, report) = pairs(&loader, &rules, split, rows, Hold::of(base))?;
        Ok(Made { rows: pairs.into_rows(), report })
    })
}

/// Makes the pairs of a split.
pub(super) fn pairs(
    loader: &Loader,
    rules: &PreferenceRules,
    split: &'static str,
    rows: &[RowRef],
    hold: Hold<PreferencePair>,
) -> Result<(RowList<PreferencePair>, RowReport), Failure> {
    let columns = |set: &Set| {
        set.columns_of(
            &["chosen", "rejected"],
            &["prompt"],
            "a preference data set has `chosen` and `rejected`, and may have `prompt`",
        )
    };
    loader.rows(split, rows, hold, columns, |set, _, cells, values| {
        let mut cells = cells.into_iter();
        match (cells.next(), cells.next(), cells.next()) {
            (Some(chosen), Some(rejected), prompt) => {
                set.note_unread_prompt(&chosen, prompt.as_ref());
                rules.pair(chosen, rejected, prompt, values)
            }
            _ => Ok(Outcome::Bad(BadRow::MissingField("rejected".to_owned()))),
        }
    })
}

/// The rules that turn rows of this data into pairs.
pub(super) fn preference_rules<'a>(
    data: &DataSettings,
    lengths: &'a Lengths,
    tokenizer: &'a Tokenizer,
) -> PreferenceRules<'a> {
    PreferenceRules {
        tokenizer,
        lengths,
        preprocessing: data.preprocessing,
        insert_system: inserts_system(data, tokenizer),
        warned: Once::new(),
    }
}

/// The lengths as part of the cache key.
pub(super) fn length_settings(lengths: &Lengths) -> String {
    let Lengths { max_length, max_prompt_length, max_completion_length, truncation_mode } = lengths;
    format!("{max_length:?} {max_prompt_length:?} {max_completion_length:?} {truncation_mode:?}")
}

/// The settings that rows depend on, as part of the cache key.
pub(super) fn row_settings(sft: &SftSettings, seed: u64) -> String {
    let SftSettings {
        loss_type: _,
        max_length,
        packing,
        packing_strategy,
        eval_packing,
        completion_only_loss,
        assistant_only_loss,
        dataset_text_field,
        label_smoothing_factor: _,
        shuffle_dataset,
    } = sft;
    let shuffled = shuffle_dataset.then(|| format!(" shuffled by {seed}")).unwrap_or_default();
    format!(
        "SftSettings {{ max_length: {max_length:?}, packing: {packing:?}, packing_strategy: \
         {packing_strategy:?}, eval_packing: {eval_packing:?}, completion_only_loss: \
         {completion_only_loss:?}, assistant_only_loss: {assistant_only_loss:?}, \
         dataset_text_field: {dataset_text_field:?} }}{shuffled}"
    )
}

fn load_documents(
    recipe: &Recipe,
    sft: &SftSettings,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<SftRow>, DataError> {
    let (data, seed) = (&recipe.data, recipe.train.seed);
    let insert_system = inserts_system(data, tokenizer);
    let settings = row_settings(sft, seed);
    let loader = Loader::open(data, tokenizer, cache, progress, "documents", &settings)?;
    loader.load(|split, rows, base| {
        let packed = match split {
            "train" => sft.packing,
            _ => sft.eval_packing,
        };
        let length = sft.max_length.filter(|_| packed);
        let rules = SftRules { tokenizer, sft, insert_system, packing: length.is_some() };
        let (documents, report) = documents(&loader, &rules, split, rows, Hold::of(base))?;
        let shuffle = sft.shuffle_dataset.then_some(seed);
        Ok(Made { rows: rows_of(documents, length, sft.packing_strategy, shuffle), report })
    })
}

/// Makes the documents of a split.
pub(super) fn documents(
    loader: &Loader,
    rules: &SftRules,
    split: &'static str,
    rows: &[RowRef],
    hold: Hold<SftDocument>,
) -> Result<(RowList<SftDocument>, RowReport), Failure> {
    let columns = |set: &Set| {
        let (layout, columns) = rules.columns(&set.columns).ok_or_else(|| {
            let wanted = format!(
                "`messages`, no `prompt` and `completion`, and no `{}`",
                rules.text_field()
            );
            set.no_column(wanted, "name the column of plain text with dataset_text_field")
        })?;
        rules.check_labels(split, layout)?;
        Ok(columns)
    };
    loader.rows(split, rows, hold, columns, |set, columns, cells, values| {
        match rules.columns(&set.columns) {
            Some((layout, _)) => rules.document(layout, columns, cells, values),
            None => Ok(Outcome::Bad(BadRow::MissingField(columns.join(", ")))),
        }
    })
}

/// The rows of documents: packed if a length is given, else one row for each document. With
/// `shuffle`, documents and packed rows are shuffled with this seed, as in TRL; packed rows are then
/// all in memory at once. Leaves out packed rows without a target; TRL would make batch rows of
/// them that add nothing to the loss.
fn rows_of(
    documents: RowList<SftDocument>,
    length: Option<usize>,
    strategy: Packing,
    shuffle: Option<u64>,
) -> Rows<SftRow> {
    let row = |document| SftRow { documents: vec![document] };
    let count = documents.len();
    match (length, shuffle) {
        (Some(length), Some(seed)) => {
            let order = numpy_permutation(count, seed);
            let rows = packed_rows(documents, order, length, strategy).collect();
            Box::new(shuffled(rows, seed).into_iter().filter(has_target))
        }
        (Some(length), None) => {
            let order = (0..count).collect();
            Box::new(packed_rows(documents, order, length, strategy).filter(has_target))
        }
        (None, Some(seed)) => {
            let order = numpy_permutation(count, seed).into_iter();
            Box::new(order.map(move |at| row(documents.get(at).into_owned())))
        }
        (None, None) => Box::new(documents.into_rows().map(row)),
    }
}

/// Whether the loss has a label in this row.
pub(super) fn has_target(row: &SftRow) -> bool {
    row.documents.iter().any(|document| document.targets() > 0)
}

/// Packs documents in this order, window by window.
fn packed_rows(
    documents: RowList<SftDocument>,
    order: Vec<usize>,
    length: usize,
    strategy: Packing,
) -> impl Iterator<Item = SftRow> {
    let windows = (0..order.len()).step_by(WINDOW);
    windows.flat_map(move |start| {
        let window = &order[start..order.len().min(start + WINDOW)];
        let window: Vec<_> = window.iter().map(|row| documents.get(*row).into_owned()).collect();
        packing::pack(&window, length, strategy)
    })
}

/// The items in the order of `Dataset.shuffle(seed)` of `datasets`.
fn shuffled<T>(items: Vec<T>, seed: u64) -> Vec<T> {
    let order = numpy_permutation(items.len(), seed);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| items[at].take()).collect()
}

/// Whether chats without a system message get an empty one.
pub(super) fn inserts_system(data: &DataSettings, tokenizer: &Tokenizer) -> bool {
    data.auto_insert_empty_system_msg && names_system(tokenizer)
}

/// Whether the template uses a system message, by the handbook's own test.
fn names_system(tokenizer: &Tokenizer) -> bool {
    tokenizer
        .chat_template()
        .is_some_and(|template| template.contains("system") || template.contains("<|im_start|>"))
}

#[cfg(test)]
mod tests;
