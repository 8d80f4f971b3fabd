//! Rows for KTO: from labelled completions (`prompt`, `completion`, `label`), or from preference
//! pairs that are taken apart.

use std::path::Path;

use super::DataError;
use super::LabelledCompletion;
use super::Progress;
use super::Splits;
use super::Tokenizer;
use super::UnpairedRow;
use super::load::{length_settings, preference_rules};
use super::loader::Loader;
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use super::row_list::RowList;
use super::set::Set;
use super::splits::Made;
use super::unfinished::Hold;
use crate::recipe::{Objective, Recipe};

/// Pairs that are taken apart together: first come their chosen responses, then the rejected ones.
/// This is the order of TRL's `unpair_preference_dataset`, which maps batches of this size.
const TAKEN_APART_TOGETHER: usize = 1000;

/// Loads the rows of a KTO recipe. `cache` is a folder that keeps token ids from one run to the
/// next.
///
/// As in TRL, the mismatched completion of a row is that of the row before it in its group of
/// `per_device_train_batch_size` rows; for the first row of a group it is that of the last. For a
/// loss without KL it is empty.
///
/// # Errors
/// Everything from a missing folder to too many bad rows; see [`DataError`].
///
/// # Panics
/// If the recipe is one for SFT.
pub fn load_unpaired(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<UnpairedRow>, DataError> {
    let data = &recipe.data;
    let lengths = recipe.objective.lengths().expect("an SFT recipe has no labelled responses");
    let rules = preference_rules(data, lengths, tokenizer);
    let settings = length_settings(lengths);
    let loader = Loader::open(data, tokenizer, cache, progress, "unpaired", &settings)?;
    let splits = loader.load(|split, rows, base| {
        let columns = |set: &Set| {
            let layout = Layout::of(&set.columns).ok_or_else(|| {
                set.no_column(
                    "`prompt`, `completion` and `label`, and no `chosen` and `rejected`".to_owned(),
                    "a data set for KTO has labelled completions, or pairs, which are taken apart",
                )
            })?;
            Ok(layout.columns(&set.columns))
        };
        let (made, report) =
            loader.rows(split, rows, Hold::of(base), columns, |set, _, cells, values| {
                let mut cells = cells.into_iter();
                let missing = || Ok(Outcome::Bad(BadRow::MissingField("completion".to_owned())));
                let outcome =
                    match (Layout::of(&set.columns), cells.next(), cells.next(), cells.next()) {
                        (Some(Layout::Labelled), Some(prompt), Some(completion), Some(label)) => {
                            rules.labelled(prompt, completion, label, values)
                        }
                        (Some(Layout::Pairs), Some(chosen), Some(rejected), prompt) => {
                            set.note_unread_prompt(&chosen, prompt.as_ref());
                            rules.unpaired(chosen, rejected, prompt, values)
                        }
                        _ => missing(),
                    }?;
                // A row without room keeps its place, so that the groups of pairs do not change.
                Ok(match outcome {
                    Outcome::NoRoom => Outcome::Kept(Vec::new()),
                    other => other,
                })
            })?;
        Ok(taken_apart(made, report))
    })?;
    let group = recipe.train.per_device_train_batch_size;
    let wants_mismatched = match &recipe.objective {
        Objective::Kto(kto) => kto.loss_type.has_kl(),
        _ => false,
    };
    let unpaired = |rows: RowList<LabelledCompletion>| -> RowList<UnpairedRow> {
        let rows: Vec<LabelledCompletion> = rows.into_rows().collect();
        let groups = rows.chunks(group).flat_map(|rows| mismatched(rows, lengths.max_length));
        match wants_mismatched {
            true => groups.collect(),
            false => groups.map(|row| UnpairedRow { mismatched: Vec::new(), ..row }).collect(),
        }
    };
    let Splits { train, test, train_report, test_report, fingerprint, train_fingerprint } = splits;
    let (train, test) = (unpaired(train), unpaired(test));
    Ok(Splits { train, test, train_report, test_report, fingerprint, train_fingerprint })
}

/// What the columns of a data set hold.
#[derive(Clone, Copy)]
enum Layout {
    Labelled,
    Pairs,
}

impl Layout {
    fn of(columns: &[String]) -> Option<Self> {
        let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|c| c == name));
        if has(&["prompt", "completion", "label"]) {
            Some(Self::Labelled)
        } else if has(&["chosen", "rejected"]) {
            Some(Self::Pairs)
        } else {
            None
        }
    }

    fn columns(self, there: &[String]) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Labelled => &["prompt", "completion", "label"],
            Self::Pairs => &["chosen", "rejected", "prompt"],
        };
        let there = names.iter().filter(|name| there.iter().any(|column| column == *name));
        there.map(|name| (*name).to_owned()).collect()
    }
}

/// The completions in TRL's order: for each group, first the first completion of each source row
/// (the chosen response of a pair), then the second ones. Source rows whose prompt leaves no room
/// are counted.
fn taken_apart(
    made: RowList<Vec<LabelledCompletion>>,
    mut report: RowReport,
) -> Made<LabelledCompletion> {
    let without = made.iter().filter(|rows| rows.is_empty()).count();
    report.no_room += without;
    report.kept -= without;
    let groups = (0..made.len()).step_by(TAKEN_APART_TOGETHER);
    let rows = groups.flat_map(move |start| {
        let group = start..made.len().min(start + TAKEN_APART_TOGETHER);
        let group: Vec<_> = group.map(|row| made.get(row).into_owned()).collect();
        let of_place = |place: usize| group.iter().filter_map(move |rows| rows.get(place)).cloned();
        (0..2).flat_map(of_place).collect::<Vec<_>>()
    });
    Made { rows: Box::new(rows), report }
}

/// Each row of a group with the completion of the row before it. Both are truncated, so that each
/// sequence has at most `max_length` tokens.
fn mismatched(
    rows: &[LabelledCompletion],
    max_length: Option<usize>,
) -> impl Iterator<Item = UnpairedRow> + '_ {
    let before = (0..rows.len()).map(|index| (index + rows.len() - 1) % rows.len());
    rows.iter().zip(before).map(move |(row, before)| {
        let room = max_length.map_or(usize::MAX, |length| length - row.prompt.len());
        let truncated = |ids: &[u32]| ids[..ids.len().min(room)].to_vec();
        UnpairedRow {
            prompt: row.prompt.clone(),
            completion: truncated(&row.completion),
            mismatched: truncated(&rows[before].completion),
            label: row.label,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: u32, completion: &[u32], label: bool) -> LabelledCompletion {
        LabelledCompletion { prompt: vec![prompt], completion: completion.to_vec(), label }
    }

    #[test]
    fn chosen_come_before_rejected_and_labelled_rows_stay() {
        let pair = |p| vec![row(p, &[1], true), row(p, &[2], false)];
        let report = RowReport { read: 4, kept: 4, ..RowReport::default() };
        let made = vec![pair(7), vec![], pair(8), vec![row(9, &[3], false)]];
        let Made { rows, report } = taken_apart(made.into(), report);
        let order: Vec<_> = rows.map(|row| (row.prompt[0], row.label)).collect();
        assert_eq!(order, [(7, true), (8, true), (9, false), (7, false), (8, false)]);
        assert_eq!((report.kept, report.no_room), (3, 1));
    }

    #[test]
    fn mismatched_responses_go_round_and_are_cut() {
        let rows = [row(7, &[1, 1, 1], true), row(8, &[2], false), row(9, &[3, 3], true)];
        let rows: Vec<_> = mismatched(&rows, Some(3)).collect();
        assert_eq!(rows[0].completion, [1, 1]);
        let mismatched: Vec<_> = rows.iter().map(|row| row.mismatched.as_slice()).collect();
        assert_eq!(mismatched, [&[3, 3][..], &[1, 1], &[2]]);
        assert_eq!(rows.iter().map(|row| row.label).collect::<Vec<_>>(), [true, false, true]);
    }
}
