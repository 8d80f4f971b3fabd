//! A tensor in NF4 on any device, dequantized by Burn's own operations.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::code::CODE_BOOK;
use super::packed::Packed;
use super::scales::Scales;

/// The parts of a [`Packed`] tensor on a device.
#[derive(Debug, Clone)]
pub struct OnDevice {
    len: usize,
    block: usize,
    /// Two codes in a byte, `[len / 2]`.
    codes: Tensor<1, Int>,
    scales: ScalesOnDevice,
}

#[derive(Debug, Clone)]
enum ScalesOnDevice {
    /// `[blocks]`.
    Float(Box<Tensor<1>>),
    Nested(Box<NestedOnDevice>),
}

/// Scales that are quantized themselves.
#[derive(Debug, Clone)]
struct NestedOnDevice {
    /// `[blocks]`.
    codes: Tensor<1, Int>,
    absmax: Tensor<1>,
    map: Tensor<1>,
    offset: f32,
    block: usize,
}

impl OnDevice {
    /// Copies `packed` to `device`.
    pub fn new(packed: &Packed, device: &Device) -> Self {
        let bytes = |bytes: &[u8]| {
            let data = TensorData::new(bytes.to_vec(), [bytes.len()]);
            Tensor::<1, Int>::from_data(data, (device, DType::U8))
        };
        let floats = |floats: &[f32]| {
            let data = TensorData::new(floats.to_vec(), [floats.len()]);
            Tensor::<1>::from_data(data, (device, DType::F32))
        };
        let scales = match packed.scales() {
            Scales::Float(scales) => ScalesOnDevice::Float(Box::new(floats(scales))),
            Scales::Nested(nested) => ScalesOnDevice::Nested(Box::new(NestedOnDevice {
                codes: bytes(&nested.codes),
                absmax: floats(&nested.absmax),
                map: floats(&nested.map),
                offset: nested.offset,
                block: nested.block,
            })),
        };
        let (len, block) = (packed.len(), packed.block());
        Self { len, block, codes: bytes(packed.codes()), scales }
    }

    /// All values, `[len]` in float32.
    pub fn dequantize(&self) -> Tensor<1> {
        let device = self.codes.device();
        let bytes = as_indices(&self.codes);
        let high = bytes.clone().div_scalar(16);
        let low = bytes - high.clone().mul_scalar(16);
        let codes: Tensor<2, Int> = Tensor::stack(vec![high, low], 1);
        let codes = codes.flatten::<1>(0, 1);
        let book = Tensor::<1>::from_data(TensorData::from(CODE_BOOK), (&device, DType::F32));
        scaled(book.select(0, codes), self.scales.values(), self.block).narrow(0, 0, self.len)
    }
}

/// Codes in the device's own type of integers: LibTorch takes no other.
fn as_indices(codes: &Tensor<1, Int>) -> Tensor<1, Int> {
    codes.clone().cast(codes.device().settings().int_dtype)
}

impl ScalesOnDevice {
    /// `[blocks]` in float32.
    fn values(&self) -> Tensor<1> {
        match self {
            Self::Float(scales) => (**scales).clone(),
            Self::Nested(nested) => {
                let NestedOnDevice { codes, absmax, map, offset, block } = &**nested;
                let len = codes.dims()[0];
                let values = map.clone().select(0, as_indices(codes));
                let values = scaled(values, absmax.clone(), *block);
                values.narrow(0, 0, len).add_scalar(*offset)
            }
        }
    }
}

/// Multiplies each block of `values` by its scale. The result is padded to whole blocks.
fn scaled(values: Tensor<1>, scales: Tensor<1>, block: usize) -> Tensor<1> {
    let blocks = scales.dims()[0];
    let missing = blocks * block - values.dims()[0];
    let values = match missing {
        0 => values,
        _ => {
            let zeros = Tensor::zeros([missing], (&values.device(), values.dtype()));
            Tensor::cat(vec![values, zeros], 0)
        }
    };
    let values = values.reshape([blocks, block]) * scales.reshape([blocks, 1]);
    values.reshape([blocks * block])
}
