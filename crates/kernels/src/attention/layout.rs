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
    /// Sliding window, in tokens, of the layers that have one: a query sees itself and the
    /// `window - 1` keys before it.
    pub window: Option<usize>,
    /// Whether some layers have the window and others do not.
    pub windows_differ: bool,
    /// Inverse rotary frequencies in radians per position, `[e / 2]`.
    pub rotary_frequencies: Vec<f64>,
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
    /// The layout of the layers without a window, if the model has both kinds of layers.
    without_window: Option<Arc<Self>>,
    /// The segments of the batch.
    pub segments: Segments,
    /// Cosine of the rotary angle of each token, `[t, e / 2]`.
    pub cos: Vec<f32>,
    /// Sine of the rotary angle of each token, `[t, e / 2]`.
    pub sin: Vec<f32>,
    /// The same on a GPU, once a kernel has asked for it.
    #[cfg(feature = "cube")]
    pub(super) on_device: super::cube::OnDevice,
}

impl AttentionLayout {
    /// The layout of a batch with these segments; rotary positions are [`Segments::positions`].
    pub fn new(shape: &AttentionShape, segments: &Segments) -> Arc<Self> {
        let (cos, sin) = rotary_angles(&shape.rotary_frequencies, &segments.positions());
        let layout = Self {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            window: shape.window,
            without_window: None,
            segments: segments.clone(),
            cos,
            sin,
            #[cfg(feature = "cube")]
            on_device: Default::default(),
        };
        let without_window =
            shape.windows_differ.then(|| Arc::new(Self { window: None, ..layout.clone() }));
        Arc::new(Self { without_window, ..layout })
    }

    /// The layout for a layer with the model's window (`windowed`) or without one.
    pub fn of_layer(layout: &Arc<Self>, windowed: bool) -> &Arc<Self> {
        match &layout.without_window {
            Some(without_window) if !windowed => without_window,
            _ => layout,
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

/// Cosine and sine of the rotary angles at `positions`, both `[positions, e / 2]`, for the inverse
/// frequencies `[e / 2]`. They are computed in double precision and rounded once.
pub fn rotary_angles(frequencies: &[f64], positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
    // transformers forms the angle in float32; the same here, so that long inputs agree.
    let angles = positions
        .iter()
        .flat_map(|position| frequencies.iter().map(move |f| *position as f32 * *f as f32));
    angles
        .map(|angle| f64::from(angle).sin_cos())
        .map(|(sin, cos)| (cos as f32, sin as f32))
        .unzip()
}
