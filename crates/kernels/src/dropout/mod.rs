//! Dropout whose mask is a function of the token, not of a generator's state.
//!
//! Element `c` of a token's row is dropped if 32 bits of a hash of (the token's key, the
//! operation's place, `c`) are below `p · 2³²`; the others are divided by `1 − p`. The hash is
//! splitmix64 (Steele, Lea, Flood 2014). So the mask does not depend on the number of threads, on
//! the other tokens of the batch, or on whether the layer is computed for the first time or again.
//! No mask is stored: the backward pass computes it again.
//!
//! Legend: `t` tokens, `i` width.

mod composed;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod keys;

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::dropout_composed;
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;
pub use keys::TokenKeys;

/// Two to the 64th, divided by the golden ratio: splitmix64's step.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The mask of one dropout operation.
#[derive(Debug, Clone)]
pub struct Mask {
    /// A key for each token, `[t]`.
    pub tokens: Arc<TokenKeys>,
    /// A number of the operation, so that two operations on the same tokens have other masks.
    pub place: u64,
    /// The probability that an element is dropped, at least 0 and below 1.
    pub p: f64,
}

impl Mask {
    /// An element is dropped if its 32 bits are below this.
    fn threshold(&self) -> u32 {
        (self.p * 4_294_967_296.0).round() as u32
    }

    fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }

    /// Writes `x`, the row of token `token`, after dropout into `out`.
    fn apply(&self, token: usize, x: &[f32], out: &mut [f32]) {
        let key = splitmix64(self.tokens[token] ^ self.place);
        let (threshold, scale) = (self.threshold(), self.scale());
        let kept = |bits: u32, x: f32| if bits < threshold { 0.0 } else { x * scale };
        for (pair, (out, x)) in out.chunks_mut(2).zip(x.chunks(2)).enumerate() {
            let bits = splitmix64(key.wrapping_add((pair as u64).wrapping_mul(GOLDEN)));
            let halves = [bits as u32, (bits >> 32) as u32];
            for ((out, x), bits) in out.iter_mut().zip(x).zip(halves) {
                *out = kept(bits, *x);
            }
        }
    }
}

/// The function of splitmix64 that turns a counter into random bits.
pub fn splitmix64(counter: u64) -> u64 {
    let z = counter.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `x_ti` (`[t, i]`) with the elements of `mask` dropped and the others scaled by `1 / (1 − p)`.
///
/// # Panics
/// If the mask has another number of tokens.
pub fn dropout(x_ti: Tensor<2>, mask: &Mask) -> Tensor<2> {
    assert_eq!(x_ti.dims()[0], mask.tokens.len(), "the mask has a key for each token");
    match form(&x_ti.device(), x_ti.dtype()) {
        Form::Composed => dropout_composed(x_ti, mask),
        Form::Flex | Form::Cube => {
            Tensor::from_dispatch(Dispatch::dropout(x_ti.into_dispatch(), mask.clone()))
        }
    }
}

/// The form that runs for inputs of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::fused(device, dtype)
}

/// Back ends with their own form of [`dropout()`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"))]
pub trait Dropout: Backend {
    /// See [`dropout()`]. Its own gradient: the same operation on the output's gradient.
    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self>;
}

#[derive(Debug, Clone)]
struct DropoutOperation {
    mask: Mask,
}

impl<B: Dropout> Differentiable<B, 1> for DropoutOperation {
    fn forward(&self, [x]: [FloatTensor<B>; 1]) -> FloatTensor<B> {
        B::dropout(x, self.mask.clone())
    }

    fn backward(
        &self,
        _: [FloatTensor<B>; 1],
        d: FloatTensor<B>,
        [wanted]: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [wanted.then(|| B::dropout(d, self.mask.clone()))]
    }
}

impl<B: Dropout, C: CheckpointStrategy> Dropout for Autodiff<B, C> {
    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        register::<B, C, _, 1>(DropoutOperation { mask }, [x])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    fn ones(rows: usize, columns: usize) -> Tensor<2> {
        Tensor::ones([rows, columns], &Device::flex())
    }

    fn mask(tokens: &[u64], place: u64, p: f64) -> Mask {
        Mask { tokens: Arc::new(tokens.into()), place, p }
    }

    fn rows(x: Tensor<2>) -> Vec<Vec<f32>> {
        let columns = x.dims()[1];
        let values: Vec<f32> = x.into_data().try_into_vec().unwrap();
        values.chunks(columns).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn a_row_depends_on_its_token_and_the_place_alone() {
        let together = rows(dropout(ones(3, 101), &mask(&[5, 9, 5], 1, 0.3)));
        let alone = rows(dropout(ones(1, 101), &mask(&[9], 1, 0.3)));
        assert_eq!(together[1], alone[0]);
        assert_eq!(together[0], together[2]);
        assert_ne!(together[0], together[1]);
        assert_ne!(alone[0], rows(dropout(ones(1, 101), &mask(&[9], 2, 0.3)))[0]);
    }

    #[test]
    fn the_share_of_dropped_elements_is_p_and_the_mean_stays() {
        for p in [0.0, 0.05, 0.5] {
            let keys: Vec<u64> = (0..100).collect();
            let values = rows(dropout(ones(100, 1000), &mask(&keys, 7, p))).concat();
            let dropped = values.iter().filter(|x| **x == 0.0).count() as f64 / 1e5;
            assert!((dropped - p).abs() < 0.005, "{p}: {dropped}");
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
            assert!((mean - 1.0).abs() < 0.01, "{p}: {mean}");
        }
    }

    #[test]
    fn the_gradient_is_dropped_at_the_same_places() {
        let x = ones(4, 33).autodiff().require_grad();
        let data = TensorData::new((0..132).map(|i| i as f32).collect::<Vec<_>>(), [4, 33]);
        let upstream = Tensor::<2>::from_data(data, &Device::flex());
        let mask = mask(&[1, 2, 3, 4], 0, 0.4);
        let mut gradients =
            (dropout(x.clone(), &mask) * upstream.clone().autodiff()).sum().backward();
        let gradient = x.grad_remove(&mut gradients).unwrap();
        assert_eq!(rows(gradient), rows(dropout(upstream, &mask)));
    }
}
