//! Sums and maxima over the units of a cube, for use inside kernels.
//!
//! Each function must be reached by all units of the cube. It returns the same number to all of
//! them. The order of the additions is a fixed tree.

use cubecl::prelude::*;

/// The sum of each unit's `value`. `units` is a power of two, the units of the cube.
#[cube]
pub fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    parts[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            parts[unit] += parts[unit + half];
        }
        sync_cube();
        half /= 2;
    }
    let total = parts[0];
    // The next call may write the same memory.
    sync_cube();
    total
}

/// [`cube_sum`] in double precision.
#[cube]
pub fn cube_sum_f64(value: f64, #[comptime] units: usize) -> f64 {
    let mut parts = Shared::<[f64]>::new_slice(units);
    let unit = UNIT_POS as usize;
    parts[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            parts[unit] += parts[unit + half];
        }
        sync_cube();
        half /= 2;
    }
    let total = parts[0];
    sync_cube();
    total
}

/// The largest of each unit's `value`.
#[cube]
pub fn cube_max(value: f32, #[comptime] units: usize) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    parts[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            parts[unit] = max(parts[unit], parts[unit + half]);
        }
        sync_cube();
        half /= 2;
    }
    let largest = parts[0];
    sync_cube();
    largest
}
