//! `metric_list`: what is computed of the answers.

use std::sync::Arc;

use super::keys::{Key, Keys, pattern};
use super::output::OutputType;
use crate::eval::python::Pattern;
use crate::eval::task::{Aggregation, Metric};
use crate::recipe::RecipeError;

/// A metric with its settings.
#[derive(Debug, Clone)]
pub struct MetricConfig {
    pub metric: Metric,
    pub matching: Matching,
}

/// The settings of `exact_match`.
#[derive(Debug, Clone, Default)]
pub struct Matching {
    pub ignore_case: bool,
    pub ignore_punctuation: bool,
    pub ignore_numbers: bool,
    pub regexes_to_ignore: Vec<Arc<Pattern>>,
}

impl MetricConfig {
    /// A metric with lm-eval's own aggregation.
    pub fn of(name: &str) -> Self {
        let aggregation = match name {
            "perplexity" => Aggregation::Perplexity,
            "brier_score" => Aggregation::BrierScore,
            _ => Aggregation::Mean,
        };
        let higher_is_better = !matches!(name, "perplexity" | "brier_score");
        let metric = Metric { name: name.to_owned(), aggregation, higher_is_better };
        Self { metric, matching: Matching::default() }
    }

    /// The metrics of a task without `metric_list`.
    pub fn defaults(output: OutputType) -> Vec<Self> {
        let names: &[&str] = match output {
            OutputType::MultipleChoice => &["acc", "acc_norm"],
            OutputType::Loglikelihood => &["perplexity", "acc"],
            OutputType::GenerateUntil => &["exact_match"],
        };
        names.iter().map(|name| Self::of(name)).collect()
    }

    /// Reads an item of `metric_list`. With `any_name`, the metrics come from a function of
    /// lm-eval's own task files, which decides about their names.
    ///
    /// # Errors
    /// The metric is not supported for this kind of answer, or a setting is wrong.
    pub fn read(item: &Key, output: OutputType, any_name: bool) -> Result<Self, RecipeError> {
        let mut keys = Keys::of_key(item)?;
        let Some(key) = keys.take("metric") else {
            return Err(item.error("an item of `metric_list` has no `metric`", "write metric: acc"));
        };
        let name = key.text()?;
        let supported = supported(output);
        if !any_name && !supported.contains(&name.as_str()) {
            let message = format!("metric `{name}` is not supported for output_type: {output}");
            return Err(key.error(message, format!("use {}", supported.join(", "))));
        }
        let mut config = Self::of(&name);
        if let Some(key) = keys.take("aggregation") {
            config.metric.aggregation = aggregation(&key, &name)?;
        }
        if let Some(key) = keys.take("higher_is_better") {
            config.metric.higher_is_better = key.flag()?;
        }
        if let Some(key) = keys.take("hf_evaluate")
            && key.flag()?
        {
            let help = "remove the key; exact_match is built in";
            return Err(key.error("metrics of the package `evaluate` are not supported", help));
        }
        if name == "exact_match" && output == OutputType::GenerateUntil {
            config.matching = Matching::read(&mut keys)?;
        }
        match keys.rest() {
            None => Ok(config),
            Some(key) => {
                let message = format!("`{}` is not a setting of metric `{name}`", key.name);
                Err(key.error_at_name(message, "remove it, or correct its spelling"))
            }
        }
    }
}

impl Matching {
    fn read(keys: &mut Keys) -> Result<Self, RecipeError> {
        let mut flag = |name: &str| keys.take(name).map_or(Ok(false), |key| key.flag());
        let ignore_case = flag("ignore_case")?;
        let ignore_punctuation = flag("ignore_punctuation")?;
        let ignore_numbers = flag("ignore_numbers")?;
        let patterns = keys.take("regexes_to_ignore").map(|key| key.items()).unwrap_or_default();
        let regexes_to_ignore = patterns.iter().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { ignore_case, ignore_punctuation, ignore_numbers, regexes_to_ignore })
    }
}

fn supported(output: OutputType) -> &'static [&'static str] {
    match output {
        OutputType::MultipleChoice => {
            &["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "brier_score"]
        }
        OutputType::Loglikelihood => &["perplexity", "acc"],
        OutputType::GenerateUntil => &["exact_match"],
    }
}

fn aggregation(key: &Key, metric: &str) -> Result<Aggregation, RecipeError> {
    let name = key.text()?;
    let own = MetricConfig::of(metric).metric.aggregation;
    match name.as_str() {
        "perplexity" => Ok(Aggregation::Perplexity),
        "median" if own == Aggregation::Mean => Ok(Aggregation::Median),
        "brier_score" if metric == "brier_score" => Ok(Aggregation::BrierScore),
        "mean" if own != Aggregation::BrierScore => Ok(Aggregation::Mean),
        _ => {
            let message = format!("aggregation `{name}` is not supported for metric `{metric}`");
            Err(key.error(message, "use mean, median or perplexity"))
        }
    }
}
