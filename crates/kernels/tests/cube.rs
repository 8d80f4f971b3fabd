//! The GPU form of each operation agrees with the composed form and the CPU form, forward and
//! backward: to 1e-5 in float32, to 1e-2 in bfloat16; attention also to 2e-3 in float16. The kernels
//! run on CubeCL's CPU runtime, or on the device that `FAVONIUS_TEST_DEVICE` names; the other forms
//! run on Flex, in float32, from the same inputs.

mod device;
#[path = "../examples/operations_on_gpu/measure/mod.rs"]
mod measure;
#[path = "../../../tests/common/numbers.rs"]
mod numbers;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use favonius_kernels::attention::{
    AttentionLayout, AttentionShape, LayerKind, Segments, segment_attention,
    segment_attention_composed,
};
use favonius_kernels::dropout::{Mask, TokenKeys, dropout};
use favonius_kernels::linear_logp::{
    OutputHead, score_grad_composed, token_scores, token_scores_grad, token_scores_keeping,
    token_scores_with_grad,
};
use favonius_kernels::{Form, geglu, linear, rms_norm, select_rows, swiglu, update};
use numbers::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Largest difference for each element type, relative to the largest number of a tensor.
const TYPES: [(DType, f32); 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];

/// The same for the types in which attention multiplies with tensor cores if the width of a head is
/// a multiple of 16. On the CPU, loops compute the products of the same pieces of matrices.
const SHORT_TYPES: [(DType, f32); 2] = [(DType::BF16, 1e-2), (DType::F16, 2e-3)];

/// Smallest scale for relative differences, as for the other forms.
const SMALL: f32 = 0.1;

/// The device on which the kernels under test run.
fn gpu() -> Device {
    device::tested()
}

/// `x` in another type, on another device.
fn moved<const D: usize>(x: &Tensor<D>, device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::from_data(x.clone().into_data().convert_dtype(dtype), (device, dtype))
}

/// The elements of `x` as the type `dtype` holds them, in float32 on the CPU.
fn rounded<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    x.cast(dtype).cast(DType::F32)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let largest = b.iter().fold(SMALL, |largest, x| largest.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

type Differentiated = (Vec<f32>, Vec<Vec<f32>>);

/// The output of `f`, and the gradients of `Σ f(inputs) · upstream` with respect to each input.
fn differentiate<const N: usize>(
    inputs: [Tensor<2>; N],
    f: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) -> Differentiated {
    let device = inputs[0].device();
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let out = f(leaves.clone());
    let [rows, columns] = out.dims();
    let upstream = rounded(matrix(77, rows, columns), DType::BF16);
    let upstream = moved(&upstream, &device, out.dtype()).autodiff();
    let mut gradients = (out.clone() * upstream).sum().backward();
    let gradients = leaves.iter().map(|x| values(x.grad_remove(&mut gradients).unwrap())).collect();
    (values(out.inner()), gradients)
}

fn assert_same(what: &str, tolerance: f32, a: &Differentiated, b: &Differentiated) {
    let outputs = difference(&a.0, &b.0);
    assert!(outputs < tolerance, "{what}: outputs differ by {outputs}");
    for (index, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
        let difference = difference(a, b);
        assert!(difference < tolerance, "{what}: gradient {index} differs by {difference}");
    }
}

/// Compares `f` on the GPU device, in each type, with `f` and with `composed` on the CPU.
fn compare<const N: usize>(
    what: &str,
    inputs: [Tensor<2>; N],
    f: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    composed: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    compare_in(&TYPES, what, inputs, f, composed);
}

fn compare_in<const N: usize>(
    types: &[(DType, f32)],
    what: &str,
    inputs: [Tensor<2>; N],
    f: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    composed: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    for (dtype, tolerance) in types.iter().copied() {
        let (ours, others) = results_in(dtype, &inputs, &f, &composed);
        others.iter().for_each(|other| assert_same(what, tolerance, &ours, other));
    }
}

/// The results of `f` on the GPU device in this type, and those of `composed` and `f` on the CPU.
fn results_in<const N: usize>(
    dtype: DType,
    inputs: &[Tensor<2>; N],
    f: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    composed: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) -> (Differentiated, [Differentiated; 2]) {
    let inputs = inputs.clone().map(|x| rounded(x, dtype));
    let moved = inputs.each_ref().map(|x| moved(x, &gpu(), dtype));
    let others = [differentiate(inputs.clone(), composed), differentiate(inputs, &f)];
    (differentiate(moved, f), others)
}

#[test]
fn the_gpu_form_is_chosen() {
    for device in [gpu(), gpu().autodiff()] {
        for (dtype, _) in TYPES {
            assert_eq!(Form::fused(&device, dtype), Form::Cube);
            assert_eq!(rms_norm::form(&device, [DType::F32, dtype]), Form::Cube);
            assert_eq!(select_rows::form(&device, dtype), Form::Cube);
        }
        assert_eq!(update::form(&device, DType::F32), Form::Cube);
        assert_eq!(update::form(&device, DType::BF16), Form::Composed);
    }
}

/// Lengths below `end`, often 1.
fn lengths(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 3 => 1..end]
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn norms_agree(rows in lengths(150), width in lengths(600), seed in 0u64..1000) {
        // The gradient of a normalized row is orthogonal to the row; in a row of a few numbers it
        // may consist of rounding alone.
        let width = width + 7;
        let norm = |f: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>| {
            move |[x, w]: [Tensor<2>; 2]| f(x, w.reshape([width]), 1e-5)
        };
        let inputs = [matrix(seed, rows, width), matrix(seed + 1, 1, width)];
        compare("norm", inputs, norm(rms_norm::rms_norm), norm(rms_norm::rms_norm_composed));
    }

    /// Some norms scale by `1 + weight` in float32. Then the result is float32 too.
    #[test]
    fn norms_with_float32_weights_agree(
        rows in lengths(150), width in lengths(600), seed in 0u64..1000,
    ) {
        let width = width + 7;
        let x = rounded(matrix(seed, rows, width), DType::BF16);
        let norm = |device: Device, dtype: DType| {
            let weight = moved(&matrix(seed + 1, 1, width), &device, DType::F32);
            differentiate([moved(&x, &device, dtype), weight], |[x, w]| {
                rms_norm::rms_norm(x, w.reshape([width]), 1e-5)
            })
        };
        let ours = norm(gpu(), DType::BF16);
        // Composed, then the CPU form.
        for dtype in [DType::BF16, DType::F32] {
            let theirs = norm(Device::flex(), dtype);
            assert!(difference(&ours.0, &theirs.0) < 1e-5);
            assert_same("norm with a float32 weight", 1e-2, &ours, &theirs);
        }
    }

    #[test]
    fn swiglu_agrees(rows in lengths(50), width in lengths(70), seed in 0u64..1000) {
        let inputs = [matrix(seed, rows, width).mul_scalar(8.0), matrix(seed + 1, rows, width)];
        compare(
            "swiglu",
            inputs,
            |[gate, up]| swiglu::swiglu(gate, up),
            |[gate, up]| swiglu::swiglu_composed(gate, up),
        );
    }

    #[test]
    fn geglu_agrees(rows in lengths(50), width in lengths(70), seed in 0u64..1000) {
        let inputs = [matrix(seed, rows, width).mul_scalar(8.0), matrix(seed + 1, rows, width)];
        compare(
            "geglu",
            inputs,
            |[gate, up]| geglu::geglu(gate, up),
            |[gate, up]| geglu::geglu_composed(gate, up),
        );
    }

    #[test]
    fn chosen_rows_agree(
        height in 1usize..30, width in lengths(70), count in lengths(40), seed in 0u64..1000,
    ) {
        let rows: Vec<usize> =
            (0..count as u64).map(|i| splitmix64(seed + i) as usize % height).collect();
        compare(
            "rows",
            [matrix(seed, height, width)],
            |[x]| select_rows(x, &rows),
            |[x]| select_rows::select_rows_composed(x, &rows),
        );
    }
}

proptest! {
    #![proptest_config(cases(8))]

    /// The same elements are dropped, in the gradient too.
    #[test]
    fn dropout_is_the_same(rows in lengths(40), width in lengths(70), seed in 0u64..1000) {
        let tokens: TokenKeys = (0..rows as u64).map(|row| splitmix64(seed + row)).collect();
        let mask = Mask { tokens: Arc::new(tokens), place: splitmix64(seed), p: 0.3 };
        let x = matrix(seed, rows, width);
        let f = |[x]: [Tensor<2>; 1]| dropout(x, &mask);
        let ours = differentiate([moved(&x, &gpu(), DType::F32)], f);
        let theirs = differentiate([x], f);
        prop_assert_eq!(ours, theirs);
    }
}

/// `x` in float32 on the GPU device.
fn vector(x: &Tensor<1>) -> Tensor<1> {
    moved(x, &gpu(), DType::F32)
}

fn numbers(seed: u64, len: usize) -> Tensor<1> {
    matrix(seed, 1, len).reshape([len])
}

/// Lengths around the block of squares, and any others.
fn vector_lengths() -> impl Strategy<Value = usize> {
    const BLOCK: usize = update::SQUARES_BLOCK;
    prop_oneof![lengths(40), BLOCK - 2..BLOCK + 3, 1..3 * BLOCK]
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn sums_and_squares_agree(len in vector_lengths(), seed in 0u64..1000) {
        let (a, b) = (numbers(seed, len), numbers(seed + 1, len));
        let sum = update::add_into(vector(&a), vector(&b));
        prop_assert_eq!(values(sum), values(a.clone() + b));
        let (ours, theirs) = (update::block_squares(&vector(&a)), update::block_squares(&a));
        prop_assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            prop_assert!((ours - theirs).abs() <= 1e-12 * theirs);
        }
        let ours = update::sum_of_squares(&[vector(&a), vector(&a)]);
        let theirs = update::sum_of_squares(&[a.clone(), a.clone()]);
        prop_assert!((ours - theirs).abs() <= 1e-12 * theirs);
        prop_assert!(update::is_finite(&vector(&a)));
        prop_assert!(!update::is_finite(&vector(&(a / 0.0))));
    }

    #[test]
    fn sums_of_rows_agree(
        rows in lengths(60), width in lengths(40), ids in lengths(9), seed in 0u64..1000,
    ) {
        let chosen: Vec<u32> =
            (0..rows as u64).map(|row| (splitmix64(seed + row) % ids as u64) as u32).collect();
        let (sum, added) = (numbers(seed, ids * width), matrix(seed + 1, rows, width));
        let rows = moved(&added, &gpu(), DType::F32);
        let ours = update::add_rows_into(vector(&sum), &chosen, rows);
        // The same additions in the same order.
        prop_assert_eq!(values(ours), values(update::add_rows_into(sum, &chosen, added)));
    }

    #[test]
    fn updates_agree(
        len in vector_lengths(), kind in 0usize..7, decoupled in any::<bool>(), seed in 0u64..1000,
    ) {
        let kind = [
            update::UpdateKind::RmsProp { alpha: 0.99, weight: 0.01 },
            update::UpdateKind::Adam {
                weight1: 0.1, beta2: 0.999, weight2: 0.001, sqrt_correction2: 0.1,
            },
            sgd(0.0, 1.0, false, false),
            sgd(0.9, 0.8, false, true),
            sgd(0.9, 0.8, false, false),
            sgd(0.9, 1.0, true, false),
            update::UpdateKind::Lion { beta1: 0.9, weight1: 0.1, beta2: 0.99, weight2: 0.01 },
        ][kind];
        let (weight_decay, shrink) = if decoupled { (0.0, 0.9999) } else { (0.1, 1.0) };
        let rule = update::UpdateRule {
            kind, gradient_scale: 0.7, weight_decay, shrink, step_size: 1e-2, epsilon: 1e-8,
        };
        let start = || [
            numbers(seed, len),
            numbers(seed + 1, len).mul_scalar(0.1),
            numbers(seed + 2, len).square().mul_scalar(0.1),
        ];
        let gradient = numbers(seed + 3, len);
        let state = |[parameter, first, second]: [Tensor<1>; 3]| {
            update::UpdateState { parameter, first, second }
        };
        let all = |state: update::UpdateState| {
            [state.parameter, state.first, state.second].map(values)
        };
        let moved = start().each_ref().map(vector);
        let ours = all(update::update(state(moved), vector(&gradient), rule));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let moved = start().each_ref().map(vector);
            let (after, rounded) =
                update::update_rounded(state(moved), vector(&gradient), rule, dtype);
            prop_assert_eq!(rounded.dtype(), dtype);
            let expected = TensorData::from(ours[0].as_slice());
            let expected = Tensor::<1>::from_data(expected, &Device::flex()).cast(dtype);
            prop_assert_eq!(
                values(rounded.cast(DType::F32)),
                values(expected.cast(DType::F32))
            );
            prop_assert_eq!(&all(after), &ours);
        }
        let composed = all(update::update_composed(state(start()), gradient.clone(), rule));
        let cpu = all(update::update(state(start()), gradient, rule));
        for (ours, theirs) in ours.iter().zip(&composed).chain(ours.iter().zip(&cpu)) {
            prop_assert!(difference(ours, theirs) < 1e-5);
        }
    }
}

fn sgd(momentum: f32, weight: f32, nesterov: bool, is_first: bool) -> update::UpdateKind {
    update::UpdateKind::Sgd { momentum, weight, nesterov, is_first }
}

/// A second reference to a vector keeps its numbers when the vector is updated.
#[test]
fn an_update_does_not_change_shared_vectors() {
    let sum = vector(&numbers(1, 100));
    let before = sum.clone();
    let after = update::add_into(sum, vector(&numbers(2, 100)));
    assert_eq!(values(before), values(numbers(1, 100)));
    assert_eq!(values(after), values(numbers(1, 100) + numbers(2, 100)));
    let part = vector(&numbers(1, 100)).narrow(0, 10, 50);
    let sum = update::add_into(part, vector(&numbers(2, 50)));
    assert_eq!(values(sum), values(numbers(1, 100).narrow(0, 10, 50) + numbers(2, 50)));
}

/// Segments of random lengths below `end`, some with an earlier root or the segment before them as
/// prefix; at least one token.
fn segments(end: usize) -> impl Strategy<Value = Segments> {
    let some = |parts: &Vec<(usize, usize)>| parts.iter().any(|(len, _)| *len > 0);
    let len = prop_oneof![1 => Just(0usize), 4 => lengths(end)];
    let parts = prop::collection::vec((len, 0usize..4), 1..6);
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

/// The attention of a small model with `[query heads, key-value heads, head width]`.
fn shape([heads, kv_heads, head_dim]: [usize; 3], window: Option<usize>) -> AttentionShape {
    let frequency = |i: usize| 10_000f64.powf(-2.0 * i as f64 / head_dim as f64);
    let rotary_frequencies = (0..head_dim / 2).map(frequency).collect();
    let kinds = vec![LayerKind { window, rotary_frequencies, rotary_factor: 1.0, long: None }];
    AttentionShape { heads, kv_heads, head_dim, softcap: None, kinds }
}

fn compare_attention(
    types: &[(DType, f32)],
    what: &str,
    segments: &Segments,
    shape: &AttentionShape,
    seed: u64,
) {
    let layout = AttentionLayout::new(shape, segments);
    let tokens = segments.tokens();
    let x = |part: u64, heads: usize| {
        matrix(seed * 7 + part, tokens, heads * shape.head_dim).mul_scalar(4.0)
    };
    let inputs = [x(1, shape.heads), x(2, shape.kv_heads), x(3, shape.kv_heads)];
    for (dtype, tolerance) in types.iter().copied() {
        let (ours, others) = results_in(
            dtype,
            &inputs,
            |[q, k, v]| segment_attention(q, k, v, &layout),
            |[q, k, v]| segment_attention_composed(q, k, v, &layout),
        );
        let ours = with_joined_gradients(ours);
        for other in others {
            assert_same(what, tolerance, &ours, &with_joined_gradients(other));
        }
    }
}

/// The gradients of queries, keys and values as one vector, so that their differences are relative
/// to the largest number of all three. Gradients of queries and keys are sums of differences, which
/// nearly cancel for some inputs. Then the rounding of weights and outputs to 16 bits is more than
/// 1e-2 of what remains.
fn with_joined_gradients((outputs, gradients): Differentiated) -> Differentiated {
    (outputs, vec![gradients.concat()])
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn attention_agrees(
        segments in segments(30),
        (kv_heads, repeat) in (1usize..3, 1usize..4),
        window in prop::option::of(lengths(40)),
        seed in 0u64..1000,
    ) {
        let shape = shape([kv_heads * repeat, kv_heads, 8], window);
        compare_attention(&TYPES, "e 8", &segments, &shape, seed);
    }
}

proptest! {
    // The same cases in each run: about one of 4,000 random cases exceeds the bound in bfloat16, by
    // a fifth, from rounding alone.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7), ..cases(12) })]

    #[test]
    fn attention_on_tensor_cores_agrees(
        segments in segments(80),
        (kv_heads, repeat) in (1usize..3, 1usize..4),
        window in prop::option::of(lengths(90)),
        seed in 0u64..1000,
    ) {
        let shape = shape([kv_heads * repeat, kv_heads, 16], window);
        compare_attention(&SHORT_TYPES, "e 16", &segments, &shape, seed);
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
        compare_attention(&TYPES, "e 8", &segments, &shape([6, 2, 8], window), 1);
        compare_attention(&SHORT_TYPES, "e 16", &segments, &shape([6, 2, 16], window), 1);
    }
}

/// The head widths of common models, with grouped heads, a shared prompt and a window.
#[test]
fn attention_with_wide_heads() {
    let segments = prompt_with_responses([19, 12, 7]);
    for (width, window) in [(64, None), (128, Some(15))] {
        let shape = shape([4, 2, width], window);
        compare_attention(&TYPES, &format!("e {width}"), &segments, &shape, 5);
    }
}

/// Segments of several tiles. The halves of 24 elements that a rotation mixes lie across the pieces
/// of 16 columns.
#[test]
fn attention_on_tensor_cores_with_wide_heads() {
    let segments = prompt_with_responses([70, 45, 33]);
    for (width, window) in [(48, None), (64, Some(40)), (128, None)] {
        let shape = shape([4, 2, width], window);
        compare_attention(&SHORT_TYPES, &format!("e {width}"), &segments, &shape, 6);
    }
}

/// A shape whose scores have a soft cap, low enough that it changes them.
fn capped(shape: AttentionShape) -> AttentionShape {
    AttentionShape { softcap: Some(2.0), ..shape }
}

/// A shape that rotates the first `2 · angles` elements of a head.
fn partly_rotated(mut shape: AttentionShape, angles: usize) -> AttentionShape {
    shape.kinds.iter_mut().for_each(|kind| kind.rotary_frequencies.truncate(angles));
    shape
}

#[test]
fn attention_with_soft_caps() {
    let segments = prompt_with_responses([33, 12, 7]);
    let shape = |width| capped(shape([4, 2, width], Some(25)));
    compare_attention(&TYPES, "e 8, capped", &segments, &shape(8), 8);
    compare_attention(&SHORT_TYPES, "e 16, capped", &segments, &shape(16), 8);
}

/// On tensor cores, chunks of eight elements are rotated or not. With other numbers of angles, the
/// kernels without tensor cores run.
#[test]
fn attention_that_rotates_a_part_of_a_head() {
    let segments = prompt_with_responses([33, 12, 7]);
    let shape = |width, angles| partly_rotated(shape([4, 2, width], None), angles);
    compare_attention(&TYPES, "e 8, 3 angles", &segments, &shape(8, 3), 9);
    compare_attention(&SHORT_TYPES, "e 48, 16 angles", &segments, &shape(48, 16), 9);
    compare_attention(&SHORT_TYPES, "e 16, 4 angles", &segments, &capped(shape(16, 4)), 9);
}

/// A prompt with two responses, and a segment without prefix.
fn prompt_with_responses([prompt, chosen, rejected]: [usize; 3]) -> Segments {
    let mut segments = Segments::default();
    let prompt = segments.push(prompt, None);
    segments.push(chosen, Some(prompt));
    segments.push(rejected, Some(prompt));
    segments.push(21, None);
    segments
}

/// Head widths that the kernels do not take run in the composed form.
#[test]
fn attention_with_odd_head_widths() {
    let mut segments = Segments::default();
    segments.push(5, None);
    compare_attention(&TYPES, "e 20", &segments, &shape([2, 1, 20], None), 3);
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn token_scores_agree(
        rows in lengths(40), width in lengths(40), vocab in 2usize..700, seed in 0u64..1000,
    ) {
        compare_scores(rows, width, vocab, None, seed);
    }
}

/// Two chunks of logits, of which the second is shorter.
#[test]
fn token_scores_in_chunks() {
    let vocab = 8192;
    let a_chunk = (64 << 20) / 4 / vocab;
    compare_scores(a_chunk + 900, 2, vocab, None, 3);
}

#[test]
fn token_scores_with_soft_caps() {
    compare_scores(23, 17, 301, Some(4.0), 4);
}

fn compare_scores(rows: usize, width: usize, vocab: usize, softcap: Option<f32>, seed: u64) {
    for (dtype, tolerance) in TYPES {
        let hidden = rounded(matrix(seed, rows, width), dtype);
        let head = rounded(matrix(seed + 1, vocab, width).mul_scalar(9.0), dtype);
        let targets: Vec<u32> =
            (0..rows as u64).map(|i| (splitmix64(seed + i) % vocab as u64) as u32).collect();
        let upstream = uniforms(seed + 2, rows);
        let (gpu_hidden, gpu_head) = (moved(&hidden, &gpu(), dtype), moved(&head, &gpu(), dtype));
        let [head, gpu_head] = [head, gpu_head].map(|weight_vd| OutputHead { weight_vd, softcap });

        let ours = token_scores(gpu_hidden.clone(), gpu_head.clone(), &targets);
        let theirs = token_scores(hidden.clone(), head.clone(), &targets);
        let columns = [
            (&ours.logp, &theirs.logp),
            (&ours.entropy, &theirs.entropy),
            (&ours.mean_logit, &theirs.mean_logit),
            (&ours.highest, &theirs.highest),
            (&ours.norm, &theirs.norm),
            (&ours.log_sum_squares, &theirs.log_sum_squares),
        ];
        for (index, (ours, theirs)) in columns.into_iter().enumerate() {
            for (ours, theirs) in ours.iter().zip(theirs) {
                // A log-prob or an entropy near 0 has the errors of logits that are not near 0.
                let close = (ours - theirs).abs() < tolerance * (1.0 + theirs.abs());
                assert!(close, "column {index}: {ours} for {theirs}");
            }
        }
        assert_eq!(ours.correct, theirs.correct);

        let (kept_scores, kept) =
            token_scores_keeping(gpu_hidden.clone(), gpu_head.clone(), &targets);
        assert_eq!((&kept_scores, kept.is_none()), (&ours, true));
        let gradients = token_scores_grad(
            gpu_hidden.clone(),
            gpu_head.clone(),
            &targets,
            &ours,
            None,
            &upstream,
            true,
        );
        let (scores, forward) =
            token_scores_with_grad(gpu_hidden.clone(), gpu_head.clone(), &targets, &upstream, true);
        let expected = score_grad_composed(hidden, head, &targets, &theirs, &upstream, true);
        let all = |gradients: favonius_kernels::linear_logp::HeadGradients| {
            let head = gradients.head_vd.expect("the head is trained");
            [values(gradients.hidden_nd), values(head)]
        };
        let (ours_grad, forward, expected) = (all(gradients), all(forward), all(expected));
        assert_eq!((&scores, &forward), (&ours, &ours_grad));
        for (ours, expected) in ours_grad.iter().zip(&expected) {
            let difference = difference(ours, expected);
            assert!(difference < tolerance, "gradients differ by {difference}");
        }
        let (_, frozen) = token_scores_with_grad(gpu_hidden, gpu_head, &targets, &upstream, false);
        assert!(frozen.head_vd.is_none());
        assert_eq!(values(frozen.hidden_nd), ours_grad[0]);
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn linear_layers_agree(
        rows in lengths(40), from in lengths(70), to in lengths(30), seed in 0u64..1000,
    ) {
        compare(
            "linear",
            [matrix(seed, rows, from), matrix(seed + 1, to, from)],
            |[x, w]| linear::linear(x, w),
            |[x, w]| linear::linear_composed(x, w),
        );
    }
}

/// No test: the example `operations_on_gpu` with the arguments in `FAVONIUS_MEASURE`, so that one
/// program has the tests and the times (`scripts/gpu/pack.sh`).
#[test]
#[ignore = "measures times"]
fn times_of_operations() {
    let arguments = std::env::var("FAVONIUS_MEASURE").expect("FAVONIUS_MEASURE has the arguments");
    measure::measure_all(arguments.split_whitespace().map(str::to_owned)).unwrap();
}
