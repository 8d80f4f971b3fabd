//! The inputs of attention besides queries, keys and values.

use std::ops::Range;
use std::sync::Arc;

use super::Segments;

/// The attention of a model, the same for every batch.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements of a head, an even number.
    pub head_dim: usize,
    /// The soft cap of the scores: `c · tanh(score / c)` replaces each score.
    pub softcap: Option<f32>,
    /// The kinds of layers, at least one. Each layer has the index of its kind.
    pub kinds: Vec<LayerKind>,
}

/// The properties in which layers of one model may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerKind {
    /// Sliding window in tokens: a query sees itself and the `window - 1` keys before it.
    pub window: Option<usize>,
    /// Inverse rotary frequencies in radians per position, at most `[e / 2]`. The first `2 n`
    /// elements of a head are rotated by `n` frequencies. Zeros rotate nothing.
    pub rotary_frequencies: Vec<f64>,
    /// The factor of cosines and sines, and so of the rotated elements.
    pub rotary_factor: f64,
    /// Other frequencies for long sequences, if the model has any.
    pub long: Option<LongFrequencies>,
}

/// The rotary frequencies of sequences with many tokens (LongRoPE, arXiv 2402.13753).
#[derive(Debug, Clone, PartialEq)]
pub struct LongFrequencies {
    /// Sequences with more tokens than this have these frequencies, for all their tokens.
    pub beyond: usize,
    /// As many as [`LayerKind::rotary_frequencies`].
    pub rotary_frequencies: Vec<f64>,
}

impl LayerKind {
    /// The rotary frequencies of a token in a sequence of `length` tokens.
    fn frequencies(&self, length: u32) -> &[f64] {
        let long = self.long.as_ref().filter(|long| length as usize > long.beyond);
        long.map_or(&self.rotary_frequencies, |long| &long.rotary_frequencies)
    }
}

/// Heads, sliding window, segments and rotary angles of a batch.
#[derive(Debug, Clone)]
pub struct AttentionLayout {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// A query sees itself and the `window - 1` keys before it.
    pub window: Option<usize>,
    /// The soft cap of the scores.
    pub softcap: Option<f32>,
    /// The layouts of the model's other kinds of layers.
    other_kinds: Vec<Arc<Self>>,
    /// The segments of the batch.
    pub segments: Segments,
    /// The number of rotary angles of a token, `n`: the first `2 n` elements of a head are rotated.
    pub angles: usize,
    /// Cosine of the rotary angles of each token, times their factor, `[t, n]`.
    pub cos: Vec<f32>,
    /// Sine of the rotary angles of each token, times their factor, `[t, n]`.
    pub sin: Vec<f32>,
    /// The same on a GPU, once a kernel has asked for it.
    #[cfg(feature = "cube")]
    pub(super) on_device: super::cube::prepared::OnDevice,
}

impl AttentionLayout {
    /// The layout of a batch with these segments; rotary positions are [`Segments::positions`], and
    /// the length of a token's sequence is its [`Segments::lengths`].
    ///
    /// # Panics
    /// If `shape` has no kind of layer.
    pub fn new(shape: &AttentionShape, segments: &Segments) -> Arc<Self> {
        let (positions, lengths) = (segments.positions(), segments.lengths());
        let of_kind = |kind: &LayerKind| {
            let (cos, sin) = rotary_angles(kind, &positions, &lengths);
            Self {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                window: kind.window,
                softcap: shape.softcap,
                other_kinds: Vec::new(),
                segments: segments.clone(),
                angles: kind.rotary_frequencies.len(),
                cos,
                sin,
                #[cfg(feature = "cube")]
                on_device: Default::default(),
            }
        };
        let (first, others) = shape.kinds.split_first().expect("a model has a kind of layer");
        let other_kinds = others.iter().map(|kind| Arc::new(of_kind(kind))).collect();
        Arc::new(Self { other_kinds, ..of_kind(first) })
    }

    /// The layout for a layer of the given kind. A layout of one kind serves all layers.
    pub fn of_layer(layout: &Arc<Self>, kind: usize) -> &Arc<Self> {
        match kind.checked_sub(1) {
            None => layout,
            Some(other) => layout.other_kinds.get(other).unwrap_or(layout),
        }
    }

    /// Factor on the scores, `1 / sqrt(e)`.
    pub fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// Query heads that share one key-value head.
    pub fn repeat(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Keys that a query at position `position` of its sequence sees, as a range of positions.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// Cosine and sine of the rotary angles of a kind of layer at `positions`, in sequences of `lengths`
/// tokens: both `[positions, n]`. They are computed in double precision and rounded once, then
/// multiplied by the kind's factor.
pub fn rotary_angles(kind: &LayerKind, positions: &[u32], lengths: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let factor = kind.rotary_factor as f32;
    // transformers forms the angle in float32; the same here, so that long inputs agree.
    let angles = positions.iter().zip(lengths).flat_map(|(position, length)| {
        kind.frequencies(*length).iter().map(|frequency| *position as f32 * *frequency as f32)
    });
    angles
        .map(|angle| f64::from(angle).sin_cos())
        .map(|(sin, cos)| (cos as f32 * factor, sin as f32 * factor))
        .unzip()
}
