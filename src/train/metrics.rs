//! Means of what was measured, under TRL's names and in its order.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::task::Measured;
use crate::parallel::ranks::Exact;

/// What a micro-batch measured, as ranks tell it each other: every number keeps its bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MicroBatch {
    pub loss: Exact,
    pub margin: Option<Exact>,
    pub metrics: Vec<(Cow<'static, str>, Exact)>,
    /// Tokens that the model computed.
    pub tokens: usize,
    pub rows: usize,
}

impl MicroBatch {
    /// Takes what is told of a micro-batch of `rows` rows.
    pub fn new(measured: &Measured, tokens: usize, rows: usize) -> Self {
        let metrics = measured.metrics.iter();
        Self {
            loss: Exact(measured.loss),
            margin: measured.margin.map(Exact),
            metrics: metrics.map(|(name, value)| (Cow::Borrowed(*name), Exact(*value))).collect(),
            tokens,
            rows,
        }
    }
}

/// Weighted means by name, in the order in which the names first came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Means(Vec<Mean>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Mean {
    name: String,
    sum: f64,
    weight: f64,
}

impl Means {
    /// Adds values that count `weight` times. In training a micro-batch counts once, whatever
    /// its rows; in evaluation it counts as its rows.
    pub fn add<'a>(&mut self, values: impl IntoIterator<Item = (&'a str, f64)>, weight: f64) {
        for (name, value) in values {
            let place = self.0.iter().position(|mean| mean.name == name);
            let index = place.unwrap_or_else(|| {
                self.0.push(Mean { name: name.to_string(), sum: 0.0, weight: 0.0 });
                self.0.len() - 1
            });
            self.0[index].sum += value * weight;
            self.0[index].weight += weight;
        }
    }

    /// Adds the metrics of a micro-batch.
    pub fn add_micro_batch(&mut self, batch: &MicroBatch, weight: f64) {
        self.add(batch.metrics.iter().map(|(name, value)| (&**name, value.0)), weight);
    }

    /// The means, names behind `prefix`; afterwards nothing is left.
    pub fn take(&mut self, prefix: &str) -> Vec<(String, f64)> {
        let means = std::mem::take(&mut self.0);
        means.into_iter().map(|m| (format!("{prefix}{}", m.name), m.sum / m.weight)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_keep_the_order_of_their_names() {
        let mut means = Means::default();
        means.add([("b", 1.0), ("a", 10.0)], 3.0);
        means.add([("a", 2.0), ("b", 5.0)], 1.0);
        assert_eq!(means.take("eval_"), [("eval_b".into(), 2.0), ("eval_a".into(), 8.0)]);
        assert!(means.take("").is_empty());
    }
}
