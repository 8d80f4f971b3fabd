//! The selection of rows composed of Burn's own operations, for every device and precision.

use burn::tensor::Tensor;

use crate::index_tensor;

/// [`select_rows`](super::select_rows()) composed of Burn's own operations.
pub fn select_rows_composed(x_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows = index_tensor(rows.iter().map(|row| *row as u32), &x_td.device());
    x_td.select(0, rows)
}
