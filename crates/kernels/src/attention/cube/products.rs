//! The products of outputs and their gradients, which the backward kernels need.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::attention::AttentionLayout;
use crate::cube::{address, buffer, elements, elementwise, empty};

/// `Σ d · out` over the elements of each head, `[t, h]`.
pub(super) fn products_of_heads(
    out: &CubeTensor,
    d: &CubeTensor,
    layout: &AttentionLayout,
) -> CubeTensor {
    let len = layout.segments.tokens() * layout.heads;
    let products = empty(out, [layout.segments.tokens(), layout.heads], DType::F32);
    let (count, cube) = elementwise(&out.client, len);
    if len > 0 {
        // SAFETY: a unit has one head of one token.
        unsafe {
            sum_of_products::launch_unchecked(
                &out.client,
                count,
                cube,
                address([out]),
                buffer(out),
                buffer(d),
                buffer(&products),
                layout.head_dim,
                elements(out.dtype),
            );
        }
    }
    products
}

/// `Σ d · out` over the elements of each head, `[t, h]`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_of_products<E: Float>(
    out: &[E],
    d: &[E],
    products: &mut [f32],
    width: usize,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < products.len() {
        let first = ABSOLUTE_POS * width;
        let mut sum = 0.0f32;
        for e in 0..width {
            sum += f32::cast_from(out[first + e]) * f32::cast_from(d[first + e]);
        }
        products[ABSOLUTE_POS] = sum;
    }
}
