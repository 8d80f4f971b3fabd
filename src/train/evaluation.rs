//! Evaluation on the held-out rows, without gradients.

use std::time::Instant;

use super::balance::Balance;
use super::layerwise::{Keep, LayerwisePass, StepInputs};
use super::metrics::{Means, MicroBatch};
use super::task::{Split, Task, in_parts};
use crate::kernels::timed;
use crate::model::decoder::Decoder;
use crate::parallel::Ranks;

/// The rows of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut<'a> {
    /// The test rows in their order, each once.
    pub order: &'a [usize],
    pub batch_size: usize,
    /// Batches of more tokens are computed in parts.
    pub most_tokens: Option<usize>,
    /// The load-balancing loss, if the model has sparse experts.
    pub balance: Option<Balance>,
}

/// Evaluates test rows in batches. Batches and parts are assigned to the ranks round-robin.
/// Returns TRL's values: `eval_loss`, times, then the metrics, in which each row has the same
/// weight.
///
/// `progress` is called with the number of rows that are done.
pub fn evaluate(
    model: &Decoder,
    task: &dyn Task,
    held_out: HeldOut<'_>,
    ranks: &Ranks,
    mut progress: impl FnMut(usize),
) -> Vec<(String, f64)> {
    timed!("evaluation");
    let started = Instant::now();
    let HeldOut { order, batch_size, most_tokens, balance } = held_out;
    let batches: Vec<&[usize]> = order.chunks(batch_size).collect();
    let mut place = vec![0; task.rows(Split::Test)];
    order.iter().enumerate().for_each(|(at, row)| place[*row] = at);
    let parts = in_parts(task, Split::Test, &batches, most_tokens);
    let measured = ranks.deal("evaluation", &parts, |part| {
        ranks.at_work(|| format!("evaluating the rows from {}", part.rows[0]));
        let mut batch = task.batch(Split::Test, part.rows);
        batch.reads_everywhere |= balance.is_some();
        let balance_inputs = |balance: Balance| balance.inputs(task, Split::Test, part.rows, 1);
        let inputs = StepInputs { balance: balance.map(balance_inputs), ..StepInputs::default() };
        let pass = LayerwisePass::forward_step(model, &batch, Keep::Nothing, inputs);
        let whole = batches[place[part.rows[0]] / batch_size];
        let divisor = task.divisor(Split::Test, &[whole]);
        let mut measured = task.measure(Split::Test, *part, &pass, divisor);
        if let Some(balance) = balance {
            balance.add_to(&mut measured, &pass, part.rows.len(), 1);
        }
        progress(part.rows.last().map_or(0, |last| place[*last] + 1));
        MicroBatch::new(&measured, batch.tokens(), part.rows.len())
    });
    let (mut loss, mut means) = (Means::default(), Means::default());
    for batch in &MicroBatch::join_all(&parts, &measured) {
        loss.add("loss", batch.loss.0, batch.rows as f64);
        means.add_by_rows(batch);
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut values = loss.take("eval_");
    values.extend([
        ("eval_runtime".to_string(), seconds),
        ("eval_samples_per_second".to_string(), order.len() as f64 / seconds),
        ("eval_steps_per_second".to_string(), batches.len() as f64 / seconds),
    ]);
    let metrics = task.complete(means.take(""));
    values.extend(metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), value)));
    values
}
