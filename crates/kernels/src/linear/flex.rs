//! The CPU form of the linear layer (Flex): in float32 with [`product()`], in other precisions with
//! Burn's matrix products.

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, tensor::FloatTensor};
use burn::tensor::DType;

use super::{LinearGrad, LinearNoBias};
use crate::flex::product::{Matrix, product};
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

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
