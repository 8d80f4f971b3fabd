//! Matrix products on CubeCL's CPU runtime, on which the tests train whole models. A unit computes a
//! few numbers of the result at once with vectors, so that it reads each input less often.
//!
//! Legend: `m` rows, `n` columns of the result, `k` inner size.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::product::{STRETCH, Stepped};
use super::{address, begins_at_multiple, buffer, elements, elementwise};

/// Rows of the result that a unit computes together.
const ROWS: usize = 4;

/// Columns that a unit computes together if its vectors run along `k`.
const COLUMNS: usize = 2;

/// Computes `a · b` into `out` if the rows of `b` are contiguous, or if the rows of `a` and the
/// columns of `b` are. Returns whether they are.
pub(super) fn vector_product(a: &Stepped, b: &Stepped, inner: usize, out: &CubeTensor) -> bool {
    match (a.column, b.row, b.column) {
        (_, _, 1) => along_columns(a, b, inner, out),
        (1, 1, _) => along_inner(a, b, inner, out),
        _ => return false,
    }
    true
}

/// The most elements, up to `most`, of which a row of `row` elements is a whole number of vectors.
fn lanes(row: usize, most: usize, tensors: &[&CubeTensor]) -> usize {
    let fits = |lanes: &usize| {
        let is_aligned =
            |tensor: &&CubeTensor| begins_at_multiple(tensor, lanes * tensor.elem_size());
        row.is_multiple_of(*lanes) && tensors.iter().all(is_aligned)
    };
    [16, 8, 4, 2].into_iter().filter(|lanes| *lanes <= most).find(fits).unwrap_or(1)
}

fn along_columns(a: &Stepped, b: &Stepped, inner: usize, out: &CubeTensor) {
    let [rows, columns] = out.meta.shape().dims();
    let lanes = lanes(columns, 16, &[&b.tensor, out]);
    let vectors = columns / lanes;
    let (count, cube) = elementwise(&out.client, rows.div_ceil(ROWS) * vectors);
    // SAFETY: a unit has vectors of `out` in rows below `rows`, and reads the same rows of `a` and
    // the same columns of `b`.
    unsafe {
        vectors_of_columns::launch_unchecked(
            &out.client,
            count,
            cube,
            address([&a.tensor, &b.tensor, out]),
            lanes,
            buffer(&a.tensor),
            buffer(&b.tensor),
            buffer(out),
            rows,
            vectors,
            inner,
            a.row,
            a.column,
            [elements(a.tensor.dtype), elements(b.tensor.dtype), elements(out.dtype)],
        );
    }
}

fn along_inner(a: &Stepped, b: &Stepped, inner: usize, out: &CubeTensor) {
    let [rows, columns] = out.meta.shape().dims();
    let lanes = lanes(inner, 8, &[&a.tensor, &b.tensor]);
    let blocks = rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS);
    let (count, cube) = elementwise(&out.client, blocks);
    // SAFETY: a unit writes numbers of `out` within `rows` and `columns`, and reads the same rows
    // of `a` and the same columns of `b`.
    unsafe {
        vectors_of_inner::launch_unchecked(
            &out.client,
            count,
            cube,
            address([&a.tensor, &b.tensor, out]),
            lanes,
            buffer(&a.tensor),
            buffer(&b.tensor),
            buffer(out),
            rows,
            columns,
            inner / lanes,
            [elements(a.tensor.dtype), elements(b.tensor.dtype), elements(out.dtype)],
        );
    }
}

/// A vector of columns in [`ROWS`] rows of the result. `vectors` are those of a row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn vectors_of_columns<A: Float, B: Float, O: Float, N: Size>(
    a: &[A],
    b: &[Vector<B, N>],
    out: &mut [Vector<O, N>],
    rows: usize,
    vectors: usize,
    inner: usize,
    a_row: usize,
    a_column: usize,
    #[define(A, B, O)] _types: [ElemType; 3],
) {
    let groups = rows.div_ceil(ROWS);
    if ABSOLUTE_POS < groups * vectors {
        // Units that follow one another read the same columns of `b`.
        let vector = ABSOLUTE_POS / groups;
        let first = ABSOLUTE_POS % groups * ROWS;
        let mut starts = Array::<usize>::new(ROWS);
        let mut sums = Array::<Vector<f32, N>>::new(ROWS);
        #[unroll]
        for i in 0..ROWS {
            starts[i] = min(first + i, rows - 1) * a_row;
            sums[i] = Vector::new(0.0f32);
        }
        // Sums of sums: a float32 sum of very many terms would lose the small ones.
        let mut k = 0usize;
        while k < inner {
            let end = min(k + STRETCH, inner);
            let mut parts = Array::<Vector<f32, N>>::new(ROWS);
            #[unroll]
            for i in 0..ROWS {
                parts[i] = Vector::new(0.0f32);
            }
            while k < end {
                let of_b = Vector::<f32, N>::cast_from(b[k * vectors + vector]);
                #[unroll]
                for i in 0..ROWS {
                    let of_a = f32::cast_from(a[starts[i] + k * a_column]);
                    parts[i] = fma(Vector::new(of_a), of_b, parts[i]);
                }
                k += 1;
            }
            #[unroll]
            for i in 0..ROWS {
                sums[i] += parts[i];
            }
        }
        #[unroll]
        for i in 0..ROWS {
            if first + i < rows {
                out[(first + i) * vectors + vector] = Vector::cast_from(sums[i]);
            }
        }
    }
}

/// [`ROWS`] × [`COLUMNS`] numbers of the result. `vectors` are those of a row of `a` and of a column
/// of `b`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn vectors_of_inner<A: Float, B: Float, O: Float, N: Size>(
    a: &[Vector<A, N>],
    b: &[Vector<B, N>],
    out: &mut [O],
    rows: usize,
    columns: usize,
    vectors: usize,
    #[define(A, B, O)] _types: [ElemType; 3],
) {
    let groups = rows.div_ceil(ROWS);
    let pairs = columns.div_ceil(COLUMNS);
    if ABSOLUTE_POS < groups * pairs {
        // Units that follow one another read the same columns of `b`.
        let left = ABSOLUTE_POS / groups * COLUMNS;
        let first = ABSOLUTE_POS % groups * ROWS;
        let mut a_starts = Array::<usize>::new(ROWS);
        #[unroll]
        for i in 0..ROWS {
            a_starts[i] = min(first + i, rows - 1) * vectors;
        }
        let mut b_starts = Array::<usize>::new(COLUMNS);
        #[unroll]
        for j in 0..COLUMNS {
            b_starts[j] = min(left + j, columns - 1) * vectors;
        }
        let mut sums = Array::<Vector<f32, N>>::new(ROWS * COLUMNS);
        #[unroll]
        for i in 0..ROWS * COLUMNS {
            sums[i] = Vector::new(0.0f32);
        }
        let mut k = 0usize;
        while k < vectors {
            let mut of_b = Array::<Vector<f32, N>>::new(COLUMNS);
            #[unroll]
            for j in 0..COLUMNS {
                of_b[j] = Vector::cast_from(b[b_starts[j] + k]);
            }
            #[unroll]
            for i in 0..ROWS {
                let of_a = Vector::<f32, N>::cast_from(a[a_starts[i] + k]);
                #[unroll]
                for j in 0..COLUMNS {
                    let sum = sums[i * COLUMNS + j];
                    sums[i * COLUMNS + j] = fma(of_a, of_b[j], sum);
                }
            }
            k += 1;
        }
        #[unroll]
        for i in 0..ROWS {
            #[unroll]
            for j in 0..COLUMNS {
                if first + i < rows && left + j < columns {
                    let of_number = sums[i * COLUMNS + j];
                    let mut sum = 0.0f32;
                    #[unroll]
                    for lane in 0..of_number.vector_size() {
                        sum += of_number.extract(lane);
                    }
                    out[(first + i) * columns + left + j] = O::cast_from(sum);
                }
            }
        }
    }
}
