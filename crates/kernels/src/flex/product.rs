//! Matrix products of float32 on all threads.
//!
//! This module divides the output among the threads once; the crate `gemm` then computes each part
//! on one thread. `gemm`'s own threads synchronize several times in a product, which is slow at the
//! sizes of a micro-batch. The output is not filled with zeros first.
//!
//! Each element of a product is summed in an order that depends on the inner size alone, not on the
//! number of rows and columns: in runs of at most [`RUN`] terms, each run from its first term to
//! its last with fused multiply-adds, then one run after the other. (On a processor without fused
//! multiply-add, `gemm` rounds twice, so a product of few rows by [`multiply_slim`] may differ from
//! one of many rows by rounding.) Only a product of a single row or column has an order of its own:
//! it runs at the speed of memory, and generating a token consists of such products.

use rayon::prelude::*;

use super::exp::vectorized;
use super::lanes;

/// Terms of one run. `gemm` never cuts a sum of this length; the other sizes decide where it cuts a
/// longer one.
const RUN: usize = 512;

/// `gemm` sums in lanes if the output has at most this many elements and the factors are
/// contiguous.
const FEW: usize = 256;

/// A strided view of `[rows, columns]` numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Numbers in row-major order.
    pub fn dense(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "the slice has the size of the matrix");
        Self { values, shape: [rows, columns], strides: [columns, 1] }
    }

    /// Rows that begin `row_stride` numbers apart; the first one begins at the first number.
    pub fn rows_apart(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, shape: [rows, columns], strides: [row_stride, 1] }
    }

    /// The transposed view of the same numbers.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.strides);
        Self { shape: [columns, rows], strides: [column, row], ..self }
    }

    pub fn rows(self) -> usize {
        self.shape[0]
    }

    pub fn columns(self) -> usize {
        self.shape[1]
    }

    /// The numbers of one row (`axis` 0) or column (1).
    fn line(self, axis: usize, index: usize) -> impl Iterator<Item = &'a f32> {
        let line = self.values[index * self.strides[axis]..].iter();
        line.step_by(self.strides[1 - axis].max(1)).take(self.shape[1 - axis])
    }

    /// `len` rows (`axis` 0) or columns (1), beginning with number `from`.
    fn part(self, axis: usize, from: usize, len: usize) -> Self {
        let mut shape = self.shape;
        shape[axis] = len;
        Self { values: &self.values[from * self.strides[axis]..], shape, ..self }
    }
}

/// `a[m, k] · b[k, n]`, dense.
pub(crate) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    let mut out = Vec::new();
    append_product(a, b, &mut out);
    out
}

/// Appends `a[m, k] · b[k, n]`, dense, to `out`.
pub(crate) fn append_product(a: Matrix, b: Matrix, out: &mut Vec<f32>) {
    let len = a.shape[0] * b.shape[1];
    out.reserve(len);
    let start = out.spare_capacity_mut().as_mut_ptr().cast();
    multiply(a, b, Output { start, stride: b.shape[1] }, false);
    // SAFETY: the product has initialized `len` numbers behind the existing ones.
    unsafe { out.set_len(out.len() + len) };
}

/// `out += a[m, k] · b[k, n]`; `out` is dense.
pub(crate) fn add_product(a: Matrix, b: Matrix, out: &mut [f32]) {
    assert_eq!(out.len(), a.shape[0] * b.shape[1], "the output has the size of the product");
    multiply(a, b, Output { start: out.as_mut_ptr(), stride: b.shape[1] }, true);
}

/// `a[m, k] · bᵀ`, dense, with the rows of `b` (`[n, k]`) made when they are needed:
/// `write(row, rows)` writes some rows, beginning with number `row`. The bits are those of
/// [`product()`].
pub(crate) fn product_of_rows(
    a: Matrix,
    n: usize,
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    /// Rows that are made at a time. A single one would be summed in another order.
    const ROWS: usize = 16;
    let [m, k] = a.shape;
    let mut numbers = Vec::with_capacity(m * n);
    let out = Output { start: numbers.spare_capacity_mut().as_mut_ptr().cast(), stride: n };
    let parts = (n / ROWS).max(1);
    (0..parts).into_par_iter().for_each(|part| {
        let from = part * ROWS;
        let rows = if part + 1 == parts { n - from } else { ROWS };
        let mut b = vec![0.0; rows * k];
        write(from, &mut b);
        let b = Matrix::dense(&b, rows, k).transposed();
        // SAFETY: the columns lie within the output, and the parts do not overlap.
        unsafe { multiply_at(a, b, { out }.start.add(from), out.stride, false) };
    });
    // SAFETY: the parts have initialized all columns of all rows.
    unsafe { numbers.set_len(m * n) };
    numbers
}

/// Address and row stride of a part of the output.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

// SAFETY: the parts that threads write do not overlap.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

fn multiply(a: Matrix, b: Matrix, out: Output, add: bool) {
    let [m, n, k] = [a.shape[0], b.shape[1], a.shape[1]];
    let Some((axis, size)) = parts([m, n, k], rayon::current_num_threads()) else {
        // SAFETY: the caller owns the whole output.
        return unsafe { multiply_at(a, b, out.start, out.stride, add) };
    };
    let whole = [m, n][axis];
    (0..whole.div_ceil(size)).into_par_iter().with_max_len(1).for_each(|part| {
        let from = part * size;
        let len = size.min(whole - from);
        let (a, b, offset) = match axis {
            0 => (a.part(0, from, len), b, from * out.stride),
            _ => (a, b.part(1, from, len), from),
        };
        // SAFETY: the offset of a row or column lies within the output, and the parts do not
        // overlap.
        unsafe { multiply_at(a, b, { out }.start.add(offset), out.stride, add) };
    });
}

/// The axis along which an `[m, n]` output is divided among threads, and the rows or columns of a
/// part. `None` if one thread is faster.
fn parts([m, n, k]: [usize; 3], threads: usize) -> Option<(usize, usize)> {
    /// A part has more rows or columns than this: with fewer, copying costs much compared with
    /// computing.
    const LEAST: usize = 64;
    /// `gemm`'s kernels process 6 rows and a multiple of 16 columns at a time.
    const TILE: [usize; 2] = [6, 16];
    /// `gemm` first copies all rows of a transposed `a`: more rows do not fit the caches. With
    /// several parts per thread, the other threads can take over parts of a delayed one.
    const MOST: [usize; 2] = [384, 4096];
    /// A bound, because each part copies the whole other matrix.
    const PARTS_A_THREAD: usize = 16;
    const WORTH_IT: usize = 1 << 20;
    if threads == 1 || m * n * k <= WORTH_IT {
        return None;
    }
    let axis = usize::from(n >= m);
    let whole = [m, n][axis];
    let count = whole.div_ceil(MOST[axis]).min(PARTS_A_THREAD * threads).next_multiple_of(threads);
    let even = whole.div_ceil(count).max(LEAST + 1);
    let last = |size: usize| whole - (whole.div_ceil(size) - 1) * size;
    let sizes = [even.next_multiple_of(TILE[axis]), even];
    let size = sizes.into_iter().find(|size| *size < whole && last(*size) > LEAST)?;
    Some((axis, size))
}

/// `out = a · b` on this thread, or `out += a · b` if `add`; rows of `out` begin `out_row` numbers
/// apart.
///
/// # Safety
/// `out` must be valid for `a.rows()` rows of `b.columns()` numbers, `out_row` apart, and no other
/// thread may access them.
pub(crate) unsafe fn multiply_at(a: Matrix, b: Matrix, out: *mut f32, out_row: usize, add: bool) {
    let [m, n, k] = [a.shape[0], b.shape[1], a.shape[1]];
    assert_eq!(k, b.shape[0], "the inner sizes agree");
    if m == 0 || n == 0 {
        return;
    }
    if m == 1 || n == 1 {
        // SAFETY: the caller guarantees the output.
        return unsafe { multiply_slim(a, b, out, [out_row, 1], add) };
    }
    // Runs of nearly equal size, as `gemm` cuts the sums of large matrices. An inner size of 0 is
    // one empty run.
    let run = k.div_ceil(k.div_ceil(RUN).max(1)).max(1);
    for from in (0..k.max(1)).step_by(run) {
        let len = run.min(k - from);
        let (a, b) = (a.part(1, from, len), b.part(0, from, len));
        // SAFETY: the caller guarantees the output.
        unsafe { multiply_run(a, b, out, out_row, add || from > 0) };
    }
}

/// [`multiply_at`] of one run of terms.
///
/// # Safety
/// As [`multiply_at`].
unsafe fn multiply_run(a: Matrix, b: Matrix, out: *mut f32, out_row: usize, add: bool) {
    let [m, n, k] = [a.shape[0], b.shape[1], a.shape[1]];
    let in_lanes = m * n <= FEW && a.strides[1] == 1 && b.strides[0] == 1;
    if k <= 2 || in_lanes {
        // SAFETY: the caller guarantees the output.
        return unsafe { multiply_slim(a, b, out, [out_row, 1], add) };
    }
    let fits = |x: Matrix| {
        let last = |axis: usize| x.shape[axis].saturating_sub(1) * x.strides[axis];
        last(0) + last(1) < x.values.len()
    };
    assert!(fits(a) && fits(b));
    // SAFETY: the reads lie within the two slices, as checked above; the caller guarantees the
    // output.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            add,
            a.values.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.values.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// [`multiply_at`] for a single row or column, and [`multiply_run`] for an inner size of 1 or 2 or
/// a small output. For these, `gemm` starts at an aligned address, so that the bits would depend on
/// the address, or sums in lanes. Here each sum has one order; with several rows and columns it is
/// the order of `gemm`'s other kernels.
///
/// # Safety
/// `out` must be valid for `a.rows()` by `b.columns()` numbers `strides` apart, and no other thread
/// may access them.
unsafe fn multiply_slim(a: Matrix, b: Matrix, out: *mut f32, strides: [usize; 2], add: bool) {
    let [m, n] = [a.shape[0], b.shape[1]];
    if n == 1 && m > 1 {
        let strides = [strides[1], strides[0]];
        // SAFETY: the transposed product writes the same numbers.
        return unsafe { multiply_slim(b.transposed(), a.transposed(), out, strides, add) };
    }
    let mut line = vec![0.0; n];
    for row in 0..m {
        let factors: Vec<f32> = a.line(0, row).copied().collect();
        if b.strides[0] == 1 && m == 1 {
            for (column, number) in line.iter_mut().enumerate() {
                *number = dot(&factors, &b.part(1, column, 1).values[..factors.len()]);
            }
        } else if b.strides[0] == 1 {
            for (index, numbers) in line.chunks_mut(COLUMNS).enumerate() {
                // The last column is repeated to fill the array; the extra sums are dropped.
                let column = |place: usize| b.part(1, (index * COLUMNS + place).min(n - 1), 1);
                let columns = std::array::from_fn(|place| column(place).values);
                numbers.copy_from_slice(&sums(&factors, columns)[..numbers.len()]);
            }
        } else {
            assert_eq!(b.strides[1], 1, "one of the two strides is 1");
            line.fill(0.0);
            for (index, factor) in factors.iter().enumerate() {
                add_multiple(&mut line, *factor, &b.part(0, index, 1).values[..n]);
            }
        }
        for (column, number) in line.iter().enumerate() {
            // SAFETY: within the output, which the caller guarantees.
            let target = unsafe { &mut *out.add(row * strides[0] + column * strides[1]) };
            *target = if add { *target + number } else { *number };
        }
    }
}

/// Columns that are summed at the same time: a multiply-add depends on the one before it in the
/// same column, but not on those of other columns.
const COLUMNS: usize = 8;

vectorized!(fn dot(x: &[f32], y: &[f32]) -> f32 = dot_plain);
vectorized!(
    /// `Σ factor · number` over each column, in order.
    fn sums(factors: &[f32], columns: [&[f32]; COLUMNS]) -> [f32; COLUMNS] = sums_plain
);
vectorized!(fn add_multiple(sum: &mut [f32], factor: f32, x: &[f32]) = add_multiple_plain);

#[inline(always)]
fn dot_plain(x: &[f32], y: &[f32]) -> f32 {
    lanes::sum_of_pairs(x, y, |x, y| x * y)
}

#[inline(always)]
fn sums_plain(factors: &[f32], columns: [&[f32]; COLUMNS]) -> [f32; COLUMNS] {
    let columns = columns.map(|column| &column[..factors.len()]);
    let mut sums = [0.0f32; COLUMNS];
    for (index, factor) in factors.iter().enumerate() {
        for (sum, column) in sums.iter_mut().zip(&columns) {
            *sum = factor.mul_add(column[index], *sum);
        }
    }
    sums
}

#[inline(always)]
fn add_multiple_plain(sum: &mut [f32], factor: f32, x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum = factor.mul_add(*x, *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8).collect()
    }

    fn on_threads(threads: usize, work: impl FnOnce() -> Vec<f32> + Send) -> Vec<f32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(work)
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let large = [[256, 576, 700], [130, 70, 1600], [70, 900, 64], [97, 33, 900], [3, 5000, 80]];
        let slim = [[2, 1536, 576], [3, 700, 600], [1, 5000, 700], [2000, 1, 900]];
        for [m, n, k] in large.into_iter().chain(slim) {
            let (a, b) = (numbers(m * k), numbers(n * k));
            let work = || product(Matrix::dense(&a, m, k), Matrix::dense(&b, n, k).transposed());
            let one = on_threads(1, work);
            for threads in [2, 3, 4, 16] {
                assert!(on_threads(threads, work) == one, "{m} × {n} × {k} on {threads}");
            }
        }
    }

    /// A linear layer over two tokens: its parts are so small that `gemm` would sum them in lanes.
    #[test]
    fn few_rows_are_divided_among_threads() {
        assert_eq!(parts([2, 1536, 576], 16), Some((1, 96)));
        const { assert!(2 * 96 <= FEW) };
    }

    #[test]
    fn bits_do_not_depend_on_other_rows_and_columns() {
        const MOST: usize = 80;
        fn layouts(x: &[f32], k: usize) -> [Matrix<'_>; 2] {
            [Matrix::dense(x, MOST, k), Matrix::dense(x, k, MOST).transposed()]
        }
        for k in [1, 2, 3, 40, 512, 513, 576, 1300] {
            let (a, b) = (numbers(MOST * k), numbers(MOST * k));
            for (a, b) in layouts(&a, k).into_iter().flat_map(|a| layouts(&b, k).map(|b| (a, b))) {
                let all = product(a, b.transposed());
                for m in [2, 3, 4, 16, 64, 65] {
                    for n in [2, 5, 64, 65] {
                        let some = product(a.part(0, 0, m), b.part(0, 0, n).transposed());
                        for (row, some) in some.chunks_exact(n).enumerate() {
                            assert!(some == &all[row * MOST..][..n], "{m} × {n} × {k}, {row}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn no_large_product_is_left_to_one_thread() {
        for threads in [2, 3, 8, 64] {
            for whole in (128 * threads..40_000).step_by(7).chain([49_152, 128_256, 151_936]) {
                let of_rows = parts([whole, 100, 300], threads).filter(|(axis, _)| *axis == 0);
                let of_columns = parts([100, whole, 300], threads).filter(|(axis, _)| *axis == 1);
                for (_, size) in [of_rows, of_columns].map(|found| found.expect("it is large")) {
                    let count = whole.div_ceil(size);
                    assert!(count >= threads.div_ceil(2), "{whole} on {threads}: {count} parts");
                    assert!(whole - (count - 1) * size > 64, "{whole} on {threads}: {size}");
                }
            }
        }
    }

    /// `a · b` added to a half, with all three matrices `offset` numbers after the start of their
    /// allocations.
    fn sum_at(offset: usize, [m, n, k]: [usize; 3], transposed: [bool; 2]) -> Vec<f32> {
        let moved = |len: usize| [vec![0.0; offset], numbers(len)].concat();
        let (a, b) = (moved(m * k), moved(k * n));
        let matrix = |x, transposed, rows, columns| match transposed {
            true => Matrix::dense(x, columns, rows).transposed(),
            false => Matrix::dense(x, rows, columns),
        };
        let (a, b) =
            (matrix(&a[offset..], transposed[0], m, k), matrix(&b[offset..], transposed[1], k, n));
        let mut out = vec![0.5; offset + m * n];
        add_product(a, b, &mut out[offset..]);
        out.split_off(offset)
    }

    #[test]
    fn bits_do_not_depend_on_the_address() {
        let sizes = [1, 2, 3, 5, 8, 17, 40, 64, 70];
        for m in sizes {
            for n in sizes {
                for k in sizes {
                    for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                        let one = sum_at(0, [m, n, k], transposed);
                        for offset in [1, 4, 7, 8, 12] {
                            let other = sum_at(offset, [m, n, k], transposed);
                            assert!(other == one, "{m} × {n} × {k} {transposed:?}, {offset} on");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_agree_with_the_definition() {
        for [m, n, k] in [[150, 131, 90], [1, 131, 90], [150, 1, 90], [1, 1, 9], [20, 30, 2]] {
            assert_agrees_with_the_definition([m, n, k]);
        }
    }

    fn assert_agrees_with_the_definition([m, n, k]: [usize; 3]) {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let (left, right) = (Matrix::dense(&a, k, m).transposed(), Matrix::dense(&b, k, n));
        let mut sum = vec![1.0; m * n];
        add_product(left, right, &mut sum);
        let plain = product(left, right);
        for (index, (sum, plain)) in sum.iter().zip(&plain).enumerate() {
            let (row, column) = (index / n, index % n);
            let exact: f64 =
                (0..k).map(|i| f64::from(a[i * m + row]) * f64::from(b[i * n + column])).sum();
            assert!((f64::from(*plain) - exact).abs() < 1e-4, "{plain} for {exact}");
            assert!((f64::from(*sum) - 1.0 - exact).abs() < 1e-4);
        }
    }
}
