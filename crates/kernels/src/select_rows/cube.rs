//! The GPU form of the selection of rows, and sums of rows by index. Rows with the same index are
//! brought together on the host, so that one cube adds them in their order, without atomics.

use std::sync::Arc;

use burn::backend::{Cube, tensor::FloatTensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{SelectRows, SelectRowsGrad};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, ROW_UNITS, Target, argument, device, properties, settings};
use crate::cube::{
    address, buffer, contiguous, cubes, elements, empty, free_row_units, indices, zeros,
};

impl SelectRows for Cube {
    fn choose_rows(x: FloatTensor<Self>, rows: Arc<Vec<u32>>) -> FloatTensor<Self> {
        let x = contiguous(x);
        let [height, width] = x.meta.shape().dims();
        assert!(rows.iter().all(|row| (*row as usize) < height), "a row index is out of range");
        let out = empty(&x, [rows.len(), width], x.dtype);
        if rows.is_empty() {
            return out;
        }
        let units = free_row_units(&x.client);
        let (count, cube) = cubes(rows.len(), units);
        // SAFETY: a cube has one row of `out`; all indices are below the height of `x`.
        unsafe {
            gather::launch_unchecked(
                &x.client,
                count,
                cube,
                address([&x, &out]),
                buffer(&x),
                buffer(&indices(&x, &rows)),
                buffer(&out),
                width,
                units,
                elements(x.dtype),
            );
        }
        out
    }
}

impl SelectRowsGrad for Cube {
    fn choose_rows_grad(
        x: FloatTensor<Self>,
        rows: &[u32],
        d: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [height, width] = x.meta.shape().dims();
        let dx = zeros(&x, [height, width], x.dtype);
        add_rows_at(&dx, rows, &contiguous(d));
        dx
    }
}

/// Adds row `i` of `rows` (`[n, d]`) to row `ids[i]` of `sum`, in place, in the order of the rows.
/// `sum` has rows of the same width, in any shape.
///
/// # Panics
/// If an id is out of range.
pub(crate) fn add_rows_at(sum: &CubeTensor, ids: &[u32], rows: &CubeTensor) {
    let [count, width] = rows.meta.shape().dims();
    assert_eq!(ids.len(), count, "an id for each row");
    if count == 0 || width == 0 {
        return;
    }
    let groups = Groups::new(ids);
    let last = groups.ids.last().map_or(0, |id| *id as usize);
    assert!((last + 1) * width <= sum.meta.num_elements(), "the id {last} is out of range");
    let units = free_row_units(&sum.client);
    let (count, cube) = cubes(groups.ids.len(), units);
    // SAFETY: a cube has one row of `sum`, within it, and reads rows below `count`.
    unsafe {
        add_groups::launch_unchecked(
            &sum.client,
            count,
            cube,
            address([sum, rows]),
            buffer(sum),
            buffer(rows),
            buffer(&indices(sum, &groups.ids)),
            buffer(&indices(sum, &groups.starts)),
            buffer(&indices(sum, &groups.order)),
            width,
            units,
            [elements(sum.dtype), elements(rows.dtype)],
        );
    }
}

/// The rows of each id, by ascending id and then in their order.
struct Groups {
    /// The distinct ids.
    ids: Vec<u32>,
    /// The place in `order` at which the rows of each id begin, and the end.
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl Groups {
    fn new(ids: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|row| ids[*row as usize]);
        let (mut distinct, mut starts) = (Vec::new(), Vec::new());
        for (place, row) in order.iter().enumerate() {
            let id = ids[*row as usize];
            if distinct.last() != Some(&id) {
                distinct.push(id);
                starts.push(place as u32);
            }
        }
        starts.push(order.len() as u32);
        Self { ids: distinct, starts, order }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gather<E: Float>(
    x: &[E],
    rows: &[u32],
    out: &mut [E],
    width: usize,
    #[comptime] units: usize,
    #[define(E)] _type: ElemType,
) {
    let from = rows[CUBE_POS] as usize * width;
    let to = CUBE_POS * width;
    let mut column = UNIT_POS as usize;
    while column < width {
        out[to + column] = x[from + column];
        column += units;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_groups<S: Float, E: Float>(
    sum: &mut [S],
    rows: &[E],
    ids: &[u32],
    starts: &[u32],
    order: &[u32],
    width: usize,
    #[comptime] units: usize,
    #[define(S, E)] _types: [ElemType; 2],
) {
    let to = ids[CUBE_POS] as usize * width;
    let first = starts[CUBE_POS];
    let end = starts[CUBE_POS + 1];
    let mut column = UNIT_POS as usize;
    while column < width {
        let mut total = f32::cast_from(sum[to + column]);
        for place in first..end {
            let row = order[place as usize] as usize;
            total += f32::cast_from(rows[row * width + column]);
        }
        sum[to + column] = S::cast_from(total);
        column += units;
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let (b, units) = (argument, ROW_UNITS);
    let gather = gather::Gather::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        b(),
        (),
        units,
        target.elements,
    );
    let types = [ElemType::Float(cubecl::ir::FloatKind::F32), target.elements];
    let add = add_groups::AddGroups::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        units,
        types,
    );
    vec![
        target.compile("rows by index", units, gather),
        target.compile("sums of rows by index", units, add),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_id_stay_in_their_order() {
        let groups = Groups::new(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(groups.ids, [0, 2, 7]);
        assert_eq!(groups.starts, [0, 1, 3, 6]);
        assert_eq!(groups.order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(Groups::new(&[]).starts, [0]);
    }
}
