//! Soft caps of attention scores and logits (Gemma 2, arXiv 2408.00118).

use burn::tensor::Tensor;

/// `c · tanh(x / c)` for the cap `c`; `x` without one. Composed of Burn's own operations; the CPU
/// forms of attention and of the head have caps of their own.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: Option<f32>) -> Tensor<D> {
    match cap {
        Some(cap) => x.div_scalar(cap).tanh().mul_scalar(cap),
        None => x,
    }
}
