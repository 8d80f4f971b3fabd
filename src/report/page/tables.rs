//! The tables of a page: final values, and differences to the first run.

use std::collections::HashMap;

use serde::Serialize;

use crate::report::charts::metrics;
use crate::report::console::short;
use crate::report::record::RunRecord;

/// The last value of a metric in each run.
#[derive(Debug, Serialize, PartialEq)]
pub struct FinalRow {
    /// "loss", "eval_rewards/margins" …
    pub metric: String,
    /// One cell per run; empty if the run lacks the metric.
    pub cells: Vec<FinalCell>,
}

/// See [`FinalRow`].
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct FinalCell {
    pub value: String,
    /// The difference to the first run; empty for the first run itself.
    pub difference: String,
}

/// The difference between a run and the first run, over the steps that both logged.
#[derive(Debug, Serialize, PartialEq)]
pub struct Agreement {
    pub run: String,
    pub metric: String,
    /// The number of steps at which both have a value.
    pub steps: usize,
    pub largest: String,
    pub at_step: u64,
    pub mean: String,
}

/// Held-out values come first, because they matter most.
fn names(runs: &[RunRecord]) -> Vec<String> {
    let metrics = metrics(runs);
    let held_out = metrics.iter().map(|metric| format!("eval_{metric}"));
    let whole = ["train_loss".to_owned(), "train_runtime".to_owned()];
    held_out.chain(metrics.iter().cloned()).chain(whole).collect()
}

/// One row per metric that at least one own run has.
pub fn final_values(runs: &[RunRecord]) -> Vec<FinalRow> {
    let rows = names(runs).into_iter().filter_map(|metric| {
        let values: Vec<Option<f64>> =
            runs.iter().map(|run| run.last(&metric).map(|(_, value)| value)).collect();
        let known = |(run, value): (&RunRecord, &Option<f64>)| !run.is_published && value.is_some();
        runs.iter().zip(&values).any(known).then(|| {
            let first = values[0];
            let cells = values.iter().enumerate().map(|(index, value)| cell(index, *value, first));
            FinalRow { metric, cells: cells.collect() }
        })
    });
    rows.collect()
}

fn cell(index: usize, value: Option<f64>, first: Option<f64>) -> FinalCell {
    let Some(value) = value else { return FinalCell::default() };
    let difference = match first {
        Some(first) if index > 0 => signed(value - first),
        _ => String::new(),
    };
    FinalCell { value: with_sign(value, ""), difference }
}

fn signed(difference: f64) -> String {
    with_sign(difference, "+")
}

/// Writes a number with a true minus sign, and `plus` before positive ones.
fn with_sign(value: f64, plus: &str) -> String {
    let text = short(value.abs());
    match value {
        v if v < 0.0 => format!("−{text}"),
        v if v > 0.0 => format!("{plus}{text}"),
        _ => text,
    }
}

/// Rows for each run after the first that shares steps with it. Metrics of time are left out.
pub fn agreements(runs: &[RunRecord]) -> Vec<Agreement> {
    let Some((first, others)) = runs.split_first() else { return Vec::new() };
    let others = others.iter().filter(|run| !run.is_published && !first.is_published);
    let names = names(runs);
    let all =
        others.flat_map(|run| names.iter().filter_map(move |name| agreement(first, run, name)));
    all.collect()
}

fn agreement(first: &RunRecord, run: &RunRecord, metric: &str) -> Option<Agreement> {
    let timed = ["tokens_per_second", "train_runtime"];
    if timed.contains(&metric) {
        return None;
    }
    // If a step has several values, the last one counts.
    let others: HashMap<u64, f64> =
        run.rows.iter().filter_map(|row| Some((row.step, row.get(metric)?))).collect();
    let differences: Vec<(u64, f64)> = first
        .rows
        .iter()
        .filter_map(|row| {
            let difference = (row.get(metric)? - others.get(&row.step)?).abs();
            difference.is_finite().then_some((row.step, difference))
        })
        .collect();
    let (at_step, largest) =
        differences.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a })?;
    let mean = differences.iter().map(|(_, d)| d).sum::<f64>() / differences.len() as f64;
    Some(Agreement {
        run: run.name.clone(),
        metric: metric.to_owned(),
        steps: differences.len(),
        largest: short(largest),
        at_step,
        mean: short(mean),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::event::LogRow;

    fn run(name: &str, losses: &[(u64, f64)]) -> RunRecord {
        let row = |&(step, loss): &(u64, f64)| LogRow {
            step,
            epoch: 0.0,
            values: vec![("loss".into(), loss)],
        };
        RunRecord {
            name: name.into(),
            rows: losses.iter().map(row).collect(),
            ..RunRecord::default()
        }
    }

    #[test]
    fn ends_are_compared_with_the_first_run() {
        let rows = final_values(&[run("a", &[(1, 0.7), (2, 0.5)]), run("b", &[(2, 0.25)])]);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].metric, "loss");
        assert_eq!(rows[0].cells[0], FinalCell { value: "0.5".into(), difference: "".into() });
        assert_eq!(
            rows[0].cells[1],
            FinalCell { value: "0.25".into(), difference: "−0.25".into() }
        );
    }

    #[test]
    fn agreement_is_over_common_steps() {
        let runs = [run("a", &[(1, 0.5), (2, 0.5), (3, 0.5)]), run("b", &[(2, 0.75), (3, 0.5)])];
        let rows = agreements(&runs);
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.steps, row.at_step), (2, 2));
        assert_eq!((row.largest.as_str(), row.mean.as_str()), ("0.25", "0.125"));
        assert!(agreements(&runs[..1]).is_empty());
        let again = [run("a", &[(1, 0.5)]), run("b", &[(1, 0.5), (1, 0.75), (1, 0.625)])];
        assert_eq!(agreements(&again)[0].largest, "0.125", "the last value of a step counts");
    }
}
