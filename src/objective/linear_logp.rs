//! Log-probs of target tokens straight from hidden states: logits are never whole.
//!
//! Only scored positions come here, in chunks of rows whose logits fit [`CHUNK_BYTES`]. The backward
//! pass computes a chunk's logits again, turns them into their own gradient in place, and
//! multiplies that into the gradients of hidden states and head. Where the exponentials of all
//! chunks fit [`KEPT_BYTES`] they are kept instead; both ways give the same bits.
//!
//! Legend: `n` scored tokens, `d` width, `v` vocabulary, `c` rows of a chunk.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Int, Tensor, TensorData, activation::log_softmax};
use rayon::prelude::*;

use crate::model::kernels::product::{Matrix, add_product, append_product};
use crate::model::kernels::{contiguous, exp, is_fused, lanes, slice, tensor, timed, vectorized};

/// Logits of one chunk, in bytes.
const CHUNK_BYTES: usize = 64 << 20;

/// Exponentials of logits that a forward pass may keep for its backward pass, in bytes.
pub(crate) const KEPT_BYTES: usize = 256 << 20;

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
    /// The largest logit, and `Σ exp(logit − largest)`: the backward pass needs them.
    pub highest: Vec<f32>,
    pub norm: Vec<f32>,
    /// `ln Σ p²` over the vocabulary: WPO compares a token's log-prob with it.
    pub log_sum_squares: Vec<f32>,
}

/// Columns of the operation's result, in this order.
const COLUMNS: usize = 7;

/// `exp(logits − largest)` of all scored tokens, `[n, v]`, for the backward pass.
pub type KeptExponentials = Option<Tensor<2>>;

/// Scores `targets` (`[n]`) from `hidden_nd` (`[n, d]`, after the final norm) and `head_vd` (`[v, d]`).
pub fn token_scores(hidden_nd: Tensor<2>, head_vd: Tensor<2>, targets: &[u32]) -> TokenScores {
    if targets.is_empty() {
        return TokenScores::default();
    }
    if !is_fused(&hidden_nd) {
        return TokenScores::from_columns(score_composed(hidden_nd, head_vd, targets));
    }
    let targets = Arc::new(targets.to_vec());
    let columns =
        Dispatch::score_tokens(hidden_nd.into_dispatch(), head_vd.into_dispatch(), targets);
    TokenScores::from_columns(Tensor::from_dispatch(columns))
}

/// [`token_scores`] for a pass that will be walked back.
pub fn token_scores_keeping(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
) -> (TokenScores, KeptExponentials) {
    let bytes = 4 * targets.len() * head_vd.dims()[0];
    if targets.is_empty() || !is_fused(&hidden_nd) || bytes > KEPT_BYTES {
        return (token_scores(hidden_nd, head_vd, targets), None);
    }
    let (columns, kept) = Dispatch::score_tokens_keeping(
        hidden_nd.into_dispatch(),
        head_vd.into_dispatch(),
        Arc::new(targets.to_vec()),
    );
    let scores = TokenScores::from_columns(Tensor::from_dispatch(columns));
    (scores, Some(Tensor::from_dispatch(kept)))
}

impl TokenScores {
    fn from_columns(columns: Tensor<2>) -> Self {
        let values = columns.into_data().convert::<f32>().try_into_vec::<f32>();
        let values = values.expect("the data was converted to float32");
        let column = |i: usize| values.iter().skip(i).step_by(COLUMNS).copied();
        Self {
            logp: column(0).collect(),
            entropy: column(1).collect(),
            correct: column(2).map(|x| x > 0.5).collect(),
            mean_logit: column(3).collect(),
            highest: column(4).collect(),
            norm: column(5).collect(),
            log_sum_squares: column(6).collect(),
        }
    }
}

/// Gradients of `Σ upstream · logp` with respect to `hidden_nd` and, where `head_grad`, `head_vd`.
pub fn token_scores_grad(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    scores: &TokenScores,
    kept: KeptExponentials,
    upstream: &[f32],
    head_grad: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    if !is_fused(&hidden_nd) {
        return score_grad_composed(hidden_nd, head_vd, targets, scores, upstream, head_grad);
    }
    let rows = (0..targets.len()).map(|row| ScoredRow {
        target: targets[row],
        highest: scores.highest[row],
        factor: -upstream[row] / scores.norm[row],
        g: upstream[row],
    });
    let rows = Arc::new(rows.collect());
    let (hidden, head) = (hidden_nd.into_dispatch(), head_vd.into_dispatch());
    let (dh, dw) = match kept {
        Some(kept) => {
            Dispatch::score_tokens_grad_kept(hidden, head, kept.into_dispatch(), rows, head_grad)
        }
        None => Dispatch::score_tokens_grad(hidden, head, rows, head_grad),
    };
    (Tensor::from_dispatch(dh), head_grad.then(|| Tensor::from_dispatch(dw)))
}

/// What the backward pass knows of a scored token.
#[derive(Debug, Clone, Copy)]
pub struct ScoredRow {
    target: u32,
    highest: f32,
    /// `−g / norm`: what an exponential is multiplied by.
    factor: f32,
    /// Gradient of the loss with respect to the token's log-prob.
    g: f32,
}

#[backend_extension(Flex)]
pub trait ScoreTokens: Backend {
    /// `[n, 7]`: the columns of [`TokenScores`].
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
    ) -> FloatTensor<Self>;

    /// The same, and `exp(logits − largest)`, `[n, v]`.
    fn score_tokens_keeping(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`token_scores_grad`]; the second tensor is empty unless `head_grad`.
    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        head_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same from what [`Self::score_tokens_keeping`] kept, which is used up.
    fn score_tokens_grad_kept(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        kept: FloatTensor<Self>,
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
        timed!("head");
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut out = vec![0.0; targets.len() * COLUMNS];
        let mut logits = Vec::new();
        for rows in head.chunks(targets.len()) {
            logits.clear();
            head.append_logits(slice(&hidden), rows.clone(), &mut logits);
            score_rows(&mut logits, &targets[rows.clone()], &mut out[columns(&rows)]);
        }
        tensor(out, &[targets.len(), COLUMNS])
    }

    fn score_tokens_keeping(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head");
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut out = vec![0.0; targets.len() * COLUMNS];
        let mut kept = Vec::with_capacity(targets.len() * head.vocab);
        for rows in head.chunks(targets.len()) {
            head.append_logits(slice(&hidden), rows.clone(), &mut kept);
            let logits = &mut kept[rows.start * head.vocab..];
            score_rows(logits, &targets[rows.clone()], &mut out[columns(&rows)]);
        }
        let kept = tensor(kept, &[targets.len(), head.vocab]);
        (tensor(out, &[targets.len(), COLUMNS]), kept)
    }

    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        head_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head.backward");
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut gradients = HeadGradients::new(&head, slice(&hidden), head_grad);
        let mut logits = Vec::new();
        for chunk in head.chunks(rows.len()) {
            logits.clear();
            head.append_logits(slice(&hidden), chunk.clone(), &mut logits);
            let scored = logits.par_chunks_exact_mut(head.vocab).zip(&rows[chunk.clone()]);
            scored.for_each(|(logits, row)| {
                exponentials(logits, row.highest);
                logit_gradient(logits, row);
            });
            gradients.add(chunk, &logits);
        }
        gradients.tensors()
    }

    fn score_tokens_grad_kept(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        head_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head.backward");
        let head = Head::new(head);
        let (hidden, mut kept) = (contiguous(hidden), contiguous(kept));
        let mut gradients = HeadGradients::new(&head, slice(&hidden), head_grad);
        for chunk in head.chunks(rows.len()) {
            let all = kept.storage_mut::<f32>();
            let logits = &mut all[chunk.start * head.vocab..chunk.end * head.vocab];
            let scored = logits.par_chunks_exact_mut(head.vocab).zip(&rows[chunk.clone()]);
            scored.for_each(|(exponentials, row)| logit_gradient(exponentials, row));
            gradients.add(chunk, logits);
        }
        gradients.tensors()
    }
}

/// The place of these rows in the columns of [`TokenScores`].
fn columns(rows: &Range<usize>) -> Range<usize> {
    rows.start * COLUMNS..rows.end * COLUMNS
}

/// The columns of each row of logits (`[c, v]`), which become exponentials.
fn score_rows(logits: &mut [f32], targets: &[u32], out: &mut [f32]) {
    let vocab = logits.len() / targets.len();
    let rows = logits.par_chunks_exact_mut(vocab).zip(out.par_chunks_exact_mut(COLUMNS));
    rows.zip(targets).for_each(|((logits, out), target)| {
        out.copy_from_slice(&score_row(logits, *target as usize));
    });
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

    fn matrix(&self) -> Matrix<'_> {
        Matrix::dense(slice(&self.weight), self.vocab, self.width)
    }

    /// Rows whose logits are formed together, in chunks of about one size: a product of a single row sums in
    /// another order than one of several, and a token's log-prob must not depend on what it is batched with.
    fn chunks(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let chunks = rows.div_ceil(chunk_rows(self.vocab)).max(1);
        let size = rows.div_ceil(chunks).max(1);
        (0..rows).step_by(size).map(move |start| start..(start + size).min(rows))
    }

    /// Appends `logits[c, v] = h[c, d] · head[v, d]ᵀ` for these rows of `hidden`.
    fn append_logits(&self, hidden: &[f32], rows: Range<usize>, logits: &mut Vec<f32>) {
        let hidden = &hidden[rows.start * self.width..rows.end * self.width];
        let hidden = Matrix::dense(hidden, rows.len(), self.width);
        append_product(hidden, self.matrix().transposed(), logits);
    }
}

/// The two gradients as they grow chunk by chunk.
struct HeadGradients<'a> {
    head: &'a Head,
    /// `[n, d]`.
    hidden: &'a [f32],
    d_hidden: Vec<f32>,
    /// `[v, d]`, where it is wanted; empty before the first chunk, of which there is none where nothing is
    /// scored.
    d_head: Option<Vec<f32>>,
}

impl<'a> HeadGradients<'a> {
    fn new(head: &'a Head, hidden: &'a [f32], head_grad: bool) -> Self {
        let d_hidden = Vec::with_capacity(hidden.len());
        Self { head, hidden, d_hidden, d_head: head_grad.then(Vec::new) }
    }

    /// Takes the gradients of the next chunk's logits (`[c, v]`).
    fn add(&mut self, rows: Range<usize>, d_logits: &[f32]) {
        let (vocab, width, chunk) = (self.head.vocab, self.head.width, rows.len());
        let place = rows.start * width..rows.end * width;
        // dh[c, d] = dl[c, v] · head[v, d]
        let d_logits = Matrix::dense(d_logits, chunk, vocab);
        append_product(d_logits, self.head.matrix(), &mut self.d_hidden);
        // dw[v, d] += dl[c, v]ᵀ · h[c, d]
        let hidden = Matrix::dense(&self.hidden[place], chunk, width);
        match &mut self.d_head {
            None => {}
            Some(sum) if sum.is_empty() => append_product(d_logits.transposed(), hidden, sum),
            Some(sum) => add_product(d_logits.transposed(), hidden, sum),
        }
    }

    fn tensors(self) -> (FloatTensor<Flex>, FloatTensor<Flex>) {
        let d_head = match self.d_head {
            Some(sum) if sum.is_empty() => vec![0.0; self.head.vocab * self.head.width],
            sum => sum.unwrap_or_default(),
        };
        let width = self.head.width;
        let rows = self.d_hidden.len() / width;
        let vocab = d_head.len() / width;
        (tensor(self.d_hidden, &[rows, width]), tensor(d_head, &[vocab, width]))
    }
}

vectorized!(
    /// One row of [`TokenScores`]; the logits become `exp(logit − largest)`. Sums are taken in blocks,
    /// each in float32, and added in double precision.
    fn score_row(logits: &mut [f32], target: usize) -> [f32; COLUMNS] = score_row_plain
);
vectorized!(
    /// `exp(logit − highest)` in place.
    fn exponentials(logits: &mut [f32], highest: f32) = exponentials_plain
);
vectorized!(
    /// Turns exponentials into the gradient of their logits, `g · (onehot(target) − softmax)`.
    fn logit_gradient(exponentials: &mut [f32], row: &ScoredRow) = logit_gradient_plain
);

#[inline(always)]
fn score_row_plain(logits: &mut [f32], target: usize) -> [f32; COLUMNS] {
    const BLOCK: usize = 256;
    let highest = lanes::highest(logits);
    let first_best = logits.iter().position(|logit| *logit == highest);
    let of_target = f64::from(logits[target] - highest);
    let (mut total, mut norm, mut weighted, mut squares) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut shifted = [0.0f32; BLOCK];
    for block in logits.chunks_mut(BLOCK) {
        let shifted = &mut shifted[..block.len()];
        for (shifted, logit) in shifted.iter_mut().zip(block.iter_mut()) {
            *shifted = *logit - highest;
            *logit = exp(*shifted);
        }
        total += f64::from(lanes::sum(shifted, |x| x));
        norm += f64::from(lanes::sum(block, |e| e));
        squares += f64::from(lanes::sum(block, |e| e * e));
        weighted += f64::from(lanes::sum_of_pairs(block, shifted, |e, x| e * x));
    }
    let log_norm = norm.ln();
    [
        (of_target - log_norm) as f32,
        (log_norm - weighted / norm) as f32,
        f32::from(first_best == Some(target)),
        (total / logits.len() as f64 + f64::from(highest)) as f32,
        highest,
        norm as f32,
        (squares.ln() - 2.0 * log_norm) as f32,
    ]
}

#[inline(always)]
fn exponentials_plain(logits: &mut [f32], highest: f32) {
    for logit in logits {
        *logit = exp(*logit - highest);
    }
}

#[inline(always)]
fn logit_gradient_plain(exponentials: &mut [f32], row: &ScoredRow) {
    for exponential in exponentials.iter_mut() {
        *exponential *= row.factor;
    }
    exponentials[row.target as usize] += row.g;
}

/// Rows whose float32 logits fit [`CHUNK_BYTES`].
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / 4 / vocab).max(1)
}

fn targets_tensor(targets: &[u32], like: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = targets.iter().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_data(TensorData::new(ids, [targets.len()]), &like.device())
        .reshape([targets.len(), 1])
}

/// [`token_scores`] composed of Burn's own operations: `[n, 7]` in float32.
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
        let highest = logits_cv.clone().max_dim(1);
        let norm = (logits_cv.clone() - highest.clone()).exp().sum_dim(1);
        let mean = logits_cv.mean_dim(1);
        Tensor::cat(vec![logp, entropy, correct, mean, highest, norm, log_sum_squares], 1)
    });
    Tensor::cat(chunks.collect(), 0)
}

/// [`token_scores_grad`] composed of Burn's own operations.
pub fn score_grad_composed(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    scores: &TokenScores,
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
        let highest = column(&scores.highest[first..first + len]);
        let probabilities = (logits - highest).exp() / column(&scores.norm[first..first + len]);
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
