//! Held-out rows through the model, without gradients.

use std::time::Instant;

use super::metrics::Means;
use super::task::{Split, Task};
use super::walk::{Keep, Walk};
use crate::model::decoder::Decoder;
use crate::model::kernels::timed;

/// Evaluates all test rows in batches of `batch_size`, in their order. Returns TRL's values: `eval_loss`,
/// times, then the metrics, each row counted once.
///
/// `progress` is told the rows done.
pub fn evaluate(
    model: &Decoder,
    task: &dyn Task,
    batch_size: usize,
    mut progress: impl FnMut(usize),
) -> Vec<(String, f64)> {
    timed!("evaluation");
    let started = Instant::now();
    let rows: Vec<usize> = (0..task.rows(Split::Test)).collect();
    let (mut loss, mut means) = (Means::default(), Means::default());
    for rows in rows.chunks(batch_size) {
        let batch = task.batch(Split::Test, rows);
        let walk = Walk::forward(model, &batch, Keep::Nothing);
        let divisor = task.divisor(Split::Test, &[rows]);
        let measured = task.measure(Split::Test, rows, &walk, divisor);
        loss.add(&[("loss", measured.loss)], rows.len() as f64);
        means.add(&measured.metrics, rows.len() as f64);
        progress(rows.last().map_or(0, |last| last + 1));
    }
    let seconds = started.elapsed().as_secs_f64();
    let batches = rows.len().div_ceil(batch_size);
    let mut values = loss.take("eval_");
    values.extend([
        ("eval_runtime".to_string(), seconds),
        ("eval_samples_per_second".to_string(), rows.len() as f64 / seconds),
        ("eval_steps_per_second".to_string(), batches as f64 / seconds),
    ]);
    values.extend(means.take("eval_"));
    values
}
