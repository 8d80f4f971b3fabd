//! Parameters: named weights of a model, each with an id.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::kernels::linear::linear;
use crate::kernels::nf4::Nf4;

/// Identifies a parameter of a model. Ids are assigned when the model is built, in the order of
/// `Decoder::parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ParameterId(usize);

impl ParameterId {
    /// The place of the parameter in `Decoder::parameters`.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Assigns the ids of a model, one after the other.
#[derive(Debug, Default)]
pub struct ParameterIds(usize);

impl ParameterIds {
    /// The next id.
    pub fn assign(&mut self) -> ParameterId {
        let id = ParameterId(self.0);
        self.0 += 1;
        id
    }
}

/// Something that is still being written, such as the result of a collective.
pub trait Arrival: Debug + Send + Sync {
    /// Makes all later work wait until it is complete. Further calls do nothing.
    fn wait(&self);
}

/// The values of a parameter. Callers see float vectors and matrices, however the values are
/// stored.
#[derive(Debug, Clone)]
pub enum Weight {
    /// One number per weight, flat.
    Float(Tensor<1>),
    /// The same, but the numbers are on their way. The first reader waits for them.
    Arriving(Tensor<1>, Arc<dyn Arrival>),
    /// Four bits per weight. Such a weight is always frozen.
    Nf4(Nf4),
}

impl Weight {
    /// A weight from values on the host, stored as `dtype`.
    pub fn from_values(values: Vec<f32>, device: &Device, dtype: DType) -> Self {
        let len = values.len();
        let data = TensorData::new(values, [len]);
        Self::Float(Tensor::from_data(data, (device, dtype)))
    }

    /// All values, flat. Those of a quantized weight are dequantized at each call.
    pub fn vector(&self) -> Tensor<1> {
        match self {
            Self::Float(vector) => vector.clone(),
            Self::Arriving(vector, arrival) => {
                arrival.wait();
                vector.clone()
            }
            Self::Nf4(weight) => weight.vector(),
        }
    }

    /// The values as a `[rows, columns]` matrix.
    pub fn matrix(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        self.vector().reshape([rows, columns])
    }

    /// `x` (`[t, in]`) times the transpose of these values as a matrix of `shape` `[out, in]`:
    /// `[t, out]`.
    pub fn linear(&self, x: Tensor<2>, shape: [usize; 2]) -> Tensor<2> {
        match self {
            Self::Float(_) | Self::Arriving(..) => linear(x, self.matrix(shape)),
            Self::Nf4(weight) => weight.linear(x, shape),
        }
    }

    /// Whether the values are quantized.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Nf4(_))
    }

    /// Replaces all values. The weight is not quantized afterwards.
    pub fn set(&mut self, vector: Tensor<1>) {
        *self = Self::Float(vector);
    }

    /// Takes all values out, to be changed in place and [`Self::set`] again. Until then the weight
    /// is empty.
    pub fn take(&mut self) -> Tensor<1> {
        let empty = Self::Float(Tensor::empty([0], (&self.device(), DType::F32)));
        match std::mem::replace(self, empty) {
            Self::Float(vector) => vector,
            Self::Arriving(vector, arrival) => {
                arrival.wait();
                vector
            }
            Self::Nf4(weight) => weight.vector(),
        }
    }

    /// The device that holds the values.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(vector) | Self::Arriving(vector, _) => vector.device(),
            Self::Nf4(weight) => weight.device(),
        }
    }

    /// The type of the numbers that [`Self::vector`] and [`Self::matrix`] give.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(vector) | Self::Arriving(vector, _) => vector.dtype(),
            Self::Nf4(weight) => weight.dtype(),
        }
    }
}

/// A named weight. Its values are kept flat, so that optimizer, shards and files see vectors;
/// the layer sees its shape.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub id: ParameterId,
    /// Hugging Face's name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: Arc<str>,
    pub shape: Vec<usize>,
    /// `Π shape` values, without autodiff.
    pub value: Weight,
    /// Whether training changes it. A frozen parameter has no gradient and no optimizer state.
    pub trainable: bool,
}

impl Parameter {
    /// Number of weights.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the parameter has no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weights as a vector, `[Π shape]`.
    pub fn vector(&self) -> Tensor<1> {
        self.value.vector()
    }

    /// The weights as a `[rows, columns]` matrix.
    pub fn matrix(&self) -> Tensor<2> {
        self.value.matrix([self.shape[0], self.shape[1]])
    }

    /// `x` (`[t, in]`) times the transpose of this matrix, `[out, in]`: `[t, out]`.
    pub fn linear(&self, x: Tensor<2>) -> Tensor<2> {
        self.value.linear(x, [self.shape[0], self.shape[1]])
    }

    /// The same weights on the autodiff device: a leaf of the graph if the parameter is trainable,
    /// otherwise a constant. A quantized weight stays as it is: its operation takes inputs of both
    /// devices.
    pub fn tracked(&self) -> Self {
        if self.value.is_quantized() {
            return self.clone();
        }
        let vector = self.vector().autodiff();
        let vector = if self.trainable { vector.require_grad() } else { vector };
        Self { value: Weight::Float(vector), ..self.clone() }
    }

    /// Takes the gradient of a [`Self::tracked`] trainable parameter, `[Π shape]` in the type of
    /// the parameter.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Tensor<1> {
        let (device, dtype) = (self.value.device().inner(), self.value.dtype());
        let gradient = self.vector().grad_remove(gradients);
        gradient.unwrap_or_else(|| Tensor::zeros([self.len()], (&device, dtype)))
    }

    /// Whether weight decay applies: as in transformers, not to vectors (norms and biases).
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Counted(AtomicUsize);

    impl Arrival for Counted {
        fn wait(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_reads_arriving_weights_waits_for_them() {
        let vector = Tensor::from_data([1.0f32, 2.0, 3.0, 4.0], &Device::flex());
        let arrival = Arc::new(Counted::default());
        let mut weight = Weight::Arriving(vector, arrival.clone());
        assert_eq!((weight.dtype(), weight.device()), (DType::F32, Device::flex()));
        assert_eq!(arrival.0.load(Ordering::Relaxed), 0, "type and device do not depend on it");
        let x = Tensor::from_data([[1.0f32, 1.0]], &Device::flex());
        let y: Vec<f32> = weight.linear(x, [2, 2]).into_data().try_into_vec().unwrap();
        assert_eq!((y, arrival.0.load(Ordering::Relaxed)), (vec![3.0, 7.0], 1));
        weight.take();
        assert_eq!(arrival.0.load(Ordering::Relaxed), 2);
    }
}
