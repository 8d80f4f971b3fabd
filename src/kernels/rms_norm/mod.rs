//! Root-mean-square normalization (arXiv 1910.07467): `x / sqrt(mean(x²) + eps) · weight`.
//!
//! Legend: `t` tokens, `d` width.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::contiguous;
use super::flex::fresh::{Fresh, filled};
use super::flex::lanes;
use super::is_fused;
use super::slice;
use super::tensor;
use super::timed;
use super::vectorized;

/// Rows a unit of work; the weight's gradient is summed unit by unit.
const ROWS: usize = 64;

/// Normalizes each row of `x_td` (`[t, d]`) and scales it by `weight_d` (`[d]`).
pub fn rms_norm(x_td: Tensor<2>, weight_d: Tensor<1>, eps: f64) -> Tensor<2> {
    if !is_fused(&x_td) {
        return rms_norm_composed(x_td, weight_d, eps);
    }
    let out = Dispatch::rms_norm(x_td.into_dispatch(), weight_d.into_dispatch(), eps as f32);
    Tensor::from_dispatch(out)
}

/// [`rms_norm`] composed of Burn's own operations, in float32 inside whatever the input is.
pub fn rms_norm_composed(x_td: Tensor<2>, weight_d: Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x_td.dtype();
    let x = x_td.cast(DType::F32);
    let inverse = x.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip();
    (x * inverse).cast(dtype) * weight_d.unsqueeze()
}

#[backend_extension(Autodiff, Flex)]
pub trait RmsNorm: Backend {
    /// See [`rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
}

/// The backward half of [`RmsNorm`].
pub trait RmsNormGrad: RmsNorm {
    /// Gradients of `x` and `weight` for the output gradient `d`.
    fn rms_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
    ) -> [FloatTensor<Self>; 2];
}

#[inline(always)]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mean = lanes::dot_f64(row, row) / row.len() as f64;
    ((mean + f64::from(eps)).sqrt().recip()) as f32
}

vectorized!(fn forward_row(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) = forward_row_plain);
vectorized!(
    /// With `r = 1 / rms`, `y = x r w`: `dx = r (d w − x r² mean(d w x))`, `dw += d x r`.
    fn backward_row(dx: &mut [f32], dw: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32)
        = backward_row_plain
);

#[inline(always)]
fn forward_row_plain(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let inverse = inverse_rms(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
        *out = x * inverse * w;
    }
}

#[inline(always)]
fn backward_row_plain(dx: &mut [f32], dw: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32) {
    let inverse = inverse_rms(x, eps);
    // `dx` holds `d w` until the mean is known.
    for ((dx, d), w) in dx.iter_mut().zip(d).zip(w) {
        *dx = d * w;
    }
    let mean = (lanes::dot_f64(dx, x) / x.len() as f64) as f32;
    let pull = mean * inverse * inverse;
    for (((dx, dw), x), d) in dx.iter_mut().zip(dw).zip(x).zip(d) {
        *dx = inverse * (*dx - x * pull);
        *dw += d * x * inverse;
    }
}

impl RmsNorm for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        timed!("norm");
        let (x, weight) = (contiguous(x), contiguous(weight));
        let (x, weight) = (slice(&x), slice(&weight));
        let width = weight.len();
        let out = filled(x.len(), ROWS * width, |unit, out| {
            let x = &x[unit * ROWS * width..];
            let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            rows.for_each(|(out, row)| forward_row(out, row, weight, eps));
        });
        tensor(out, &[x.len() / width, width])
    }
}

impl RmsNormGrad for Flex {
    fn rms_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
    ) -> [FloatTensor<Self>; 2] {
        timed!("norm.backward");
        let [x, weight, d] = [x, weight, d].map(contiguous);
        let (x, weight, d) = (slice(&x), slice(&weight), slice(&d));
        let width = weight.len();
        let mut dx = Fresh::new(x.len());
        let units =
            dx.chunks(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(d.par_chunks(ROWS * width));
        let partial: Vec<Vec<f32>> = units
            .map(|((dx, x), d)| {
                let mut dw = vec![0.0; width];
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((dx, x), d) in rows.zip(d.chunks_exact(width)) {
                    backward_row(dx, &mut dw, x, weight, d, eps);
                }
                dw
            })
            .collect();
        let mut dw = vec![0.0; width];
        for unit in partial {
            for (sum, value) in dw.iter_mut().zip(unit) {
                *sum += value;
            }
        }
        // SAFETY: `collect` took all chunks.
        let dx = unsafe { dx.written() };
        [tensor(dx, &[x.len() / width, width]), tensor(dw, &[width])]
    }
}

impl<B: RmsNormGrad, C: CheckpointStrategy> RmsNorm for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNormBackward;

        impl<B: RmsNormGrad> Backward<B, 2> for RmsNormBackward {
            type State = ([NodeId; 2], f32);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let d = grads.consume::<B>(&ops.node);
                let (inputs, eps) = ops.state;
                let [x, weight] = inputs.map(|id| checkpointer.retrieve_node_output(id));
                let gradients = B::rms_norm_grad(x, weight, d, eps);
                for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = parent {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }

        match RmsNormBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                let out = B::rms_norm(x.into_primitive(), weight.into_primitive(), eps);
                prep.finish((inputs, eps), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::rms_norm(x.into_primitive(), weight.into_primitive(), eps))
            }
        }
    }
}
