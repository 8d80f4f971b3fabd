//! Operations of decoder-only language models, with hand-written backward passes, and the vector
//! operations of gradients and optimizers.
//!
//! Each operation is a folder: `mod.rs` holds the function, its formula and the choice of form,
//! `composed.rs` the form composed of Burn's tensor operations, `flex.rs` the CPU form and
//! `cube.rs` the GPU form (feature `cube`, which `cuda` and `cube-cpu` enable). The forms agree up
//! to rounding; property tests compare them.
//!
//! Results do not depend on the number of threads: a unit of work is a fixed set of rows, and sums
//! over units are taken in the order of the rows.

#![warn(missing_docs)]

pub mod attention;
pub mod autodiff;
#[cfg(feature = "cube")]
mod cube;
pub mod dropout;
pub mod flex;
mod form;
pub mod geglu;
pub mod gelu;
pub mod host;
pub mod layer_norm;
pub mod linear;
pub mod linear_logp;
pub mod nf4;
#[cfg(feature = "ptx")]
pub mod ptx;
pub mod rms_norm;
pub mod select_rows;
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

#[cfg(feature = "cube")]
pub use cube::set_cpu_units;
pub use form::Form;
pub use select_rows::select_rows;
#[doc(hidden)]
pub use tracing;

use burn::tensor::{DType, Device, Int, Tensor};

/// The tensor with numbers of type `dtype`; the same tensor if they have this type already.
pub fn in_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// Indices as a tensor, `[len]`.
pub fn index_tensor(
    indices: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    host::upload_indices(indices.map(|index| index as i32).collect(), device)
}
