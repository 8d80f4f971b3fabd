//! Variants of the same computation that must agree: shared and unshared prompts, packed and single
//! rows, kept and recomputed layers. `crates/kernels` compares the forms of each operation.

mod common;

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::data::{PreferencePair, SftDocument, SftRow};
use favonius::kernels::attention::AttentionLayout;
use favonius::model::decoder::Decoder;
use favonius::objective::reference::sequence_logps;
use favonius::train::gradients::GradientSum;
use favonius::train::layerwise::{Keep, LayerwisePass};
use proptest::prelude::*;
use serde_json::json;

const EXACT: f32 = 1e-5;

/// Smallest scale for relative differences: numbers that nearly cancel, such as the gradient of a
/// softmax over one key, consist of rounding alone.
const SMALL: f32 = 0.1;

/// Largest `|a − b|` divided by the largest `|b|`, or by [`SMALL`] if that is larger.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let largest = b.iter().fold(SMALL, |largest, x| largest.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Lengths below `end`, often 1, for which the operations have code of its own.
fn lengths(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 3 => 1..end]
}

/// [`lengths`], and often 0.
fn lengths_or_none(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0usize), 3 => lengths(end)]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn shared_unshared_and_single_pairs_agree(
        lengths in prop::collection::vec((lengths_or_none(40), lengths(30), lengths(30)), 1..5),
        window in prop::option::of(2usize..60),
        checkpointing in any::<bool>(),
    ) {
        let model = random_model(small_config(json!({"sliding_window": window})), 0.5);
        let pairs: Vec<PreferencePair> = lengths
            .iter()
            .enumerate()
            .map(|(i, (p, c, r))| pair(i as u64, [*p, *c, *r], 61))
            .collect();
        let shared = run(&model, &[RaggedBatch::preferences(&pairs)], checkpointing);
        let unshared = run(&model, &[RaggedBatch::preferences_unshared(&pairs)], false);
        let single: Vec<_> = pairs.iter().map(|pair| RaggedBatch::preferences([pair])).collect();
        let single = run(&model, &single, false);
        for other in [unshared, single] {
            prop_assert!(relative_difference(&shared.0, &other.0) < EXACT);
            prop_assert!(relative_difference(&shared.1, &other.1) < 5.0 * EXACT);
        }
    }
}

/// In bfloat16, attention runs in its composed form.
#[test]
fn an_empty_prompt_is_scored_in_bfloat16() {
    let model = random_model(small_config(json!({})), 0.5);
    let mut rounded = model.clone();
    for parameter in rounded.parameters_mut() {
        parameter.value.set(parameter.vector().cast(DType::BF16));
    }
    let batch = RaggedBatch::preferences(&[pair(1, [0, 9, 1], 61), pair(2, [3, 1, 4], 61)]);
    let batches = [batch];
    let (logps, gradient) = run(&model, &batches, false);
    let (rounded_logps, rounded_gradient) = run(&rounded, &batches, false);
    assert!(difference(&rounded_logps, &logps) < 0.05);
    assert!(difference(&rounded_gradient, &gradient) < 0.1);
}

/// No token predicts the first token of a sequence.
#[test]
fn a_batch_without_scored_tokens_has_no_gradient() {
    let model = random_model(small_config(json!({})), 0.5);
    let batches = [RaggedBatch::preferences(&[pair(1, [0, 1, 1], 61)])];
    let (logps, gradient) = run(&model, &batches, false);
    assert!(logps.is_empty());
    assert!(gradient.iter().all(|x| *x == 0.0));
}

/// The first layer of this Qwen2 has no sliding window, the second has one.
#[test]
fn each_layer_has_its_own_window() {
    let qwen2 = |uses: bool, first: usize| {
        small_config(json!({"model_type": "qwen2", "use_sliding_window": uses,
            "sliding_window": 4, "max_window_layers": first}))
    };
    let model = random_model(qwen2(true, 1), 0.5);
    let batch = RaggedBatch::preferences(&[pair(1, [20, 9, 12], 61)]);
    let layout =
        |uses, first| AttentionLayout::new(&qwen2(uses, first).attention_shape(), &batch.segments);
    let (open, windowed) = (layout(false, 0), layout(true, 0));
    let by_hand = |layouts: [&Arc<AttentionLayout>; 2]| {
        let layers = model.layers.iter().zip(layouts);
        let embedded = model.embed(&batch.ids);
        values(layers.fold(embedded, |x_td, (layer, layout)| layer.forward(x_td, layout)))
    };
    let hidden = values(model.hidden(&batch));
    assert_eq!(hidden, by_hand([&open, &windowed]));
    assert_ne!(hidden, by_hand([&open, &open]));
    assert_ne!(hidden, by_hand([&windowed, &windowed]));
}

/// Log-probs and the gradient of a weighted sum of them, over the batches in turn.
fn run(model: &Decoder, batches: &[RaggedBatch], checkpointing: bool) -> (Vec<f32>, Vec<f32>) {
    let keep = if checkpointing { Keep::Inputs } else { Keep::Graphs };
    run_by(model, batches, |batch, _| LayerwisePass::forward(model, batch, keep))
}

/// [`run`] with a forward pass of the caller's, which also receives the weights.
fn run_by<'a>(
    model: &'a Decoder,
    batches: &'a [RaggedBatch],
    forward: impl Fn(&'a RaggedBatch, Vec<f32>) -> LayerwisePass<'a>,
) -> (Vec<f32>, Vec<f32>) {
    let mut sum = GradientSum::default();
    let mut logps = Vec::new();
    for batch in batches {
        let upstream: Vec<f32> = batch.targets.iter().map(|t| uniform(77, u64::from(*t))).collect();
        let pass = forward(batch, upstream.clone());
        logps.extend_from_slice(&pass.scores.logp);
        pass.backward(&upstream, &mut sum);
    }
    let gradients =
        model.parameters().into_iter().flat_map(|p| values(sum.get(p.id).unwrap().clone()));
    (logps, gradients.collect())
}

/// In SFT, the forward pass also computes the gradients of the head.
#[test]
fn an_upstream_known_in_advance_gives_the_same_bits() {
    for tied in [true, false] {
        let model = random_model(small_config(json!({"tie_word_embeddings": tied})), 0.5);
        let batches: Vec<_> = (1..4)
            .map(|n| RaggedBatch::preferences([&pair(n, [9, 7 * n as usize, 5], 61)]))
            .collect();
        let known = run_by(&model, &batches, |batch, upstream| {
            LayerwisePass::forward_towards(&model, batch, Keep::Graphs, Some(upstream))
        });
        assert_eq!(run(&model, &batches, false), known);
    }
}

#[test]
fn packed_documents_score_as_they_do_alone() {
    let model = random_model(small_config(json!({"tie_word_embeddings": true})), 0.5);
    let document = |seed: u64, len: usize| {
        let ids = pair(seed, [len, 0, 0], 61).prompt;
        SftDocument { labels: vec![true; ids.len()], ids }
    };
    let documents: Vec<_> = [(1, 17), (2, 1), (3, 70)].map(|(s, n)| document(s, n)).into();
    let packed = RaggedBatch::sft([&SftRow { documents: documents.clone() }]);
    let alone: Vec<_> = documents
        .into_iter()
        .map(|document| RaggedBatch::sft([&SftRow { documents: vec![document] }]))
        .collect();
    let (packed, alone) = (run(&model, &[packed], false), run(&model, &alone[..], true));
    assert!(relative_difference(&packed.0, &alone.0) < EXACT);
    assert!(relative_difference(&packed.1, &alone.1) < 5.0 * EXACT);
}

#[test]
fn gradients_are_those_of_central_differences() {
    let model = random_model(small_config(json!({"num_hidden_layers": 1})), 0.6);
    let batch = RaggedBatch::preferences([&pair(5, [6, 5, 4], 61)]);
    let weights: Vec<f32> = batch.targets.iter().map(|t| uniform(77, u64::from(*t))).collect();
    let objective = |model: &Decoder| -> f64 {
        let scores = LayerwisePass::forward(model, &batch, Keep::Nothing).scores;
        scores.logp.iter().zip(&weights).map(|(l, w)| f64::from(l * w)).sum()
    };
    let (_, gradient) = run(&model, std::slice::from_ref(&batch), false);
    let mut first = 0;
    for (index, parameter) in model.parameters().into_iter().enumerate() {
        let direction = uniforms(1000 + index as u64, parameter.len());
        let analytic: f64 =
            direction.iter().zip(&gradient[first..]).map(|(d, g)| f64::from(d * g)).sum();
        first += parameter.len();
        let moved = |step: f32| {
            let mut model = model.clone();
            let target = model.parameters_mut().remove(index);
            let values: Vec<f32> =
                values(target.vector()).iter().zip(&direction).map(|(v, d)| v + step * d).collect();
            target.value.set(Tensor::from_data(values.as_slice(), &burn::tensor::Device::flex()));
            objective(&model)
        };
        let numeric = (moved(4e-3) - moved(-4e-3)) / 8e-3;
        let tolerance = 2e-3 * analytic.abs().max(0.05);
        assert!((numeric - analytic).abs() < tolerance, "{}: {numeric} {analytic}", parameter.name);
    }
}

/// A model with sparse experts.
fn mixtral() -> Decoder {
    let experts =
        json!({"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2});
    random_model(small_config(experts), 0.5)
}

#[test]
fn experts_see_shared_prompts_and_single_pairs_alike() {
    let model = mixtral();
    let pairs: Vec<_> = (1..5).map(|i| pair(i, [3 * i as usize, 9, 7 + i as usize], 61)).collect();
    let shared = run(&model, &[RaggedBatch::preferences(&pairs)], false);
    assert_eq!(run(&model, &[RaggedBatch::preferences(&pairs)], true), shared, "checkpointing");
    let unshared = run(&model, &[RaggedBatch::preferences_unshared(&pairs)], false);
    let single: Vec<_> = pairs.iter().map(|pair| RaggedBatch::preferences([pair])).collect();
    let single = run(&model, &single, false);
    for other in [unshared, single] {
        assert!(relative_difference(&shared.0, &other.0) < EXACT);
        assert!(relative_difference(&shared.1, &other.1) < 5.0 * EXACT);
    }
}

#[test]
fn log_probs_do_not_depend_on_the_rest_of_the_batch() {
    let config =
        json!({"hidden_size": 96, "intermediate_size": 200, "vocab_size": 1500, "head_dim": 16});
    each_pair_alone(&random_model(small_config(config.clone()), 0.2));
    let mut experts = config;
    experts["model_type"] = json!("mixtral");
    each_pair_alone(&random_model(small_config(experts), 0.2));
}

fn each_pair_alone(model: &Decoder) {
    let pairs: Vec<_> = (0..6).map(|i| pair(i, [20 + 7 * i as usize, 30, 12], 1500)).collect();
    let all = run_forward(model, &RaggedBatch::preferences(&pairs));
    let alone: Vec<f32> =
        pairs.iter().flat_map(|p| run_forward(model, &RaggedBatch::preferences([p]))).collect();
    assert_eq!(all, alone, "a reference pass in other batches would not give ratios of exactly 0");
}

/// In the last layer, prompts only serve as keys and values. Passes without gradients skip their
/// queries, and give the same bits as a training pass.
#[test]
fn skipping_unread_rows_changes_nothing() {
    let of_layers = |layers| random_model(small_config(json!({"num_hidden_layers": layers})), 0.5);
    for model in [of_layers(1), of_layers(2), mixtral()] {
        let pairs: Vec<_> = (0..4).map(|i| pair(i, [40 + i as usize, 9, 12], 61)).collect();
        let batch = RaggedBatch::preferences(&pairs);
        assert!(batch.read_rows().rows.is_some());
        let training = LayerwisePass::forward(&model, &batch, Keep::Graphs).scores.logp;
        assert_eq!(run_forward(&model, &batch), training);
        assert_eq!(sequence_logps(&model, &batch, None), batch.sum_by_sequence(&training));
        let everywhere = RaggedBatch { reads_everywhere: true, ..batch };
        let pass = LayerwisePass::forward(&model, &everywhere, Keep::Nothing);
        assert_eq!(pass.scores.logp, training);
        assert_eq!(pass.mean_logits().len(), everywhere.tokens());
    }
}

fn run_forward(model: &Decoder, batch: &RaggedBatch) -> Vec<f32> {
    let pass = LayerwisePass::forward(model, batch, Keep::Nothing);
    pass.scores.logp.clone()
}

#[test]
fn golden_logits_of_a_real_model() {
    let Some(folder) = asset("models/stories260k") else { return };
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let numbers = |key: &str| -> Vec<f32> {
        golden[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let ids: Vec<u32> = numbers("input_ids").iter().map(|x| *x as u32).collect();
    let device = burn::tensor::Device::flex();
    let model = Decoder::load(&folder, &device, burn::tensor::DType::F32, |_, _| ()).unwrap();
    let batch = RaggedBatch::whole(&ids);
    let scores = LayerwisePass::forward(&model, &batch, Keep::Nothing).scores;
    for (ours, theirs) in scores.logp.iter().zip(numbers("token_logprobs")) {
        assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
    }
    let last = values(model.logits(model.hidden(&batch), &[ids.len() - 1]));
    assert!(relative_difference(&last, &numbers("last_logits")) < 1e-5);
    let greedy: Vec<u32> = numbers("greedy_from_bos").iter().map(|x| *x as u32).collect();
    let ours = model.generate_greedy(&greedy[..1], greedy.len() - 1, &[]);
    assert_eq!(ours, greedy[1..]);
}
