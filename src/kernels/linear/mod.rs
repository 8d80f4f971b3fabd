//! `x · weightᵀ` with the weight in Hugging Face's `[out, in]` layout.
//!
//! Burn's own matmul would return the weight's gradient as a transposed view, to be copied before
//! it can be used; here it comes out in the weight's own layout. In float32 on the CPU the products are
//! those of [`crate::kernels::flex::product`].

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Tensor};

use super::autodiff::{Differentiable, register};
use super::flex::product::{Matrix, product};
use super::{contiguous, is_flex, slice, tensor, timed};

/// `[t, in]` by `[out, in]` gives `[t, out]`.
pub fn linear(x_ti: Tensor<2>, weight_oi: Tensor<2>) -> Tensor<2> {
    if !is_flex(&x_ti.device()) {
        return x_ti.matmul(weight_oi.transpose());
    }
    let out = Dispatch::linear_no_bias(x_ti.into_dispatch(), weight_oi.into_dispatch());
    Tensor::from_dispatch(out)
}

#[backend_extension(Autodiff, Flex)]
pub trait LinearNoBias: Backend {
    /// See [`linear`].
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`LinearNoBias`].
pub trait LinearGrad: LinearNoBias {
    /// Gradient of the input, `d[t, out] · weight[out, in]`.
    fn linear_input_grad(d: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Gradient of the weight, `d[t, out]ᵀ · x[t, in]`.
    fn linear_weight_grad(d: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl LinearNoBias for Flex {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("linear");
        if !are_f32(&x, &weight) {
            return Self::float_matmul(x, Self::float_transpose(weight));
        }
        let [x, weight] = [x, weight].map(contiguous);
        multiplied(matrix(&x), matrix(&weight).transposed())
    }
}

impl LinearGrad for Flex {
    fn linear_input_grad(d: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("linear.input_grad");
        if !are_f32(&d, &weight) {
            return Self::float_matmul(d, weight);
        }
        let [d, weight] = [d, weight].map(contiguous);
        multiplied(matrix(&d), matrix(&weight))
    }

    fn linear_weight_grad(d: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("linear.weight_grad");
        if !are_f32(&d, &x) {
            return Self::float_matmul(Self::float_transpose(d), x);
        }
        let [d, x] = [d, x].map(contiguous);
        multiplied(matrix(&d).transposed(), matrix(&x))
    }
}

fn are_f32(a: &FlexTensor, b: &FlexTensor) -> bool {
    a.dtype() == DType::F32 && b.dtype() == DType::F32
}

fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = [0, 1].map(|axis| tensor.layout().shape()[axis]);
    Matrix::dense(slice(tensor), rows, columns)
}

fn multiplied(a: Matrix, b: Matrix) -> FlexTensor {
    let shape = [a.rows(), b.columns()];
    tensor(product(a, b), &shape)
}

#[derive(Debug, Clone)]
struct LinearOperation;

impl<B: LinearGrad> Differentiable<B, 2> for LinearOperation {
    fn forward(&self, [x, weight]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::linear_no_bias(x, weight)
    }

    /// `dx = d · weight`, `dweight = dᵀ · x`.
    fn backward(
        &self,
        [x, weight]: [FloatTensor<B>; 2],
        d: FloatTensor<B>,
        [x_wanted, weight_wanted]: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        timed!("linear.backward");
        let dx = x_wanted.then(|| B::linear_input_grad(d.clone(), weight));
        [dx, weight_wanted.then(|| B::linear_weight_grad(d, x))]
    }
}

impl<B: LinearGrad, C: CheckpointStrategy> LinearNoBias for Autodiff<B, C> {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        register::<B, C, _, 2>(LinearOperation, [x, weight])
    }
}
