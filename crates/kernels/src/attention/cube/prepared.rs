//! What the kernels of attention read besides the inputs, made once for a batch: tables of its
//! segments and its rotary angles, on a device.

use std::sync::{Arc, OnceLock};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use super::heads::HeadShape;
use super::mma::PlaneShape;
use super::plain::TileShape;
use super::tables::TileTable;
use crate::attention::Segments;
use crate::cube::{floats, indices};

/// What the kernels read besides the inputs, on a device. It is made once for a batch.
#[derive(Debug)]
pub(super) struct Prepared {
    device: CubeDevice,
    pub kernels: Kernels,
    pub cos: CubeTensor,
    pub sin: CubeTensor,
    pub queries: Table,
    pub keys: Table,
}

/// The kernels that run, with the sizes of their tiles.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernels {
    /// On tensor cores.
    Mma(PlaneShape),
    /// Without.
    Plain(TileShape),
}

impl Kernels {
    /// Those for these heads in the type and on the device of `like`.
    fn new(like: &CubeTensor, heads: HeadShape) -> Self {
        match PlaneShape::new(&like.client, like.dtype, heads) {
            Some(shape) => Self::Mma(shape),
            None => Self::Plain(TileShape::new(&like.client, heads)),
        }
    }

    /// Tokens of the tile of a cube.
    fn rows(self) -> usize {
        match self {
            Self::Mma(shape) => shape.rows(),
            Self::Plain(shape) => shape.tile,
        }
    }
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
    pub heads: HeadShape,
    /// Cosine of the rotary angles, `[t, n]`.
    pub cos: &'a [f32],
    /// Sine of the rotary angles, `[t, n]`.
    pub sin: &'a [f32],
}

/// The place of a layout for what was prepared for the first device that used it, for the kernels
/// on tensor cores and for the plain ones.
#[derive(Debug, Clone, Default)]
pub(in crate::attention) struct OnDevice {
    mma: OnceLock<Arc<Prepared>>,
    plain: OnceLock<Arc<Prepared>>,
}

impl OnDevice {
    /// What was prepared for the device and the type of `like`.
    pub(super) fn get(&self, inputs: Inputs, like: &CubeTensor) -> Arc<Prepared> {
        let kernels = Kernels::new(like, inputs.heads);
        let place = match kernels {
            Kernels::Mma(_) => &self.mma,
            Kernels::Plain(_) => &self.plain,
        };
        let prepared = place.get_or_init(|| Arc::new(Prepared::new(inputs, kernels, like)));
        match prepared.device == like.device {
            true => prepared.clone(),
            false => Arc::new(Prepared::new(inputs, kernels, like)),
        }
    }
}

impl Prepared {
    fn new(inputs: Inputs, kernels: Kernels, like: &CubeTensor) -> Self {
        let rows = kernels.rows();
        let table = |table: TileTable| Table {
            len: table.len(),
            tiles: indices(like, &table.tiles),
            spans: indices(like, &table.spans),
        };
        Self {
            device: like.device.clone(),
            kernels,
            cos: floats(like, inputs.cos),
            sin: floats(like, inputs.sin),
            queries: table(TileTable::of_queries(inputs.segments, rows)),
            keys: table(TileTable::of_keys(inputs.segments, rows)),
        }
    }
}
