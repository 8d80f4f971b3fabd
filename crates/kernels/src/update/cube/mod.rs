//! The GPU form of sums, squares and updates: one pass each, in place.

mod kernels;
mod pass;

use std::sync::Arc;

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{RoundingUpdate, SQUARES_BLOCK, SquaresOnDevice, UpdateRule, VectorPasses};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{
    ELEMENTWISE_UNITS, Ptx, ROW_UNITS, Target, argument, device, properties, settings,
};
use crate::cube::{
    address, buffer, contiguous, cube_sum_f64, cubes, elements, elementwise, empty, owned,
    row_units, vector_width,
};
use crate::select_rows::cube::add_rows_at;
use pass::Pass;

impl VectorPasses for Cube {
    fn add_vectors(sum: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self> {
        let (sum, value) = (owned(sum), contiguous(value));
        let len = sum.meta.num_elements();
        let lanes = vector_width([&sum, &value]);
        let (count, cube) = elementwise(&sum.client, len / lanes);
        if len > 0 {
            // SAFETY: a unit has one vector, within both buffers.
            unsafe {
                add::launch_unchecked(
                    &sum.client,
                    count,
                    cube,
                    address([&sum]),
                    lanes,
                    buffer(&sum),
                    buffer(&value),
                    elements(value.dtype),
                );
            }
        }
        sum
    }

    fn add_rows(
        sum: FloatTensor<Self>,
        ids: Arc<Vec<u32>>,
        rows: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (sum, rows) = (owned(sum), contiguous(rows));
        add_rows_at(&sum, &ids, &rows);
        sum
    }

    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let blocks = x.meta.num_elements().div_ceil(SQUARES_BLOCK);
        let sums = empty(&x, [blocks], DType::F64);
        write_squares(&sums, x, 0);
        sums
    }

    fn update_vectors(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let pass = Pass::new([parameter, first, second, g], rule, None);
        pass.launch();
        let [parameter, first, second] = pass.state;
        (parameter, first, second)
    }
}

impl RoundingUpdate for Cube {
    fn update_and_round(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let pass = Pass::new([parameter, first, second, g], rule, Some(dtype));
        pass.launch();
        let [parameter, first, second] = pass.state;
        (parameter, first, second, pass.rounded)
    }
}

/// Whether two vectors of this back end lie in the same memory.
pub(super) fn share_memory(a: Tensor<1>, b: Tensor<1>) -> bool {
    let primitive = |vector: Tensor<1>| vector.try_into_primitive::<Cube>().ok();
    let (Some(a), Some(b)) = (primitive(a), primitive(b)) else { return false };
    std::ptr::eq(a.handle.memory.descriptor(), b.handle.memory.descriptor())
}

impl SquaresOnDevice for Cube {
    fn squares_into(sums: FloatTensor<Self>, x: FloatTensor<Self>, at: usize) -> FloatTensor<Self> {
        let sums = owned(sums);
        write_squares(&sums, x, at);
        sums
    }

    fn sum_of_blocks(sums: FloatTensor<Self>) -> FloatTensor<Self> {
        let total = empty(&sums, [1], DType::F64);
        let units = row_units(&sums.client);
        let (count, cube) = cubes(1, units);
        // SAFETY: the only cube reads elements of `sums` and writes the one of `total`.
        unsafe {
            sum_of_blocks::launch_unchecked(
                &sums.client,
                count,
                cube,
                address([&sums]),
                buffer(&sums),
                buffer(&total),
                units,
            );
        }
        total
    }
}

/// Writes the sums of the blocks of `x` into `sums` from place `at` on.
fn write_squares(sums: &CubeTensor, x: CubeTensor, at: usize) {
    let x = contiguous(x);
    let len = x.meta.num_elements();
    let units = row_units(&x.client);
    let blocks = len.div_ceil(SQUARES_BLOCK);
    assert!(at + blocks <= sums.meta.num_elements(), "a place for each block");
    let (count, cube) = cubes(blocks, units);
    if len > 0 {
        // SAFETY: a cube has one element of `sums`, within it, and reads elements below `len`.
        unsafe {
            block_squares::launch_unchecked(
                &x.client,
                count,
                cube,
                address([&x]),
                buffer(&x),
                buffer(sums),
                SQUARES_BLOCK,
                at,
                units,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add<E: Float, N: Size>(
    sum: &mut [Vector<f32, N>],
    value: &[Vector<E, N>],
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < sum.len() {
        sum[ABSOLUTE_POS] += Vector::<f32, N>::cast_from(value[ABSOLUTE_POS]);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn block_squares(
    x: &[f32],
    sums: &mut [f64],
    block: usize,
    place: usize,
    #[comptime] units: usize,
) {
    let first = CUBE_POS * block;
    let end = min(first + block, x.len());
    let mut sum = 0.0f64;
    let mut at = first + UNIT_POS as usize;
    while at < end {
        let value = f64::cast_from(x[at]);
        sum += value * value;
        at += units;
    }
    let sum = cube_sum_f64(sum, units);
    if UNIT_POS == 0 {
        sums[place + CUBE_POS] = sum;
    }
}

/// Each unit adds every `units`-th number, then the units' sums are added.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_of_blocks(sums: &[f64], total: &mut [f64], #[comptime] units: usize) {
    let mut sum = 0.0f64;
    let mut at = UNIT_POS as usize;
    while at < sums.len() {
        sum += sums[at];
        at += units;
    }
    let sum = cube_sum_f64(sum, units);
    if UNIT_POS == 0 {
        total[0] = sum;
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let (b, units, threads) = (argument, ROW_UNITS, ELEMENTWISE_UNITS);
    let lanes = 16 / size_of::<f32>();
    let add =
        add::Add::new(settings(threads), device(), properties(), b(), b(), lanes, target.elements);
    let adam = kernels::adam::Adam::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        lanes,
        true,
        [target.elements; 2],
    );
    let rms_prop = kernels::rms_prop::RmsProp::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        lanes,
        true,
        [target.elements; 2],
    );
    let squares = block_squares::BlockSquares::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        (),
        (),
        units,
    );
    let total =
        sum_of_blocks::SumOfBlocks::new(settings(units), device(), properties(), b(), b(), units);
    vec![
        target.compile("sum of gradients", threads, add),
        target.compile("AdamW", threads, adam),
        target.compile("RMSprop", threads, rms_prop),
        target.compile("squares", units, squares),
        target.compile("sum of squares", units, total),
    ]
}
