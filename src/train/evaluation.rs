//! Held-out rows through the model, without gradients.

use std::time::Instant;

use super::metrics::{Means, MicroBatch};
use super::task::{Part, Split, Task};
use super::walk::{Keep, Walk};
use crate::model::decoder::Decoder;
use crate::model::kernels::timed;
use crate::parallel::Ranks;

/// Evaluates all test rows in batches of `batch_size`, in their order, dealt to the ranks in turn. Returns
/// TRL's values: `eval_loss`, times, then the metrics, each row counted once.
///
/// `progress` is told the rows done.
pub fn evaluate(
    model: &Decoder,
    task: &dyn Task,
    batch_size: usize,
    ranks: &Ranks,
    mut progress: impl FnMut(usize),
) -> Vec<(String, f64)> {
    timed!("evaluation");
    let started = Instant::now();
    let rows: Vec<usize> = (0..task.rows(Split::Test)).collect();
    let batches: Vec<&[usize]> = rows.chunks(batch_size).collect();
    let measured = ranks.deal("evaluation", &batches, |&rows| {
        ranks.at_work(|| format!("evaluating the rows from {}", rows[0]));
        let batch = task.batch(Split::Test, rows);
        let walk = Walk::forward(model, &batch, Keep::Nothing);
        let divisor = task.divisor(Split::Test, &[rows]);
        let measured = task.measure(Split::Test, Part::whole(rows), &walk, divisor);
        progress(rows.last().map_or(0, |last| last + 1));
        MicroBatch::new(&measured, batch.tokens(), rows.len())
    });
    let (mut loss, mut means) = (Means::default(), Means::default());
    for batch in &measured {
        loss.add([("loss", batch.loss.0)], batch.rows as f64);
        means.add_micro_batch(batch, batch.rows as f64);
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut values = loss.take("eval_");
    values.extend([
        ("eval_runtime".to_string(), seconds),
        ("eval_samples_per_second".to_string(), rows.len() as f64 / seconds),
        ("eval_steps_per_second".to_string(), batches.len() as f64 / seconds),
    ]);
    values.extend(means.take("eval_"));
    values
}
