//! The CPU form of RMSNorm (Flex, float32): one multi-threaded pass over slices.

use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

use super::{RmsNorm, RmsNormGrad};
use crate::flex::exp::vectorized;
use crate::flex::fresh::{Fresh, filled};
use crate::flex::lanes;
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

/// Rows of a unit of work; the weight's gradient is summed unit by unit.
const ROWS: usize = 64;

#[inline(always)]
fn inverse_rms_plain(row: &[f32], eps: f32) -> f32 {
    let mean = lanes::dot_f64(row, row) / row.len() as f64;
    ((mean + f64::from(eps)).sqrt().recip()) as f32
}

vectorized!(fn forward_row(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) = forward_row_plain);
vectorized!(
    /// With `r = 1 / rms`, `y = x r w`: `dx = r (d w − x r² mean(d w x))`. Returns `r`.
    fn input_backward_row(dx: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32) -> f32
        = input_backward_row_plain
);
vectorized!(
    /// `dw += d x r`.
    fn weight_backward_row(dw: &mut [f32], x: &[f32], d: &[f32], r: f32)
        = weight_backward_row_plain
);
vectorized!(fn inverse_rms(row: &[f32], eps: f32) -> f32 = inverse_rms_plain);

#[inline(always)]
fn forward_row_plain(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let inverse = inverse_rms_plain(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
        *out = x * inverse * w;
    }
}

#[inline(always)]
fn input_backward_row_plain(dx: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32) -> f32 {
    let inverse = inverse_rms_plain(x, eps);
    // `dx` holds `d w` until the mean is known.
    for ((dx, d), w) in dx.iter_mut().zip(d).zip(w) {
        *dx = d * w;
    }
    let mean = (lanes::dot_f64(dx, x) / x.len() as f64) as f32;
    let pull = mean * inverse * inverse;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = inverse * (*dx - x * pull);
    }
    inverse
}

#[inline(always)]
fn weight_backward_row_plain(dw: &mut [f32], x: &[f32], d: &[f32], r: f32) {
    for ((dw, x), d) in dw.iter_mut().zip(x).zip(d) {
        *dw += d * x * r;
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
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        timed!("norm.backward");
        let [x, weight, d] = [x, weight, d].map(contiguous);
        let (x, weight, d) = (slice(&x), slice(&weight), slice(&d));
        let width = weight.len();
        let (dx, dw) = match wanted {
            [true, true] => {
                let (dx, dw) = both_gradients(x, weight, d, eps);
                (Some(dx), Some(dw))
            }
            [true, false] => (Some(input_gradient(x, weight, d, eps)), None),
            [false, true] => (None, Some(weight_gradient(x, d, width, eps))),
            [false, false] => (None, None),
        };
        [dx.map(|dx| tensor(dx, &[x.len() / width, width])), dw.map(|dw| tensor(dw, &[width]))]
    }
}

fn both_gradients(x: &[f32], weight: &[f32], d: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut dx = Fresh::new(x.len());
    let units =
        dx.chunks(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(d.par_chunks(ROWS * width));
    let partial = units.map(|((dx, x), d)| {
        let mut dw = vec![0.0; width];
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), d) in rows.zip(d.chunks_exact(width)) {
            let inverse = input_backward_row(dx, x, weight, d, eps);
            weight_backward_row(&mut dw, x, d, inverse);
        }
        dw
    });
    let dw = sum_of_units(partial.collect(), width);
    // SAFETY: `collect` took all chunks.
    (unsafe { dx.written() }, dw)
}

fn input_gradient(x: &[f32], weight: &[f32], d: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    filled(x.len(), ROWS * width, |unit, dx| {
        let place = unit * ROWS * width..;
        let rows = dx.chunks_exact_mut(width).zip(x[place.clone()].chunks_exact(width));
        for ((dx, x), d) in rows.zip(d[place].chunks_exact(width)) {
            input_backward_row(dx, x, weight, d, eps);
        }
    })
}

fn weight_gradient(x: &[f32], d: &[f32], width: usize, eps: f32) -> Vec<f32> {
    let units = x.par_chunks(ROWS * width).zip(d.par_chunks(ROWS * width));
    let partial = units.map(|(x, d)| {
        let mut dw = vec![0.0; width];
        for (x, d) in x.chunks_exact(width).zip(d.chunks_exact(width)) {
            weight_backward_row(&mut dw, x, d, inverse_rms(x, eps));
        }
        dw
    });
    sum_of_units(partial.collect(), width)
}

/// Sums the weight gradients of the units in their order.
fn sum_of_units(partial: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut dw = vec![0.0; width];
    for unit in partial {
        for (sum, value) in dw.iter_mut().zip(unit) {
            *sum += value;
        }
    }
    dw
}
