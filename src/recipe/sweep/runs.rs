//! The runs of a sweep: all combinations of `grid`, then those of `list`.

use std::collections::{HashMap, HashSet};

use super::setting::{SweepRun, SweepSetting, recipe_keys, settings};
use crate::recipe::number::number;
use crate::recipe::reader::Reader;
use crate::recipe::yaml::{Entry, Node, Place, Value};

const GRID_HELP: &str = "write grid: {beta: [0.1, 0.5], seed: [1, 2]}";
const LIST_HELP: &str = "write list: [{beta: 0.1}, {beta: 0.5, seed: 2}]";

/// The most runs of a grid.
const MOST_RUNS: usize = 10_000;

/// The settings of one run and its place; all runs of a grid have the place of the grid.
type Found = (Place, Vec<SweepSetting>);

/// Reads `grid` and `list`.
pub(super) fn read(r: &mut Reader) -> Vec<SweepRun> {
    let (grid, list) = (r.take("grid"), r.take("list"));
    if grid.is_none() && list.is_none() {
        let error = r.sources.whole_file_error("neither `grid` nor `list` is given".to_owned());
        r.report.errors.push(error.with_help(GRID_HELP));
        return Vec::new();
    }
    let mut found = Vec::new();
    if let Some(entry) = grid {
        found.extend(combinations(r, entry.value));
    }
    if let Some(entry) = list {
        found.extend(listed(r, entry.value));
    }
    named(r, found)
}

/// Names the runs. If two names look alike, the first run keeps its name, so that adding runs
/// renames none. Equal runs are an error.
fn named(r: &mut Reader, found: Vec<Found>) -> Vec<SweepRun> {
    let mut runs: Vec<SweepRun> = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    let mut by_values: HashMap<Vec<(String, String)>, String> = HashMap::new();
    let mut reported: Option<Place> = None;
    for (at, settings) in found {
        let values = values_in_one_spelling(&settings);
        let mut run = SweepRun::new(settings);
        if let Some(twin) = by_values.get(&values) {
            // A value that is written twice in a grid duplicates many runs; report it once.
            if reported != Some(at) {
                twice(r, at, &run.name, twin);
            }
            reported = Some(at);
            continue;
        }
        if names.contains(&run.name) {
            run.name_by_hash();
        }
        names.insert(run.name.clone());
        by_values.insert(values, run.name.clone());
        runs.push(run);
    }
    runs
}

fn twice(r: &mut Reader, at: Place, name: &str, twin: &str) {
    r.error(at, format!("the run `{name}` is given twice"));
    r.help(match name == twin {
        true => "every run needs values of its own".to_owned(),
        false => format!("`{twin}` has the same values, written in another way"),
    });
}

/// Keys and values in a normal form that equal runs share: `1e-1` becomes `0.1`, and keys are
/// sorted.
fn values_in_one_spelling(settings: &[SweepSetting]) -> Vec<(String, String)> {
    let value = |text: &str| {
        // -0 is 0.
        number(text).map_or_else(|| text.to_owned(), |number| (number + 0.0).to_string())
    };
    let mut all: Vec<(String, String)> =
        settings.iter().map(|setting| (setting.key.clone(), value(&setting.value))).collect();
    all.sort();
    all
}

/// All combinations; the last key varies fastest.
fn combinations(r: &mut Reader, node: Node) -> Vec<Found> {
    let (at, kind) = (node.at, node.kind());
    let Value::Map(entries) = node.value else {
        r.error(at, format!("`grid` must be a mapping of keys to lists of values, not {kind}"));
        r.help(GRID_HELP);
        return Vec::new();
    };
    if entries.is_empty() {
        r.error(at, "`grid` is empty".to_owned());
        r.help(GRID_HELP);
    }
    let mut all: Vec<Vec<SweepSetting>> = vec![Vec::new()];
    let mut count = 1_usize;
    for entry in recipe_keys(r, "grid", entries) {
        let values = values(r, &entry);
        // An empty list of values already has an error.
        count = count.saturating_mul(values.len().max(1));
        if !values.is_empty() && count <= MOST_RUNS {
            all = all.iter().flat_map(|before| longer(before, &values)).collect();
        }
    }
    if count > MOST_RUNS {
        r.error(at, format!("`grid` has {count} combinations, more than {MOST_RUNS} runs"));
        r.help("take values out of it, or write the wanted runs as `list`");
        return Vec::new();
    }
    all.retain(|settings| !settings.is_empty());
    all.into_iter().map(|settings| (at, settings)).collect()
}

/// `before` extended by each of `values`.
fn longer(before: &[SweepSetting], values: &[SweepSetting]) -> Vec<Vec<SweepSetting>> {
    values.iter().map(|value| [before, std::slice::from_ref(value)].concat()).collect()
}

/// The values of one key of the grid.
fn values(r: &mut Reader, entry: &Entry) -> Vec<SweepSetting> {
    let Entry { key, value: node, .. } = entry;
    let Value::List(items) = &node.value else {
        r.error(node.at, format!("`grid.{key}` needs a list of values, not {}", node.kind()));
        r.help(format!("write {key}: [VALUE, VALUE]"));
        return Vec::new();
    };
    if items.is_empty() {
        r.error(node.at, format!("`grid.{key}` has no values"));
        r.help("write some, or leave the key out");
    }
    items.iter().map(|item| SweepSetting::new(r, entry, item)).collect()
}

fn listed(r: &mut Reader, node: Node) -> Vec<Found> {
    let (at, kind) = (node.at, node.kind());
    let Value::List(items) = node.value else {
        r.error(at, format!("`list` needs a list of runs, not {kind}"));
        r.help(LIST_HELP);
        return Vec::new();
    };
    if items.is_empty() {
        r.error(at, "`list` is empty".to_owned());
        r.help(LIST_HELP);
    }
    let mut found = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let (at, what) = (item.at, format!("list.{index}"));
        let is_nothing = item.value == Value::Null || item.value == Value::Map(Vec::new());
        if is_nothing {
            r.error(at, format!("`{what}` sets nothing"));
            r.help("write the run's keys and values, such as {beta: 0.1}");
            continue;
        }
        let settings = settings(r, &what, item);
        if !settings.is_empty() {
            found.push((at, settings));
        }
    }
    found
}
