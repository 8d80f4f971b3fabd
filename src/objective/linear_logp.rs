//! Log-probs of target tokens straight from hidden states: logits are never whole.
//!
//! Only scored positions come here, in chunks of rows whose logits fit [`CHUNK_BYTES`]. The backward
//! pass computes a chunk's logits again, turns them into their own gradient in place, and
//! multiplies that into the gradients of hidden states and head.
//!
//! Legend: `n` scored tokens, `d` width, `v` vocabulary, `c` rows of a chunk.

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Int, Tensor, TensorData, activation::log_softmax};
use rayon::prelude::*;

use crate::model::kernels::{contiguous, exp_in_place, is_fused, slice, tensor};

/// Logits of one chunk, in bytes.
const CHUNK_BYTES: usize = 64 << 20;

/// What the head says of each scored token, all `[n]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// `log_softmax(hidden · headᵀ)[target]`, in nats.
    pub logp: Vec<f32>,
    /// Entropy of the distribution over the vocabulary, in nats.
    pub entropy: Vec<f32>,
    /// Whether the target is the most likely token.
    pub correct: Vec<bool>,
    /// Mean of the logits over the vocabulary.
    pub mean_logit: Vec<f32>,
    /// `ln Σ exp(logits)`: the backward pass needs it.
    pub logsumexp: Vec<f32>,
    /// `ln Σ p²` over the vocabulary: WPO compares a token's log-prob with it.
    pub log_sum_squares: Vec<f32>,
}

/// Columns of the operation's result, in this order.
const COLUMNS: usize = 6;

/// Scores `targets` (`[n]`) from `hidden_nd` (`[n, d]`, after the final norm) and `head_vd` (`[v, d]`).
pub fn token_scores(hidden_nd: Tensor<2>, head_vd: Tensor<2>, targets: &[u32]) -> TokenScores {
    if targets.is_empty() {
        return TokenScores::default();
    }
    let columns = if is_fused(&hidden_nd) {
        let targets = Arc::new(targets.to_vec());
        let out =
            Dispatch::score_tokens(hidden_nd.into_dispatch(), head_vd.into_dispatch(), targets);
        Tensor::<2>::from_dispatch(out)
    } else {
        score_composed(hidden_nd, head_vd, targets)
    };
    let values = columns.into_data().convert::<f32>().try_into_vec::<f32>();
    let values = values.expect("the data was converted to float32");
    let column = |i: usize| values.iter().skip(i).step_by(COLUMNS).copied();
    TokenScores {
        logp: column(0).collect(),
        entropy: column(1).collect(),
        correct: column(2).map(|x| x > 0.5).collect(),
        mean_logit: column(3).collect(),
        logsumexp: column(4).collect(),
        log_sum_squares: column(5).collect(),
    }
}

/// Gradients of `Σ upstream · logp` with respect to `hidden_nd` and, where `head_grad`, `head_vd`.
pub fn token_scores_grad(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    scores: &TokenScores,
    upstream: &[f32],
    head_grad: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    if is_fused(&hidden_nd) {
        let rows = targets.iter().zip(&scores.logsumexp).zip(upstream);
        let rows = rows.map(|((target, lse), g)| ScoredRow { target: *target, lse: *lse, g: *g });
        let (dh, dw) = Dispatch::score_tokens_grad(
            hidden_nd.into_dispatch(),
            head_vd.into_dispatch(),
            Arc::new(rows.collect()),
            head_grad,
        );
        return (Tensor::from_dispatch(dh), head_grad.then(|| Tensor::from_dispatch(dw)));
    }
    score_grad_composed(hidden_nd, head_vd, targets, &scores.logsumexp, upstream, head_grad)
}

/// What the backward pass knows of a scored token.
#[derive(Debug, Clone, Copy)]
pub struct ScoredRow {
    target: u32,
    lse: f32,
    /// Gradient of the loss with respect to the token's log-prob.
    g: f32,
}

#[backend_extension(Flex)]
pub trait ScoreTokens: Backend {
    /// `[n, 6]`: the columns of [`TokenScores`].
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
    ) -> FloatTensor<Self>;

    /// See [`token_scores_grad`]; the second tensor is empty unless `head_grad`.
    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        head_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl ScoreTokens for Flex {
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
    ) -> FloatTensor<Self> {
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut out = vec![0.0; targets.len() * COLUMNS];
        head.for_each_chunk(slice(&hidden), |first, logits| {
            let out = &mut out[first * COLUMNS..];
            let rows = logits.par_chunks_exact(head.vocab).zip(out.par_chunks_exact_mut(COLUMNS));
            rows.zip(&targets[first..]).for_each(|((logits, out), target)| {
                out.copy_from_slice(&score_row(logits, *target as usize));
            });
        });
        tensor(out, &[targets.len(), COLUMNS])
    }

    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        head_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let hidden = slice(&hidden);
        let (vocab, width) = (head.vocab, head.width);
        let mut d_hidden = vec![0.0; rows.len() * width];
        let mut d_head = vec![0.0; if head_grad { vocab * width } else { 0 }];
        head.for_each_chunk(hidden, |first, logits| {
            let chunk = logits.len() / vocab;
            let scored = logits.par_chunks_exact_mut(vocab).zip(&rows[first..first + chunk]);
            scored.for_each(|(logits, row)| logit_gradient(logits, row));
            let d_hidden = &mut d_hidden[first * width..(first + chunk) * width];
            // dh[c, d] = dl[c, v] · head[v, d]
            product(
                [chunk, width, vocab],
                logits,
                [vocab, 1],
                head.weights(),
                [width, 1],
                d_hidden,
                false,
            );
            if head_grad {
                // dw[v, d] += dl[c, v]ᵀ · h[c, d]
                let hidden = &hidden[first * width..(first + chunk) * width];
                product(
                    [vocab, width, chunk],
                    logits,
                    [1, vocab],
                    hidden,
                    [width, 1],
                    &mut d_head,
                    true,
                );
            }
        });
        let d_head_shape = if head_grad { [vocab, width] } else { [0, width] };
        (tensor(d_hidden, &[rows.len(), width]), tensor(d_head, &d_head_shape))
    }
}

/// The output head `[v, d]` and the chunking of its logits.
struct Head {
    weight: FloatTensor<Flex>,
    vocab: usize,
    width: usize,
}

impl Head {
    fn new(weight: FloatTensor<Flex>) -> Self {
        let weight = contiguous(weight);
        let [vocab, width] = [0, 1].map(|axis| weight.layout().shape()[axis]);
        Self { weight, vocab, width }
    }

    fn weights(&self) -> &[f32] {
        slice(&self.weight)
    }

    /// Calls `work` with the index of the first row and the logits `[c, v]` of each chunk.
    fn for_each_chunk(&self, hidden: &[f32], mut work: impl FnMut(usize, &mut [f32])) {
        let rows = chunk_rows(self.vocab);
        let mut logits = Vec::new();
        for (index, hidden) in hidden.chunks(rows * self.width).enumerate() {
            let chunk = hidden.len() / self.width;
            logits.resize(chunk * self.vocab, 0.0);
            // logits[c, v] = h[c, d] · head[v, d]ᵀ
            product(
                [chunk, self.vocab, self.width],
                hidden,
                [self.width, 1],
                self.weights(),
                [1, self.width],
                &mut logits,
                false,
            );
            work(index * rows, &mut logits);
        }
    }
}

/// `out[m, n] = a[m, k] · b[k, n]` (added to `out` where `add`) on all threads; strides are
/// `[row, column]`, `out` is dense.
fn product(
    [m, n, k]: [usize; 3],
    a: &[f32],
    a_strides: [usize; 2],
    b: &[f32],
    b_strides: [usize; 2],
    out: &mut [f32],
    add: bool,
) {
    let last = |rows: usize, columns: usize, strides: [usize; 2]| {
        (rows - 1) * strides[0] + (columns - 1) * strides[1]
    };
    assert!(last(m, k, a_strides) < a.len() && last(k, n, b_strides) < b.len());
    assert!(m * n <= out.len());
    // SAFETY: every element addressed lies within the three slices, as just checked.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.as_ptr(),
            a_strides[1] as isize,
            a_strides[0] as isize,
            b.as_ptr(),
            b_strides[1] as isize,
            b_strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

/// One row of [`TokenScores`]. Sums are taken in blocks of 256, each in float32, and added in
/// double precision.
fn score_row(logits: &[f32], target: usize) -> [f32; COLUMNS] {
    let mut highest = f32::NEG_INFINITY;
    for logit in logits {
        highest = highest.max(*logit);
    }
    let (mut total, mut norm, mut weighted, mut squares) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut block = [0.0f32; 256];
    for logits in logits.chunks(256) {
        let block = &mut block[..logits.len()];
        for (shifted, logit) in block.iter_mut().zip(logits) {
            *shifted = logit - highest;
        }
        total += f64::from(lanes(block.iter().copied()));
        exp_in_place(block);
        norm += f64::from(lanes(block.iter().copied()));
        squares += f64::from(lanes(block.iter().map(|e| e * e)));
        let products = block.iter().zip(logits).map(|(e, logit)| e * (logit - highest));
        weighted += f64::from(lanes(products));
    }
    let log_norm = norm.ln();
    let shifted = f64::from(logits[target] - highest);
    let first_best = logits.iter().position(|logit| *logit == highest);
    [
        (shifted - log_norm) as f32,
        (log_norm - weighted / norm) as f32,
        f32::from(first_best == Some(target)),
        (total / logits.len() as f64 + f64::from(highest)) as f32,
        (log_norm + f64::from(highest)) as f32,
        (squares.ln() - 2.0 * log_norm) as f32,
    ]
}

/// A sum in sixteen lanes, so that it becomes vector instructions.
fn lanes(values: impl Iterator<Item = f32>) -> f32 {
    let mut sums = [0.0f32; 16];
    for (index, value) in values.enumerate() {
        sums[index % 16] += value;
    }
    sums.iter().sum()
}

/// Turns a row of logits into its gradient, `g · (onehot(target) − softmax)`.
fn logit_gradient(logits: &mut [f32], row: &ScoredRow) {
    for logit in logits.iter_mut() {
        *logit -= row.lse;
    }
    exp_in_place(logits);
    for probability in logits.iter_mut() {
        *probability *= -row.g;
    }
    logits[row.target as usize] += row.g;
}

/// Rows whose float32 logits fit [`CHUNK_BYTES`].
fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / 4 / vocab).max(1)
}

fn targets_tensor(targets: &[u32], like: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = targets.iter().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_data(TensorData::new(ids, [targets.len()]), &like.device())
        .reshape([targets.len(), 1])
}

/// [`token_scores`] composed of Burn's own operations: `[n, 6]` in float32.
pub fn score_composed(hidden_nd: Tensor<2>, head_vd: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let rows = chunk_rows(head_vd.dims()[0]);
    let head_dv = head_vd.transpose();
    let chunks = targets.chunks(rows).enumerate().map(|(index, targets)| {
        let hidden = hidden_nd.clone().narrow(0, index * rows, targets.len());
        let logits_cv = hidden.matmul(head_dv.clone()).cast(DType::F32);
        let ids = targets_tensor(targets, &logits_cv);
        let logps_cv = log_softmax(logits_cv.clone(), 1);
        let logp = logps_cv.clone().gather(1, ids.clone());
        let log_sum_squares = logps_cv.clone().mul_scalar(2.0).exp().sum_dim(1).log();
        let entropy = (logps_cv.clone().exp() * logps_cv).sum_dim(1).neg();
        let correct = logits_cv.clone().argmax(1).equal(ids.clone()).float().cast(DType::F32);
        let logsumexp = logits_cv.clone().gather(1, ids) - logp.clone();
        let mean = logits_cv.mean_dim(1);
        Tensor::cat(vec![logp, entropy, correct, mean, logsumexp, log_sum_squares], 1)
    });
    Tensor::cat(chunks.collect(), 0)
}

/// [`token_scores_grad`] composed of Burn's own operations.
pub fn score_grad_composed(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    logsumexp: &[f32],
    upstream: &[f32],
    head_grad: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let rows = chunk_rows(head_vd.dims()[0]);
    let dtype = hidden_nd.dtype();
    let column = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [values.len(), 1]);
        Tensor::<2>::from_data(data, &hidden_nd.device()).cast(DType::F32)
    };
    let (mut d_hidden, mut d_head) = (Vec::new(), None);
    for (index, targets) in targets.chunks(rows).enumerate() {
        let (first, len) = (index * rows, targets.len());
        let hidden = hidden_nd.clone().narrow(0, first, len);
        let logits = hidden.clone().matmul(head_vd.clone().transpose()).cast(DType::F32);
        let g = column(&upstream[first..first + len]);
        let probabilities = (logits - column(&logsumexp[first..first + len])).exp();
        let ids = targets_tensor(targets, &probabilities);
        let d_logits = (probabilities * g.clone().neg())
            .scatter(1, ids, g, burn::tensor::IndexingUpdateOp::Add)
            .cast(dtype);
        d_hidden.push(d_logits.clone().matmul(head_vd.clone()));
        if head_grad {
            let part = d_logits.transpose().matmul(hidden);
            d_head = Some(match d_head {
                Some(sum) => sum + part,
                None => part,
            });
        }
    }
    (Tensor::cat(d_hidden, 0), d_head)
}
