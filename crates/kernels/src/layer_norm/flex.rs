//! The CPU form of LayerNorm (Flex, float32): one multi-threaded pass over slices.

use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

use super::{LayerNorm, LayerNormGrad};
use crate::flex::exp::vectorized;
use crate::flex::fresh::{Fresh, filled};
use crate::flex::lanes;
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

/// Rows of a unit of work; the gradients of weight and bias are summed unit by unit.
const ROWS: usize = 64;

impl LayerNorm for Flex {
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        timed!("layer norm");
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let (x, weight, bias) = (slice(&x), slice(&weight), slice(&bias));
        let width = weight.len();
        let out = filled(x.len(), ROWS * width, |unit, out| {
            let x = &x[unit * ROWS * width..];
            let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            rows.for_each(|(out, row)| forward_row(out, row, weight, bias, eps));
        });
        tensor(out, &[x.len() / width, width])
    }
}

impl LayerNormGrad for Flex {
    fn layer_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        timed!("layer norm.backward");
        let [x, weight, d] = [x, weight, d].map(contiguous);
        let (x, weight, d) = (slice(&x), slice(&weight), slice(&d));
        let width = weight.len();
        let [x_wanted, weight_wanted, bias_wanted] = wanted;
        let (dx, parameters) = match (x_wanted, weight_wanted || bias_wanted) {
            (true, true) => {
                let (dx, parameters) = all_gradients(x, weight, d, eps);
                (Some(dx), Some(parameters))
            }
            (true, false) => (Some(input_gradient(x, weight, d, eps)), None),
            (false, true) => (None, Some(parameter_gradients(x, d, width, eps))),
            (false, false) => (None, None),
        };
        let [dw, db] = match parameters {
            Some(gradients) => gradients.map(Some),
            None => [None, None],
        };
        [
            dx.map(|dx| tensor(dx, &[x.len() / width, width])),
            dw.filter(|_| weight_wanted).map(|dw| tensor(dw, &[width])),
            db.filter(|_| bias_wanted).map(|db| tensor(db, &[width])),
        ]
    }
}

/// Gradients of input, weight and bias in one pass.
fn all_gradients(x: &[f32], weight: &[f32], d: &[f32], eps: f32) -> (Vec<f32>, [Vec<f32>; 2]) {
    let width = weight.len();
    let mut dx = Fresh::new(x.len());
    let units =
        dx.chunks(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(d.par_chunks(ROWS * width));
    let partial = units.map(|((dx, x), d)| {
        let [mut dw, mut db] = [vec![0.0; width], vec![0.0; width]];
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), d) in rows.zip(d.chunks_exact(width)) {
            let moments = input_backward_row(dx, x, weight, d, eps);
            parameter_backward_row(&mut dw, &mut db, x, d, moments);
        }
        [dw, db]
    });
    let sums = sum_of_units(partial.collect(), width);
    // SAFETY: `collect` took all chunks.
    (unsafe { dx.written() }, sums)
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

fn parameter_gradients(x: &[f32], d: &[f32], width: usize, eps: f32) -> [Vec<f32>; 2] {
    let units = x.par_chunks(ROWS * width).zip(d.par_chunks(ROWS * width));
    let partial = units.map(|(x, d)| {
        let [mut dw, mut db] = [vec![0.0; width], vec![0.0; width]];
        for (x, d) in x.chunks_exact(width).zip(d.chunks_exact(width)) {
            parameter_backward_row(&mut dw, &mut db, x, d, moments(x, eps));
        }
        [dw, db]
    });
    sum_of_units(partial.collect(), width)
}

/// Sums the gradients of weight and bias over the units, in their order.
fn sum_of_units(partial: Vec<[Vec<f32>; 2]>, width: usize) -> [Vec<f32>; 2] {
    let mut sums = [vec![0.0; width], vec![0.0; width]];
    for (sum, unit) in partial.into_iter().flat_map(|unit| [0, 1].into_iter().zip(unit)) {
        for (sum, value) in sums[sum].iter_mut().zip(unit) {
            *sum += value;
        }
    }
    sums
}

/// The mean of a row and `1 / sqrt(var + eps)`.
type Moments = [f32; 2];

vectorized!(
    fn forward_row(out: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32)
        = forward_row_plain
);
vectorized!(
    /// With `n = (x − mean) r`, `y = n w + b`: `dx = r (d w − mean(d w) − n mean(d w n))`. Returns
    /// the moments of `x`.
    fn input_backward_row(dx: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32) -> Moments
        = input_backward_row_plain
);
vectorized!(
    /// `dw += d n`, `db += d`.
    fn parameter_backward_row(
        dw: &mut [f32], db: &mut [f32], x: &[f32], d: &[f32], moments: Moments,
    ) = parameter_backward_row_plain
);
vectorized!(fn moments(x: &[f32], eps: f32) -> Moments = moments_plain);

#[inline(always)]
fn moments_plain(x: &[f32], eps: f32) -> Moments {
    let count = x.len() as f64;
    let mean = lanes::sum_f64(x, |x| x) / count;
    let variance = lanes::sum_f64(x, |x| (x - mean) * (x - mean)) / count;
    [mean as f32, (variance + f64::from(eps)).sqrt().recip() as f32]
}

#[inline(always)]
fn forward_row_plain(out: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
    let [mean, inverse] = moments_plain(x, eps);
    for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
        *out = (x - mean) * inverse * w + b;
    }
}

#[inline(always)]
fn input_backward_row_plain(dx: &mut [f32], x: &[f32], w: &[f32], d: &[f32], eps: f32) -> Moments {
    let [mean, inverse] = moments_plain(x, eps);
    // `dx` holds `d w` until the means are known.
    for ((dx, d), w) in dx.iter_mut().zip(d).zip(w) {
        *dx = d * w;
    }
    let count = x.len() as f64;
    let sum = lanes::sum_f64(dx, |d| d);
    // `Σ d w (x − mean)`.
    let product = lanes::dot_f64(dx, x) - f64::from(mean) * sum;
    let (shift, pull) = ((sum / count) as f32, (product / count) as f32 * inverse * inverse);
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = inverse * (*dx - shift - (x - mean) * pull);
    }
    [mean, inverse]
}

#[inline(always)]
fn parameter_backward_row_plain(
    dw: &mut [f32],
    db: &mut [f32],
    x: &[f32],
    d: &[f32],
    [mean, inverse]: Moments,
) {
    for (((dw, db), x), d) in dw.iter_mut().zip(db).zip(x).zip(d) {
        *dw += d * (x - mean) * inverse;
        *db += d;
    }
}
