//! Attention on tensor cores, for inputs of 16 bits: products of bfloat16 or float16 with sums in
//! float32.
//!
//! A cube has a tile of tokens in shared memory and visits the tiles of the other tokens. Each of
//! its planes has 16 rows of the result in registers, with the scores, their maximum and their
//! norm. On the CPU, for tests, a plane is one unit that holds whole squares.

mod backward;
mod forward;
mod fragment;
mod shape;
mod tile;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind};

use super::heads::HeadShape;
#[cfg(feature = "ptx")]
use super::launches::as_ptx;
use super::launches::launch;
use super::{Backward, Forward};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, Target};
use crate::cube::{elements, is_cpu, units_within};
pub(super) use shape::PlaneShape;
use shape::{BLOCK, SQUARE};

/// Planes of a cube on a GPU.
const PLANES: usize = 4;

/// Units of a plane on a GPU.
const LANES: usize = 32;

/// Tokens of the tiles that a cube visits. With twice as many, a kernel spills registers.
const COLUMNS: usize = 2 * SQUARE;

/// Elements of the widest heads. The sums of wider ones do not fit in the registers.
const WIDEST: usize = 128;

impl PlaneShape {
    /// The shape for these inputs, if the device has these kernels for them.
    pub fn new(client: &Client, dtype: DType, heads: HeadShape) -> Option<Self> {
        if dtype == DType::F32 || !takes(heads) {
            return None;
        }
        let properties = client.properties();
        if is_cpu(client) {
            let columns = if heads.width < WIDEST { COLUMNS } else { SQUARE };
            return Some(Self { planes: units_within(client, PLANES), lanes: 1, columns, heads });
        }
        let shape = Self { planes: PLANES, lanes: LANES, columns: COLUMNS, heads };
        let fits = shape.shared_memory() <= properties.hardware.max_shared_memory_size;
        (fits && has_tensor_cores(properties, elements(dtype))).then_some(shape)
    }

    /// Bytes of shared memory of the backward kernels, which have two tiles of the cube's tokens
    /// and two of others, and two numbers for each token of one of them.
    fn shared_memory(self) -> usize {
        2 * (self.rows() + self.columns) * self.stride() * 16 + 8 * self.rows().max(self.columns)
    }
}

/// Whether the kernels take these heads. A chunk is rotated as a whole or not at all.
fn takes(heads: HeadShape) -> bool {
    heads.width.is_multiple_of(SQUARE)
        && heads.width <= WIDEST
        && heads.angles.is_multiple_of(BLOCK)
}

/// Whether the device has `mma.sync` and `ldmatrix` for these elements.
fn has_tensor_cores(properties: &DeviceProperties, elements: ElemType) -> bool {
    let (hardware, matmul) = (&properties.hardware, &properties.features.matmul);
    let product = MmaConfig {
        a_type: elements,
        b_type: elements,
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let lanes = LANES as u32;
    (hardware.plane_size_min, hardware.plane_size_max) == (lanes, lanes)
        && matmul.mma.contains(&product)
        && matmul.ldmatrix.contains(&elements)
}

/// The output and the log-sum-exp of each row.
pub(super) fn forward(call: &Forward, shape: PlaneShape) {
    launch!(
        forward::forward,
        call,
        (queries, heads),
        (shape.units(), shape),
        [&call.out, &call.log_sums]
    );
}

/// The gradient of the queries.
pub(super) fn query_gradient(call: &Backward, dq: &CubeTensor, shape: PlaneShape) {
    launch!(
        backward::query_gradient,
        call,
        (queries, heads),
        (shape.units(), shape),
        [&call.d, &call.log_sums, &call.products, dq]
    );
}

/// The gradients of keys and values.
pub(super) fn key_value_gradients(
    call: &Backward,
    dk: &CubeTensor,
    dv: &CubeTensor,
    shape: PlaneShape,
) {
    launch!(
        backward::key_value_gradients,
        call,
        (keys, kv_heads),
        (shape.units(), shape),
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
    let heads = HeadShape::plain(width);
    let shape = PlaneShape { planes: PLANES, lanes: LANES, columns: COLUMNS, heads };
    let name = |what: &str| format!("attention on tensor cores, {what}, e = {width}");
    [
        as_ptx!(
            forward::forward::Forward,
            target,
            name("forward"),
            (shape.units(), shape),
            [out, log_sums]
        ),
        as_ptx!(
            backward::query_gradient::QueryGradient,
            target,
            name("gradient of queries"),
            (shape.units(), shape),
            [d, log_sums, products, dq]
        ),
        as_ptx!(
            backward::key_value_gradients::KeyValueGradients,
            target,
            name("gradients of keys and values"),
            (shape.units(), shape),
            [d, log_sums, products, dk, dv]
        ),
    ]
}
