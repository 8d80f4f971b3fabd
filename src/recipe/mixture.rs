//! The keys that choose the data sets, in the handbook's old schema, its new schema, and TRL's two.

use super::listed::{listed, plain_spec, split_size};
use super::number::{NOT_NEGATIVE, PART};
use super::reader::Reader;
use super::settings::{DatasetSpec, Mixture};
use super::yaml::{Entry, Node, Place, Value};

/// The main key of each schema, and the keys that only this schema uses.
const SCHEMAS: [(&str, &[&str]); 4] = [
    ("datasets", &["test_split_size"]),
    ("dataset_mixer", &["dataset_splits", "dataset_configs"]),
    ("dataset_mixture", &[]),
    ("dataset_name", &["dataset_config", "dataset_train_split", "dataset_test_split"]),
];

/// Reads the schema that the recipe uses. `needs_test`: the run evaluates. `seed` is that of the
/// run.
pub(super) fn read(r: &mut Reader, needs_test: bool, seed: u64) -> Mixture {
    let mut found: Vec<(&'static str, Entry)> = Vec::new();
    for (key, _) in SCHEMAS {
        let entry = r.take(key).filter(|entry| entry.value.value != Value::Null);
        found.extend(entry.map(|entry| (key, entry)));
    }
    if found.iter().any(|(_, entry)| entry.key_at.is_override()) {
        for (key, _) in found.extract_if(.., |(_, entry)| !entry.key_at.is_override()) {
            r.forget(key);
        }
    }
    if let [("datasets", _), rest @ ..] = found.as_slice()
        && rest.iter().all(|(key, _)| *key == "dataset_name")
        && !rest.is_empty()
    {
        r.note("`dataset_name` has no effect: as in TRL, `datasets` is read".to_owned());
        found.truncate(1);
    }
    if let [(first, _), .., (last, entry)] = found.as_slice() {
        let (first, last) = (*first, *last);
        r.error(entry.key_at, format!("`{last}` and `{first}` both choose the data sets"));
        r.help("keep one of the two");
    }
    let chosen = found.into_iter().next();
    let key = chosen.as_ref().map(|(key, _)| *key);
    let mixture = match chosen {
        Some(("dataset_mixer", entry)) => mixer(r, entry, needs_test),
        Some(("dataset_mixture", entry)) => pooled(r, entry, needs_test),
        Some(("datasets", entry)) => listed(r, entry, needs_test, seed),
        Some((_, entry)) => named(r, entry.value, needs_test),
        None => {
            let error = r.sources.whole_file_error("no data set is named".to_owned());
            r.report.errors.push(error.with_help(
                "write `dataset_mixer` with `dataset_splits`, `dataset_mixture`, `datasets`, or \
                 `dataset_name`",
            ));
            nothing()
        }
    };
    note_other_schemas(r, key);
    mixture
}

/// A placeholder for a mixture that could not be read; an error was already reported.
fn nothing() -> Mixture {
    Mixture::Pooled { sets: Vec::new(), seed: 0, test_split_size: None }
}

/// Notes that keys of an unused schema have no effect.
fn note_other_schemas(r: &mut Reader, used: Option<&str>) {
    for (key, own) in SCHEMAS {
        for other in own.iter().filter(|_| used != Some(key)) {
            if r.take(other).is_some() && used.is_some() {
                r.note(format!("`{other}` has no effect: it is read with `{key}` only"));
            }
        }
    }
}

/// `dataset_mixer: {id: fraction}` with `dataset_splits: [train…, test…]`: every set is read in
/// every split.
fn mixer(r: &mut Reader, entry: Entry, needs_test: bool) -> Mixture {
    let at = entry.value.at;
    let sets = mixer_sets(r, entry.value);
    let configs = configs(r, sets.len());
    let splits = r.texts("dataset_splits", "[train, test]");
    let splits = splits.unwrap_or_else(|| vec![("train".to_owned(), at), ("test".to_owned(), at)]);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (split, at) in splits {
        // The handbook tells splits apart by the word in the name.
        let target = match (split.contains("train"), split.contains("test")) {
            (true, _) => &mut train,
            (_, true) => &mut test,
            _ => {
                r.error(
                    at,
                    format!(
                        "`dataset_splits`: `{split}` has neither `train` nor `test` in its name"
                    ),
                );
                r.help("name the purpose in the split, for example train_prefs and test_prefs");
                continue;
            }
        };
        for ((id, fraction), config) in sets.iter().zip(&configs) {
            target.push(DatasetSpec {
                config: config.clone(),
                fraction: *fraction,
                ..plain_spec(id, &split)
            });
        }
    }
    let has_sets = !sets.is_empty();
    if has_sets && train.is_empty() {
        r.error_on(
            "dataset_splits",
            "`dataset_splits` has no train split for `dataset_mixer`".to_owned(),
        );
        r.help("add a split with `train` in its name");
    }
    if has_sets && test.is_empty() && needs_test {
        r.error_on(
            "dataset_splits",
            "`dataset_splits` has no test split, but the recipe evaluates".to_owned(),
        );
        r.help(
            "add a split with `test` in its name, or set `eval_strategy: \"no\"` and `do_eval: \
             false`",
        );
    }
    Mixture::Mixer { train, test, shuffle: true }
}

fn mixer_sets(r: &mut Reader, node: Node) -> Vec<(String, f64)> {
    let at = node.at;
    let Value::Map(entries) = node.value else {
        r.error(
            at,
            format!(
                "`dataset_mixer` must be a mapping of data set ids to fractions, not {}",
                node.kind()
            ),
        );
        return Vec::new();
    };
    let mut sets: Vec<(String, f64)> = Vec::new();
    for entry in entries {
        if sets.iter().any(|(id, _)| *id == entry.key) {
            r.error(entry.key_at, format!("`dataset_mixer.{}` is given twice", entry.key));
            r.help("keep one of the two");
        }
        let fraction = r.as_float(&format!("dataset_mixer.{}", entry.key), &entry.value, PART);
        sets.push((entry.key, fraction.unwrap_or(1.0)));
    }
    if sets.is_empty() {
        r.error(at, "`dataset_mixer` names no data set".to_owned());
    }
    sets
}

/// One configuration for each set of the mixer.
fn configs(r: &mut Reader, sets: usize) -> Vec<Option<String>> {
    match r.texts("dataset_configs", "null") {
        None => vec![None; sets],
        Some(configs) if configs.len() == sets => {
            configs.into_iter().map(|(config, _)| Some(config)).collect()
        }
        Some(configs) => {
            let count = configs.len();
            r.error_on(
                "dataset_configs",
                format!("`dataset_configs` has {count} entries for the {sets} of `dataset_mixer`"),
            );
            vec![None; sets]
        }
    }
}

/// `dataset_mixture: {datasets: [{id, config, split, columns, weight}], seed, test_split_size}`.
fn pooled(r: &mut Reader, entry: Entry, needs_test: bool) -> Mixture {
    let at = entry.value.at;
    let (sets, seed, test_split_size) = r.within("dataset_mixture", entry.value, |r| {
        let sets = match r.take("datasets") {
            Some(entry) => pooled_sets(r, entry.value),
            None => {
                r.error(at, "`dataset_mixture` has no `datasets`".to_owned());
                r.help("write datasets: [{id: …, split: …}]");
                Vec::new()
            }
        };
        let seed = r.count("seed", 0, NOT_NEGATIVE) as u64;
        let size = r
            .take("test_split_size")
            .map(|entry| entry.value)
            .filter(|node| node.value != Value::Null);
        (sets, seed, size.map(|node| split_size(r, "dataset_mixture.test_split_size", &node)))
    });
    if needs_test && test_split_size.is_none() {
        r.error(
            entry.key_at,
            "`dataset_mixture` has no `test_split_size`, but the recipe evaluates".to_owned(),
        );
        r.help("add `test_split_size`, or set `eval_strategy: \"no\"` and `do_eval: false`");
    }
    Mixture::Pooled { sets, seed, test_split_size }
}

fn pooled_sets(r: &mut Reader, node: Node) -> Vec<DatasetSpec> {
    let (at, kind) = (node.at, node.kind());
    let items = match node.value {
        Value::List(items) if !items.is_empty() => items,
        _ => {
            r.error(
                at,
                format!("`dataset_mixture.datasets` needs a list of data sets, not {kind}"),
            );
            return Vec::new();
        }
    };
    let mut sets: Vec<DatasetSpec> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let at = item.at;
        let set = r.within(&format!("datasets.{index}"), item, |r| pooled_set(r, at));
        if let Some(first) = sets.first()
            && !same_columns(first, &set)
        {
            r.error(at, "the data sets of the mixture have different `columns`".to_owned());
            r.help("all rows go into one pool: give every data set the same columns");
        }
        sets.push(set);
    }
    sets
}

fn pooled_set(r: &mut Reader, at: Place) -> DatasetSpec {
    let id = match r.optional_text("id|path") {
        Some(id) => id,
        None => {
            if !r.is_written("id") {
                r.error(at, "this data set has no `id`".to_owned());
                r.help("write the hub id, a folder, or a .parquet or .jsonl file");
            }
            String::new()
        }
    };
    if r.take("fraction").is_some_and(|entry| entry.value.value != Value::Null) {
        r.error_on(
            "fraction",
            "`fraction`, TRL's share of a set in the mixture, is not supported".to_owned(),
        );
        r.help(
            "write `weight`, the share of this set's own rows to use (1.0 for all), or the mixture \
             as `datasets`",
        );
    }
    DatasetSpec {
        id,
        config: r.optional_text("config|name"),
        revision: r.optional_text("revision"),
        data_dir: None,
        data_files: Vec::new(),
        split: r.text("split", "train"),
        columns: r
            .texts("columns", "null")
            .map(|columns| columns.into_iter().map(|(name, _)| name).collect()),
        fraction: r.float("weight", 1.0, PART),
    }
}

fn same_columns(a: &DatasetSpec, b: &DatasetSpec) -> bool {
    let sorted = |set: &DatasetSpec| {
        let mut columns = set.columns.clone();
        columns.iter_mut().for_each(|names| names.sort());
        columns
    };
    sorted(a) == sorted(b)
}

/// `dataset_name` with its splits, as in TRL's scripts.
fn named(r: &mut Reader, node: Node, needs_test: bool) -> Mixture {
    let id = r.as_text("dataset_name", &node).unwrap_or_default();
    let config = r.optional_text("dataset_config");
    let train = r.text("dataset_train_split", "train");
    let test = r.text("dataset_test_split", "test");
    let spec = |split: &str| DatasetSpec { config: config.clone(), ..plain_spec(&id, split) };
    Mixture::Named { train: spec(&train), test: needs_test.then(|| spec(&test)) }
}
