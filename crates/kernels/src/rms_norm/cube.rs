//! The GPU form of RMSNorm. The backward pass has one kernel for the input's gradient, with a cube
//! for each row, and two for the weight's: sums over blocks of rows, then the sum of the blocks.

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{RmsNorm, RmsNormGrad};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{
    ELEMENTWISE_UNITS, Ptx, ROW_UNITS, Target, argument, device, properties, settings,
};
use crate::cube::{
    address, buffer, contiguous, cube_sum, cubes, elements, elementwise, empty, row_units,
};

/// Rows whose contributions to the weight's gradient one unit adds.
const BLOCK_ROWS: usize = 64;

impl RmsNorm for Cube {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let [rows, width] = x.meta.shape().dims();
        let y = empty(&x, [rows, width], weight.dtype);
        if rows == 0 {
            return y;
        }
        let units = row_units(&x.client);
        let (count, cube) = cubes(rows, units);
        // SAFETY: a unit reads and writes elements of its cube's row only, columns below `width`.
        unsafe {
            normalize::launch_unchecked(
                &x.client,
                count,
                cube,
                address([&x]),
                buffer(&x),
                buffer(&weight),
                buffer(&y),
                width,
                eps,
                units,
                [elements(x.dtype), elements(weight.dtype)],
            );
        }
        y
    }
}

impl RmsNormGrad for Cube {
    fn rms_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
        [_, weight_wanted]: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        let (x, weight, d) = (contiguous(x), contiguous(weight), contiguous(d));
        let (dx, inverse) = input_gradient(&x, &weight, &d, eps);
        let d_weight = weight_wanted.then(|| weight_gradient(&x, &d, &inverse));
        [Some(dx), d_weight]
    }
}

/// The gradient of `x`, and `1 / sqrt(mean(x²) + eps)` of each row.
fn input_gradient(
    x: &CubeTensor,
    weight: &CubeTensor,
    d: &CubeTensor,
    eps: f32,
) -> (CubeTensor, CubeTensor) {
    let [rows, width] = x.meta.shape().dims();
    let dx = empty(x, [rows, width], x.dtype);
    let inverse = empty(x, [rows], DType::F32);
    if rows == 0 {
        return (dx, inverse);
    }
    let units = row_units(&x.client);
    let (count, cube) = cubes(rows, units);
    // SAFETY: as in the forward pass; `inverse` has an element for each row.
    unsafe {
        normalize_backward::launch_unchecked(
            &x.client,
            count,
            cube,
            address([x]),
            buffer(x),
            buffer(weight),
            buffer(d),
            buffer(&dx),
            buffer(&inverse),
            width,
            eps,
            units,
            [elements(x.dtype), elements(weight.dtype)],
        );
    }
    (dx, inverse)
}

/// `Σ d · x · inverse` over the rows, `[d]`, in the type of the weight and of `d`.
fn weight_gradient(x: &CubeTensor, d: &CubeTensor, inverse: &CubeTensor) -> CubeTensor {
    let [rows, width] = x.meta.shape().dims();
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let sums = empty(x, [blocks, width], DType::F32);
    let (count, cube) = elementwise(&x.client, blocks * width);
    if rows > 0 {
        // SAFETY: a unit has one element of `sums` and reads the rows of its block below `rows`.
        unsafe {
            block_sums::launch_unchecked(
                &x.client,
                count,
                cube,
                address([x]),
                buffer(x),
                buffer(d),
                buffer(inverse),
                buffer(&sums),
                width,
                rows,
                BLOCK_ROWS,
                [elements(x.dtype), elements(d.dtype)],
            );
        }
    }
    let total = empty(x, [width], d.dtype);
    let (count, cube) = elementwise(&x.client, width);
    // SAFETY: a unit has one column below `width`.
    unsafe {
        sum_of_blocks::launch_unchecked(
            &x.client,
            count,
            cube,
            address([&sums]),
            buffer(&sums),
            buffer(&total),
            blocks,
            elements(d.dtype),
        );
    }
    total
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize<E: Float, W: Float>(
    x: &[E],
    weight: &[W],
    y: &mut [W],
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let row = CUBE_POS * width;
    let unit = UNIT_POS as usize;
    let mut squares = 0.0f32;
    let mut column = unit;
    while column < width {
        let value = f32::cast_from(x[row + column]);
        squares += value * value;
        column += units;
    }
    let squares = cube_sum(squares, units);
    let inverse = 1.0f32 / (squares / f32::cast_from(width) + eps).sqrt();
    let mut column = unit;
    while column < width {
        // Rounded to the type of the weight before the scale, as in Hugging Face's layers.
        let normal = W::cast_from(f32::cast_from(x[row + column]) * inverse);
        let scaled = f32::cast_from(normal) * f32::cast_from(weight[column]);
        y[row + column] = W::cast_from(scaled);
        column += units;
    }
}

/// With `g = d · weight`: `dx = inverse · (g − x · inverse² · mean(g · x))`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize_backward<E: Float, W: Float>(
    x: &[E],
    weight: &[W],
    d: &[W],
    dx: &mut [E],
    inverses: &mut [f32],
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let row = CUBE_POS * width;
    let unit = UNIT_POS as usize;
    let mut squares = 0.0f32;
    let mut products = 0.0f32;
    let mut column = unit;
    while column < width {
        let value = f32::cast_from(x[row + column]);
        let g = f32::cast_from(d[row + column]) * f32::cast_from(weight[column]);
        squares += value * value;
        products += g * value;
        column += units;
    }
    let squares = cube_sum(squares, units);
    let products = cube_sum(products, units);
    let inverse = 1.0f32 / (squares / f32::cast_from(width) + eps).sqrt();
    let along = inverse * inverse * products / f32::cast_from(width);
    let mut column = unit;
    while column < width {
        let value = f32::cast_from(x[row + column]);
        let g = f32::cast_from(d[row + column]) * f32::cast_from(weight[column]);
        dx[row + column] = E::cast_from(inverse * (g - value * along));
        column += units;
    }
    if unit == 0 {
        inverses[CUBE_POS] = inverse;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn block_sums<E: Float, W: Float>(
    x: &[E],
    d: &[W],
    inverses: &[f32],
    sums: &mut [f32],
    width: usize,
    rows: usize,
    block_rows: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < sums.len() {
        let column = ABSOLUTE_POS % width;
        let first = ABSOLUTE_POS / width * block_rows;
        let end = min(first + block_rows, rows);
        let mut sum = 0.0f32;
        let mut row = first;
        while row < end {
            let at = row * width + column;
            sum += f32::cast_from(d[at]) * f32::cast_from(x[at]) * inverses[row];
            row += 1;
        }
        sums[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_of_blocks<E: Float>(
    sums: &[f32],
    total: &mut [E],
    blocks: usize,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < total.len() {
        let mut sum = 0.0f32;
        for block in 0..blocks {
            sum += sums[block * total.len() + ABSOLUTE_POS];
        }
        total[ABSOLUTE_POS] = E::cast_from(sum);
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let types = [target.elements, target.elements];
    let (units, threads) = (ROW_UNITS, ELEMENTWISE_UNITS);
    let (b, given) = (argument, (device(), properties()));
    let (device, properties) = given;
    let forward = normalize::Normalize::new(
        settings(units),
        device.clone(),
        properties.clone(),
        b(),
        b(),
        b(),
        (),
        (),
        units,
        types,
    );
    let backward = normalize_backward::NormalizeBackward::new(
        settings(units),
        device.clone(),
        properties.clone(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        units,
        types,
    );
    let blocks = block_sums::BlockSums::new(
        settings(threads),
        device.clone(),
        properties.clone(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        types,
    );
    let total = sum_of_blocks::SumOfBlocks::new(
        settings(threads),
        device,
        properties,
        b(),
        b(),
        (),
        target.elements,
    );
    vec![
        target.compile("rms_norm", units, forward),
        target.compile("rms_norm, gradient of the input", units, backward),
        target.compile("rms_norm, gradient of the weight by blocks", threads, blocks),
        target.compile("rms_norm, sum of the blocks", threads, total),
    ]
}
