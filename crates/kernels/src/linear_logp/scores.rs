//! The values that the head computes for each scored token, and its gradients.

use burn::tensor::Tensor;

use crate::host;

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
pub(super) const COLUMNS: usize = 7;
pub(super) const HIGHEST: usize = 4;
pub(super) const NORM: usize = 5;

/// The output head.
#[derive(Debug, Clone)]
pub struct OutputHead {
    /// `[v, d]`.
    pub weight_vd: Tensor<2>,
    /// The soft cap of the logits: `c · tanh(logit / c)` replaces each logit.
    pub softcap: Option<f32>,
}

impl From<Tensor<2>> for OutputHead {
    /// A head without a soft cap.
    fn from(weight_vd: Tensor<2>) -> Self {
        Self { weight_vd, softcap: None }
    }
}

/// Gradients with respect to the hidden states and the head.
#[derive(Debug, Clone)]
pub struct HeadGradients {
    /// `[n, d]`.
    pub hidden_nd: Tensor<2>,
    /// `[v, d]`; none for a frozen head.
    pub head_vd: Option<Tensor<2>>,
}

impl TokenScores {
    pub(super) fn from_columns(columns: Tensor<2>) -> Self {
        let values = host::read(columns).convert::<f32>().try_into_vec::<f32>();
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
    pub(super) target: u32,
    pub(super) highest: f32,
    /// Factor on the exponentials, `−g / norm`.
    pub(super) factor: f32,
    /// Gradient of the loss with respect to the token's log-prob.
    pub(super) g: f32,
}

impl ScoredRow {
    pub(super) fn new(target: u32, highest: f32, norm: f32, g: f32) -> Self {
        Self { target, highest, factor: -g / norm, g }
    }
}
