//! Soft caps of attention scores and logits, for use inside kernels.

use cubecl::prelude::*;

/// The cap that a launch passes to kernels without one, which do not read it.
pub const NO_CAP: f32 = 1.0;

/// `c · tanh(x / c)` for the cap `c`, or `x` if the kernel has no cap.
#[cube]
pub fn soft_capped(x: f32, cap: f32, #[comptime] is_capped: bool) -> f32 {
    if comptime!(is_capped) { cap * (x / cap).tanh() } else { x }
}

/// The derivative of [`soft_capped`], `1 − tanh²(x / c)`, from its result.
#[cube]
pub fn slope_of_cap(capped: f32, cap: f32, #[comptime] is_capped: bool) -> f32 {
    if comptime!(is_capped) {
        let tanh = capped / cap;
        1.0f32 - tanh * tanh
    } else {
        1.0f32.runtime()
    }
}
