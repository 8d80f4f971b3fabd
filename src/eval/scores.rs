//! Values of documents → scores of tasks and groups, with standard errors, as lm-eval computes
//! them.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::config::group::GroupMetric;
use super::random::Random;
use super::request::Measured;
use super::task::{Aggregation, Task};

/// The resamples of a bootstrapped standard error.
const RESAMPLES: usize = 100_000;
/// The resamples that one generator draws.
const CHUNK: usize = 1000;

/// A score of a task or group.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    pub metric: String,
    pub filter: String,
    pub value: f64,
    /// `None` if it is not defined, for example for one document.
    pub stderr: Option<f64>,
    pub higher_is_better: bool,
}

/// The scores of a task or group.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    pub name: String,
    pub alias: String,
    /// The number of documents.
    pub documents: usize,
    pub scores: Vec<Score>,
}

impl Scores {
    /// The score of a metric after a filter.
    pub fn get(&self, metric: &str, filter: &str) -> Option<&Score> {
        self.scores.iter().find(|score| score.metric == metric && score.filter == filter)
    }
}

/// The scores of a task. `measured` has the values of its documents in their order.
pub fn of_task(task: &dyn Task, measured: &[Vec<Measured>]) -> Scores {
    let filters = measured.first().map(Vec::as_slice).unwrap_or_default();
    let mut scores = Vec::new();
    for (at, filter) in filters.iter().enumerate() {
        for metric in task.metrics() {
            let value = |document: &Vec<Measured>| {
                let values = document.get(at).map(|filter| filter.values.as_slice());
                let value = values?.iter().find(|(name, _)| *name == metric.name)?;
                Some(value.1)
            };
            let values: Vec<f64> = measured.iter().filter_map(value).collect();
            if values.is_empty() {
                continue;
            }
            scores.push(Score {
                metric: metric.name.clone(),
                filter: filter.filter.clone(),
                value: aggregated(metric.aggregation, &values),
                stderr: standard_error(metric.aggregation, &values),
                higher_is_better: metric.higher_is_better,
            });
        }
    }
    let (name, alias) = (task.name().to_owned(), task.alias().to_owned());
    Scores { name, alias, documents: measured.len(), scores }
}

/// The scores of a group of tasks: means over the tasks, by their documents or plain.
pub fn of_group(name: &str, alias: &str, metrics: &[GroupMetric], tasks: &[&Scores]) -> Scores {
    let mut scores = Vec::new();
    for metric in metrics {
        for filter in filters_of(metric, tasks) {
            scores.extend(averaged(metric, &filter, tasks));
        }
    }
    let documents = tasks.iter().map(|task| task.documents).sum();
    Scores { name: name.to_owned(), alias: alias.to_owned(), documents, scores }
}

fn filters_of(metric: &GroupMetric, tasks: &[&Scores]) -> Vec<String> {
    if let Some(filters) = &metric.filters {
        return filters.clone();
    }
    let scores = tasks.iter().flat_map(|task| &task.scores);
    let of_metric = scores.filter(|score| score.metric == metric.metric);
    let names: BTreeMap<String, ()> = of_metric.map(|score| (score.filter.clone(), ())).collect();
    names.into_keys().collect()
}

/// The mean of a metric over the tasks that have it.
fn averaged(metric: &GroupMetric, filter: &str, tasks: &[&Scores]) -> Option<Score> {
    let of_task = |task: &&Scores| {
        task.get(&metric.metric, filter).map(|score| (task.documents as f64, score.clone()))
    };
    let found: Vec<(f64, Score)> = tasks.iter().filter_map(of_task).collect();
    let weight = |size: f64| if metric.weight_by_size { size } else { 1.0 };
    let total: f64 = found.iter().map(|(size, _)| weight(*size)).sum();
    let sum: f64 = found.iter().map(|(size, score)| score.value * weight(*size)).sum();
    let errors: Option<Vec<(f64, f64)>> =
        found.iter().map(|(size, score)| Some((*size, score.stderr?))).collect();
    let (_, first) = found.first()?;
    Some(Score {
        metric: metric.metric.clone(),
        filter: filter.to_owned(),
        value: sum / total,
        stderr: errors.map(|errors| match metric.weight_by_size {
            true => pooled(&errors),
            false => unweighted(&errors),
        }),
        higher_is_better: first.higher_is_better,
    })
}

/// The standard error of a mean over all documents of several tasks, from sizes and standard
/// errors: the pooled variance.
fn pooled(errors: &[(f64, f64)]) -> f64 {
    let sizes: f64 = errors.iter().map(|(size, _)| size).sum();
    let squares: f64 = errors.iter().map(|(size, error)| (size - 1.0) * error.powi(2) * size).sum();
    (squares / (sizes - errors.len() as f64) / sizes).sqrt()
}

/// The standard error of a plain mean of independent scores.
fn unweighted(errors: &[(f64, f64)]) -> f64 {
    errors.iter().map(|(_, error)| error.powi(2)).sum::<f64>().sqrt() / errors.len() as f64
}

fn aggregated(aggregation: Aggregation, values: &[f64]) -> f64 {
    match aggregation {
        Aggregation::Mean | Aggregation::BrierScore => mean(values),
        Aggregation::Perplexity => (-mean(values)).exp(),
        Aggregation::Median => {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        }
    }
}

fn standard_error(aggregation: Aggregation, values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    match aggregation {
        Aggregation::Mean => Some(deviation(values) / (values.len() as f64).sqrt()),
        Aggregation::BrierScore => None,
        Aggregation::Perplexity | Aggregation::Median => Some(bootstrapped(aggregation, values)),
    }
}

/// The deviation of a score over resamples of the documents. Generator `i` of Python's `random`
/// draws the resamples `1000 i` to `1000 i + 999`, as in lm-eval.
fn bootstrapped(aggregation: Aggregation, values: &[f64]) -> f64 {
    let chunk = |seed: usize| {
        let mut rnd = Random::new(seed as i64);
        let resample = |_| {
            let places = rnd.choices(values.len(), values.len());
            let drawn: Vec<f64> = places.into_iter().map(|place| values[place]).collect();
            aggregated(aggregation, &drawn)
        };
        (0..CHUNK).map(resample).collect::<Vec<_>>()
    };
    let scores: Vec<f64> =
        (0..RESAMPLES / CHUNK).into_par_iter().map(chunk).collect::<Vec<_>>().concat();
    deviation(&scores)
}

/// The mean by a plain sum, as Python's `sum(…) / len(…)`.
fn mean(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |sum, value| sum + value) / values.len() as f64
}

/// The deviation of a sample.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().fold(0.0, |sum, value| sum + (value - mean).powi(2));
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(name: &str, values: &[f64]) -> Scores {
        let score = Score {
            metric: "acc".to_owned(),
            filter: "none".to_owned(),
            value: mean(values),
            stderr: standard_error(Aggregation::Mean, values),
            higher_is_better: true,
        };
        let (name, alias) = (name.to_owned(), name.to_owned());
        Scores { name, alias, documents: values.len(), scores: vec![score] }
    }

    fn group(weight_by_size: bool) -> Score {
        let metric = GroupMetric { metric: "acc".to_owned(), filters: None, weight_by_size };
        let (a, b) = (scores("a", &[1.0, 0.0, 1.0, 1.0]), scores("b", &[0.0, 1.0]));
        of_group("g", "g", &[metric], &[&a, &b]).scores[0].clone()
    }

    /// The numbers are those of lm-eval's `mean_stderr`, `pooled_sample_stderr` and
    /// `unweighted_mean_stderr`.
    #[test]
    fn standard_errors_are_those_of_lm_eval() {
        assert_eq!(scores("a", &[1.0, 0.0, 1.0, 1.0]).scores[0].stderr, Some(0.25));
        let weighted = group(true);
        assert_eq!(weighted.value, 4.0 / 6.0);
        assert!((weighted.stderr.unwrap() - POOLED).abs() < 1e-15);
        let plain = group(false);
        assert_eq!(plain.value, 0.625);
        assert!((plain.stderr.unwrap() - UNWEIGHTED).abs() < 1e-15);
    }

    #[test]
    fn one_document_has_no_standard_error() {
        assert_eq!(scores("a", &[1.0]).scores[0].stderr, None);
    }

    /// The numbers are those of lm-eval's `bootstrap_stderr(perplexity, …, 100000)`.
    #[test]
    fn bootstrapped_errors_are_those_of_lm_eval() {
        let values = [-1.0, -2.5, -0.5, -3.0, -1.25];
        assert!((aggregated(Aggregation::Perplexity, &values) - PERPLEXITY).abs() < 1e-12);
        let error = standard_error(Aggregation::Perplexity, &values).unwrap();
        assert!((error - PERPLEXITY_ERROR).abs() < 1e-9, "{error}");
        let error = standard_error(Aggregation::Median, &values).unwrap();
        assert!((error - MEDIAN_ERROR).abs() < 1e-9, "{error}");
    }

    const POOLED: f64 = 0.22821773229381923;
    const UNWEIGHTED: f64 = 0.2795084971874737;
    const PERPLEXITY: f64 = 5.206979827179849;
    const PERPLEXITY_ERROR: f64 = 2.535167266130699;
    const MEDIAN_ERROR: f64 = 0.7297888108292834;
}
