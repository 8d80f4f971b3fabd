//! The CPU form of a linear layer with a quantized weight (Flex).
//!
//! A product of many rows dequantizes the weight once and multiplies as [`linear`] does. A product
//! of few rows, as in generation, is bound by memory: it dequantizes some rows of the weight at a
//! time, which stay in the cache. Both have the bits of [`linear`] with the dequantized weight.
//!
//! [`linear`]: crate::linear::linear()

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, tensor::FloatTensor};
use burn::tensor::DType;

use super::packed::Packed;
use super::{Nf4Linear, Nf4LinearGrad};
use crate::flex::product::{Matrix, product, product_of_rows};
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

/// Products of at most this many rows never hold the whole dequantized weight.
const FEW: usize = 16;

impl Nf4Linear for Flex {
    fn nf4_linear(
        x: FloatTensor<Self>,
        weight: Arc<Packed>,
        shape: [usize; 2],
    ) -> FloatTensor<Self> {
        timed!("nf4");
        if x.dtype() != DType::F32 {
            let weight = dequantized(&weight, shape, &x);
            return Self::float_matmul(x, Self::float_transpose(weight));
        }
        let x = contiguous(x);
        let [rows, inner] = dims(&x);
        let x = Matrix::dense(slice(&x), rows, inner);
        let out = match rows <= FEW {
            true => product_of_rows(x, shape[0], |row, out| weight.write(row * inner, out)),
            false => {
                let weight = weight.dequantize();
                product(x, Matrix::dense(&weight, shape[0], shape[1]).transposed())
            }
        };
        tensor(out, &[rows, shape[0]])
    }
}

impl Nf4LinearGrad for Flex {
    fn nf4_input_grad(
        d: FloatTensor<Self>,
        weight: &Packed,
        shape: [usize; 2],
    ) -> FloatTensor<Self> {
        timed!("nf4.input_grad");
        if d.dtype() != DType::F32 {
            let weight = dequantized(weight, shape, &d);
            return Self::float_matmul(d, weight);
        }
        let d = contiguous(d);
        let [rows, outputs] = dims(&d);
        let weight = weight.dequantize();
        let weight = Matrix::dense(&weight, shape[0], shape[1]);
        tensor(product(Matrix::dense(slice(&d), rows, outputs), weight), &[rows, shape[1]])
    }
}

/// The weight in the type of `like`.
fn dequantized(weight: &Packed, shape: [usize; 2], like: &FlexTensor) -> FlexTensor {
    Flex::float_cast(tensor(weight.dequantize(), &shape), like.dtype().into())
}

fn dims(x: &FlexTensor) -> [usize; 2] {
    [0, 1].map(|axis| x.layout().shape()[axis])
}
