//! Weights in NF4, the 4-bit type of QLoRA (Dettmers et al., arXiv 2305.14314), and linear layers
//! with them.
//!
//! A flat tensor is cut into blocks of 64 values. Each value becomes the code of the nearest of 16
//! numbers times the block's scale, its largest magnitude. That takes 4.5 bits for each value, or
//! about 4.13 if the scales are quantized too. Codes and scales are those of bitsandbytes 0.50 on
//! the CPU, byte for byte.
//!
//! A quantized weight has no gradient. The autodiff graph keeps the codes, never the dequantized
//! weight. (The composed form keeps the dequantized weight of a layer as long as the layer's
//! graph.)
//!
//! Legend: `t` tokens, `i` input width, `o` output width.

mod code;
mod composed;
mod error;
mod flex;
mod packed;
mod scales;

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::autodiff::{Differentiable, register};
use super::form::Form;
use super::linear::linear;
use super::timed;
pub use code::CODE_BOOK;
pub use composed::OnDevice;
pub use error::Nf4Error;
pub use packed::{BLOCK, Packed};
pub use scales::{NestedScales, Scales, dynamic_map};

/// A frozen tensor in NF4 on a device. Cloning shares the codes.
#[derive(Debug, Clone)]
pub struct Nf4 {
    storage: Storage,
    nested: bool,
    device: Device,
    dtype: DType,
}

#[derive(Debug, Clone)]
enum Storage {
    Host(Arc<Packed>),
    Device(Box<OnDevice>),
}

impl Nf4 {
    /// Puts `packed` on `device`. It is dequantized to `dtype`.
    pub fn new(packed: Packed, device: &Device, dtype: DType) -> Self {
        let nested = matches!(packed.scales(), Scales::Nested(_));
        let storage = match form(device, dtype) {
            Form::Flex => Storage::Host(Arc::new(packed)),
            Form::Composed | Form::Cube => {
                Storage::Device(Box::new(OnDevice::new(&packed, device)))
            }
        };
        Self { storage, nested, device: device.clone(), dtype }
    }

    /// Whether the scales are quantized too.
    pub fn is_nested(&self) -> bool {
        self.nested
    }

    /// The device that holds the codes.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The type of the dequantized values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dequantized values, flat.
    pub fn vector(&self) -> Tensor<1> {
        timed!("nf4.dequantize");
        let values = match &self.storage {
            Storage::Host(packed) => {
                let data = TensorData::new(packed.dequantize(), [packed.len()]);
                Tensor::from_data(data, (&self.device, DType::F32))
            }
            Storage::Device(parts) => parts.dequantize(),
        };
        values.cast(self.dtype)
    }

    /// `x_ti` (`[t, i]`) times the transpose of this weight, whose shape is `[o, i]`: `[t, o]`.
    pub fn linear(&self, x_ti: Tensor<2>, shape: [usize; 2]) -> Tensor<2> {
        match &self.storage {
            Storage::Host(packed) => Tensor::from_dispatch(Dispatch::nf4_linear(
                x_ti.into_dispatch(),
                packed.clone(),
                shape,
            )),
            Storage::Device(_) => {
                let weight_oi = self.vector().cast(x_ti.dtype()).reshape(shape);
                let is_tracked = x_ti.device().is_autodiff();
                linear(x_ti, if is_tracked { weight_oi.autodiff() } else { weight_oi })
            }
        }
    }
}

/// The form that runs for inputs of this type on this device: the CPU form takes every type.
pub fn form(device: &Device, _: DType) -> Form {
    Form::flex_if(true, device)
}

/// Back ends with their own form of [`Nf4::linear`].
#[backend_extension(Autodiff, Flex)]
pub trait Nf4Linear: Backend {
    /// See [`Nf4::linear`]; `shape` is that of the weight.
    fn nf4_linear(
        x: FloatTensor<Self>,
        weight: Arc<Packed>,
        shape: [usize; 2],
    ) -> FloatTensor<Self>;
}

/// The backward half of [`Nf4Linear`].
pub trait Nf4LinearGrad: Nf4Linear {
    /// Gradient of the input, `d[t, o] · weight[o, i]`.
    fn nf4_input_grad(
        d: FloatTensor<Self>,
        weight: &Packed,
        shape: [usize; 2],
    ) -> FloatTensor<Self>;
}

#[derive(Debug, Clone)]
struct Nf4Operation {
    weight: Arc<Packed>,
    shape: [usize; 2],
}

impl<B: Nf4LinearGrad> Differentiable<B, 1> for Nf4Operation {
    fn forward(&self, [x]: [FloatTensor<B>; 1]) -> FloatTensor<B> {
        B::nf4_linear(x, self.weight.clone(), self.shape)
    }

    fn backward(
        &self,
        _: [FloatTensor<B>; 1],
        d: FloatTensor<B>,
        [wanted]: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [wanted.then(|| B::nf4_input_grad(d, &self.weight, self.shape))]
    }
}

impl<B: Nf4LinearGrad, C: CheckpointStrategy> Nf4Linear for Autodiff<B, C> {
    fn nf4_linear(
        x: FloatTensor<Self>,
        weight: Arc<Packed>,
        shape: [usize; 2],
    ) -> FloatTensor<Self> {
        register::<B, C, _, 1>(Nf4Operation { weight, shape }, [x])
    }
}
