//! Means of metrics, under TRL's names and in TRL's order.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::task::{Measured, Metric, Part};
use crate::parallel::ranks::Exact;

/// The loss and the metrics of a micro-batch or a part of one. Ranks send it to each other; every
/// number keeps its bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MicroBatch {
    pub loss: Exact,
    pub margin: Option<Exact>,
    metrics: Vec<SentMetric>,
    /// Tokens that the model computed.
    pub tokens: usize,
    pub rows: usize,
}

/// A [`Metric`] in a message between ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SentMetric {
    name: Cow<'static, str>,
    value: Exact,
    of: usize,
    rows: usize,
}

impl SentMetric {
    fn new(metric: &Metric) -> Self {
        let Metric { name, value, of, rows } = *metric;
        Self { name: Cow::Borrowed(name), value: Exact(value), of, rows }
    }

    /// The mean over its numbers and those of `other`.
    fn join(&mut self, other: &Self) {
        let sum = self.value.0 * self.of as f64 + other.value.0 * other.of as f64;
        self.of += other.of;
        self.rows += other.rows;
        self.value = Exact(sum / self.of.max(1) as f64);
    }
}

impl MicroBatch {
    /// The result of `rows` rows.
    pub fn new(measured: &Measured, tokens: usize, rows: usize) -> Self {
        Self {
            loss: Exact(measured.loss),
            margin: measured.margin.map(Exact),
            metrics: measured.metrics.iter().map(SentMetric::new).collect(),
            tokens,
            rows,
        }
    }

    /// Joins the results of the parts of a micro-batch. A single part is returned unchanged.
    fn join(parts: &[Self]) -> Self {
        let (first, others) = parts.split_first().expect("a micro-batch has parts");
        let mut joined = first.clone();
        if others.is_empty() {
            return joined;
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let margins = parts.iter().map(|part| Some(part.margin?.0 * part.rows as f64));
        joined.margin = margins.sum::<Option<f64>>().map(|sum| Exact(sum / rows as f64));
        joined.rows = rows;
        for part in others {
            joined.loss.0 += part.loss.0;
            joined.tokens += part.tokens;
            for metric in &part.metrics {
                match joined.metrics.iter_mut().find(|known| known.name == metric.name) {
                    Some(known) => known.join(metric),
                    None => joined.metrics.push(metric.clone()),
                }
            }
        }
        joined
    }

    /// Joins the results of all `parts` into those of their micro-batches.
    pub fn join_all(parts: &[Part], measured: &[Self]) -> Vec<Self> {
        let mut micro_batches = Vec::new();
        let (mut first, mut rows) = (0, 0);
        for (index, part) in parts.iter().enumerate() {
            rows += part.rows.len();
            if rows == part.of {
                micro_batches.push(Self::join(&measured[first..=index]));
                (first, rows) = (index + 1, 0);
            }
        }
        micro_batches
    }
}

/// Weighted means by name, in the order in which the names were added first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Means(Vec<Mean>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Mean {
    name: String,
    sum: f64,
    weight: f64,
}

impl Means {
    /// Adds a value with a weight.
    pub fn add(&mut self, name: &str, value: f64, weight: f64) {
        let place = self.0.iter().position(|mean| mean.name == name);
        let index = place.unwrap_or_else(|| {
            self.0.push(Mean { name: name.to_string(), sum: 0.0, weight: 0.0 });
            self.0.len() - 1
        });
        self.0[index].sum += value * weight;
        self.0[index].weight += weight;
    }

    /// Adds the metrics of a training micro-batch with weight 1 each, independent of its rows.
    pub fn add_once(&mut self, batch: &MicroBatch) {
        for metric in &batch.metrics {
            self.add(&metric.name, metric.value.0, 1.0);
        }
    }

    /// Adds the metrics of an evaluation batch, each weighted by the rows that it describes.
    pub fn add_by_rows(&mut self, batch: &MicroBatch) {
        for metric in &batch.metrics {
            self.add(&metric.name, metric.value.0, metric.rows as f64);
        }
    }

    /// Takes all means, with `prefix` before their names. Nothing is left.
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
        for (name, value, weight) in [("b", 1.0, 3.0), ("a", 10.0, 3.0), ("a", 2.0, 1.0)] {
            means.add(name, value, weight);
        }
        means.add("b", 5.0, 1.0);
        assert_eq!(means.take("eval_"), [("eval_b".into(), 2.0), ("eval_a".into(), 8.0)]);
        assert!(means.take("").is_empty());
    }

    fn part(rows: usize, loss: f64, metrics: Vec<Metric>) -> MicroBatch {
        let measured = Measured { loss, upstream: Vec::new(), metrics, margin: Some(loss) };
        MicroBatch::new(&measured, 10 * rows, rows)
    }

    fn metric(name: &'static str, value: f64, of: usize, rows: usize) -> Metric {
        Metric { name, value, of, rows }
    }

    #[test]
    fn parts_make_their_micro_batch() {
        let rows = [0, 1, 2, 3, 4];
        let parts = [&rows[..1], &rows[1..4], &rows[4..]].map(|rows| Part { rows, of: 4 });
        let parts = [parts[0], parts[1], Part { of: 1, ..parts[2] }];
        let measured = [
            part(1, 1.0, vec![metric("entropy", 4.0, 10, 1), metric("margin", 0.0, 1, 1)]),
            part(3, 2.0, vec![metric("entropy", 1.0, 20, 3), metric("margin", 4.0, 3, 3)]),
            part(1, 5.0, vec![metric("entropy", 7.0, 0, 1)]),
        ];
        let joined = MicroBatch::join_all(&parts, &measured);
        let metrics = vec![metric("entropy", 2.0, 30, 4), metric("margin", 3.0, 4, 4)];
        let whole = MicroBatch { margin: Some(Exact(1.75)), ..part(4, 3.0, metrics) };
        assert_eq!(joined, [whole, measured[2].clone()]);
    }

    /// An evaluation batch may have three rows of one label and one of the other.
    #[test]
    fn a_metric_of_some_rows_counts_as_those() {
        let batches = [
            part(4, 1.0, vec![metric("chosen", 1.0, 3, 3), metric("rejected", 8.0, 1, 1)]),
            part(4, 1.0, vec![metric("chosen", 5.0, 1, 1), metric("rejected", 4.0, 3, 3)]),
        ];
        let (mut once, mut by_rows) = (Means::default(), Means::default());
        for batch in &batches {
            once.add_once(batch);
            by_rows.add_by_rows(batch);
        }
        assert_eq!(once.take(""), [("chosen".into(), 3.0), ("rejected".into(), 6.0)]);
        assert_eq!(by_rows.take(""), [("chosen".into(), 2.0), ("rejected".into(), 5.0)]);
    }
}
