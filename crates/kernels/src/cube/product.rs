//! Matrix products: Burn's CubeCL kernels with a fixed strategy. Tuning would compile and measure
//! several kernels for each new shape.

use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

/// `a · b` for `[m, k]` and `[k, n]`, with elements of type `dtype` and float32 sums.
///
/// # Panics
/// If the shapes do not fit, or if no kernel of the device takes the types.
pub(crate) fn product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    matmul(a, b, None, MatmulStrategy::Cube, dtype).expect("a kernel for the product")
}

/// The transpose of a matrix as a view.
pub(crate) fn transposed(mut matrix: CubeTensor) -> CubeTensor {
    matrix.meta.swap(0, 1);
    matrix
}
