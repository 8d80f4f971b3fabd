//! Matrix products of float32 on all threads.
//!
//! `gemm` computes; here the output is divided among the threads once, and each computes its part by
//! itself. `gemm`'s own threads meet several times a product, which costs much at the sizes of a
//! micro-batch. The output is not filled with zeros before.

use rayon::prelude::*;

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
///
/// A part has more than 64 of them: below that `gemm` may cut the inner sum at other places, and the
/// bits would depend on the number of threads.
fn parts([m, n, k]: [usize; 3], threads: usize) -> Option<(usize, usize)> {
    const LEAST: usize = 64;
    /// `gemm`'s kernels take 6 rows, and 16 columns or a few times that.
    const TILE: [usize; 2] = [6, 16];
    const WORTH_IT: usize = 1 << 20;
    let axis = usize::from(n >= m);
    let whole = [m, n][axis];
    let size = whole.div_ceil(threads).max(LEAST + 1).next_multiple_of(TILE[axis]);
    let last = whole - (whole.div_ceil(size) - 1) * size;
    (threads > 1 && m * n * k > WORTH_IT && size < whole && last > LEAST).then_some((axis, size))
}

/// `out = a · b` on this thread, or `out += a · b` where `add`; rows of `out` are `out_row` numbers apart.
///
/// # Safety
/// `out` must be valid for `a.rows()` rows of `b.columns()` numbers, `out_row` apart, and no other thread may
/// touch them.
pub(super) unsafe fn multiply_at(a: Matrix, b: Matrix, out: *mut f32, out_row: usize, add: bool) {
    let [m, n, k] = [a.shape[0], b.shape[1], a.shape[1]];
    if m == 0 || n == 0 {
        return;
    }
    let fits = |x: Matrix| {
        let last = |axis: usize| x.shape[axis].saturating_sub(1) * x.strides[axis];
        k == 0 || last(0) + last(1) < x.values.len()
    };
    assert_eq!(k, b.shape[0], "the inner sizes agree");
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
        for [m, n, k] in
            [[256, 576, 700], [130, 70, 1600], [70, 900, 64], [97, 33, 900], [3, 5000, 80]]
        {
            let (a, b) = (numbers(m * k), numbers(n * k));
            let work = || product(Matrix::dense(&a, m, k), Matrix::dense(&b, n, k).transposed());
            let one = on_threads(1, work);
            for threads in [2, 3, 4, 16] {
                assert!(on_threads(threads, work) == one, "{m} × {n} × {k} on {threads}");
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let [m, n, k] = [150, 131, 90];
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
