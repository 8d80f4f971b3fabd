//! The CPU form of each operation compared with its composed form, forward and backward.
//!
//! `cargo bench -p favonius-kernels [FILTER]`. The shapes are those of a micro-batch of
//! SmolLM2-135M: two pairs, each with a shared prompt.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use favonius_kernels::attention::{
    AttentionLayout, AttentionShape, LayerKind, Segments, segment_attention,
    segment_attention_composed,
};
use favonius_kernels::linear_logp::{
    score_composed, score_grad_composed, token_scores, token_scores_grad, token_scores_keeping,
    token_scores_with_grad,
};
use favonius_kernels::{index_tensor, linear, rms_norm, swiglu, update};

/// SmolLM2-135M.
const WIDTH: usize = 576;
const FEED_FORWARD: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 49_152;
/// Prompt, chosen, rejected of each pair.
const PAIRS: [[usize; 3]; 2] = [[200, 150, 170], [90, 260, 130]];
/// Tokens whose log-prob is computed.
const SCORED: usize = 256;
/// Elements of a vector of parameters or gradients.
const LEN: usize = 8 << 20;

fn matrix(rows: usize, columns: usize) -> Tensor<2> {
    let device = (&Device::flex(), DType::F32);
    Tensor::random([rows, columns], Distribution::Uniform(-0.5, 0.5), device)
}

fn vector(len: usize) -> Tensor<1> {
    matrix(1, len).reshape([len])
}

/// Runs `f` and a backward pass from the sum of its outputs.
fn forward_and_backward<const N: usize>(
    inputs: &[Tensor<2>; N],
    f: &impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
    let mut gradients = f(leaves.clone()).sum().backward();
    for leaf in leaves {
        black_box(leaf.grad_remove(&mut gradients));
    }
}

/// Times `ours` and `composed`, forward alone and forward with backward.
fn compare<const N: usize>(
    criterion: &mut Criterion,
    name: &str,
    inputs: [Tensor<2>; N],
    ours: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    composed: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    let mut group = group(criterion, name);
    group.bench_function("forward/ours", |b| b.iter(|| black_box(ours(inputs.clone()))));
    group.bench_function("forward/composed", |b| b.iter(|| black_box(composed(inputs.clone()))));
    group.bench_function("both/ours", |b| b.iter(|| forward_and_backward(&inputs, &ours)));
    group.bench_function("both/composed", |b| b.iter(|| forward_and_backward(&inputs, &composed)));
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    group
}

fn tokens() -> usize {
    PAIRS.iter().flatten().sum()
}

fn layout() -> Arc<AttentionLayout> {
    let frequency = |i: usize| 100_000f64.powf(-2.0 * i as f64 / HEAD_DIM as f64);
    let shape = AttentionShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        softcap: None,
        kinds: vec![LayerKind {
            long: None,
            window: None,
            rotary_frequencies: (0..HEAD_DIM / 2).map(frequency).collect(),
            rotary_factor: 1.0,
        }],
    };
    let mut segments = Segments::default();
    for [prompt, chosen, rejected] in PAIRS {
        let prompt = segments.push(prompt, None);
        segments.push(chosen, Some(prompt));
        segments.push(rejected, Some(prompt));
    }
    AttentionLayout::new(&shape, &segments)
}

fn attention(criterion: &mut Criterion) {
    let layout = layout();
    let inputs = [HEADS, KV_HEADS, KV_HEADS].map(|heads| matrix(tokens(), heads * HEAD_DIM));
    compare(
        criterion,
        "attention over segments",
        inputs,
        |[q, k, v]| segment_attention(q, k, v, &layout),
        |[q, k, v]| segment_attention_composed(q, k, v, &layout),
    );
}

fn layer_parts(criterion: &mut Criterion) {
    let x = matrix(tokens(), WIDTH);
    let norm = |f: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>| {
        move |[x, weight]: [Tensor<2>; 2]| f(x, weight.reshape([WIDTH]), 1e-5)
    };
    compare(
        criterion,
        "RMSNorm",
        [x.clone(), matrix(1, WIDTH)],
        norm(rms_norm::rms_norm),
        norm(rms_norm::rms_norm_composed),
    );
    let gates = [(); 2].map(|()| matrix(tokens(), FEED_FORWARD));
    compare(
        criterion,
        "SwiGLU",
        gates,
        |[gate, up]| swiglu::swiglu(gate, up),
        |[gate, up]| swiglu::swiglu_composed(gate, up),
    );
    compare(
        criterion,
        "linear",
        [x, matrix(FEED_FORWARD, WIDTH)],
        |[x, weight]| linear::linear(x, weight),
        |[x, weight]| linear::linear_composed(x, weight),
    );
}

/// The limit of the machine: a large matrix product of Burn. An element of the throughput is one
/// FLOP.
fn sgemm(criterion: &mut Criterion) {
    const SIZE: usize = 2048;
    let (a, b) = (matrix(SIZE, SIZE), matrix(SIZE, SIZE));
    let mut group = group(criterion, "sgemm");
    group.throughput(Throughput::Elements(2 * (SIZE as u64).pow(3)));
    group.bench_function("2048", |bench| {
        bench.iter(|| black_box(a.clone().matmul(b.clone()).into_data()));
    });
}

fn head(criterion: &mut Criterion) {
    let (hidden, head) = (matrix(SCORED, WIDTH), matrix(VOCABULARY, WIDTH));
    let targets: Vec<u32> = (0..SCORED as u32).map(|row| row * 97 % VOCABULARY as u32).collect();
    let upstream = vec![0.5; SCORED];
    let mut group = group(criterion, "log-probs of the head");
    let inputs = || (hidden.clone(), head.clone());
    group.bench_function("forward/ours", |b| {
        b.iter(|| {
            let (hidden, head) = inputs();
            black_box(token_scores(hidden, head, &targets))
        });
    });
    group.bench_function("forward/composed", |b| {
        b.iter(|| {
            let (hidden, head) = inputs();
            black_box(score_composed(hidden, head, &targets).into_data())
        });
    });
    group.bench_function("both/ours", |b| {
        b.iter(|| {
            let (hidden, head) = inputs();
            let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
            black_box(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream, true))
        });
    });
    group.bench_function("both, upstream known/ours", |b| {
        b.iter(|| {
            let (hidden, head) = inputs();
            black_box(token_scores_with_grad(hidden, head, &targets, &upstream, true))
        });
    });
    let scores = token_scores(hidden.clone(), head.clone(), &targets);
    group.bench_function("both/composed", |b| {
        b.iter(|| {
            let (hidden, head) = inputs();
            black_box(score_composed(hidden.clone(), head.clone(), &targets).into_data());
            black_box(score_grad_composed(hidden, head, &targets, &scores, &upstream, true))
        });
    });
}

fn gradient_sum(criterion: &mut Criterion) {
    let gradient = vector(LEN);
    let mut group = group(criterion, "sum of gradients");
    type Add = fn(Tensor<1>, Tensor<1>) -> Tensor<1>;
    let composed: Add = |sum, gradient| sum + gradient;
    for (name, add) in [("ours", update::add_into as Add), ("composed", composed)] {
        let mut sum = Some(vector(LEN));
        group.bench_function(name, |b| {
            b.iter(|| sum = sum.take().map(|sum| add(sum, gradient.clone())));
        });
    }
}

fn gradient_norm(criterion: &mut Criterion) {
    let gradient = vector(LEN);
    let mut group = group(criterion, "squares of the gradient");
    group.bench_function("ours", |b| b.iter(|| black_box(update::block_squares(&gradient))));
    group.bench_function("composed", |b| {
        b.iter(|| black_box(gradient.clone().square().sum().into_data()));
    });
}

fn optimizer(criterion: &mut Criterion) {
    let rule = update::UpdateRule {
        kind: update::UpdateKind::Adam {
            weight1: 0.1,
            beta2: 0.999,
            weight2: 0.001,
            sqrt_correction2: 0.03,
        },
        gradient_scale: 0.7,
        weight_decay: 0.0,
        shrink: 0.9999,
        step_size: 1e-4,
        epsilon: 1e-8,
    };
    let gradient = vector(LEN);
    let mut group = group(criterion, "clip and AdamW");
    for (name, update) in [
        ("ours", update::update as fn(_, _, _) -> _),
        ("composed", update::update_composed as fn(_, _, _) -> _),
    ] {
        let [parameter, first, second] = [(); 3].map(|()| vector(LEN).abs());
        let mut state = Some(update::UpdateState { parameter, first, second });
        group.bench_function(name, |b| {
            b.iter(|| {
                let held = state.take().expect("the state is put back after each iteration");
                state = Some(update(held, gradient.clone(), rule));
            });
        });
    }
}

fn embedding_gradient(criterion: &mut Criterion) {
    let ids: Vec<u32> = (0..tokens() as u32).map(|t| t * 131 % VOCABULARY as u32).collect();
    let rows = matrix(tokens(), WIDTH);
    let mut group = group(criterion, "gradient of the embedding");
    let mut sum = Some(vector(VOCABULARY * WIDTH));
    group.bench_function("ours", |b| {
        b.iter(|| sum = sum.take().map(|sum| update::add_rows_into(sum, &ids, rows.clone())));
    });
    let table = matrix(VOCABULARY, WIDTH);
    group.bench_function("composed", |b| {
        b.iter(|| {
            let index = index_tensor(ids.iter().copied(), &Device::flex());
            let leaf = table.clone().autodiff().require_grad();
            let picked = leaf.clone().select(0, index.autodiff());
            let mut gradients = (picked * rows.clone().autodiff()).sum().backward();
            black_box(leaf.grad_remove(&mut gradients))
        });
    });
}

criterion_group!(
    operations,
    sgemm,
    attention,
    layer_parts,
    head,
    gradient_sum,
    gradient_norm,
    optimizer,
    embedding_gradient
);
criterion_main!(operations);
