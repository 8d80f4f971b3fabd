//! The adapter of one linear layer: `out + s · B · A · dropout(x)`.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use crate::kernels::dropout::{Mask, TokenKeys, dropout, splitmix64};
use crate::kernels::linear::linear;
use crate::model::parameter::Parameter;

/// The adapter of a linear layer. A and B are float32, whatever the type of the base.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[r, in]`.
    pub a: Parameter,
    /// `[out, r]`.
    pub b: Parameter,
    /// s.
    pub scale: f64,
    /// The probability with which an element of the input is dropped in training.
    pub dropout: f64,
    /// The mask of a training step; without it nothing is dropped.
    mask: Option<Mask>,
}

impl Lora {
    /// An adapter in inference: nothing is dropped until [`Self::with_mask`].
    pub fn new(a: Parameter, b: Parameter, scale: f64, dropout: f64) -> Self {
        Self { a, b, scale, dropout, mask: None }
    }

    /// Adds the adapter's output for the input `x` (`[t, in]`) to `out` (`[t, out]`). As in PEFT,
    /// it is computed and added in float32.
    pub fn add_to(&self, out: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let dtype = out.dtype();
        let x = in_float32(x);
        let x = match &self.mask {
            Some(mask) => dropout(x, mask),
            None => x,
        };
        // The narrow product is scaled, not the wide one.
        let inner_tr = linear(x, self.a.matrix()).mul_scalar(self.scale);
        let sum = in_float32(out) + linear(inner_tr, self.b.matrix());
        if dtype == DType::F32 { sum } else { sum.cast(dtype) }
    }

    /// The change of the base's weight, `s · B · A`, `[out, in]` flat, in float32.
    pub fn delta(&self) -> Tensor<2> {
        self.b.matrix().matmul(self.a.matrix()).mul_scalar(self.scale)
    }

    /// The same adapter, with the dropout of a training step if it has any.
    pub fn with_mask(&self, tokens: &Arc<TokenKeys>) -> Self {
        let place = name_hash(&self.a.name);
        let mask = || Mask { tokens: tokens.clone(), place, p: self.dropout };
        Self { mask: (self.dropout > 0.0).then(mask), ..self.clone() }
    }
}

fn in_float32(x: Tensor<2>) -> Tensor<2> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// The key of a token in dropout: it depends on the seed, the number of steps done, the row, and
/// the token's place in the row.
pub fn token_key(seed: u64, step: u64, row: usize, token: usize) -> u64 {
    let parts = [step, row as u64, token as u64];
    parts.into_iter().fold(splitmix64(seed), |key, part| splitmix64(key ^ part))
}

/// FNV-1a of a parameter's name (Fowler, Noll, Vo).
pub fn name_hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325, step)
}

/// The values of a new A, `[r, in]`: uniform in ±1/√in, which is PEFT's Kaiming initialization
/// with a = √5. Value `i` is `(u · 2 − 1) / √in`, where `u` are the highest 24 bits of
/// `splitmix64(key + i)` as a share, and `key` is `splitmix64(seed ^ FNV-1a(name))`. So it depends
/// on the seed and on the parameter's name alone.
pub fn initial_a(seed: u64, name: &str, [r, width]: [usize; 2]) -> Vec<f32> {
    let key = splitmix64(seed ^ name_hash(name));
    let bound = 1.0 / (width as f64).sqrt();
    let uniform = |i: u64| (splitmix64(key.wrapping_add(i)) >> 40) as f64 / f64::from(1u32 << 24);
    (0..(r * width) as u64).map(|i| ((uniform(i) * 2.0 - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_are_uniform_and_differ_by_name_and_seed() {
        let values = initial_a(42, "model.layers.0.self_attn.q_proj.lora_A.weight", [8, 1024]);
        let bound = 1.0 / 32.0;
        assert!(values.iter().all(|x| x.abs() <= bound));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.05 * bound, "{mean}");
        assert!((square / (bound * bound) - 1.0 / 3.0).abs() < 0.01, "{square}");
        let first = |seed, name| initial_a(seed, name, [1, 4]);
        assert_ne!(first(1, "x"), first(2, "x"));
        assert_ne!(first(1, "x"), first(1, "y"));
        assert_eq!(name_hash("a"), 0xAF63_DC4C_8601_EC8C, "the published value");
    }

    #[test]
    fn every_part_of_a_tokens_place_changes_its_key() {
        let key = token_key(1, 2, 3, 4);
        for other in [token_key(9, 2, 3, 4), token_key(1, 9, 3, 4), token_key(1, 2, 9, 4)] {
            assert_ne!(key, other);
        }
        assert_ne!(key, token_key(1, 2, 3, 9));
        assert_ne!(token_key(1, 2, 3, 4), token_key(1, 3, 2, 4));
    }
}
