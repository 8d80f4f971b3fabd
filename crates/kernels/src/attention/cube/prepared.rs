//! What the kernels of attention read besides the inputs, made once for a batch: tables of its
//! segments and its rotary angles, on a device.

use std::sync::{Arc, OnceLock};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use super::plain::TileShape;
use super::tables::TileTable;
use crate::attention::Segments;
use crate::cube::{floats, indices};

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
        let shape = TileShape::new(&like.client, inputs.head_dim);
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
