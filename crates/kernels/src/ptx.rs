//! The kernels of the GPU forms as PTX, compiled without a GPU. `scripts/gpu/ptxas.py` assembles
//! them and lists their registers, shared memory and spills.

use cubecl::ir::ElemType;
use cubecl::ir::FloatKind::{BF16, F32};

use crate::cube::gated::{self, Gate};
pub use crate::cube::ptx::Ptx;
use crate::cube::ptx::Target;
use crate::{attention, dropout, linear_logp, rms_norm, select_rows, update};

/// All kernels for the architecture `sm` (80, 90), for weights and activations in float32 and in
/// bfloat16.
///
/// # Panics
/// If a kernel does not compile, or if the CUDA toolkit's `libdevice.10.bc` is not found
/// (environment variable `CUDA_PATH`).
pub fn all_kernels(sm: u32) -> Vec<Ptx> {
    let of_type = |kind| {
        let target = Target { sm, elements: ElemType::Float(kind) };
        let mut kernels = attention::ptx(target);
        kernels.extend(rms_norm::ptx(target));
        kernels.extend(gated::ptx(target, "SwiGLU", Gate::Silu));
        kernels.extend(gated::ptx(target, "GeGLU", Gate::Gelu));
        kernels.push(dropout::ptx(target));
        kernels.extend(linear_logp::ptx(target));
        kernels.extend(select_rows::ptx(target));
        kernels.extend(update::ptx(target));
        kernels
    };
    [F32, BF16].into_iter().flat_map(of_type).collect()
}
