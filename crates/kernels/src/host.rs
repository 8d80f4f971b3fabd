//! Copies between the host and a device. A training step of one rank makes all of its copies
//! through this file, which counts them, so that a test can check that a step makes few of them.
//!
//! Tensors of Flex are in the memory of the host, and cost no copy.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

static READS: AtomicU64 = AtomicU64::new(0);
static READ_BYTES: AtomicU64 = AtomicU64::new(0);
static UPLOADS: AtomicU64 = AtomicU64::new(0);
static UPLOADED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Numbers of copies and bytes, of all threads of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostCopies {
    /// Copies from a device to the host. Each one waits until the device has computed the tensor.
    pub reads: u64,
    /// Bytes of these copies.
    pub read_bytes: u64,
    /// Copies from the host to a device.
    pub uploads: u64,
    /// Bytes of these copies.
    pub uploaded_bytes: u64,
}

impl HostCopies {
    /// All copies since the process began.
    pub fn so_far() -> Self {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            reads: now(&READS),
            read_bytes: now(&READ_BYTES),
            uploads: now(&UPLOADS),
            uploaded_bytes: now(&UPLOADED_BYTES),
        }
    }

    /// The copies after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            reads: self.reads - earlier.reads,
            read_bytes: self.read_bytes - earlier.read_bytes,
            uploads: self.uploads - earlier.uploads,
            uploaded_bytes: self.uploaded_bytes - earlier.uploaded_bytes,
        }
    }
}

/// The elements of `x`, copied to the host.
pub fn read<const D: usize>(x: Tensor<D>) -> TensorData {
    if !is_host(&x.device()) {
        let bytes = x.dims().iter().product::<usize>() * x.dtype().size();
        READS.fetch_add(1, Ordering::Relaxed);
        READ_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    x.into_data()
}

/// `data` as a tensor of type `dtype` on `device`.
pub fn upload<const D: usize>(data: TensorData, device: &Device, dtype: DType) -> Tensor<D> {
    if !is_host(device) {
        count_upload(data.num_elements() * dtype.size());
    }
    Tensor::from_data(data, (device, dtype))
}

/// Indices as a tensor, `[len]`.
pub fn upload_indices(indices: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    if !is_host(device) {
        count_upload(size_of_val(indices.as_slice()));
    }
    let len = indices.len();
    Tensor::from_data(TensorData::new(indices, [len]), device)
}

/// Counts a copy of `bytes` bytes to a device.
pub(crate) fn count_upload(bytes: usize) {
    UPLOADS.fetch_add(1, Ordering::Relaxed);
    UPLOADED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

fn is_host(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_the_cpu_cost_no_copy() {
        let before = HostCopies::so_far();
        let x: Tensor<1> = upload([1.0f32, 2.0].into(), &Device::flex(), DType::F32);
        assert_eq!(read(x).try_into_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(upload_indices(vec![3, 4], &Device::flex()).dims(), [2]);
        assert_eq!(HostCopies::so_far().since(before), HostCopies::default());
    }
}
