//! Attention with products in float32, for every element type and head width.

mod kernels;
mod tile;

use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;

use super::heads::HeadShape;
#[cfg(feature = "ptx")]
use super::launches::as_ptx;
use super::launches::launch;
use super::{Backward, Forward};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, SHARED_MEMORY, Target};
use crate::cube::{is_cpu, units_within};
use tile::BLOCK;
pub(super) use tile::TileShape;

/// Units of a cube on a GPU. Each then has at most 4 blocks of a result of 32 rows.
const UNITS: usize = 64;

/// The smallest tile, in tokens.
const SMALL_TILE: usize = 2 * BLOCK;

impl TileShape {
    /// The largest tiles whose kernels fit the shared memory of the device. On the CPU they are
    /// small for narrow heads, so that tests with short segments have several.
    pub fn new(client: &Client, heads: HeadShape) -> Self {
        let units = units_within(client, UNITS);
        let memory = client.properties().hardware.max_shared_memory_size;
        let is_small = is_cpu(client) && heads.width < 64;
        let tile = if is_small { SMALL_TILE } else { largest_tile(heads.width, memory) };
        Self { tile, heads, units }
    }
}

/// The largest tiles with which each kernel fits `memory` bytes: the backward kernels have four
/// tiles of tokens and two of scores.
fn largest_tile(width: usize, memory: usize) -> usize {
    let fits = |tile: &usize| 4 * (4 * tile * (width + 1) + 2 * tile * tile) <= memory;
    [32, 16].into_iter().find(fits).unwrap_or(SMALL_TILE)
}

/// The output and the log-sum-exp of each row.
pub(super) fn forward(call: &Forward, shape: TileShape) {
    launch!(
        kernels::forward,
        call,
        (queries, heads),
        (shape.units, shape),
        [&call.out, &call.log_sums]
    );
}

/// The gradient of the queries.
pub(super) fn query_gradient(call: &Backward, dq: &CubeTensor, shape: TileShape) {
    launch!(
        kernels::query_gradient,
        call,
        (queries, heads),
        (shape.units, shape),
        [&call.d, &call.log_sums, &call.products, dq]
    );
}

/// The gradients of keys and values.
pub(super) fn key_value_gradients(
    call: &Backward,
    dk: &CubeTensor,
    dv: &CubeTensor,
    shape: TileShape,
) {
    launch!(
        kernels::key_value_gradients,
        call,
        (keys, kv_heads),
        (shape.units, shape),
        [&call.d, &call.log_sums, &call.products, dk, dv]
    );
}

/// The kernels as PTX, for heads of 64 and 128 elements.
#[cfg(feature = "ptx")]
pub(super) fn ptx(target: Target) -> Vec<Ptx> {
    [64, 128].into_iter().flat_map(|width| ptx_of_width(target, width)).collect()
}

#[cfg(feature = "ptx")]
fn ptx_of_width(target: Target, width: usize) -> [Ptx; 3] {
    let shape = TileShape {
        tile: largest_tile(width, SHARED_MEMORY),
        heads: HeadShape::plain(width),
        units: UNITS,
    };
    let name = |what: &str| format!("attention, {what}, e = {width}");
    [
        as_ptx!(
            kernels::forward::Forward,
            target,
            name("forward"),
            (shape.units, shape),
            [out, log_sums]
        ),
        as_ptx!(
            kernels::query_gradient::QueryGradient,
            target,
            name("gradient of queries"),
            (shape.units, shape),
            [d, log_sums, products, dq]
        ),
        as_ptx!(
            kernels::key_value_gradients::KeyValueGradients,
            target,
            name("gradients of keys and values"),
            (shape.units, shape),
            [d, log_sums, products, dk, dv]
        ),
    ]
}
