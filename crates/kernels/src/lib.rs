//! Operations of decoder-only language models, with hand-written backward passes, and the vector
//! operations of gradients and optimizers.
//!
//! Each operation is a folder: `mod.rs` holds the function, its formula and the choice of form,
//! `composed.rs` the form composed of Burn's tensor operations, `flex.rs` the CPU form. The two
//! forms agree up to rounding; property tests compare them.
//!
//! Results do not depend on the number of threads: a unit of work is a fixed set of rows, and sums
//! over units are taken in the order of the rows.

#![warn(missing_docs)]

pub mod attention;
pub mod autodiff;
pub mod dropout;
pub mod flex;
mod form;
pub mod geglu;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod linear_logp;
pub mod nf4;
pub mod rms_norm;
pub mod soft_cap;
pub mod swiglu;
pub mod update;

/// `timed!("name");` opens a `tracing` span until the end of the block, with the target `profile`
/// and the level `TRACE`. It costs next to nothing unless a subscriber listens.
#[macro_export]
macro_rules! timed {
    ($name:literal) => {
        let _span = $crate::tracing::trace_span!(target: "profile", $name).entered();
    };
}

pub use form::Form;
#[doc(hidden)]
pub use tracing;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Indices as a tensor, `[len]`.
pub fn index_tensor(
    indices: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    let len = indices.len();
    let values: Vec<i32> = indices.map(|index| index as i32).collect();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The rows `rows` of a matrix, in that order: `[t, d]` → `[rows, d]`.
pub fn select_rows(x_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows = index_tensor(rows.iter().map(|row| *row as u32), &x_td.device());
    x_td.select(0, rows)
}
