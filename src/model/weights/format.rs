//! The form in which weights are kept in memory.

use burn::tensor::{DType, Device};
use half::{bf16, f16};

use super::error::WeightsError;
use super::read::WeightFiles;
use crate::kernels::nf4::{Nf4, Packed, Scales};
use crate::model::parameter::Weight;
use crate::recipe::Quantization;

/// The form in which loaded weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightFormat {
    /// The type in which the model computes, and of all weights that are not quantized.
    pub dtype: DType,
    /// Whether the weights of linear layers are quantized to 4 bits while they are read. Embedding
    /// and head are not, as in transformers.
    pub quantization: Option<Quantization>,
    /// Whether weights that are stored in NF4 are dequantized.
    pub dequantizes: bool,
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        Self { dtype, quantization: None, dequantizes: false }
    }
}

impl WeightFormat {
    /// All weights as numbers of type `dtype`, also those that are stored in NF4.
    pub fn numbers(dtype: DType) -> Self {
        Self { dtype, quantization: None, dequantizes: true }
    }

    /// Reads the parameter `name` of `shape`. Of the tensor that is read, no more than the
    /// returned weight and its float32 values are in memory at a time.
    ///
    /// # Errors
    /// See [`WeightFiles::read`].
    pub fn read(
        self,
        files: &WeightFiles,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Weight, WeightsError> {
        self.read_changed(files, name, shape, device, None::<fn(&mut Vec<f32>) -> _>)
    }

    /// [`Self::read`], and `change` changes the values. A weight in 4 bits is dequantized, changed
    /// and quantized again, as PEFT does it to merge an adapter.
    ///
    /// # Errors
    /// See [`WeightFiles::read`]; the error of `change`.
    pub fn read_changed(
        self,
        files: &WeightFiles,
        name: &str,
        shape: &[usize],
        device: &Device,
        change: Option<impl FnOnce(&mut Vec<f32>) -> Result<(), WeightsError>>,
    ) -> Result<Weight, WeightsError> {
        let stored = if self.dequantizes { None } else { files.read_nf4(name, shape)? };
        let packed = match stored {
            Some(packed) => packed,
            None => {
                let mut values = files.read(name, shape)?;
                let quantization = self.quantization.filter(|_| is_linear(name, shape));
                let Some(Quantization { nested }) = quantization else {
                    change.map_or(Ok(()), |change| change(&mut values))?;
                    return Ok(Weight::from_values(values, device, self.dtype));
                };
                self.round(&mut values);
                Packed::quantize(&values, nested)
            }
        };
        let packed = match change {
            None => packed,
            Some(change) => {
                let mut values = packed.dequantize();
                let nested = matches!(packed.scales(), Scales::Nested(_));
                drop(packed);
                self.round(&mut values);
                change(&mut values)?;
                self.round(&mut values);
                Packed::quantize(&values, nested)
            }
        };
        Ok(Weight::Nf4(Nf4::new(packed, device, self.dtype)))
    }

    /// Rounds `values` to the type in which the model computes: transformers converts a weight
    /// before it quantizes it.
    fn round(self, values: &mut [f32]) {
        let to: fn(f32) -> f32 = match self.dtype {
            DType::BF16 => |x| bf16::from_f32(x).to_f32(),
            DType::F16 => |x| f16::from_f32(x).to_f32(),
            _ => return,
        };
        values.iter_mut().for_each(|x| *x = to(*x));
    }
}

/// Whether a parameter is quantized: the weight of a linear layer other than the head. As in
/// transformers, experts and their router are not quantized.
pub fn is_linear(name: &str, shape: &[usize]) -> bool {
    let is_layer = shape.len() == 2 && name.starts_with("model.layers.");
    is_layer && !name.contains(".block_sparse_moe.")
}
