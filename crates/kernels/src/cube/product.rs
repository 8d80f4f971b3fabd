//! Matrix products. On GPUs: Burn's CubeCL kernels with a fixed strategy; tuning would compile and
//! measure several kernels for each new shape. Burn's kernels have tiles that do not fit what
//! CubeCL's CPU runtime offers as shared memory, and are compiled anew for many shapes. There, two
//! kernels with vectors compute all products ([`super::cpu_product`]). On a GPU for which Burn has
//! no kernel, one kernel without tiles does.

use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::cpu_product::vector_product;
use super::{address, buffer, contiguous, elements, elementwise, empty, is_cpu};

/// Products that are added one after another before their sum is added to the total.
pub(super) const STRETCH: usize = 1024;

/// `a · b` for `[m, k]` and `[k, n]`, with elements of type `dtype` and float32 sums.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    let ([_, inner], [height, _]) = (a.meta.shape().dims::<2>(), b.meta.shape().dims::<2>());
    assert_eq!(inner, height, "columns of the first matrix and rows of the second");
    if is_cpu(&a.client) {
        return plain_product(a, b, dtype);
    }
    match matmul(a.clone(), b.clone(), None, MatmulStrategy::Cube, dtype) {
        Ok(out) => out,
        Err(_) => plain_product(a, b, dtype),
    }
}

/// The transpose of a matrix as a view.
pub(crate) fn transposed(mut matrix: CubeTensor) -> CubeTensor {
    matrix.meta.swap(0, 1);
    matrix
}

/// [`product`] without tiles.
fn plain_product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    let ([rows, inner], [_, columns]) = (a.meta.shape().dims::<2>(), b.meta.shape().dims::<2>());
    let out = empty(&a, [rows, columns], dtype);
    let (a, b) = (Stepped::new(a), Stepped::new(b));
    if rows * columns > 0 && !(is_cpu(&out.client) && vector_product(&a, &b, inner, &out)) {
        number_by_number(&a, &b, inner, &out);
    }
    out
}

/// Computes the product of `a` and `b` with a unit for each number of `out`.
fn number_by_number(a: &Stepped, b: &Stepped, inner: usize, out: &CubeTensor) {
    let [rows, columns] = out.meta.shape().dims();
    let (count, cube) = elementwise(&out.client, rows * columns);
    // SAFETY: a unit has one number of `out` and reads a row of `a` and a column of `b`.
    unsafe {
        dot_products::launch_unchecked(
            &out.client,
            count,
            cube,
            address([&a.tensor, &b.tensor, out]),
            buffer(&a.tensor),
            buffer(&b.tensor),
            buffer(out),
            columns,
            inner,
            a.row,
            a.column,
            b.row,
            b.column,
            [elements(a.tensor.dtype), elements(b.tensor.dtype), elements(out.dtype)],
        );
    }
}

/// A contiguous tensor with the elements of a matrix.
pub(super) struct Stepped {
    pub tensor: CubeTensor,
    /// The step in the tensor from one row of the matrix to the next.
    pub row: usize,
    /// The step from one column to the next.
    pub column: usize,
}

impl Stepped {
    /// A transposed view is not copied.
    fn new(matrix: CubeTensor) -> Self {
        let [rows, columns] = matrix.meta.shape().dims();
        if matrix.is_contiguous() {
            return Self { tensor: matrix, row: columns, column: 1 };
        }
        let turned = transposed(matrix);
        match turned.is_contiguous() {
            true => Self { tensor: turned, row: 1, column: rows },
            false => Self { tensor: contiguous(transposed(turned)), row: columns, column: 1 },
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn dot_products<A: Float, B: Float, O: Float>(
    a: &[A],
    b: &[B],
    out: &mut [O],
    columns: usize,
    inner: usize,
    a_row: usize,
    a_column: usize,
    b_row: usize,
    b_column: usize,
    #[define(A, B, O)] _types: [ElemType; 3],
) {
    if ABSOLUTE_POS < out.len() {
        let a_first = ABSOLUTE_POS / columns * a_row;
        let b_first = ABSOLUTE_POS % columns * b_column;
        // Sums of sums: a float32 sum of very many terms would lose the small ones.
        let mut sum = 0.0f32;
        let mut k = 0usize;
        while k < inner {
            let end = min(k + STRETCH, inner);
            let mut part = 0.0f32;
            while k < end {
                let left = f32::cast_from(a[a_first + k * a_column]);
                part += left * f32::cast_from(b[b_first + k * b_row]);
                k += 1;
            }
            sum += part;
        }
        out[ABSOLUTE_POS] = O::cast_from(sum);
    }
}
