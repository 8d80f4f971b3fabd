//! What the kernels of attention read besides the inputs, made once for a batch: tables of its
//! segments and its rotary angles, on a device.

use std::sync::{Arc, OnceLock};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;

use super::tables::TileTable;
use super::tile::{BLOCK, TileShape};
use crate::attention::Segments;
use crate::cube::{floats, indices, is_cpu, units_within};

/// Units of a cube on a GPU. Each then has at most 4 blocks of a result of 32 rows.
pub(super) const UNITS: usize = 64;

/// The smallest tile, in tokens.
const SMALL_TILE: usize = 2 * BLOCK;

/// What the kernels read besides the inputs, on a device. It is made once for a batch.
#[derive(Debug)]
pub(super) struct Prepared {
    device: CubeDevice,
    pub shape: TileShape,
    pub cos: CubeTensor,
    pub sin: CubeTensor,
    pub queries: Table,
    pub keys: Table,
}

/// A [`TileTable`] on a device.
#[derive(Debug)]
pub(super) struct Table {
    pub len: usize,
    pub tiles: CubeTensor,
    pub spans: CubeTensor,
}

/// The inputs from which it is made.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub segments: &'a Segments,
    /// Elements of a head.
    pub head_dim: usize,
    /// Cosine of the rotary angles, `[t, n]`.
    pub cos: &'a [f32],
    /// Sine of the rotary angles, `[t, n]`.
    pub sin: &'a [f32],
}

/// The place of a layout for what was prepared for the first device that used it.
#[derive(Debug, Clone, Default)]
pub(in crate::attention) struct OnDevice(OnceLock<Arc<Prepared>>);

impl OnDevice {
    /// What was prepared for the device of `like`.
    pub(super) fn get(&self, inputs: Inputs, like: &CubeTensor) -> Arc<Prepared> {
        let prepared = self.0.get_or_init(|| Arc::new(Prepared::new(inputs, like)));
        match prepared.device == like.device {
            true => prepared.clone(),
            false => Arc::new(Prepared::new(inputs, like)),
        }
    }
}

impl Prepared {
    fn new(inputs: Inputs, like: &CubeTensor) -> Self {
        let shape = tile_shape(&like.client, inputs.head_dim);
        let table = |table: TileTable| Table {
            len: table.len(),
            tiles: indices(like, &table.tiles),
            spans: indices(like, &table.spans),
        };
        Self {
            device: like.device.clone(),
            shape,
            cos: floats(like, inputs.cos),
            sin: floats(like, inputs.sin),
            queries: table(TileTable::of_queries(inputs.segments, shape.tile)),
            keys: table(TileTable::of_keys(inputs.segments, shape.tile)),
        }
    }
}

/// The largest tiles whose kernels fit the shared memory of the device. On the CPU they are small
/// for narrow heads, so that tests with short segments have several.
fn tile_shape(client: &Client, width: usize) -> TileShape {
    let units = units_within(client, UNITS);
    let memory = client.properties().hardware.max_shared_memory_size;
    let is_small = is_cpu(client) && width < 64;
    let tile = if is_small { SMALL_TILE } else { largest_tile(width, memory) };
    TileShape { tile, width, units }
}

/// The largest tiles with which each kernel fits `memory` bytes: the backward kernels have four
/// tiles of tokens and two of scores.
pub(super) fn largest_tile(width: usize, memory: usize) -> usize {
    let fits = |tile: &usize| 4 * (4 * tile * (width + 1) + 2 * tile * tile) <= memory;
    [32, 16].into_iter().find(fits).unwrap_or(SMALL_TILE)
}
