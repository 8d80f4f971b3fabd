//! NEFTune (arXiv 2310.05914): uniform noise on the embeddings in training.
//!
//! As in transformers, the noise of a micro-batch is uniform in ±α / √(L · d), with `L` the length
//! to which its rows would be padded and `d` the width. Its values do not come from a generator's
//! state: they depend on the seed, the step, the row, the token's place in the row and the column.
//! So they are the same on any number of ranks, in any parts of a micro-batch, and after resuming.
//!
//! Legend: `t` tokens, `d` width.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::kernels::dropout::{TokenKeys, splitmix64};
use crate::kernels::host;
use crate::model::adapter::lora::name_hash;
use crate::model::decoder::EMBED_TOKENS;

/// The noise of one part of a micro-batch.
#[derive(Debug, Clone)]
pub struct EmbeddingNoise {
    /// A key for each token, `[t]`.
    pub tokens: Arc<TokenKeys>,
    /// `α / √L`.
    pub scale: f64,
}

impl EmbeddingNoise {
    /// `α` for a micro-batch whose rows would be padded to `length` tokens.
    pub fn new(alpha: f64, length: usize, tokens: Arc<TokenKeys>) -> Self {
        Self { tokens, scale: alpha / (length.max(1) as f64).sqrt() }
    }

    /// The noise as a tensor, `[t, d]`.
    pub fn tensor(&self, d: usize, device: &Device, dtype: DType) -> Tensor<2> {
        let mut values = vec![0f32; self.tokens.len() * d];
        let rows = values.par_chunks_mut(d.max(1)).zip(&**self.tokens);
        rows.for_each(|(row, token)| self.fill(*token, row));
        let data = TensorData::new(values, [self.tokens.len(), d]);
        host::upload::<2>(data, device, DType::F32).cast(dtype)
    }

    /// Value `c` of a token is `(2u − 1) · scale / √d`, where `u` are the highest 24 bits of
    /// `splitmix64(key + c)` as a share.
    fn fill(&self, token: u64, row: &mut [f32]) {
        let bound = self.scale / (row.len() as f64).sqrt();
        let key = splitmix64(token ^ name_hash(EMBED_TOKENS));
        for (column, value) in row.iter_mut().enumerate() {
            let bits = splitmix64(key.wrapping_add(column as u64)) >> 40;
            let share = bits as f64 / f64::from(1u32 << 24);
            *value = ((share * 2.0 - 1.0) * bound) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(noise: &EmbeddingNoise, d: usize) -> Vec<f32> {
        noise.tensor(d, &Device::flex(), DType::F32).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn noise_is_uniform_with_the_scale_of_the_paper() {
        let tokens = Arc::new((0..200).collect());
        let values = values(&EmbeddingNoise::new(5.0, 50, tokens), 64);
        let bound = 5.0 / (50.0f32 * 64.0).sqrt();
        assert!(values.iter().all(|x| x.abs() <= bound));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.03 * bound, "{mean}");
        assert!((square / (bound * bound) - 1.0 / 3.0).abs() < 0.02, "{square}");
    }

    #[test]
    fn a_row_depends_on_its_token_alone() {
        let of = |tokens: &[u64]| values(&EmbeddingNoise::new(1.0, 4, Arc::new(tokens.into())), 16);
        let (both, second) = (of(&[3, 9]), of(&[9]));
        assert_eq!(both[16..], second);
        assert_ne!(both[..16], second);
    }
}
