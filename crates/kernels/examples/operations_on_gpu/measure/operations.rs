//! The operations that are measured, by name. `scripts/gpu/torch_operations.py` has the same names,
//! and `scripts/gpu/work.py` their FLOPs and bytes.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;

use burn::tensor::Tensor;
use favonius_kernels::attention::{AttentionLayout, segment_attention};
use favonius_kernels::linear_logp::{
    token_scores, token_scores_grad, token_scores_keeping, token_scores_with_grad,
};
use favonius_kernels::update::{self, UpdateKind, UpdateRule, UpdateState};
use favonius_kernels::{linear, rms_norm, select_rows, swiglu};

use super::setting::Setting;

type Run = Box<dyn FnMut()>;

/// An operation. `forward` in its name means the forward pass alone, `both` forward and backward.
pub struct Operation {
    pub name: &'static str,
    /// Whether it works on float32 vectors, whatever the type of the setting.
    pub is_float32: bool,
    /// Makes the inputs. Returns a function that runs the operation once.
    pub prepare: fn(&Setting) -> Run,
}

const fn operation(name: &'static str, prepare: fn(&Setting) -> Run) -> Operation {
    Operation { name, is_float32: false, prepare }
}

const fn of_vectors(name: &'static str, prepare: fn(&Setting) -> Run) -> Operation {
    Operation { name, is_float32: true, prepare }
}

pub const OPERATIONS: &[Operation] = &[
    operation("product/q_proj/forward", |s| product(s, s.shape.width, s.shape.width)),
    operation("product/k_proj/forward", |s| {
        product(s, s.shape.width, s.shape.kv_heads * s.shape.head_dim)
    }),
    operation("product/gate_proj/forward", |s| product(s, s.shape.width, s.shape.feed_forward)),
    operation("product/down_proj/forward", |s| product(s, s.shape.feed_forward, s.shape.width)),
    operation("product/gate_proj/both", |s| {
        let inputs =
            [s.matrix(s.tokens, s.shape.width), s.matrix(s.shape.feed_forward, s.shape.width)];
        both(inputs, |[x, weight]| linear::linear(x, weight))
    }),
    operation("attention/sequences/forward", |s| attention_forward(s, s.sequences())),
    operation("attention/sequences/both", |s| attention_both(s, s.sequences())),
    operation("attention/pairs/forward", |s| attention_forward(s, s.pairs())),
    operation("attention/pairs/both", |s| attention_both(s, s.pairs())),
    operation("rms_norm/forward", |s| {
        let (x, weight) = (s.matrix(s.tokens, s.shape.width), norm_weight(s));
        Box::new(move || {
            black_box(rms_norm::rms_norm(x.clone(), weight.clone(), 1e-5));
        })
    }),
    operation("rms_norm/both", |s| {
        let width = s.shape.width;
        let inputs = [s.matrix(s.tokens, width), s.matrix(1, width)];
        both(inputs, move |[x, weight]| rms_norm::rms_norm(x, weight.reshape([width]), 1e-5))
    }),
    operation("swiglu/forward", |s| {
        let [gate, up] = gates(s);
        Box::new(move || {
            black_box(swiglu::swiglu(gate.clone(), up.clone()));
        })
    }),
    operation("swiglu/both", |s| both(gates(s), |[gate, up]| swiglu::swiglu(gate, up))),
    operation("head/forward", head_forward),
    operation("head/both", head_both),
    operation("head/both, upstream known", head_at_once),
    operation("embedding/rows", |s| {
        let table = s.matrix(s.shape.vocabulary, s.shape.width);
        let rows: Vec<usize> = s.ids(s.tokens).into_iter().map(|id| id as usize).collect();
        Box::new(move || {
            black_box(select_rows(table.clone(), &rows));
        })
    }),
    operation("embedding/gradient", embedding_gradient),
    of_vectors("vectors/sum of gradients", |s| {
        let gradient = s.vector();
        in_place(s.vector(), move |sum| update::add_into(sum, gradient.clone()))
    }),
    of_vectors("vectors/squares", |s| {
        let gradient = s.vector();
        Box::new(move || {
            black_box(update::block_squares(&gradient));
        })
    }),
    of_vectors("vectors/AdamW", adamw),
];

/// A linear layer without gradients.
fn product(s: &Setting, from: usize, to: usize) -> Run {
    let (x, weight) = (s.matrix(s.tokens, from), s.matrix(to, from));
    Box::new(move || {
        black_box(linear::linear(x.clone(), weight.clone()));
    })
}

/// `f` and its backward pass with a gradient of ones.
fn both<const N: usize>(
    inputs: [Tensor<2>; N],
    f: impl Fn([Tensor<2>; N]) -> Tensor<2> + 'static,
) -> Run {
    Box::new(move || {
        let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
        let mut gradients = f(leaves.clone()).backward();
        for leaf in leaves {
            black_box(leaf.grad_remove(&mut gradients));
        }
    })
}

/// Replaces a value again and again, as a training loop does with its sums.
fn in_place<T: 'static>(value: T, mut f: impl FnMut(T) -> T + 'static) -> Run {
    let held = RefCell::new(Some(value));
    Box::new(move || {
        let value = held.take().expect("the value is put back after each run");
        held.replace(Some(f(value)));
    })
}

/// Queries, keys and values. Tokens that fill no sequence or pair are left out.
fn attention_inputs(s: &Setting, layout: &AttentionLayout) -> [Tensor<2>; 3] {
    let tokens = layout.segments.tokens();
    let heads = [s.shape.heads, s.shape.kv_heads, s.shape.kv_heads];
    heads.map(|heads| s.matrix(tokens, heads * s.shape.head_dim))
}

fn attention_forward(s: &Setting, layout: Arc<AttentionLayout>) -> Run {
    let [q, k, v] = attention_inputs(s, &layout);
    Box::new(move || {
        black_box(segment_attention(q.clone(), k.clone(), v.clone(), &layout));
    })
}

fn attention_both(s: &Setting, layout: Arc<AttentionLayout>) -> Run {
    let inputs = attention_inputs(s, &layout);
    both(inputs, move |[q, k, v]| segment_attention(q, k, v, &layout))
}

fn norm_weight(s: &Setting) -> Tensor<1> {
    s.matrix(1, s.shape.width).reshape([s.shape.width])
}

fn gates(s: &Setting) -> [Tensor<2>; 2] {
    [(); 2].map(|()| s.matrix(s.tokens, s.shape.feed_forward))
}

/// Hidden states of the scored tokens, the head, the targets and the gradient of their log-probs.
fn head_inputs(s: &Setting) -> (Tensor<2>, Tensor<2>, Vec<u32>, Vec<f32>) {
    let (rows, width) = (s.shape.scored, s.shape.width);
    let (hidden, head) = (s.matrix(rows, width), s.matrix(s.shape.vocabulary, width));
    (hidden, head, s.ids(rows), vec![0.5; rows])
}

fn head_forward(s: &Setting) -> Run {
    let (hidden, head, targets, _) = head_inputs(s);
    Box::new(move || {
        black_box(token_scores(hidden.clone(), head.clone(), &targets));
    })
}

fn head_both(s: &Setting) -> Run {
    let (hidden, head, targets, upstream) = head_inputs(s);
    Box::new(move || {
        let (hidden, head) = (hidden.clone(), head.clone());
        let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &targets);
        black_box(token_scores_grad(hidden, head, &targets, &scores, kept, &upstream, true));
    })
}

fn head_at_once(s: &Setting) -> Run {
    let (hidden, head, targets, upstream) = head_inputs(s);
    Box::new(move || {
        let (hidden, head) = (hidden.clone(), head.clone());
        black_box(token_scores_with_grad(hidden, head, &targets, &upstream, true));
    })
}

/// Adds the gradient of each token's embedding to a float32 sum.
fn embedding_gradient(s: &Setting) -> Run {
    let (vocabulary, width) = (s.shape.vocabulary, s.shape.width);
    let (ids, rows) = (s.ids(s.tokens), s.matrix(s.tokens, width));
    let sum = Tensor::zeros([vocabulary * width], (&s.device, burn::tensor::DType::F32));
    in_place(sum, move |sum| update::add_rows_into(sum, &ids, rows.clone()))
}

fn adamw(s: &Setting) -> Run {
    let kind =
        UpdateKind::Adam { weight1: 0.1, beta2: 0.999, weight2: 0.001, sqrt_correction2: 0.03 };
    let rule = UpdateRule {
        kind,
        gradient_scale: 0.7,
        weight_decay: 0.0,
        shrink: 0.9999,
        step_size: 1e-4,
        epsilon: 1e-8,
    };
    let gradient = s.vector();
    let [parameter, first, second] = [s.vector(), s.vector(), s.vector().abs()];
    let state = UpdateState { parameter, first, second };
    in_place(state, move |state| update::update(state, gradient.clone(), rule))
}
