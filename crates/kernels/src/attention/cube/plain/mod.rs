//! Attention with products in float32, for every element type and head width.

mod kernels;
mod tile;

use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;

use super::{Backward, Forward, NO_WINDOW};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, SHARED_MEMORY, Target, argument, device, properties, settings};
use crate::cube::{address, buffer, cubes, elements, is_cpu, units_within};
use tile::BLOCK;
pub(super) use tile::TileShape;

/// Units of a cube on a GPU. Each then has at most 4 blocks of a result of 32 rows.
const UNITS: usize = 64;

/// The smallest tile, in tokens.
const SMALL_TILE: usize = 2 * BLOCK;

impl TileShape {
    /// The largest tiles whose kernels fit the shared memory of the device. On the CPU they are
    /// small for narrow heads, so that tests with short segments have several.
    pub fn new(client: &Client, width: usize) -> Self {
        let units = units_within(client, UNITS);
        let memory = client.properties().hardware.max_shared_memory_size;
        let is_small = is_cpu(client) && width < 64;
        let tile = if is_small { SMALL_TILE } else { largest_tile(width, memory) };
        Self { tile, width, units }
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
    let Forward { q, k, v, out, log_sums, prepared, layout } = call;
    let table = &prepared.queries;
    let (count, cube) = cubes(table.len * layout.heads, shape.units);
    // SAFETY: the table has tokens of the batch only, and each in one tile.
    unsafe {
        kernels::forward::launch_unchecked(
            &q.client,
            count,
            cube,
            address([q, k]),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(&prepared.cos),
            buffer(&prepared.sin),
            buffer(&table.tiles),
            buffer(&table.spans),
            buffer(out),
            buffer(log_sums),
            layout.heads,
            layout.kv_heads,
            layout.window.unwrap_or(NO_WINDOW),
            layout.scale(),
            shape,
            elements(q.dtype),
        );
    }
}

/// The gradient of the queries.
pub(super) fn query_gradient(call: &Backward, dq: &CubeTensor, shape: TileShape) {
    let Backward { q, k, v, d, log_sums, products, prepared, layout } = call;
    let table = &prepared.queries;
    let (count, cube) = cubes(table.len * layout.heads, shape.units);
    // SAFETY: the table has tokens of the batch only, and each in one tile.
    unsafe {
        kernels::query_gradient::launch_unchecked(
            &q.client,
            count,
            cube,
            address([q, k]),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(&prepared.cos),
            buffer(&prepared.sin),
            buffer(&table.tiles),
            buffer(&table.spans),
            buffer(d),
            buffer(log_sums),
            buffer(products),
            buffer(dq),
            layout.heads,
            layout.kv_heads,
            layout.window.unwrap_or(NO_WINDOW),
            layout.scale(),
            shape,
            elements(q.dtype),
        );
    }
}

/// The gradients of keys and values.
pub(super) fn key_value_gradients(
    call: &Backward,
    dk: &CubeTensor,
    dv: &CubeTensor,
    shape: TileShape,
) {
    let Backward { q, k, v, d, log_sums, products, prepared, layout } = call;
    let table = &prepared.keys;
    let (count, cube) = cubes(table.len * layout.kv_heads, shape.units);
    // SAFETY: the table has tokens of the batch only, and each in one tile.
    unsafe {
        kernels::key_value_gradients::launch_unchecked(
            &k.client,
            count,
            cube,
            address([q, k]),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(&prepared.cos),
            buffer(&prepared.sin),
            buffer(&table.tiles),
            buffer(&table.spans),
            buffer(d),
            buffer(log_sums),
            buffer(products),
            buffer(dk),
            buffer(dv),
            layout.heads,
            layout.kv_heads,
            layout.window.unwrap_or(NO_WINDOW),
            layout.scale(),
            shape,
            elements(k.dtype),
        );
    }
}

/// The kernels as PTX, for heads of 64 and 128 elements.
#[cfg(feature = "ptx")]
pub(super) fn ptx(target: Target) -> Vec<Ptx> {
    [64, 128].into_iter().flat_map(|width| ptx_of_width(target, width)).collect()
}

#[cfg(feature = "ptx")]
fn ptx_of_width(target: Target, width: usize) -> [Ptx; 3] {
    let b = argument;
    let shape = TileShape { tile: largest_tile(width, SHARED_MEMORY), width, units: UNITS };
    let (settings, elements) = (settings(UNITS), target.elements);
    let forward = kernels::forward::Forward::new(
        settings.clone(),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let queries = kernels::query_gradient::QueryGradient::new(
        settings.clone(),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let keys = kernels::key_value_gradients::KeyValueGradients::new(
        settings,
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let name = |what: &str| format!("attention, {what}, e = {width}");
    [
        target.compile(&name("forward"), UNITS, forward),
        target.compile(&name("gradient of queries"), UNITS, queries),
        target.compile(&name("gradients of keys and values"), UNITS, keys),
    ]
}
