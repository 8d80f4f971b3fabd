//! The GPU form compiles few kernels: a second batch with other lengths compiles none of the
//! decoder's own ones.

#[path = "../../../tests/common/numbers.rs"]
mod numbers;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use cubecl::config::compilation::CompilationLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use favonius_kernels::attention::{
    AttentionLayout, AttentionShape, LayerKind, Segments, segment_attention,
};
use favonius_kernels::linear_logp::{token_scores_grad, token_scores_keeping};
use favonius_kernels::{linear, rms_norm, select_rows, swiglu, update};
use numbers::*;

const WIDTH: usize = 32;
const VOCAB: usize = 97;

fn on_gpu(seed: u64, rows: usize, columns: usize) -> Tensor<2> {
    Tensor::from_data(matrix(seed, rows, columns).into_data(), &Device::cpu())
}

/// The operations of a training step of a small decoder, forward and backward.
fn step(lengths: [usize; 3]) {
    let mut segments = Segments::default();
    let prompt = segments.push(lengths[0], None);
    segments.push(lengths[1], Some(prompt));
    segments.push(lengths[2], Some(prompt));
    let kind = LayerKind { window: None, rotary_frequencies: vec![1.0, 0.1, 0.01, 0.001] };
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, kinds: vec![kind] };
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
    let d_hidden = Tensor::from_inner(gradients.hidden_nd);
    let mut grads = (scored * d_hidden).sum().backward();
    let dx = x.grad_remove(&mut grads).expect("the input is tracked");

    let ids: Vec<u32> = (0..tokens as u32).map(|token| token % 11).collect();
    let len = VOCAB * WIDTH;
    let sum = on_gpu(8, VOCAB, WIDTH).reshape([len]);
    let sum = update::add_rows_into(sum, &ids, dx);
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

/// The kernels whose compilation CubeCL has logged so far, by name.
fn compiled(log: &Path) -> Vec<String> {
    // CubeCL writes its log on a thread of its own: wait until nothing is added for a while.
    let (mut len, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        let now = std::fs::metadata(log).map_or(0, |log| log.len());
        if now != len {
            (len, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect()
}

#[test]
fn a_second_batch_compiles_no_kernel() {
    let log = std::env::temp_dir().join(format!("favonius-kernels-{}.log", std::process::id()));
    let mut config = CubeClRuntimeConfig::default();
    config.compilation.logger.level = CompilationLogLevel::Basic;
    config.compilation.logger.file = Some(log.clone());
    CubeClRuntimeConfig::set(config);
    step([9, 5, 7]);
    let first = compiled(&log);
    step([21, 13, 1]);
    step([0, 2, 30]);
    let all = compiled(&log);
    std::fs::remove_file(&log).ok();
    let names = |lines: &[String]| lines.iter().cloned().collect::<BTreeSet<String>>();
    for name in names(&first) {
        println!("{name}");
    }
    println!("{} kernels for the first batch, {} for all", first.len(), all.len());
    assert!(!first.is_empty(), "CubeCL logged nothing");
    let new: Vec<_> = all[first.len()..].to_vec();
    assert!(new.is_empty(), "{new:?}");
}
