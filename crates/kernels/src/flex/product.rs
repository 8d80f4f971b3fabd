//! Matrix products of float32 on all threads.
//!
//! `gemm` computes; here the output is divided among the threads once, and each computes its part by
//! itself. `gemm`'s own threads meet several times a product, which costs much at the sizes of a
//! micro-batch. The output is not filled with zeros before.
//!
//! Each number of a product is summed in an order that depends on the inner size alone, not on how many rows
//! and columns lie beside it: runs of at most [`RUN`] terms, each from its first term to its last in fused
//! multiply-adds, then the runs one after the other. (Where a processor has no fused multiply-add, `gemm`
//! rounds twice, so that there the few rows of [`multiply_slim`] may differ from many by rounding.) Only a product of a
//! single row or column has its own order: it is as fast as memory is read, and a generated token is made of such.

use rayon::prelude::*;

use super::exp::vectorized;
use super::lanes;

/// Terms that are summed at a time. So many `gemm` takes in one run whatever the other sizes are; where to
/// cut a longer sum it decides by them.
const RUN: usize = 512;

/// Up to so many numbers whose factors lie side by side, `gemm` sums in lanes.
const FEW: usize = 256;

/// `[rows, columns]` numbers at any distance from each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Row after row.
    pub fn dense(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix has all its numbers");
        Self { values, shape: [rows, columns], strides: [columns, 1] }
    }

    /// Rows that begin `row_stride` numbers apart, the first with the first of `values`.
    pub fn rows_apart(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, shape: [rows, columns], strides: [row_stride, 1] }
    }

    /// The same numbers with rows for columns.
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

    /// `len` of its rows (`axis` 0) or columns (1).
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
    // SAFETY: the product has written that many numbers behind those that were there.
    unsafe { out.set_len(out.len() + len) };
}

/// `out += a[m, k] · b[k, n]`; `out` is dense.
pub(crate) fn add_product(a: Matrix, b: Matrix, out: &mut [f32]) {
    assert_eq!(out.len(), a.shape[0] * b.shape[1], "the output has all its numbers");
    multiply(a, b, Output { start: out.as_mut_ptr(), stride: b.shape[1] }, true);
}

/// Where a part of the output lies.
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
        // SAFETY: the whole output is the caller's.
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
        // SAFETY: the offset of a row or column of the output lies within it, and its parts do not overlap.
        unsafe { multiply_at(a, b, { out }.start.add(offset), out.stride, add) };
    });
}

/// Which axis of an `[m, n]` output is divided among threads, and the rows or columns of a part; none for
/// what one thread does sooner.
fn parts([m, n, k]: [usize; 3], threads: usize) -> Option<(usize, usize)> {
    /// A part has more: with fewer, what it copies is much next to what it computes.
    const LEAST: usize = 64;
    /// `gemm`'s kernels take 6 rows, and 16 columns or a few times that.
    const TILE: [usize; 2] = [6, 16];
    /// `gemm` copies all rows of a transposed `a` first: more of them leave the caches. Several parts a
    /// thread let the others help one that was held up.
    const MOST: [usize; 2] = [384, 4096];
    /// Each part copies all of the other matrix.
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

/// `out = a · b` on this thread, or `out += a · b` where `add`; rows of `out` are `out_row` numbers apart.
///
/// # Safety
/// `out` must be valid for `a.rows()` rows of `b.columns()` numbers, `out_row` apart, and no other thread may
/// touch them.
pub(crate) unsafe fn multiply_at(a: Matrix, b: Matrix, out: *mut f32, out_row: usize, add: bool) {
    let [m, n, k] = [a.shape[0], b.shape[1], a.shape[1]];
    assert_eq!(k, b.shape[0], "the inner sizes agree");
    if m == 0 || n == 0 {
        return;
    }
    if m == 1 || n == 1 {
        // SAFETY: the output is the caller's word.
        return unsafe { multiply_slim(a, b, out, [out_row, 1], add) };
    }
    // Runs of about one size, as `gemm` cuts the sums of large matrices. An inner size of 0 is one run of nothing.
    let run = k.div_ceil(k.div_ceil(RUN).max(1)).max(1);
    for from in (0..k.max(1)).step_by(run) {
        let len = run.min(k - from);
        let (a, b) = (a.part(1, from, len), b.part(0, from, len));
        // SAFETY: the output is the caller's word.
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
        // SAFETY: the output is the caller's word.
        return unsafe { multiply_slim(a, b, out, [out_row, 1], add) };
    }
    let fits = |x: Matrix| {
        let last = |axis: usize| x.shape[axis].saturating_sub(1) * x.strides[axis];
        last(0) + last(1) < x.values.len()
    };
    assert!(fits(a) && fits(b));
    // SAFETY: what is read lies within the two slices, as just checked; the output is the caller's word.
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

/// [`multiply_at`] of a row or a column, and [`multiply_run`] with an inner size of 1 or 2 or of a few numbers. `gemm` begins
/// such products where memory is aligned, so that their bits would depend on the address, or sums them in lanes; here each sum
/// has one order, for several rows and columns that of `gemm`'s other kernels.
///
/// # Safety
/// `out` must be valid for `a.rows()` by `b.columns()` numbers `strides` apart, and no other thread may touch
/// them.
unsafe fn multiply_slim(a: Matrix, b: Matrix, out: *mut f32, strides: [usize; 2], add: bool) {
    let [m, n] = [a.shape[0], b.shape[1]];
    if n == 1 && m > 1 {
        let strides = [strides[1], strides[0]];
        // SAFETY: the same numbers with rows for columns.
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
                // Beyond the last column it stands once more, for sums that nobody takes.
                let column = |place: usize| b.part(1, (index * COLUMNS + place).min(n - 1), 1);
                let columns = std::array::from_fn(|place| column(place).values);
                numbers.copy_from_slice(&sums(&factors, columns)[..numbers.len()]);
            }
        } else {
            assert_eq!(b.strides[1], 1, "one of two strides is 1");
            line.fill(0.0);
            for (index, factor) in factors.iter().enumerate() {
                add_multiple(&mut line, *factor, &b.part(0, index, 1).values[..n]);
            }
        }
        for (column, number) in line.iter().enumerate() {
            // SAFETY: within the output by the caller's word.
            let target = unsafe { &mut *out.add(row * strides[0] + column * strides[1]) };
            *target = if add { *target + number } else { *number };
        }
    }
}

/// Columns that are summed side by side: a multiply-add waits for the one before it, but not for its neighbours.
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

    /// A linear layer over two tokens: parts of so few numbers that `gemm` would sum them in lanes.
    #[test]
    fn few_rows_are_divided_among_threads() {
        assert_eq!(parts([2, 1536, 576], 16), Some((1, 96)));
        const { assert!(2 * 96 <= FEW) };
    }

    #[test]
    fn bits_do_not_depend_on_neighbours() {
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
                            assert!(some == &all[row * MOST..][..n], "{m} × {n} × {k}, row {row}");
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

    /// `a · b` added to a half, with all three `offset` numbers behind where memory begins.
    fn sum_at(offset: usize, [m, n, k]: [usize; 3], turned: [bool; 2]) -> Vec<f32> {
        let moved = |len: usize| [vec![0.0; offset], numbers(len)].concat();
        let (a, b) = (moved(m * k), moved(k * n));
        let matrix = |x, turned, rows, columns| match turned {
            true => Matrix::dense(x, columns, rows).transposed(),
            false => Matrix::dense(x, rows, columns),
        };
        let (a, b) = (matrix(&a[offset..], turned[0], m, k), matrix(&b[offset..], turned[1], k, n));
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
                    for turned in [[false, false], [false, true], [true, false], [true, true]] {
                        let one = sum_at(0, [m, n, k], turned);
                        for offset in [1, 4, 7, 8, 12] {
                            let other = sum_at(offset, [m, n, k], turned);
                            assert!(other == one, "{m} × {n} × {k} {turned:?}, {offset} on");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for [m, n, k] in [[150, 131, 90], [1, 131, 90], [150, 1, 90], [1, 1, 9], [20, 30, 2]] {
            is_that_of_the_definition([m, n, k]);
        }
    }

    fn is_that_of_the_definition([m, n, k]: [usize; 3]) {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let (dense, turned) = (Matrix::dense(&a, k, m).transposed(), Matrix::dense(&b, k, n));
        let mut sum = vec![1.0; m * n];
        add_product(dense, turned, &mut sum);
        let plain = product(dense, turned);
        for (index, (sum, plain)) in sum.iter().zip(&plain).enumerate() {
            let (row, column) = (index / n, index % n);
            let exact: f64 =
                (0..k).map(|i| f64::from(a[i * m + row]) * f64::from(b[i * n + column])).sum();
            assert!((f64::from(*plain) - exact).abs() < 1e-4, "{plain} for {exact}");
            assert!((f64::from(*sum) - 1.0 - exact).abs() < 1e-4);
        }
    }
}
