//! What the GPU forms share: buffers, launch shapes and sums over the units of a cube.
//!
//! A form is a set of CubeCL kernels. They run on NVIDIA GPUs and, for tests, on CubeCL's CPU
//! runtime. A unit is a CUDA thread and a cube is a CUDA block. Sizes are values of a launch, not
//! of the compiled kernel, so that a run compiles few kernels. No kernel uses atomics: each number
//! is written by one unit, and sums are taken in a fixed order.

#[cfg(feature = "cube-cpu")]
mod bfloat16;
mod cpu_product;
pub(crate) mod gated;
pub(crate) mod product;
#[cfg(feature = "ptx")]
pub(crate) mod ptx;
pub(crate) mod soft_cap;
mod sums;

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, full_device_dtype};
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::{AddressType, ElemType, FloatKind};
use cubecl::prelude::*;

use crate::host::count_upload;
pub(crate) use sums::{cube_max, cube_sum, cube_sum_f64};

/// Units of a cube that works on one row, on a GPU.
pub(crate) const ROW_UNITS: usize = 256;

/// Units of a cube of which each works on one element or vector, on a GPU.
pub(crate) const ELEMENTWISE_UNITS: usize = 256;

/// Units of a cube on CubeCL's CPU runtime whose units do not wait for each other.
const CPU_THREADS: usize = 2;

/// Whether the GPU forms take tensors of this type. Sums are float32 for each of them.
pub(crate) fn takes(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// The kernel's element type for tensors of this type.
///
/// # Panics
/// If the GPU forms do not take this type ([`takes`]).
pub(crate) fn elements(dtype: DType) -> ElemType {
    let kind = match dtype {
        DType::F32 => FloatKind::F32,
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        other => panic!("the GPU forms do not take {other:?}"),
    };
    ElemType::Float(kind)
}

/// `tensor` in row-major order without gaps.
pub(crate) fn contiguous(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// `tensor` in row-major order without gaps, at an address that vectors of 16 bytes can have.
pub(crate) fn aligned(tensor: CubeTensor) -> CubeTensor {
    let tensor = contiguous(tensor);
    if begins_at_multiple(&tensor, 16) { tensor } else { contiguous(tensor.copy()) }
}

/// Whether a tensor, which may be a part of a larger buffer, begins in it at a multiple of `bytes`.
fn begins_at_multiple(tensor: &CubeTensor, bytes: usize) -> bool {
    tensor.handle.offset_start.unwrap_or(0).is_multiple_of(bytes as u64)
}

/// `tensor` in row-major order in a buffer to which no other tensor refers, to be written in place.
pub(crate) fn owned(tensor: CubeTensor) -> CubeTensor {
    match tensor.is_contiguous() && tensor.can_mut() {
        true => tensor,
        false => contiguous(tensor.copy()),
    }
}

/// A tensor with undefined elements on the device of `like`.
pub(crate) fn empty<const D: usize>(
    like: &CubeTensor,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), dtype)
}

/// A tensor of zeros on the device of `like`.
pub(crate) fn zeros<const D: usize>(
    like: &CubeTensor,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    let zero = InputScalar::new(0.0f32, elements(dtype));
    contiguous(full_device_dtype(client, Shape::from(shape), device, zero, dtype))
}

/// Indices or lengths in a buffer on the device of `like`, `[numbers.len()]`.
pub(crate) fn indices(like: &CubeTensor, numbers: &[u32]) -> CubeTensor {
    upload(like, u32::as_bytes(numbers), numbers.len(), DType::U32)
}

/// Numbers in a buffer on the device of `like`, `[numbers.len()]`.
pub(crate) fn floats(like: &CubeTensor, numbers: &[f32]) -> CubeTensor {
    upload(like, f32::as_bytes(numbers), numbers.len(), DType::F32)
}

/// Keys of tokens in a buffer on the device of `like`, `[numbers.len()]`.
pub(crate) fn keys(like: &CubeTensor, numbers: &[u64]) -> CubeTensor {
    upload(like, u64::as_bytes(numbers), numbers.len(), DType::U64)
}

fn upload(like: &CubeTensor, bytes: &[u8], len: usize, dtype: DType) -> CubeTensor {
    count_upload(bytes.len());
    let handle = like.client.create_from_slice(bytes);
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from([len]), handle, dtype)
}

/// The whole of a contiguous tensor as an argument of a kernel.
pub(crate) fn buffer(tensor: &CubeTensor) -> BufferArg {
    debug_assert!(tensor.is_contiguous());
    tensor.clone().into_buffer_arg()
}

/// The type of indices into the largest of these tensors.
pub(crate) fn address<const N: usize>(tensors: [&CubeTensor; N]) -> AddressType {
    let largest = tensors.iter().map(|tensor| tensor.meta.num_elements()).max();
    AddressType::from_len(largest.unwrap_or(0))
}

/// Units of a cube on CubeCL's CPU runtime whose units wait for each other.
static WAITING_CPU_UNITS: AtomicUsize = AtomicUsize::new(1);

/// Sets the units of a cube on CubeCL's CPU runtime for kernels whose units wait for each other, 1
/// by default. A unit is a thread, which waits in a loop: a run is faster without. Tests set 2, so
/// that they run sums over several units.
pub fn set_cpu_units(units: usize) {
    WAITING_CPU_UNITS.store(units, Ordering::Relaxed);
}

/// Units of a cube that works on one row and waits for all of its units. A power of two, the same
/// for every launch on a device.
pub(crate) fn row_units(client: &Client) -> usize {
    units_within(client, ROW_UNITS)
}

/// Units of a cube that works on one row and whose units do not wait for each other.
pub(crate) fn free_row_units(client: &Client) -> usize {
    let most = if is_cpu(client) { CPU_THREADS } else { usize::MAX };
    power_of_two(client, ROW_UNITS.min(most))
}

/// The largest power of two that is at most `wanted` and that the device can run as one cube, for
/// kernels whose units wait for each other.
pub(crate) fn units_within(client: &Client, wanted: usize) -> usize {
    let most = if is_cpu(client) { WAITING_CPU_UNITS.load(Ordering::Relaxed) } else { usize::MAX };
    power_of_two(client, wanted.min(most))
}

/// The largest power of two that is at most `wanted` and that the device can run as one cube.
fn power_of_two(client: &Client, wanted: usize) -> usize {
    let possible = client.properties().hardware.max_units_per_cube as usize;
    1 << possible.min(wanted).max(1).ilog2()
}

/// Whether kernels run on CubeCL's CPU runtime, which has no planes.
pub(crate) fn is_cpu(client: &Client) -> bool {
    client.properties().hardware.plane_size_max == 1
}

/// A cube of `units` for each of `count` rows.
pub(crate) fn cubes(count: usize, units: usize) -> (CubeCount, CubeDim) {
    let count = u32::try_from(count).expect("fewer than 2^32 rows");
    (CubeCount::Static(count, 1, 1), CubeDim::new_1d(units as u32))
}

/// A unit for each of `len` elements. The cube is the same for every `len`: a kernel is compiled
/// for its cube.
pub(crate) fn elementwise(client: &Client, len: usize) -> (CubeCount, CubeDim) {
    let most = if is_cpu(client) { CPU_THREADS } else { usize::MAX };
    let cube = CubeDim::new_1d(power_of_two(client, ELEMENTWISE_UNITS.min(most)) as u32);
    (calculate_cube_count_elemwise(client, len, cube), cube)
}

/// Elements of the widest vectors in which a GPU can read and write all of these tensors, which
/// have the same number of elements. A vector has at most 16 bytes, divides the tensors and is
/// aligned in memory: a tensor may be a part of a larger buffer.
pub(crate) fn vector_width<const N: usize>(tensors: [&CubeTensor; N]) -> usize {
    let fits = |width: usize| {
        tensors.iter().all(|tensor| {
            let bytes = width * tensor.elem_size();
            bytes <= 16
                && tensor.meta.num_elements().is_multiple_of(width)
                && begins_at_multiple(tensor, bytes)
        })
    };
    [8, 4, 2].into_iter().find(|width| fits(*width)).unwrap_or(1)
}
