//! The GPU form compiles few kernels, and a batch takes the same launches however many segments it
//! has and however long they are.

#[path = "../../../tests/common/numbers.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Tensor};
use cubecl::hash::StableHash;
use cubecl::launched::LaunchedKernels;
use cubecl::logging::{LaunchObservation, LaunchObserver};
use favonius_kernels::attention::{
    AttentionLayout, AttentionShape, LayerKind, Segments, segment_attention,
};
use favonius_kernels::linear_logp::{token_scores_grad, token_scores_keeping};
use favonius_kernels::{linear, rms_norm, select_rows, swiglu, update};
use numbers::*;

const WIDTH: usize = 32;
const VOCAB: usize = 97;

/// This crate's kernels in a training step, at most.
const MOST_KERNELS: usize = 24;

fn on_gpu(seed: u64, rows: usize, columns: usize) -> Tensor<2> {
    Tensor::from_data(matrix(seed, rows, columns).into_data(), &Device::cpu())
}

/// The operations of a training step of a small decoder, forward and backward: segments of the
/// given lengths, of which the first is the prefix of the others and is not scored.
fn step(lengths: &[usize]) {
    let mut segments = Segments::default();
    let prompt = segments.push(lengths[0], None);
    for len in &lengths[1..] {
        segments.push(*len, Some(prompt));
    }
    let kind = LayerKind {
        window: None,
        rotary_frequencies: vec![1.0, 0.1, 0.01, 0.001],
        rotary_factor: 1.0,
        long: None,
    };
    let shape =
        AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, softcap: None, kinds: vec![kind] };
    let layout = AttentionLayout::new(&shape, &segments);
    let tokens = segments.tokens();
    let leaf = |seed: u64, rows: usize, columns: usize| {
        on_gpu(seed, rows, columns).autodiff().require_grad()
    };
    let (x, q, k, v) =
        (leaf(1, tokens, WIDTH), leaf(2, WIDTH, WIDTH), leaf(3, 16, WIDTH), leaf(4, 16, WIDTH));
    let norm = leaf(5, 1, WIDTH).reshape([WIDTH]);
    let normed = rms_norm::rms_norm(x.clone(), norm, 1e-5);
    let [q, k, v] = [q, k, v].map(|w| linear::linear(normed.clone(), w));
    let attended = segment_attention(q, k, v, &layout);
    let gated = swiglu::swiglu(attended.clone(), x.clone());
    let rows: Vec<usize> = (lengths[0]..tokens).collect();
    let scored = select_rows(gated, &rows);
    let hidden = scored.clone().inner();
    let head = on_gpu(6, VOCAB, WIDTH);
    let targets: Vec<u32> = rows.iter().map(|row| (row * 7 % VOCAB) as u32).collect();
    let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
    let upstream = uniforms(7, rows.len());
    let gradients = token_scores_grad(hidden, head, &targets, &scores, kept, &upstream, true);
    // The gradient of the sum: Burn compiles its own sums anew for other shapes.
    let mut grads = scored.backward();
    let dx = x.grad_remove(&mut grads).expect("the input is tracked");

    let ids: Vec<u32> = (0..tokens as u32).map(|token| token % 11).collect();
    let len = VOCAB * WIDTH;
    let sum = on_gpu(8, VOCAB, WIDTH).reshape([len]);
    let sum = update::add_rows_into(sum, &ids, dx);
    let sum = update::add_rows_into(sum, &targets, gradients.hidden_nd);
    let d_head = gradients.head_vd.expect("the head is trained").reshape([len]);
    let sum = update::add_into(sum, d_head);
    assert!(update::block_squares(&sum).iter().all(|square| square.is_finite()));
    let vector = |seed| on_gpu(seed, VOCAB, WIDTH).reshape([len]);
    let state =
        update::UpdateState { parameter: vector(9), first: vector(10), second: vector(11).abs() };
    let kind = update::UpdateKind::Adam {
        weight1: 0.1,
        beta2: 0.999,
        weight2: 0.001,
        sqrt_correction2: 0.1,
    };
    let rule = update::UpdateRule {
        kind,
        gradient_scale: 0.7,
        weight_decay: 0.0,
        shrink: 1.0,
        step_size: 1e-2,
        epsilon: 1e-8,
    };
    let state = update::update(state, sum, rule);
    assert!(update::is_finite(&state.parameter));
}

/// Counts the launches of this crate's kernels by their names.
#[derive(Default)]
struct Launches(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Launches {
    fn launched(&self, kernel: &'static str) {
        if kernel.contains("favonius_kernels") {
            *self.0.lock().unwrap().entry(kernel).or_default() += 1;
        }
    }
}

/// Runs `f`. Returns the launches of this crate's kernels, and what identifies each kernel that was
/// launched, Burn's own ones included.
fn launched(f: impl FnOnce()) -> (BTreeMap<&'static str, usize>, Vec<StableHash>) {
    let launches = Arc::new(Launches::default());
    let observation = LaunchObservation::new(launches.clone());
    let kernels = LaunchedKernels::new();
    f();
    let kernels = kernels.finish().into_iter().collect();
    drop(observation);
    let launches = std::mem::take(&mut *launches.0.lock().unwrap());
    (launches, kernels)
}

/// Attention in bfloat16, forward and backward, with heads as wide as tensor cores need them:
/// segments of the given lengths, of which the first is the prefix of the others.
fn attention_on_tensor_cores(lengths: &[usize]) {
    const HEAD_DIM: usize = 16;
    let mut segments = Segments::default();
    let prompt = segments.push(lengths[0], None);
    for len in &lengths[1..] {
        segments.push(*len, Some(prompt));
    }
    let kind = LayerKind {
        window: Some(lengths[1]),
        rotary_frequencies: vec![0.1; HEAD_DIM / 2],
        rotary_factor: 1.0,
        long: None,
    };
    let (heads, kv_heads) = (4, 2);
    let shape =
        AttentionShape { heads, kv_heads, head_dim: HEAD_DIM, softcap: None, kinds: vec![kind] };
    let layout = AttentionLayout::new(&shape, &segments);
    let leaf = |seed: u64, heads: usize| {
        let data = matrix(seed, segments.tokens(), heads * HEAD_DIM).into_data();
        let data = data.convert_dtype(DType::BF16);
        Tensor::<2>::from_data(data, (&Device::cpu(), DType::BF16)).autodiff().require_grad()
    };
    let inputs = [leaf(1, heads), leaf(2, kv_heads), leaf(3, kv_heads)];
    let [q, k, v] = inputs.clone();
    let mut gradients = segment_attention(q, k, v, &layout).backward();
    for input in inputs {
        assert!(input.grad_remove(&mut gradients).is_some());
    }
}

/// A kernel is compiled when it is first launched.
#[test]
fn other_lengths_compile_no_kernel_and_take_no_more_launches() {
    assert_same_kernels(step);
    assert_same_kernels(attention_on_tensor_cores);
}

fn assert_same_kernels(step: fn(&[usize])) {
    let (launches, kernels) = launched(|| step(&[9, 5, 7]));
    for (name, count) in &launches {
        println!("{count} {name}");
    }
    println!("{} kernels", kernels.len());
    assert!(!launches.is_empty() && launches.len() <= MOST_KERNELS);
    for lengths in [[21, 13, 1].as_slice(), &[0, 2, 30], &[5, 1, 1, 0, 64, 3]] {
        let (others, further) = launched(|| step(lengths));
        let new = further.iter().filter(|kernel| !kernels.contains(kernel)).count();
        assert_eq!(others, launches, "{lengths:?}");
        assert_eq!(new, 0, "{lengths:?} compile further kernels");
    }
}
