//! Label smoothing of cross-entropy (arXiv 1512.00567), as in transformers: with `ε` the loss of a
//! token is `(1 − ε) (lse − z_t) + ε (lse − z̄)`, with its logits `z`, `lse = ln Σ exp(z)`, the
//! logit
//! `z_t` of the label and the mean logit `z̄` of the vocabulary. This is `−logp + ε (z_t − z̄)`.
//!
//! Legend: `n` scored tokens, `d` width, `v` vocabulary.

use burn::tensor::{DType, Tensor};

use crate::kernels::linear_logp::{HeadGradients, TokenScores};
use crate::kernels::select_rows;
use crate::kernels::update::add_rows_into;

/// The sum over the scored tokens of one micro-batch, divided by `label_tokens`.
pub fn smoothed_cross_entropy(scores: &TokenScores, label_tokens: usize, epsilon: f64) -> f64 {
    let rows = scores.logp.iter().zip(&scores.highest).zip(&scores.norm).zip(&scores.mean_logit);
    let losses = rows.map(|(((logp, highest), norm), mean)| {
        let all = f64::from(*highest) + f64::from(*norm).ln() - f64::from(*mean);
        -(1.0 - epsilon) * f64::from(*logp) + epsilon * all
    });
    losses.sum::<f64>() / label_tokens.max(1) as f64
}

/// Adds the gradients of `Σ c (z_t − z̄)` for `c = upstream` to those of the head. `hidden_nd` are
/// the states that the head multiplies (`[n, d]`), `head_vd` its weights (`[v, d]`).
pub fn add_smoothing(
    gradients: HeadGradients,
    hidden_nd: &Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    upstream: f32,
) -> HeadGradients {
    if targets.is_empty() {
        return gradients;
    }
    let [v, d] = head_vd.dims();
    let dtype = gradients.hidden_nd.dtype();
    let in_float32 = |x: Tensor<2>| x.cast(DType::F32);
    let rows: Vec<usize> = targets.iter().map(|target| *target as usize).collect();
    let mean_1d = in_float32(head_vd.clone()).mean_dim(0);
    let change = (in_float32(select_rows(head_vd, &rows)) - mean_1d).mul_scalar(upstream);
    let d_hidden = (in_float32(gradients.hidden_nd) + change).cast(dtype);
    let d_head = gradients.head_vd.map(|d_head| {
        let dtype = d_head.dtype();
        let scaled_nd = in_float32(hidden_nd.clone()).mul_scalar(upstream);
        let mean_1d = scaled_nd.clone().sum_dim(0).div_scalar(v as f32);
        let sum = (in_float32(d_head) - mean_1d).reshape([v * d]);
        add_rows_into(sum, targets, scaled_nd).reshape([v, d]).cast(dtype)
    });
    HeadGradients { hidden_nd: d_hidden, head_vd: d_head }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::kernels::linear_logp::{token_scores, token_scores_grad, token_scores_keeping};

    const TARGETS: [u32; 3] = [2, 0, 2];
    const EPSILON: f64 = 0.3;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Tensor<2> {
        let value = |i: usize| ((i * 37 + seed * 11) % 17) as f32 / 8.0 - 1.0;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_into_vec().unwrap()
    }

    /// The loss by its definition over the logits, in float64.
    fn by_definition(hidden_nd: &Tensor<2>, head_vd: &Tensor<2>) -> f64 {
        let logits = values(hidden_nd.clone().matmul(head_vd.clone().transpose()));
        let rows = logits.chunks(5).zip(TARGETS).map(|(row, target)| {
            let row: Vec<f64> = row.iter().map(|z| f64::from(*z)).collect();
            let lse = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            let mean = row.iter().sum::<f64>() / 5.0;
            (1.0 - EPSILON) * (lse - row[target as usize]) + EPSILON * (lse - mean)
        });
        rows.sum::<f64>() / 4.0
    }

    #[test]
    fn loss_and_gradients_are_those_of_the_definition() {
        let (hidden, head) = (matrix(3, 4, 1), matrix(5, 4, 2));
        let (scores, kept) = token_scores_keeping(hidden.clone(), head.clone(), &TARGETS);
        let loss = smoothed_cross_entropy(&scores, 4, EPSILON);
        assert!((loss - by_definition(&hidden, &head)).abs() < 1e-6, "{loss}");
        assert_eq!(scores.logp, token_scores(hidden.clone(), head.clone(), &TARGETS).logp);
        let upstream = [-0.25; 3];
        let plain = token_scores_grad(
            hidden.clone(),
            head.clone(),
            &TARGETS,
            &scores,
            kept,
            &upstream,
            true,
        );
        let upstream = (EPSILON / 4.0) as f32;
        let smoothed = add_smoothing(plain, &hidden, head.clone(), &TARGETS, upstream);
        let d_head = values(smoothed.head_vd.expect("the head is trained"));
        let d_hidden = values(smoothed.hidden_nd);
        let step = 1e-2f32;
        let moved = |x: &Tensor<2>, at: usize, by: f32| {
            let dims = x.dims();
            let mut all = values(x.clone());
            all[at] += by;
            Tensor::<2>::from_data(TensorData::new(all, dims), &Device::flex())
        };
        for (at, gradient) in d_hidden.iter().enumerate() {
            let loss = |by| by_definition(&moved(&hidden, at, by), &head);
            let difference = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
            assert!((difference - f64::from(*gradient)).abs() < 2e-4, "hidden {at}");
        }
        for (at, gradient) in d_head.iter().enumerate() {
            let loss = |by| by_definition(&hidden, &moved(&head, at, by));
            let difference = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
            assert!((difference - f64::from(*gradient)).abs() < 2e-4, "head {at}");
        }
    }
}
