//! The data that ranks send in a step, and the time that a step waits for it.

use std::collections::VecDeque;

use burn::tensor::DType;

use super::estimate::Workload;
use crate::parallel::buckets::{Bucket, Layout};

/// Bytes that one rank sends in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    pub gradients: f64,
    /// The type in which gradients are sent.
    pub reduce: DType,
    pub weights: f64,
}

impl Traffic {
    /// See [`Layout::bytes_sent`](crate::parallel::buckets::Layout::bytes_sent).
    pub fn of(run: &Workload) -> Self {
        let layout = run.layout();
        let weights = layout.bytes_sent(0, run.trained_bytes()) as f64;
        let all = layout.bytes_sent(run.accumulation, run.trained_bytes()) as f64;
        Self { gradients: all - weights, reduce: run.reduce, weights }
    }

    /// Bytes of gradients and weights together.
    pub fn bytes(&self) -> f64 {
        self.gradients + self.weights
    }

    /// The name of the type in which gradients are sent.
    pub fn reduce_name(&self) -> &'static str {
        match self.reduce {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        }
    }
}

/// Seconds of computing of one rank in a step, apart from the optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Computing {
    /// All backward passes.
    pub backward: f64,
    /// The first forward pass.
    pub forward: f64,
}

impl Computing {
    /// Seconds of a step in which `seconds` are computed in `passes` forward passes and their like.
    pub fn of(run: &Workload, seconds: f64, passes: f64) -> Self {
        let pass = seconds / passes;
        Self {
            backward: pass * (run.forward_passes() - 1.0),
            forward: pass / run.accumulation as f64,
        }
    }
}

/// Seconds that a step waits for the gradients on their way between ranks, which send `bandwidth`
/// bytes a second.
///
/// A bucket is sent when the backward pass leaves its layer, after the buckets before it, and the
/// buckets on their way are together at most as large as the largest one. The end of a
/// micro-batch's backward pass waits for all of them.
pub fn exposed_gradients(run: &Workload, computing: Computing, bandwidth: f64) -> f64 {
    let layout = run.layout();
    let rounds = run.accumulation as f64;
    let (head, layer) = shares(run, &layout, computing.backward / rounds);
    let largest = layout.buckets.iter().map(|bucket| bucket.shard).max().unwrap_or(0);

    // The clocks of the device and of the network. The backward pass begins with the head.
    let (mut computed, mut sent) = (head, 0.0);
    let mut waited = 0.0;
    let mut on_the_way: VecDeque<(usize, f64)> = VecDeque::new();
    for bucket in layout.buckets.iter().rev().filter(|bucket| bucket.is_dense) {
        if is_of_layer(bucket) {
            computed += layer;
        }
        while on_the_way.iter().map(|(shard, _)| shard).sum::<usize>() + bucket.shard > largest
            && let Some((_, arrival)) = on_the_way.pop_front()
        {
            waited += f64::max(0.0, arrival - computed);
            computed = f64::max(computed, arrival);
        }
        sent = f64::max(sent, computed) + layout.gradient_bytes(bucket) as f64 / bandwidth;
        on_the_way.push_back((bucket.shard, sent));
    }
    (waited + f64::max(0.0, sent - computed)) * rounds
}

/// Seconds that a step waits for the new weights of the step before, which are gathered from the
/// first bucket to the last: the first forward pass waits for the weights of each layer.
pub fn exposed_weights(run: &Workload, computing: Computing, bandwidth: f64) -> f64 {
    let layout = run.layout();
    let (_, layer) = shares(run, &layout, computing.forward);
    let (mut computed, mut sent, mut waited) = (0.0, 0.0, 0.0);
    for bucket in &layout.buckets {
        sent += layout.sent(bucket, run.trained_bytes()) as f64 / bandwidth;
        waited += f64::max(0.0, sent - computed);
        computed = f64::max(computed, sent);
        if is_of_layer(bucket) {
            computed += layer;
        }
    }
    waited
}

fn is_of_layer(bucket: &Bucket) -> bool {
    bucket.name.starts_with("model.layers.")
}

/// The time of the head and of the layer of one bucket in a pass of `seconds`.
fn shares(run: &Workload, layout: &Layout, seconds: f64) -> (f64, f64) {
    let head = (run.config.vocab_size * run.config.hidden_size) as f64;
    let layers = (run.config.layer_parameters() * run.config.num_hidden_layers) as f64;
    let buckets = layout.buckets.iter().filter(|bucket| is_of_layer(bucket)).count().max(1) as f64;
    (seconds * head / (layers + head), seconds * layers / (layers + head) / buckets)
}

#[cfg(test)]
mod tests {
    use super::super::estimate::tests::{mistral, zephyr};
    use super::*;

    fn close(ours: f64, expected: f64, share: f64) {
        assert!((ours / expected - 1.0).abs() < share, "{ours:e} is not {expected:e}");
    }

    #[test]
    fn bfloat16_gradients_are_half_of_what_is_sent() {
        let config = mistral();
        let run = Workload { reduce: DType::BF16, ..zephyr(&config) };
        let traffic = Traffic::of(&run);
        close(traffic.weights, 13.58e9, 0.01);
        // The embedding's gradient is rows.
        close(traffic.gradients, 13.58e9 - 0.246e9, 0.01);
        let wide = Traffic::of(&zephyr(&config));
        close(wide.gradients, 2.0 * traffic.gradients, 1e-3);
        assert_eq!((traffic.reduce_name(), wide.reduce_name()), ("bfloat16", "float32"));
    }

    #[test]
    fn only_the_first_layer_s_gradient_is_waited_for_if_the_network_is_fast() {
        let config = mistral();
        let run = Workload { reduce: DType::BF16, ..zephyr(&config) };
        let of_layer = config.layer_parameters() as f64 * 2.0 * 15.0 / 16.0;
        let computing = Computing { backward: 10.0, forward: 5.0 };
        for bandwidth in [1e12, 100e9] {
            let waits = exposed_gradients(&run, computing, bandwidth);
            close(waits, of_layer / bandwidth, 0.01);
        }
        // A slow network sends all the time, from the end of the head's backward pass.
        let (bandwidth, slow) = (1e9, Computing { backward: 1e-3, forward: 5e-4 });
        let sending = Traffic::of(&run).gradients / bandwidth;
        close(exposed_gradients(&run, slow, bandwidth), sending, 1e-3);
        let twice = Workload { accumulation: 2, ..run.clone() };
        let both = Computing { backward: 20.0, ..computing };
        let once = exposed_gradients(&run, computing, 100e9);
        close(exposed_gradients(&twice, both, 100e9), 2.0 * once, 1e-9);
    }

    #[test]
    fn the_forward_pass_waits_for_the_first_weights_only_if_the_network_is_fast() {
        let config = mistral();
        let run = Workload { reduce: DType::BF16, ..zephyr(&config) };
        let embedding = (config.vocab_size * config.hidden_size) as f64;
        let first = (embedding + config.layer_parameters() as f64) * 2.0 * 15.0 / 16.0;
        let computing = Computing { backward: 10.0, forward: 5.0 };
        close(exposed_weights(&run, computing, 100e9), first / 100e9, 0.01);
        let slow = Computing { backward: 1e-3, forward: 5e-4 };
        close(exposed_weights(&run, slow, 1e9), Traffic::of(&run).weights / 1e9, 1e-3);
    }

    #[test]
    fn passes_of_a_step_are_backward_passes_but_one() {
        let config = mistral();
        let run = Workload { gradient_checkpointing: false, ..zephyr(&config) };
        let computing = Computing::of(&run, 3.0, 3.0);
        assert_eq!(computing, Computing { backward: 2.0, forward: 1.0 });
        let run = Workload { accumulation: 2, ..run };
        assert_eq!(Computing::of(&run, 4.0, 4.0), Computing { backward: 2.0, forward: 0.5 });
    }
}
