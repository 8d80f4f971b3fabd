//! The forms of each operation agree, forward and backward.

#[path = "../../../tests/common/numbers.rs"]
mod numbers;

use burn::tensor::{DType, Device, IndexingUpdateOp, Tensor};
use favonius_kernels::attention::{
    AttentionLayout, AttentionShape, LayerKind, Segments, segment_attention,
    segment_attention_composed,
};
use favonius_kernels::linear_logp::{
    HeadGradients, OutputHead, score_composed, score_grad_composed, token_scores,
    token_scores_grad, token_scores_keeping, token_scores_with_grad,
};
use favonius_kernels::nf4::{Nf4, OnDevice, Packed};
use favonius_kernels::{geglu, gelu, index_tensor, layer_norm, linear, rms_norm, swiglu, update};
use numbers::*;
use proptest::prelude::*;

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

/// The output of `f`, and the gradients of `Σ f(inputs) · upstream` with respect to each input.
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

/// Lengths below `end`, often 1, for which the operations have code of its own.
fn lengths(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 3 => 1..end]
}

/// [`lengths`], and often 0.
fn lengths_or_none(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0usize), 3 => lengths(end)]
}

/// Lengths around the block sizes of the operations on vectors, and any others.
fn vector_lengths() -> impl Strategy<Value = usize> {
    const BLOCK: usize = update::SQUARES_BLOCK;
    prop_oneof![lengths(40), BLOCK - 2..BLOCK + 3, 4 * BLOCK - 2..4 * BLOCK + 3, 1..10 * BLOCK]
}

fn numbers(seed: u64, len: usize) -> Tensor<1> {
    matrix(seed, 1, len).reshape([len])
}

/// Segments of random lengths, some with an earlier root or the segment before them as prefix; at
/// least one token.
fn segments() -> impl Strategy<Value = Segments> {
    let some = |parts: &Vec<(usize, usize)>| parts.iter().any(|(len, _)| *len > 0);
    let parts = prop::collection::vec((lengths_or_none(90), 0usize..4), 1..6);
    parts.prop_filter("no token", some).prop_map(|parts| {
        let mut segments = Segments::default();
        let (mut root, mut before) = (None, None);
        for (len, kind) in parts {
            match (kind, root) {
                (0, Some(prefix)) => before = Some(segments.push(len, Some(prefix))),
                (1, Some(root)) => {
                    before = Some(segments.push(len, Some(before.unwrap_or(root))));
                }
                _ => root = Some(segments.push(len, None)),
            }
        }
        segments
    })
}

/// No soft cap, or one that the numbers of the tests reach.
fn soft_caps() -> impl Strategy<Value = Option<f32>> {
    prop::sample::select(vec![None, Some(3.0), Some(50.0)])
}

/// The attention of a small model with `[query heads, key-value heads, head width]`.
fn shape([heads, kv_heads, head_dim]: [usize; 3], window: Option<usize>) -> AttentionShape {
    let frequency = |i: usize| 10_000f64.powf(-2.0 * i as f64 / head_dim as f64);
    let rotary_frequencies = (0..head_dim / 2).map(frequency).collect();
    let kinds = vec![LayerKind { window, rotary_frequencies, rotary_factor: 1.0, long: None }];
    AttentionShape { heads, kv_heads, head_dim, softcap: None, kinds }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn attention_agrees_with_its_composed_form(
        segments in segments(),
        (kv_heads, repeat) in (1usize..3, 1usize..4),
        head_dim in prop::sample::select(vec![2usize, 4, 8, 16, 20]),
        window in prop::option::of(lengths(100)),
        softcap in soft_caps(),
        (rotated, rotary_factor) in prop::sample::select(vec![(1.0, 1.0), (0.5, 1.3), (0.8, 1.0)]),
        seed in 0u64..1000,
    ) {
        let mut shape = shape([kv_heads * repeat, kv_heads, head_dim], window);
        shape.softcap = softcap;
        shape.kinds[0].rotary_factor = rotary_factor;
        shape.kinds[0].rotary_frequencies.truncate((rotated * head_dim as f64 / 2.0).ceil() as usize);
        let layout = AttentionLayout::new(&shape, &segments);
        let tokens = segments.tokens();
        let x = |part: u64, heads: usize| {
            matrix(seed * 7 + part, tokens, heads * head_dim).mul_scalar(4.0)
        };
        let inputs = [x(1, kv_heads * repeat), x(2, kv_heads), x(3, kv_heads)];
        let ours =
            differentiate(inputs.clone(), 9, |[q, k, v]| segment_attention(q, k, v, &layout));
        let composed =
            differentiate(inputs, 9, |[q, k, v]| segment_attention_composed(q, k, v, &layout));
        assert_same(ours, composed);
    }

    #[test]
    fn norm_swiglu_and_linear_agree_with_their_composed_forms(
        rows in lengths(150), width in lengths(70), seed in 0u64..1000,
    ) {
        // The gradient of a normalized row is orthogonal to the row; in a row of a few numbers it
        // may consist of rounding alone.
        let normed = width + 7;
        let inputs = [matrix(seed, rows, normed), matrix(seed + 1, 1, normed)];
        let norm = |f: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>| {
            differentiate(inputs.clone(), 5, |[x, w]| f(x, w.reshape([normed]), 1e-5))
        };
        assert_same(norm(rms_norm::rms_norm), norm(rms_norm::rms_norm_composed));

        let inputs =
            [matrix(seed, rows, normed), matrix(seed + 1, 1, normed), matrix(seed + 2, 1, normed)];
        let norm = |f: fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> Tensor<2>| {
            let vector = |x: Tensor<2>| x.reshape([normed]);
            differentiate(inputs.clone(), 5, |[x, w, b]| f(x, vector(w), vector(b), 1e-5))
        };
        assert_same(norm(layer_norm::layer_norm), norm(layer_norm::layer_norm_composed));

        let inputs = [matrix(seed, rows, width).mul_scalar(8.0), matrix(seed + 1, rows, width)];
        let gated = |f: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            differentiate(inputs.clone(), 5, |[gate, up]| f(gate, up))
        };
        assert_same(gated(swiglu::swiglu), gated(swiglu::swiglu_composed));
        assert_same(gated(geglu::geglu), gated(geglu::geglu_composed));
        let plain = |f: fn(Tensor<2>) -> Tensor<2>| {
            let [x, _] = inputs.clone();
            differentiate([x], 5, |[x]| f(x))
        };
        assert_same(plain(gelu::gelu), plain(gelu::gelu_composed));

        let inputs = [matrix(seed, rows, width), matrix(seed + 1, 13, width)];
        assert_same(
            differentiate(inputs.clone(), 5, |[x, w]| linear::linear(x, w)),
            differentiate(inputs, 5, |[x, w]| linear::linear_composed(x, w)),
        );
    }

    #[test]
    fn quantized_linear_layers_have_the_bits_of_dequantized_ones(
        rows in lengths(40), width in lengths(700), out in lengths(90), nested: bool,
        seed in 0u64..1000,
    ) {
        let packed = Packed::quantize(&values(numbers(seed, out * width)), nested);
        let on_device = OnDevice::new(&packed, &Device::flex());
        assert_eq!(values(on_device.dequantize()), packed.dequantize());
        for dtype in [DType::F32, DType::BF16] {
            let weight = Nf4::new(packed.clone(), &Device::flex(), dtype);
            let dequantized = weight.vector().reshape([out, width]);
            let x = matrix(seed + 1, rows, width).cast(dtype);
            let run = |f: &dyn Fn(Tensor<2>) -> Tensor<2>| {
                differentiate([x.clone()], 5, |[x]| f(x).cast(DType::F32))
            };
            let quantized = run(&|x| weight.linear(x, [out, width]));
            let plain = run(&|x| linear::linear(x, dequantized.clone().autodiff()));
            assert_eq!(quantized, plain);
        }
    }

    #[test]
    fn token_scores_agree_with_their_composed_form(
        rows in lengths(60), width in lengths(40), vocab in 2usize..700, softcap in soft_caps(),
        seed in 0u64..1000,
    ) {
        let hidden = matrix(seed, rows, width);
        let weight_vd = matrix(seed + 1, vocab, width).mul_scalar(9.0);
        let head = OutputHead { weight_vd, softcap };
        let targets: Vec<u32> =
            (0..rows as u64).map(|i| (splitmix64(seed + i) % vocab as u64) as u32).collect();
        let scores = token_scores(hidden.clone(), head.clone(), &targets);
        let composed = values(score_composed(hidden.clone(), head.clone(), &targets));
        // A log-prob or an entropy near 0 has the rounding errors of logits that are not near 0.
        let close = |ours: f32, theirs: f32| (ours - theirs).abs() < EXACT * (1.0 + theirs.abs());
        for (index, row) in composed.chunks(7).enumerate() {
            prop_assert!(close(scores.logp[index], row[0]));
            prop_assert!(close(scores.entropy[index], row[1]));
            prop_assert_eq!(scores.correct[index], row[2] == 1.0);
            prop_assert!(close(scores.mean_logit[index], row[3]));
            prop_assert!(close(scores.log_sum_squares[index], row[6]));
        }
        let upstream = uniforms(seed + 2, rows);
        let gradients = |kept| {
            let (hidden, head) = (hidden.clone(), head.clone());
            bits(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream, true))
        };
        let (dh, dw) = gradients(None);
        let (kept_scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
        prop_assert_eq!(&kept_scores, &scores);
        // Kept exponentials give the same bits as recomputed ones.
        prop_assert_eq!(gradients(kept), (dh.clone(), dw.clone()));
        // So do gradients that are computed in the forward pass.
        let (forward_scores, forward) =
            token_scores_with_grad(hidden.clone(), head.clone(), &targets, &upstream, true);
        prop_assert_eq!(&forward_scores, &scores);
        prop_assert_eq!(bits(forward), (dh.clone(), dw.clone()));
        let (dh2, dw2) = bits(score_grad_composed(hidden, head, &targets, &scores, &upstream, true));
        prop_assert!(difference(&dh, &dh2) < EXACT);
        prop_assert!(difference(&dw, &dw2) < EXACT);
    }

    #[test]
    fn sums_and_squares_of_vectors_agree_with_their_composed_forms(
        len in vector_lengths(), seed in 0u64..1000,
    ) {
        let (a, b) = (numbers(seed, len), numbers(seed + 1, len));
        prop_assert_eq!(values(update::add_into(a.clone(), b.clone())), values(a.clone() + b));
        let blocks = update::block_squares(&a);
        // Burn sums everything in float32, with larger rounding errors.
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
    fn sums_of_rows_agree_with_their_composed_form(
        rows in lengths(60), width in lengths(40), ids in lengths(9), seed in 0u64..1000,
    ) {
        let chosen: Vec<u32> =
            (0..rows as u64).map(|row| (splitmix64(seed + row) % ids as u64) as u32).collect();
        let (sum, added) = (numbers(seed, ids * width), matrix(seed + 1, rows, width));
        let ours = update::add_rows_into(sum.clone(), &chosen, added.clone());
        let indices = index_tensor(chosen.into_iter(), &Device::flex());
        let table = sum.reshape([ids, width]);
        let composed = table.select_assign(0, indices, added, IndexingUpdateOp::Add);
        prop_assert_eq!(values(ours), values(composed));
    }

    #[test]
    fn updates_agree_with_their_composed_form(
        len in vector_lengths(), kind in 0usize..6, decoupled in any::<bool>(), seed in 0u64..1000,
    ) {
        let kind = [
            update::UpdateKind::RmsProp { alpha: 0.99, weight: 0.01 },
            update::UpdateKind::Adam {
                weight1: 0.1, beta2: 0.999, weight2: 0.001, sqrt_correction2: 0.1,
            },
            sgd(0.0, 1.0, false),
            sgd(0.9, 0.8, false),
            sgd(0.9, 1.0, true),
            update::UpdateKind::Lion { beta1: 0.9, weight1: 0.1, beta2: 0.99, weight2: 0.01 },
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
        let ours = bits(update::update(start(), gradient.clone(), rule));
        let composed = bits(update::update_composed(start(), gradient, rule));
        for (ours, composed) in ours.iter().zip(&composed) {
            prop_assert!(difference(ours, composed) < EXACT);
        }
    }
}

/// Segments without tokens and with one token, in each place.
#[test]
fn attention_over_empty_segments_and_single_tokens() {
    let mut segments = Segments::default();
    for [prompt, chosen, rejected] in [[0, 1, 1], [0, 5, 0], [1, 1, 3], [4, 1, 0], [0, 0, 0]] {
        let prompt = segments.push(prompt, None);
        segments.push(chosen, Some(prompt));
        segments.push(rejected, Some(prompt));
    }
    for window in [None, Some(1), Some(2)] {
        let layout = AttentionLayout::new(&shape([6, 2, 8], window), &segments);
        let x = |(seed, heads): (u64, usize)| matrix(seed, segments.tokens(), heads * 8);
        let inputs = [(1, 6), (2, 2), (3, 2)].map(x);
        let ours =
            differentiate(inputs.clone(), 9, |[q, k, v]| segment_attention(q, k, v, &layout));
        let composed =
            differentiate(inputs, 9, |[q, k, v]| segment_attention_composed(q, k, v, &layout));
        assert_same(ours, composed);
    }
}

/// One row more than a chunk of logits holds: the last row must not become a chunk of its own,
/// because a product of a single row has other bits.
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

/// Gradients of the hidden states and of a trained head.
fn bits(gradients: HeadGradients) -> (Vec<f32>, Vec<f32>) {
    let head_vd = gradients.head_vd.expect("the head is trained");
    (values(gradients.hidden_nd), values(head_vd))
}

#[test]
fn gradients_do_not_depend_on_what_was_kept() {
    for softcap in [None, Some(0.2)] {
        with_some_rows_kept(softcap);
    }
}

/// With this many tokens the exponentials (or capped logits) of some chunks are kept and those of
/// others are not.
fn with_some_rows_kept(softcap: Option<f32>) {
    let (rows, width, vocab) = (2_300, 3, 32_000);
    let hidden = matrix(1, rows, width);
    let head = OutputHead { weight_vd: matrix(2, vocab, width), softcap };
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 13).collect();
    let upstream = uniforms(3, rows);
    let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
    let kept_rows = kept.as_ref().map_or(0, |kept| kept.dims()[0]);
    assert!(kept_rows > 0 && kept_rows < rows, "{kept_rows}");
    let gradients = |kept| {
        let (hidden, head) = (hidden.clone(), head.clone());
        bits(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream, true))
    };
    let recomputed = gradients(None);
    assert_eq!(gradients(kept), recomputed);
    let (forward_scores, forward) =
        token_scores_with_grad(hidden.clone(), head.clone(), &targets, &upstream, true);
    assert_eq!((&forward_scores, &bits(forward)), (&scores, &recomputed));
    // A frozen head has no gradient, and that of the hidden states keeps its bits.
    let (_, forward) =
        token_scores_with_grad(hidden.clone(), head.clone(), &targets, &upstream, false);
    let composed =
        score_grad_composed(hidden.clone(), head.clone(), &targets, &scores, &upstream, false);
    let frozen = token_scores_grad(hidden, head, &targets, &scores, None, &upstream, false);
    for gradients in [&frozen, &forward, &composed] {
        assert!(gradients.head_vd.is_none());
    }
    assert_eq!(values(frozen.hidden_nd), recomputed.0);
    assert_eq!(values(forward.hidden_nd), recomputed.0);
}

/// Tracking only some of the inputs does not change their gradients.
#[test]
fn gradients_of_some_inputs_are_those_of_all() {
    let mut segments = Segments::default();
    let prompt = segments.push(70, None);
    segments.push(30, Some(prompt));
    let layout = AttentionLayout::new(&shape([4, 2, 8], Some(40)), &segments);
    let x = |seed: u64, columns: usize| matrix(seed, 100, columns);
    each_alone([x(1, 32), x(2, 16), x(3, 16)], |[q, k, v]| segment_attention(q, k, v, &layout));
    each_alone([x(1, 23), matrix(2, 1, 23)], |[x, w]| rms_norm::rms_norm(x, w.reshape([23]), 1e-5));
    let vector = |x: Tensor<2>| x.reshape([23]);
    each_alone([x(1, 23), matrix(2, 1, 23), matrix(3, 1, 23)], |[x, w, b]| {
        layer_norm::layer_norm(x, vector(w), vector(b), 1e-5)
    });
    each_alone([x(1, 300), x(2, 300)], |[gate, up]| swiglu::swiglu(gate, up));
    each_alone([x(1, 300), x(2, 300)], |[gate, up]| geglu::geglu(gate, up));
    each_alone([x(1, 23), matrix(2, 13, 23)], |[x, w]| linear::linear(x, w));
}

/// Checks that the gradient of each input has the same bits whether it is tracked alone or with
/// all.
fn each_alone<const N: usize>(inputs: [Tensor<2>; N], f: impl Fn([Tensor<2>; N]) -> Tensor<2>) {
    let (_, all) = differentiate(inputs.clone(), 5, &f);
    for (index, expected) in all.into_iter().enumerate() {
        let mut some = inputs.clone().map(Tensor::autodiff);
        some[index] = some[index].clone().require_grad();
        let leaf = some[index].clone();
        let out = f(some);
        let [rows, columns] = out.dims();
        let upstream = matrix(5, rows, columns).autodiff();
        let mut gradients = (out * upstream).sum().backward();
        assert_eq!(values(leaf.grad_remove(&mut gradients).unwrap()), expected, "input {index}");
    }
}

fn sgd(momentum: f32, weight: f32, nesterov: bool) -> update::UpdateKind {
    update::UpdateKind::Sgd { momentum, weight, nesterov, is_first: false }
}
