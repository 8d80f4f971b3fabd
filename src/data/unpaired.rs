//! Labelled responses for KTO: rows of `prompt`, `completion`, `label`, or preference pairs taken apart.

use std::path::Path;

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::Splits;
use super::Tokenizer;
use super::UnpairedRow;
use super::load::{Loader, Set, length_settings, preference_rules};
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use crate::recipe::{Objective, Recipe};

/// Pairs are taken apart so many at a time: first their chosen responses, then the rejected ones. This is the order that TRL's
/// `unpair_preference_dataset` gives, which maps batches of this size.
const TAKEN_APART_TOGETHER: usize = 1000;

/// Labelled responses, each with the response of another row for the KL estimate in the place of the rejected one.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledPairs {
    pub pairs: Splits<PreferencePair>,
    /// Whether the response of a row is desirable.
    pub train_labels: Vec<bool>,
    pub test_labels: Vec<bool>,
}

/// Loads the rows of a KTO recipe. `cache` is a folder that keeps token ids from one run to the next.
///
/// The mismatched response of a row is that of the row before it in its group of `per_device_train_batch_size` rows, that of
/// the first row the group's last one, as in TRL. A loss without KL has none.
///
/// # Errors
/// Everything from a missing folder to too many bad rows; see [`DataError`].
///
/// # Panics
/// Where the recipe is one for SFT.
pub fn load_unpaired(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<LabelledPairs, DataError> {
    let data = &recipe.data;
    let lengths = recipe.objective.lengths().expect("an SFT recipe has no labelled responses");
    let rules = preference_rules(data, lengths, tokenizer);
    let settings = length_settings(lengths);
    let loader = Loader::open(data, tokenizer, cache, progress, "unpaired", &settings)?;
    let splits = loader.load(|split, rows| {
        let columns = |set: &Set| {
            let layout = Layout::of(&set.columns).ok_or_else(|| {
                set.no_column(
                    "`prompt`, `completion` and `label`, and no `chosen` and `rejected`".to_owned(),
                    "a data set for KTO has labelled completions, or pairs, which are taken apart",
                )
            })?;
            Ok(layout.columns(&set.columns))
        };
        let (made, report) = loader.rows(split, rows, columns, |set, _, cells| {
            let mut cells = cells.into_iter();
            let missing = || Ok(Outcome::Bad(BadRow::MissingField("completion".to_owned())));
            let outcome = match (Layout::of(&set.columns), cells.next(), cells.next(), cells.next())
            {
                (Some(Layout::Labelled), Some(prompt), Some(completion), Some(label)) => {
                    rules.labelled(prompt, completion, label)
                }
                (Some(Layout::Pairs), Some(chosen), Some(rejected), prompt) => {
                    rules.unpaired(chosen, rejected, prompt)
                }
                _ => missing(),
            }?;
            // A row without room keeps its place, so that groups of pairs are those of the file.
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
    let pairs = |rows: &[UnpairedRow]| -> Vec<PreferencePair> {
        let groups = rows.chunks(group).flat_map(|rows| mismatched(rows, lengths.max_length));
        match wants_mismatched {
            true => groups.collect(),
            false => groups.map(|pair| PreferencePair { rejected: Vec::new(), ..pair }).collect(),
        }
    };
    let labels = |rows: &[UnpairedRow]| rows.iter().map(|row| row.label).collect();
    let Splits { train, test, train_report, test_report, fingerprint } = splits;
    Ok(LabelledPairs {
        train_labels: labels(&train),
        test_labels: labels(&test),
        pairs: Splits {
            train: pairs(&train),
            test: pairs(&test),
            train_report,
            test_report,
            fingerprint,
        },
    })
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

/// The rows in TRL's order: of a group first what each source row gave first (the chosen response of a pair), then what it
/// gave second. Source rows without room are counted.
fn taken_apart(
    made: Vec<Vec<UnpairedRow>>,
    mut report: RowReport,
) -> (Vec<UnpairedRow>, RowReport) {
    let without = made.iter().filter(|rows| rows.is_empty()).count();
    report.no_room += without;
    report.kept -= without;
    let mut all = Vec::new();
    for group in made.chunks(TAKEN_APART_TOGETHER) {
        for place in 0..2 {
            all.extend(group.iter().filter_map(|rows| rows.get(place)).cloned());
        }
    }
    (all, report)
}

/// Each row of a group with the completion of the row before it, both cut to `max_length` tokens with the prompt.
fn mismatched(
    rows: &[UnpairedRow],
    max_length: Option<usize>,
) -> impl Iterator<Item = PreferencePair> + '_ {
    let before = (0..rows.len()).map(|index| (index + rows.len() - 1) % rows.len());
    rows.iter().zip(before).map(move |(row, before)| {
        let room = max_length.map_or(usize::MAX, |length| length - row.prompt.len());
        let cut = |ids: &[u32]| ids[..ids.len().min(room)].to_vec();
        PreferencePair {
            prompt: row.prompt.clone(),
            chosen: cut(&row.completion),
            rejected: cut(&rows[before].completion),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: u32, completion: &[u32], label: bool) -> UnpairedRow {
        UnpairedRow { prompt: vec![prompt], completion: completion.to_vec(), label }
    }

    #[test]
    fn chosen_come_before_rejected_and_labelled_rows_stay() {
        let pair = |p| vec![row(p, &[1], true), row(p, &[2], false)];
        let report = RowReport { read: 4, kept: 4, ..RowReport::default() };
        let made = vec![pair(7), vec![], pair(8), vec![row(9, &[3], false)]];
        let (rows, report) = taken_apart(made, report);
        let order: Vec<_> = rows.iter().map(|row| (row.prompt[0], row.label)).collect();
        assert_eq!(order, [(7, true), (8, true), (9, false), (7, false), (8, false)]);
        assert_eq!((report.kept, report.no_room), (3, 1));
    }

    #[test]
    fn mismatched_responses_go_round_and_are_cut() {
        let rows = [row(7, &[1, 1, 1], true), row(8, &[2], false), row(9, &[3, 3], true)];
        let pairs: Vec<_> = mismatched(&rows, Some(3)).collect();
        assert_eq!(pairs[0].chosen, [1, 1]);
        let wrong: Vec<_> = pairs.iter().map(|pair| pair.rejected.as_slice()).collect();
        assert_eq!(wrong, [&[3, 3][..], &[1, 1], &[2]]);
    }
}
