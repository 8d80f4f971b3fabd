//! Log-probs of target tokens directly from hidden states, without the whole matrix of logits.
//!
//! With `z = hidden · headᵀ`, `logp = z[target] − ln Σ exp(z)`; its gradient with respect to `z` is
//! `onehot(target) − softmax(z)`. Only scored positions are computed, in chunks of rows whose
//! logits fit 64 MiB. The gradients of hidden states and head are computed in one of two
//! ways, with the same bits:
//!
//! - [`token_scores_keeping`], then [`token_scores_grad`]: the backward pass turns the exponentials
//!   of a chunk's logits into the gradient of the logits in place. The exponentials of the first
//!   chunks are kept as long as they fit 256 MiB; the logits of the other chunks are
//!   recomputed.
//! - [`token_scores_with_grad`], for a loss whose gradient does not depend on the log-probs (SFT):
//!   the gradients of a chunk follow right after its exponentials; nothing is kept or recomputed.
//!
//! Legend: `n` scored tokens, `d` width, `v` vocabulary, `c` rows of a chunk, `m` rows that are
//! kept.

mod composed;
mod flex;

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};

use super::form::Form;
pub use composed::{score_composed, score_grad_composed};

/// Size of the logits of one chunk, in bytes.
const CHUNK_BYTES: usize = 64 << 20;

/// Size of the exponentials that a forward pass may keep for its backward pass, in bytes.
const KEPT_BYTES: usize = 256 << 20;

/// Statistics of each scored token under the distribution over the vocabulary, all `[n]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// `log_softmax(hidden · headᵀ)[target]`, in nats.
    pub logp: Vec<f32>,
    /// Entropy of the distribution, in nats.
    pub entropy: Vec<f32>,
    /// Whether the target is the most likely token.
    pub correct: Vec<bool>,
    /// Mean of the logits over the vocabulary.
    pub mean_logit: Vec<f32>,
    /// The largest logit; the backward pass needs it.
    pub highest: Vec<f32>,
    /// `Σ exp(logit − highest)`; the backward pass needs it.
    pub norm: Vec<f32>,
    /// `ln Σ p²` over the vocabulary, for the token weights of WPO (arXiv 2406.11827).
    pub log_sum_squares: Vec<f32>,
}

/// Columns of the operation's result, in the order of [`TokenScores`], and the indices of two.
const COLUMNS: usize = 7;
const HIGHEST: usize = 4;
const NORM: usize = 5;

/// `exp(logits − largest)` of the first scored tokens, `[m, v]`, for the backward pass.
pub type KeptExponentials = Option<Tensor<2>>;

/// Gradients with respect to the hidden states and the head.
#[derive(Debug, Clone)]
pub struct HeadGradients {
    /// `[n, d]`.
    pub hidden_nd: Tensor<2>,
    /// `[v, d]`; none for a frozen head.
    pub head_vd: Option<Tensor<2>>,
}

/// Scores `targets` (`[n]`) from `hidden_nd` (`[n, d]`, after the final norm) and `head_vd`
/// (`[v, d]`).
pub fn token_scores(hidden_nd: Tensor<2>, head_vd: Tensor<2>, targets: &[u32]) -> TokenScores {
    score(hidden_nd, head_vd, targets, 0).0
}

/// [`token_scores`] for a forward pass that a backward pass follows.
pub fn token_scores_keeping(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
) -> (TokenScores, KeptExponentials) {
    let kept_rows = kept_rows(targets.len(), head_vd.dims()[0]);
    score(hidden_nd, head_vd, targets, kept_rows)
}

fn score(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    kept_rows: usize,
) -> (TokenScores, KeptExponentials) {
    if targets.is_empty() {
        return (TokenScores::default(), None);
    }
    if form(&hidden_nd.device(), hidden_nd.dtype()) == Form::Composed {
        return (TokenScores::from_columns(score_composed(hidden_nd, head_vd, targets)), None);
    }
    let (columns, kept) = Dispatch::score_tokens(
        hidden_nd.into_dispatch(),
        head_vd.into_dispatch(),
        Arc::new(targets.to_vec()),
        kept_rows,
    );
    let kept = (kept_rows > 0).then(|| Tensor::from_dispatch(kept));
    (TokenScores::from_columns(Tensor::from_dispatch(columns)), kept)
}

/// Gradients of `Σ upstream · logp`, after [`token_scores_keeping`] gave `scores` and `kept`. That of the
/// head is only made if `trains_head`.
pub fn token_scores_grad(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    scores: &TokenScores,
    kept: KeptExponentials,
    upstream: &[f32],
    trains_head: bool,
) -> HeadGradients {
    if targets.is_empty() {
        let head_vd = trains_head.then(|| head_vd.zeros_like());
        return HeadGradients { hidden_nd: hidden_nd.zeros_like(), head_vd };
    }
    if form(&hidden_nd.device(), hidden_nd.dtype()) == Form::Composed {
        return score_grad_composed(hidden_nd, head_vd, targets, scores, upstream, trains_head);
    }
    let rows = (0..targets.len()).map(|row| {
        ScoredRow::new(targets[row], scores.highest[row], scores.norm[row], upstream[row])
    });
    let kept = kept.unwrap_or_else(|| Tensor::empty([0, head_vd.dims()[0]], &hidden_nd.device()));
    let (hidden, head) = Dispatch::score_tokens_grad(
        hidden_nd.into_dispatch(),
        head_vd.into_dispatch(),
        kept.into_dispatch(),
        Arc::new(rows.collect()),
        trains_head,
    );
    let head_vd = trains_head.then(|| Tensor::from_dispatch(head));
    HeadGradients { hidden_nd: Tensor::from_dispatch(hidden), head_vd }
}

/// [`token_scores`], and the gradients of `Σ upstream · logp` for an `upstream` (`[n]`) that does
/// not depend on the scores. The gradient of the head is only computed if `trains_head`.
pub fn token_scores_with_grad(
    hidden_nd: Tensor<2>,
    head_vd: Tensor<2>,
    targets: &[u32],
    upstream: &[f32],
    trains_head: bool,
) -> (TokenScores, HeadGradients) {
    let form = form(&hidden_nd.device(), hidden_nd.dtype());
    if form == Form::Composed || targets.is_empty() {
        let scores = token_scores(hidden_nd.clone(), head_vd.clone(), targets);
        let gradients =
            token_scores_grad(hidden_nd, head_vd, targets, &scores, None, upstream, trains_head);
        return (scores, gradients);
    }
    let (columns, hidden, head) = Dispatch::score_tokens_with_grad(
        hidden_nd.into_dispatch(),
        head_vd.into_dispatch(),
        Arc::new(targets.to_vec()),
        Arc::new(upstream.to_vec()),
        trains_head,
    );
    let scores = TokenScores::from_columns(Tensor::from_dispatch(columns));
    let hidden_nd = Tensor::from_dispatch(hidden);
    let head_vd = trains_head.then(|| Tensor::from_dispatch(head));
    (scores, HeadGradients { hidden_nd, head_vd })
}

/// The form that runs for inputs of this type on this device: the CPU form takes float32.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::flex_if(dtype == DType::F32, device)
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
            highest: column(HIGHEST).collect(),
            norm: column(NORM).collect(),
            log_sum_squares: column(6).collect(),
        }
    }
}

/// A scored token as the backward pass needs it.
#[derive(Debug, Clone, Copy)]
pub struct ScoredRow {
    target: u32,
    highest: f32,
    /// Factor on the exponentials, `−g / norm`.
    factor: f32,
    /// Gradient of the loss with respect to the token's log-prob.
    g: f32,
}

impl ScoredRow {
    fn new(target: u32, highest: f32, norm: f32, g: f32) -> Self {
        Self { target, highest, factor: -g / norm, g }
    }
}

/// Back ends with their own form of the operations of this module.
#[backend_extension(Flex)]
pub trait ScoreTokens: Backend {
    /// The columns of [`TokenScores`], `[n, 7]`, and `exp(logits − largest)` of the first
    /// `kept_rows` tokens, `[m, v]`. The kept rows are whole chunks.
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
        kept_rows: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`token_scores_grad`]; it overwrites the kept exponentials. The gradient of a head that is
    /// not trained is empty, `[0, d]`.
    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`token_scores_with_grad`]. Returns the columns and the gradients of the hidden states
    /// and the head (empty, `[0, d]`, for a head that is not trained).
    fn score_tokens_with_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
        upstream: Arc<Vec<f32>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Bytes that the head uses for `n` scored tokens besides hidden states, weights and gradients: its
/// logits and what it keeps for the backward pass. `upstream_is_known` stands for
/// [`token_scores_with_grad`], or for a pass without gradients, which keep nothing.
pub fn work_bytes(form: Form, n: usize, vocab: usize, upstream_is_known: bool) -> usize {
    match form {
        Form::Flex if upstream_is_known => chunk_bytes(n, vocab),
        Form::Flex => bytes_to_gradient(n, vocab),
        // Logits in both precisions, their log-softmax, its exponential, the product of these two.
        Form::Composed => 5 * (4 * vocab * n.min(chunk_rows(vocab))),
    }
}

/// Bytes of the logits of one chunk of `n` scored tokens.
fn chunk_bytes(n: usize, vocab: usize) -> usize {
    4 * vocab * chunk_len(n, vocab).min(n)
}

/// Bytes of the exponentials that are kept between both passes, and of a chunk of logits if not all
/// are kept.
fn bytes_to_gradient(n: usize, vocab: usize) -> usize {
    let kept = kept_rows(n, vocab);
    let passing = if kept < n { chunk_bytes(n, vocab) } else { 0 };
    4 * vocab * kept + passing
}

/// Rows whose float32 logits fit [`CHUNK_BYTES`].
fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / 4 / vocab).max(1)
}

/// Rows of a chunk. Chunks have nearly equal sizes: a product of a single row sums in another order
/// than one of several rows, and the log-prob of a token must not depend on the rest of the batch.
fn chunk_len(n: usize, vocab: usize) -> usize {
    let chunks = n.div_ceil(chunk_rows(vocab)).max(1);
    n.div_ceil(chunks).max(1)
}

/// Rows whose exponentials are kept: whole chunks that fit [`KEPT_BYTES`].
fn kept_rows(n: usize, vocab: usize) -> usize {
    let chunk = chunk_len(n, vocab);
    (KEPT_BYTES / 4 / vocab / chunk * chunk).min(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_rows_are_whole_chunks_within_the_bound() {
        let vocab = 32_000;
        for n in [0, 1, 524, 525, 2_048, 2_097, 2_098, 4_096, 100_000] {
            let (kept, chunk) = (kept_rows(n, vocab), chunk_len(n, vocab));
            assert!(kept == n || kept % chunk == 0, "{n}: {kept} of chunks of {chunk}");
            assert!(4 * vocab * kept <= KEPT_BYTES && chunk <= chunk_rows(vocab));
            assert!(kept == n || kept + chunk > KEPT_BYTES / 4 / vocab, "{n}: one more would fit");
        }
    }
}
