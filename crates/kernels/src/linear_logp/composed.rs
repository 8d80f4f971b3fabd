//! Log-probs and their gradients composed of Burn's own operations, for every device and precision.

use burn::tensor::{DType, Int, Tensor, TensorData, activation::log_softmax};

use super::chunks::chunk_rows;
use super::scores::{HeadGradients, OutputHead, TokenScores};
use crate::soft_cap::soft_cap;

fn targets_tensor(targets: &[u32], like: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = targets.iter().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_data(TensorData::new(ids, [targets.len()]), &like.device())
        .reshape([targets.len(), 1])
}

/// [`token_scores`](super::token_scores) composed of Burn's own operations: the columns of
/// [`TokenScores`], `[n, 7]` in float32.
pub fn score_composed(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
) -> Tensor<2> {
    let OutputHead { weight_vd: head_vd, softcap } = head.into();
    let rows = chunk_rows(head_vd.dims()[0]);
    let head_dv = head_vd.transpose();
    let chunks = targets.chunks(rows).enumerate().map(|(index, targets)| {
        let hidden = hidden_nd.clone().narrow(0, index * rows, targets.len());
        let logits_cv = soft_cap(hidden.matmul(head_dv.clone()).cast(DType::F32), softcap);
        let ids = targets_tensor(targets, &logits_cv);
        let logps_cv = log_softmax(logits_cv.clone(), 1);
        let logp = logps_cv.clone().gather(1, ids.clone());
        let log_sum_squares = logps_cv.clone().mul_scalar(2.0).exp().sum_dim(1).log();
        let entropy = (logps_cv.clone().exp() * logps_cv).sum_dim(1).neg();
        let correct = logits_cv.clone().argmax(1).equal(ids.clone()).float().cast(DType::F32);
        let highest = logits_cv.clone().max_dim(1);
        let norm = (logits_cv.clone() - highest.clone()).exp().sum_dim(1);
        let mean = logits_cv.mean_dim(1);
        Tensor::cat(vec![logp, entropy, correct, mean, highest, norm, log_sum_squares], 1)
    });
    Tensor::cat(chunks.collect(), 0)
}

/// [`token_scores_grad`](super::token_scores_grad) composed of Burn's own operations.
///
/// # Panics
/// If no token is scored.
pub fn score_grad_composed(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
    scores: &TokenScores,
    upstream: &[f32],
    trains_head: bool,
) -> HeadGradients {
    let OutputHead { weight_vd: head_vd, softcap } = head.into();
    let rows = chunk_rows(head_vd.dims()[0]);
    let dtype = hidden_nd.dtype();
    let column = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [values.len(), 1]);
        Tensor::<2>::from_data(data, &hidden_nd.device()).cast(DType::F32)
    };
    let (mut d_hidden, mut d_head) = (Vec::new(), None::<Tensor<2>>);
    for (index, targets) in targets.chunks(rows).enumerate() {
        let (first, len) = (index * rows, targets.len());
        let hidden = hidden_nd.clone().narrow(0, first, len);
        let logits = hidden.clone().matmul(head_vd.clone().transpose()).cast(DType::F32);
        let logits = soft_cap(logits, softcap);
        let g = column(&upstream[first..first + len]);
        let highest = column(&scores.highest[first..first + len]);
        let slope =
            softcap.map(|cap| logits.clone().div_scalar(cap).square().neg().add_scalar(1.0));
        let probabilities = (logits - highest).exp() / column(&scores.norm[first..first + len]);
        let ids = targets_tensor(targets, &probabilities);
        let d_logits = (probabilities * g.clone().neg()).scatter(
            1,
            ids,
            g,
            burn::tensor::IndexingUpdateOp::Add,
        );
        let d_logits = match slope {
            Some(slope) => d_logits * slope,
            None => d_logits,
        };
        let d_logits = d_logits.cast(dtype);
        d_hidden.push(d_logits.clone().matmul(head_vd.clone()));
        if trains_head {
            let part = d_logits.transpose().matmul(hidden);
            d_head = Some(match d_head {
                Some(sum) => sum + part,
                None => part,
            });
        }
    }
    HeadGradients { hidden_nd: Tensor::cat(d_hidden, 0), head_vd: d_head }
}
