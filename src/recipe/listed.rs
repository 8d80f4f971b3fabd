//! `datasets`, the mixture of TRL's scripts (`DatasetMixtureConfig`).

use super::number::{NOT_NEGATIVE, number, whole_number};
use super::reader::Reader;
use super::settings::{DatasetSpec, Mixture, SplitSize};
use super::yaml::{Entry, Node, Place, Value};

/// A set, and its share of the mixture if it has one.
type Set = (DatasetSpec, Option<f64>);

/// `datasets: [{path, name, data_dir, data_files, split, columns, fraction}]` and
/// `test_split_size`. `seed` is that of the run.
pub(super) fn listed(r: &mut Reader, entry: Entry, needs_test: bool, seed: u64) -> Mixture {
    let (at, kind) = (entry.value.at, entry.value.kind());
    let items = match entry.value.value {
        Value::List(items) if !items.is_empty() => items,
        _ => {
            r.error(at, format!("`datasets` needs a list of data sets, not {kind}"));
            Vec::new()
        }
    };
    let sets: Vec<Set> = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let at = item.at;
            r.within(&format!("datasets.{index}"), item, |r| set(r, at))
        })
        .collect();
    let fractions = fractions(r, at, &sets);
    let size = r.take("test_split_size").map(|entry| entry.value);
    let size = size.filter(|node| node.value != Value::Null);
    let test_split_size = size.map(|node| split_size(r, "test_split_size", &node));
    if needs_test && test_split_size.is_none() {
        r.error(
            entry.key_at,
            "`datasets` has no `test_split_size` beside it, but the recipe evaluates".to_owned(),
        );
        r.help("add `test_split_size`, or set `eval_strategy: \"no\"` and `do_eval: false`");
    }
    let sets = sets.into_iter().map(|(spec, _)| spec).collect();
    Mixture::Listed { sets, fractions, seed, test_split_size }
}

fn set(r: &mut Reader, at: Place) -> Set {
    let id = r.optional_text("path|id").unwrap_or_else(|| {
        if !r.is_written("path") {
            r.error(at, "this data set has no `path`".to_owned());
            r.help("write the hub id, a folder, or a .parquet or .jsonl file");
        }
        String::new()
    });
    if r.take("weight").is_some_and(|entry| entry.value.value != Value::Null) {
        r.error_on(
            "weight",
            "`weight` is a key of `dataset_mixture`, not of `datasets`".to_owned(),
        );
        r.help("write `fraction`, the share of this set in the mixture");
    }
    let spec = DatasetSpec {
        config: r.optional_text("name|config"),
        revision: r.optional_text("revision"),
        data_dir: r.optional_text("data_dir"),
        data_files: data_files(r),
        columns: r
            .texts("columns", "null")
            .map(|columns| columns.into_iter().map(|(name, _)| name).collect()),
        split: r.text("split", "train"),
        ..plain_spec(&id, "")
    };
    let fraction = r.optional_float("fraction", NOT_NEGATIVE);
    (spec, fraction)
}

/// As in TRL, all sets have a `fraction` or none has.
fn fractions(r: &mut Reader, at: Place, sets: &[Set]) -> Option<Vec<f64>> {
    let given: Vec<f64> = sets.iter().filter_map(|(_, fraction)| *fraction).collect();
    if given.is_empty() {
        return None;
    }
    if given.len() < sets.len() {
        let message = format!(
            "`fraction` is given for {} of {} data sets; it must be given for all or for none",
            given.len(),
            sets.len()
        );
        r.error(at, message);
        return None;
    }
    if given.iter().sum::<f64>() == 0.0 {
        r.error(at, "every `fraction` of `datasets` is 0".to_owned());
        return None;
    }
    Some(given)
}

/// One pattern or a list of them, which are the split `train`, or a mapping of splits to patterns.
fn data_files(r: &mut Reader) -> Vec<(String, Vec<String>)> {
    let Some(entry) = r.take("data_files") else { return Vec::new() };
    match entry.value.value {
        Value::Null => Vec::new(),
        Value::Map(entries) => {
            let split = |entry: Entry| (entry.key, patterns(r, entry.value));
            entries.into_iter().map(split).collect()
        }
        _ => vec![("train".to_owned(), patterns(r, entry.value))],
    }
}

fn patterns(r: &mut Reader, node: Node) -> Vec<String> {
    let items = match node.value {
        Value::List(items) => items,
        _ => vec![node],
    };
    items.iter().filter_map(|item| r.as_text("data_files", item)).collect()
}

/// A split of a data set without further settings.
pub(super) fn plain_spec(id: &str, split: &str) -> DatasetSpec {
    DatasetSpec {
        id: id.to_owned(),
        config: None,
        revision: None,
        split: split.to_owned(),
        data_dir: None,
        data_files: Vec::new(),
        columns: None,
        fraction: 1.0,
    }
}

/// A whole number is a number of rows; a number below 1 is a share.
pub(super) fn split_size(r: &mut Reader, key: &str, node: &Node) -> SplitSize {
    let text = node.text().unwrap_or_default();
    match (whole_number(text), number(text)) {
        (Some(rows), _) if rows >= 1 => SplitSize::Rows(rows as usize),
        (None, Some(share)) if share > 0.0 && share < 1.0 => SplitSize::Share(share),
        _ => {
            let message = format!(
                "`{key}` needs a number of rows, or a share above 0 and below 1, not {}",
                node.kind()
            );
            r.error(node.at, message);
            SplitSize::Rows(1)
        }
    }
}
