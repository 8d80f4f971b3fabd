//! Forms of the same computation that must agree: fused and composed operations, shared and
//! unshared prompts, packed and single rows, kept and recomputed layers.

mod common;

use std::sync::Arc;

use burn::tensor::{DType, Device, IndexingUpdateOp, Tensor};
use common::*;
use favonius::data::ragged::{RaggedBatch, Segments};
use favonius::data::{PreferencePair, SftDocument, SftRow};
use favonius::kernels::attention::{
    AttentionLayout, segment_attention, segment_attention_composed,
};
use favonius::kernels::linear_logp::{
    HeadGradients, score_composed, score_grad_composed, token_scores, token_scores_grad,
    token_scores_keeping, token_scores_with_grad,
};
use favonius::kernels::{index_tensor, linear, rms_norm, swiglu, update};
use favonius::model::decoder::Decoder;
use favonius::objective::reference::sequence_logps;
use favonius::train::gradients::GradientSum;
use favonius::train::layerwise::{Keep, LayerwisePass};
use proptest::prelude::*;
use serde_json::json;

const EXACT: f32 = 1e-5;

/// Of numbers that nearly cancel, such as the gradient of a softmax over one key, rounding is left: it is compared
/// with this at least.
const SMALL: f32 = 0.1;

/// Largest |a − b| over the largest |b|, or over [`SMALL`].
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let largest = b.iter().fold(SMALL, |largest, x| largest.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Gradients of `Σ f(inputs) · upstream` with respect to each input, and the output.
fn differentiate<const N: usize>(
    inputs: [Tensor<2>; N],
    upstream_seed: u64,
    f: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let out = f(leaves.clone());
    let [rows, columns] = out.dims();
    let upstream = matrix(upstream_seed, rows, columns).autodiff();
    let mut gradients = (out.clone() * upstream).sum().backward();
    let gradients = leaves.iter().map(|x| values(x.grad_remove(&mut gradients).unwrap())).collect();
    (values(out.inner()), gradients)
}

fn assert_same(a: (Vec<f32>, Vec<Vec<f32>>), b: (Vec<f32>, Vec<Vec<f32>>)) {
    assert!(difference(&a.0, &b.0) < EXACT, "outputs differ");
    for (index, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
        let difference = difference(a, b);
        assert!(difference < EXACT, "gradient {index} differs by {difference}");
    }
}

/// Lengths below `end`, often that of a single one: there operations take other ways.
fn lengths(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 3 => 1..end]
}

/// [`lengths`], and often none at all.
fn lengths_or_none(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0usize), 3 => lengths(end)]
}

/// Lengths on both sides of where the passes over vectors divide them, and any others.
fn vector_lengths() -> impl Strategy<Value = usize> {
    const BLOCK: usize = update::SQUARES_BLOCK;
    prop_oneof![lengths(40), BLOCK - 2..BLOCK + 3, 4 * BLOCK - 2..4 * BLOCK + 3, 1..10 * BLOCK]
}

fn numbers(seed: u64, len: usize) -> Tensor<1> {
    matrix(seed, 1, len).reshape([len])
}

/// Segments of random lengths, some with an earlier root as prefix; one token at least.
fn segments() -> impl Strategy<Value = Segments> {
    let some = |parts: &Vec<(usize, usize)>| parts.iter().any(|(len, _)| *len > 0);
    let parts = prop::collection::vec((lengths_or_none(90), 0usize..3), 1..6);
    parts.prop_filter("no token", some).prop_map(|parts| {
        let mut segments = Segments::default();
        let mut root = None;
        for (len, kind) in parts {
            match (kind, root) {
                (0, Some(prefix)) => {
                    segments.push(len, Some(prefix));
                }
                _ => root = Some(segments.push(len, None)),
            }
        }
        segments
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn fused_attention_is_the_composed_one(
        segments in segments(),
        (kv_heads, repeat) in (1usize..3, 1usize..4),
        head_dim in prop::sample::select(vec![2usize, 4, 8, 16, 20]),
        window in prop::option::of(lengths(100)),
        seed in 0u64..1000,
    ) {
        let config = small_config(json!({"num_attention_heads": kv_heads * repeat,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "sliding_window": window}));
        let plan = AttentionLayout::new(&config, &segments);
        let tokens = segments.tokens();
        let x = |part: u64, heads: usize| {
            matrix(seed * 7 + part, tokens, heads * head_dim).mul_scalar(4.0)
        };
        let inputs = [x(1, kv_heads * repeat), x(2, kv_heads), x(3, kv_heads)];
        let fused = differentiate(inputs.clone(), 9, |[q, k, v]| segment_attention(q, k, v, &plan));
        let composed =
            differentiate(inputs, 9, |[q, k, v]| segment_attention_composed(q, k, v, &plan));
        assert_same(fused, composed);
    }

    #[test]
    fn fused_norm_swiglu_and_linear_are_the_composed_ones(
        rows in lengths(150), width in lengths(70), seed in 0u64..1000,
    ) {
        // The gradient of a normalized row is at right angles to it: of a few numbers it may be nothing but
        // rounding.
        let normed = width + 7;
        let inputs = [matrix(seed, rows, normed), matrix(seed + 1, 1, normed)];
        let norm = |f: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>| {
            differentiate(inputs.clone(), 5, |[x, w]| f(x, w.reshape([normed]), 1e-5))
        };
        assert_same(norm(rms_norm::rms_norm), norm(rms_norm::rms_norm_composed));

        let inputs = [matrix(seed, rows, width).mul_scalar(8.0), matrix(seed + 1, rows, width)];
        let gated = |f: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            differentiate(inputs.clone(), 5, |[gate, up]| f(gate, up))
        };
        assert_same(gated(swiglu::swiglu), gated(swiglu::swiglu_composed));

        let inputs = [matrix(seed, rows, width), matrix(seed + 1, 13, width)];
        assert_same(
            differentiate(inputs.clone(), 5, |[x, w]| linear::linear(x, w)),
            differentiate(inputs, 5, |[x, w]| x.matmul(w.transpose())),
        );
    }

    #[test]
    fn fused_token_scores_are_the_composed_ones(
        rows in lengths(60), width in lengths(40), vocab in 2usize..700, seed in 0u64..1000,
    ) {
        let (hidden, head) = (matrix(seed, rows, width), matrix(seed + 1, vocab, width).mul_scalar(9.0));
        let targets: Vec<u32> =
            (0..rows as u64).map(|i| (splitmix64(seed + i) % vocab as u64) as u32).collect();
        let scores = token_scores(hidden.clone(), head.clone(), &targets);
        let composed = values(score_composed(hidden.clone(), head.clone(), &targets));
        // A log-prob or an entropy near 0 has the rounding of logits in it that are not: hence the 1.
        let close = |ours: f32, theirs: f32| (ours - theirs).abs() < EXACT * (1.0 + theirs.abs());
        for (index, row) in composed.chunks(7).enumerate() {
            prop_assert!(close(scores.logp[index], row[0]));
            prop_assert!(close(scores.entropy[index], row[1]));
            prop_assert_eq!(scores.correct[index], row[2] == 1.0);
            prop_assert!(close(scores.mean_logit[index], row[3]));
            prop_assert!(close(scores.log_sum_squares[index], row[6]));
        }
        let upstream = uniforms(seed + 2, rows);
        let bits = |gradients: HeadGradients| (values(gradients.hidden_nd), values(gradients.head_vd));
        let gradients = |kept| {
            let (hidden, head) = (hidden.clone(), head.clone());
            bits(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream))
        };
        let (dh, dw) = gradients(None);
        let (kept_scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
        prop_assert_eq!(&kept_scores, &scores);
        // Kept exponentials give the same bits as those that are made again.
        prop_assert_eq!(gradients(kept), (dh.clone(), dw.clone()));
        // So do gradients that are made on the way forward.
        let (forward_scores, forward) =
            token_scores_with_grad(hidden.clone(), head.clone(), &targets, &upstream);
        prop_assert_eq!(&forward_scores, &scores);
        prop_assert_eq!(bits(forward), (dh.clone(), dw.clone()));
        let (dh2, dw2) = bits(score_grad_composed(hidden, head, &targets, &scores, &upstream));
        prop_assert!(difference(&dh, &dh2) < EXACT);
        prop_assert!(difference(&dw, &dw2) < EXACT);
    }

    #[test]
    fn fused_sums_and_squares_of_vectors_are_the_composed_ones(
        len in vector_lengths(), seed in 0u64..1000,
    ) {
        let (a, b) = (numbers(seed, len), numbers(seed + 1, len));
        prop_assert_eq!(values(update::add_into(a.clone(), b.clone())), values(a.clone() + b));
        let blocks = update::block_squares(&a);
        // Burn sums all in float32, which drifts.
        let composed = values(a.clone().square().sum())[0];
        prop_assert!((blocks.iter().sum::<f64>() as f32 / composed - 1.0).abs() < 10.0 * EXACT);
        let all = values(a);
        let exact = all.chunks(update::SQUARES_BLOCK).map(|block| {
            block.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
        });
        prop_assert_eq!(blocks.len(), exact.len());
        for (block, exact) in blocks.into_iter().zip(exact) {
            prop_assert!((block - exact).abs() <= 1e-12 * exact);
        }
    }

    #[test]
    fn fused_sums_of_rows_are_the_composed_ones(
        rows in lengths(60), width in lengths(40), ids in lengths(9), seed in 0u64..1000,
    ) {
        let chosen: Vec<u32> =
            (0..rows as u64).map(|row| (splitmix64(seed + row) % ids as u64) as u32).collect();
        let (sum, added) = (numbers(seed, ids * width), matrix(seed + 1, rows, width));
        let fused = update::add_rows_into(sum.clone(), &chosen, added.clone());
        let indices = index_tensor(chosen.into_iter(), &Device::flex());
        let table = sum.reshape([ids, width]);
        let composed = table.select_assign(0, indices, added, IndexingUpdateOp::Add);
        prop_assert_eq!(values(fused), values(composed));
    }

    #[test]
    fn fused_updates_are_the_composed_ones(
        len in vector_lengths(), kind in 0usize..2, decoupled in any::<bool>(), seed in 0u64..1000,
    ) {
        let kind = [
            update::UpdateKind::RmsProp { alpha: 0.99, weight: 0.01 },
            update::UpdateKind::Adam {
                weight1: 0.1, beta2: 0.999, weight2: 0.001, sqrt_correction2: 0.1,
            },
        ][kind];
        let (weight_decay, shrink) = if decoupled { (0.0, 0.9999) } else { (0.1, 1.0) };
        let rule = update::UpdateRule {
            kind, gradient_scale: 0.7, weight_decay, shrink, step_size: 1e-2, epsilon: 1e-8,
        };
        let start = || update::UpdateState {
            parameter: numbers(seed, len),
            first: numbers(seed + 1, len).mul_scalar(0.1),
            second: numbers(seed + 2, len).square().mul_scalar(0.1),
        };
        let gradient = numbers(seed + 3, len);
        let bits = |state: update::UpdateState| {
            [state.parameter, state.first, state.second].map(values)
        };
        let fused = bits(update::update(start(), gradient.clone(), rule));
        let composed = bits(update::update_composed(start(), gradient, rule));
        for (fused, composed) in fused.iter().zip(&composed) {
            prop_assert!(difference(fused, composed) < EXACT);
        }
    }

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

/// Empty prompts and texts of one token, each in every place.
#[test]
fn attention_over_nothing_and_over_one_token() {
    let mut segments = Segments::default();
    for [prompt, chosen, rejected] in [[0, 1, 1], [0, 5, 0], [1, 1, 3], [4, 1, 0], [0, 0, 0]] {
        let prompt = segments.push(prompt, None);
        segments.push(chosen, Some(prompt));
        segments.push(rejected, Some(prompt));
    }
    for window in [None, Some(1), Some(2)] {
        let plan =
            AttentionLayout::new(&small_config(json!({"sliding_window": window})), &segments);
        let x = |(seed, heads): (u64, usize)| matrix(seed, segments.tokens(), heads * 8);
        let inputs = [(1, 6), (2, 2), (3, 2)].map(x);
        let fused = differentiate(inputs.clone(), 9, |[q, k, v]| segment_attention(q, k, v, &plan));
        let composed =
            differentiate(inputs, 9, |[q, k, v]| segment_attention_composed(q, k, v, &plan));
        assert_same(fused, composed);
    }
}

/// Where attention is composed of Burn's operations.
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

/// Nothing predicts the first token of all.
#[test]
fn a_batch_of_which_nothing_is_scored_has_no_gradient() {
    let model = random_model(small_config(json!({})), 0.5);
    let batches = [RaggedBatch::preferences(&[pair(1, [0, 1, 1], 61)])];
    let (logps, gradient) = run(&model, &batches, false);
    assert!(logps.is_empty());
    assert!(gradient.iter().all(|x| *x == 0.0));
}

/// The first layer of this Qwen2 sees everything, the second has a window.
#[test]
fn a_window_is_that_of_its_layer() {
    let qwen2 = |uses: bool, first: usize| {
        small_config(json!({"model_type": "qwen2", "use_sliding_window": uses,
            "sliding_window": 4, "max_window_layers": first}))
    };
    let model = random_model(qwen2(true, 1), 0.5);
    let batch = RaggedBatch::preferences(&[pair(1, [20, 9, 12], 61)]);
    let plan = |uses, first| AttentionLayout::new(&qwen2(uses, first), &batch.segments);
    let (open, windowed) = (plan(false, 0), plan(true, 0));
    let by_hand = |plans: [&Arc<AttentionLayout>; 2]| {
        let layers = model.layers.iter().zip(plans);
        let embedded = model.embed(&batch.ids);
        values(layers.fold(embedded, |x_td, (layer, plan)| layer.forward(x_td, plan)))
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

/// [`run`] with a forward pass that may know the weights.
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

/// SFT's head makes its gradients on the way forward.
#[test]
fn an_upstream_known_before_gives_the_same_bits() {
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

#[test]
fn log_probs_do_not_depend_on_their_neighbours_in_the_batch() {
    let config =
        json!({"hidden_size": 96, "intermediate_size": 200, "vocab_size": 1500, "head_dim": 16});
    let model = random_model(small_config(config), 0.2);
    let pairs: Vec<_> = (0..6).map(|i| pair(i, [20 + 7 * i as usize, 30, 12], 1500)).collect();
    let all = run_forward(&model, &RaggedBatch::preferences(&pairs));
    let alone: Vec<f32> =
        pairs.iter().flat_map(|p| run_forward(&model, &RaggedBatch::preferences([p]))).collect();
    assert_eq!(all, alone, "a reference pass in other batches would not give ratios of exactly 0");
}

/// Prompts are but keys to the last layer. Passes without gradient leave them out there, and give the bits that a
/// training pass gives.
#[test]
fn rows_that_nobody_reads_change_nothing() {
    for layers in [1, 2] {
        let model = random_model(small_config(json!({"num_hidden_layers": layers})), 0.5);
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

/// One row more than a chunk of logits holds: the row that would be left over alone scores as it does in
/// company.
#[test]
fn log_probs_do_not_depend_on_the_chunks_of_the_head() {
    let (rows, width, vocab) = (257, 576, 1 << 16);
    assert_eq!(rows - 1, (64 << 20) / 4 / vocab, "one row more than a chunk of 64 MiB");
    let (hidden, head) = (matrix(1, rows, width), matrix(2, vocab, width));
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 250).collect();
    let all = token_scores(hidden.clone(), head.clone(), &targets);
    let last = token_scores(hidden.narrow(0, rows - 2, 2), head, &targets[rows - 2..]);
    assert_eq!(all.logp[rows - 2..], last.logp);
}

/// So many tokens that the exponentials of some chunks are kept and those of others are not.
#[test]
fn gradients_do_not_depend_on_what_was_kept() {
    let (rows, width, vocab) = (2_300, 3, 32_000);
    let (hidden, head) = (matrix(1, rows, width), matrix(2, vocab, width));
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 13).collect();
    let upstream = uniforms(3, rows);
    let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
    let kept_rows = kept.as_ref().map_or(0, |kept| kept.dims()[0]);
    assert!(kept_rows > 0 && kept_rows < rows, "{kept_rows}");
    let bits = |gradients: HeadGradients| (values(gradients.hidden_nd), values(gradients.head_vd));
    let gradients = |kept| {
        let (hidden, head) = (hidden.clone(), head.clone());
        bits(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream))
    };
    let made_again = gradients(None);
    assert_eq!(gradients(kept), made_again);
    let (forward_scores, forward) =
        token_scores_with_grad(hidden.clone(), head.clone(), &targets, &upstream);
    assert_eq!((forward_scores, bits(forward)), (scores.clone(), made_again));
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
