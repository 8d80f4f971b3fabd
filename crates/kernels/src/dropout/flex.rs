//! The CPU form of dropout (Flex, float32): one multi-threaded pass over rows.

use burn::backend::{Flex, tensor::FloatTensor};

use super::{Dropout, Mask};
use crate::flex::fresh::filled;
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

impl Dropout for Flex {
    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        timed!("dropout");
        let shape = x.layout().shape().to_vec();
        let width = shape[1];
        let x = contiguous(x);
        let x = slice(&x);
        let out = filled(x.len(), width, |token, out| {
            mask.apply(token, &x[token * width..][..width], out);
        });
        tensor(out, &shape)
    }
}
