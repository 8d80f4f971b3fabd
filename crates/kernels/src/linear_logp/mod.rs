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
//!   recomputed. The GPU and the composed form keep none.
//! - [`token_scores_with_grad`], for a loss whose gradient does not depend on the log-probs (SFT):
//!   the gradients of a chunk follow right after its exponentials; nothing is kept or recomputed.
//!
//! A head with a soft cap `c` has `c · tanh(z / c)` in place of `z`. Its capped logits are then
//! kept instead of exponentials.
//!
//! Legend: `n` scored tokens, `d` width, `v` vocabulary, `c` rows of a chunk, `m` rows that are
//! kept.

mod capped;
mod chunks;
mod composed;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod row;
mod scores;

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};

use super::form::Form;
pub use chunks::work_bytes;
pub use composed::{score_composed, score_grad_composed};
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;
pub use scores::{HeadGradients, OutputHead, ScoredRow, TokenScores};

use chunks::kept_rows;

/// `exp(logits − largest)`, or capped logits, of the first scored tokens, `[m, v]`, for the backward
/// pass.
pub type KeptExponentials = Option<Tensor<2>>;

/// Scores `targets` (`[n]`) from `hidden_nd` (`[n, d]`, after the final norm) and the head.
pub fn token_scores(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
) -> TokenScores {
    score(hidden_nd, head.into(), targets, 0).0
}

/// [`token_scores`] for a forward pass that a backward pass follows.
pub fn token_scores_keeping(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
) -> (TokenScores, KeptExponentials) {
    let head = head.into();
    let kept_rows = match form_of(&hidden_nd) {
        Form::Flex => kept_rows(targets.len(), head.weight_vd.dims()[0]),
        Form::Cube | Form::Composed => 0,
    };
    score(hidden_nd, head, targets, kept_rows)
}

fn score(
    hidden_nd: Tensor<2>,
    head: OutputHead,
    targets: &[u32],
    kept_rows: usize,
) -> (TokenScores, KeptExponentials) {
    if targets.is_empty() {
        return (TokenScores::default(), None);
    }
    match form_of(&hidden_nd) {
        Form::Composed => {
            let columns = score_composed(hidden_nd, head, targets);
            return (TokenScores::from_columns(columns), None);
        }
        Form::Flex | Form::Cube => {}
    }
    let (columns, kept) = Dispatch::score_tokens(
        hidden_nd.into_dispatch(),
        head.weight_vd.into_dispatch(),
        head.softcap,
        Arc::new(targets.to_vec()),
        kept_rows,
    );
    let kept = (kept_rows > 0).then(|| Tensor::from_dispatch(kept));
    (TokenScores::from_columns(Tensor::from_dispatch(columns)), kept)
}

/// Gradients of `Σ upstream · logp`, given the `scores` and `kept` of [`token_scores_keeping`]. The
/// gradient of the head is only computed if `trains_head`.
pub fn token_scores_grad(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
    scores: &TokenScores,
    kept: KeptExponentials,
    upstream: &[f32],
    trains_head: bool,
) -> HeadGradients {
    let head = head.into();
    if targets.is_empty() {
        let head_vd = trains_head.then(|| head.weight_vd.zeros_like());
        return HeadGradients { hidden_nd: hidden_nd.zeros_like(), head_vd };
    }
    let nothing_kept = match form_of(&hidden_nd) {
        Form::Composed => {
            return score_grad_composed(hidden_nd, head, targets, scores, upstream, trains_head);
        }
        Form::Flex => [0, head.weight_vd.dims()[0]],
        // Its operation ignores the tensor; CubeCL has no empty buffers.
        Form::Cube => [1, 1],
    };
    let rows = (0..targets.len()).map(|row| {
        ScoredRow::new(targets[row], scores.highest[row], scores.norm[row], upstream[row])
    });
    let kept = kept.unwrap_or_else(|| Tensor::empty(nothing_kept, &hidden_nd.device()));
    let (hidden, d_head) = Dispatch::score_tokens_grad(
        hidden_nd.into_dispatch(),
        head.weight_vd.into_dispatch(),
        head.softcap,
        kept.into_dispatch(),
        Arc::new(rows.collect()),
        trains_head,
    );
    let head_vd = trains_head.then(|| Tensor::from_dispatch(d_head));
    HeadGradients { hidden_nd: Tensor::from_dispatch(hidden), head_vd }
}

/// [`token_scores`], and the gradients of `Σ upstream · logp` for an `upstream` (`[n]`) that does
/// not depend on the scores. The gradient of the head is only computed if `trains_head`.
pub fn token_scores_with_grad(
    hidden_nd: Tensor<2>,
    head: impl Into<OutputHead>,
    targets: &[u32],
    upstream: &[f32],
    trains_head: bool,
) -> (TokenScores, HeadGradients) {
    let head = head.into();
    if form_of(&hidden_nd) == Form::Composed || targets.is_empty() {
        let scores = token_scores(hidden_nd.clone(), head.clone(), targets);
        let gradients =
            token_scores_grad(hidden_nd, head, targets, &scores, None, upstream, trains_head);
        return (scores, gradients);
    }
    let (columns, hidden, d_head) = Dispatch::score_tokens_with_grad(
        hidden_nd.into_dispatch(),
        head.weight_vd.into_dispatch(),
        head.softcap,
        Arc::new(targets.to_vec()),
        Arc::new(upstream.to_vec()),
        trains_head,
    );
    let scores = TokenScores::from_columns(Tensor::from_dispatch(columns));
    let hidden_nd = Tensor::from_dispatch(hidden);
    let head_vd = trains_head.then(|| Tensor::from_dispatch(d_head));
    (scores, HeadGradients { hidden_nd, head_vd })
}

/// The form that runs for inputs of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::fused(device, dtype)
}

fn form_of(hidden_nd: &Tensor<2>) -> Form {
    form(&hidden_nd.device(), hidden_nd.dtype())
}

/// Back ends with their own form of the operations of this module.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait ScoreTokens: Backend {
    /// The columns of [`TokenScores`], `[n, 7]`, and `exp(logits − largest)` (capped logits, if
    /// they have a soft cap) of the first `kept_rows` tokens, `[m, v]`. The kept rows are whole
    /// chunks.
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        targets: Arc<Vec<u32>>,
        kept_rows: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`token_scores_grad`]. It overwrites the kept exponentials. The gradient of a head that
    /// is not trained is undefined.
    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        kept: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`token_scores_with_grad`]. Returns the columns and the gradients of the hidden states
    /// and the head (undefined for a head that is not trained).
    fn score_tokens_with_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        targets: Arc<Vec<u32>>,
        upstream: Arc<Vec<f32>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
