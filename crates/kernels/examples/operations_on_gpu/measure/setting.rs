//! Shapes and inputs of the operations.

use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use favonius_kernels::attention::{AttentionLayout, AttentionShape, LayerKind, Segments};

/// The sizes of a decoder.
pub struct Shape {
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub vocabulary: usize,
    /// Tokens of a sequence of the batch.
    pub sequence: usize,
    /// Tokens whose log-prob is computed at a time.
    pub scored: usize,
}

/// Mistral-7B.
pub const MISTRAL_7B: Shape = Shape {
    width: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    feed_forward: 14336,
    vocabulary: 32000,
    sequence: 1024,
    scored: 1024,
};

/// A decoder for which every operation takes milliseconds on a CPU.
pub const TINY: Shape = Shape {
    width: 32,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    feed_forward: 64,
    vocabulary: 97,
    sequence: 24,
    scored: 16,
};

/// What an operation is measured on.
pub struct Setting {
    pub shape: &'static Shape,
    pub tokens: usize,
    pub device: Device,
    pub dtype: DType,
}

impl Setting {
    /// Random numbers in ±1/2, `[rows, columns]`, in the type of the setting.
    pub fn matrix(&self, rows: usize, columns: usize) -> Tensor<2> {
        let values = Distribution::Uniform(-0.5, 0.5);
        let matrix = Tensor::<2>::random([rows, columns], values, (&self.device, DType::F32));
        matrix.cast(self.dtype)
    }

    /// Random numbers in ±1/2 in float32, as many as the largest matrix of a layer has.
    pub fn vector(&self) -> Tensor<1> {
        let len = self.shape.width * self.shape.feed_forward;
        let values = Distribution::Uniform(-0.5, 0.5);
        Tensor::random([len], values, (&self.device, DType::F32))
    }

    /// Token ids below the size of the vocabulary, of which some repeat.
    pub fn ids(&self, count: usize) -> Vec<u32> {
        let vocabulary = self.shape.vocabulary as u32;
        (0..count as u32).map(|row| row.wrapping_mul(7919) % 4001 % vocabulary).collect()
    }

    /// The layout of sequences of equal length.
    pub fn sequences(&self) -> Arc<AttentionLayout> {
        let mut segments = Segments::default();
        for _ in 0..self.tokens / self.shape.sequence {
            segments.push(self.shape.sequence, None);
        }
        self.layout(&segments)
    }

    /// The layout of pairs: a prompt, and two responses that both see it. All three are equally
    /// long; prompt and response together have the length of a sequence.
    pub fn pairs(&self) -> Arc<AttentionLayout> {
        let part = self.shape.sequence / 2;
        let mut segments = Segments::default();
        for _ in 0..self.tokens / (3 * part) {
            let prompt = segments.push(part, None);
            segments.push(part, Some(prompt));
            segments.push(part, Some(prompt));
        }
        self.layout(&segments)
    }

    fn layout(&self, segments: &Segments) -> Arc<AttentionLayout> {
        let head_dim = self.shape.head_dim;
        let frequency = |i: usize| 10_000f64.powf(-2.0 * i as f64 / head_dim as f64);
        let kind = LayerKind {
            window: None,
            rotary_frequencies: (0..head_dim / 2).map(frequency).collect(),
            rotary_factor: 1.0,
            long: None,
        };
        let shape = AttentionShape {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim,
            softcap: None,
            kinds: vec![kind],
        };
        AttentionLayout::new(&shape, segments)
    }
}
