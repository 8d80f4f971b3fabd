//! Ranks over NCCL, for tensors on NVIDIA GPUs. Type-checked, not run: see the README.
//!
//! NCCL adds in another order, so runs on several GPUs agree with a run on one GPU only up to
//! rounding. NCCL uses its own stream, so the host waits for the tensor before each collective, and
//! for NCCL after it.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use cubecl::cuda::CudaRuntime;
use cubecl_runtime::runtime::Runtime;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result;
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t};

use super::communicator::{Abort, Arriving, Communicator};
use super::environment::Place;

/// The address of NCCL's rank 0, `host:port`.
const MEETING_POINT: &str = "NCCL_COMM_ID";

/// The engine on GPUs, one for each rank.
pub struct Nccl {
    place: Place,
    stream: Arc<CudaStream>,
    comm: ncclComm_t,
}

impl Nccl {
    /// Connects to the other ranks at `NCCL_COMM_ID`, or otherwise at the port after
    /// `MASTER_ADDR:MASTER_PORT` (torchrun's own store uses that one). `gpu` is the number of the
    /// GPU that has this rank's tensors.
    pub fn start(place: Place, gpu: usize) -> Result<Self, String> {
        if std::env::var_os(MEETING_POINT).is_none() {
            let point = meeting_point()?;
            // SAFETY: no other thread has been started yet.
            unsafe { std::env::set_var(MEETING_POINT, point) };
        }
        let context = CudaContext::new(gpu).map_err(|error| error.to_string())?;
        let stream = context.new_stream().map_err(|error| error.to_string())?;
        let failed = |error: result::NcclError| format!("{error:?}");
        let id = result::get_uniqueid().map_err(failed)?;
        let mut comm = MaybeUninit::uninit();
        let (world, rank) = (place.world as i32, place.rank as i32);
        // SAFETY: the pointer is written before it is read; NCCL returns an error if it was not
        // written.
        let comm = unsafe {
            result::comm_init_rank(comm.as_mut_ptr(), world, id, rank).map_err(failed)?;
            comm.assume_init()
        };
        Ok(Self { place, stream, comm })
    }

    /// Joins `own` of all ranks, which have the same length.
    fn gather_equal(&self, own: &[u8]) -> Vec<u8> {
        let stream = &self.stream;
        let sent = stream.clone_htod(own).expect("the GPU has room for a message");
        let all = stream.alloc_zeros::<u8>(own.len() * self.world());
        let mut all = all.expect("the GPU has room for a message");
        {
            let (from, _read) = sent.device_ptr(stream);
            let (to, _written) = all.device_ptr_mut(stream);
            // SAFETY: both have the given length and live until the stream has been waited for.
            let sent = unsafe {
                result::all_gather(
                    from as _,
                    to as _,
                    own.len(),
                    ncclDataType_t::ncclUint8,
                    self.comm,
                    stream.cu_stream() as _,
                )
            };
            sent.expect("NCCL gathers");
        }
        self.wait();
        stream.clone_dtoh(&all).expect("a message comes back from the GPU")
    }

    fn wait(&self) {
        self.stream.synchronize().expect("the GPU's stream ends without an error");
    }

    /// An uninitialized vector on the device of `like`.
    fn empty(like: &Tensor<1>, len: usize) -> Tensor<1> {
        Tensor::empty([len], (&like.device(), like.dtype()))
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world(&self) -> usize {
        self.place.world
    }

    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving> {
        let shard = bucket.dims()[0] / self.world();
        let sum = Self::empty(&bucket, shard);
        let (from, to) = (device_pointer(&bucket), device_pointer(&sum));
        // SAFETY: both vectors live until the stream has been waited for, and have the given
        // length.
        let sent = unsafe {
            result::reduce_scatter(
                from as _,
                to as _,
                shard,
                data_type(bucket.dtype()),
                ncclRedOp_t::ncclSum,
                self.comm,
                self.stream.cu_stream() as _,
            )
        };
        sent.expect("NCCL reduces");
        self.wait();
        Box::new(vec![sum])
    }

    fn all_gather(&self, shard: Tensor<1>) -> Tensor<1> {
        let len = shard.dims()[0];
        let all = Self::empty(&shard, len * self.world());
        let (from, to) = (device_pointer(&shard), device_pointer(&all));
        // SAFETY: both vectors live until the stream has been waited for, and have the given
        // length.
        let sent = unsafe {
            result::all_gather(
                from as _,
                to as _,
                len,
                data_type(shard.dtype()),
                self.comm,
                self.stream.cu_stream() as _,
            )
        };
        sent.expect("NCCL gathers");
        self.wait();
        all
    }

    /// NCCL has no such call, so every rank sends to every other one in one group.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let world = self.world();
        let sizes: Vec<u8> = parts.iter().flat_map(|p| (p.len() as u64).to_le_bytes()).collect();
        let sizes = self.gather_equal(&sizes);
        let size = |from: usize| {
            let at = 8 * (from * world + self.rank());
            let bytes = sizes[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes) as usize
        };
        let room = |len: usize| {
            let room = self.stream.alloc_zeros::<u8>(len.max(1));
            room.expect("the GPU has room for a message")
        };
        let put = |part: &Vec<u8>| {
            let part: &[u8] = if part.is_empty() { &[0] } else { part };
            self.stream.clone_htod(part).expect("the GPU has room for a message")
        };
        let sent: Vec<_> = parts.iter().map(put).collect();
        let mut received: Vec<_> = (0..world).map(|from| room(size(from))).collect();
        result::group_start().expect("NCCL begins a group");
        for (peer, (out, into)) in sent.iter().zip(&mut received).enumerate() {
            let (from, _read) = out.device_ptr(&self.stream);
            let (to, _written) = into.device_ptr_mut(&self.stream);
            let (peer, kind) = (peer as i32, ncclDataType_t::ncclUint8);
            let stream = self.stream.cu_stream();
            // SAFETY: both have the given length, or one byte more if they are empty, and live
            // until the stream has been waited for.
            unsafe {
                let len = parts[peer as usize].len();
                result::send(from as _, len, kind, peer, self.comm, stream as _)
                    .expect("NCCL sends");
                let len = size(peer as usize);
                result::recv(to as _, len, kind, peer, self.comm, stream as _)
                    .expect("NCCL receives");
            }
        }
        result::group_end().expect("NCCL ends a group");
        self.wait();
        let back = received.iter().enumerate().map(|(from, bytes)| {
            let mut bytes =
                self.stream.clone_dtoh(bytes).expect("a message comes back from the GPU");
            bytes.truncate(size(from));
            bytes
        });
        back.collect()
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let lengths = self.gather_equal(&(bytes.len() as u64).to_le_bytes());
        let lengths = lengths.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize);
        let lengths: Vec<usize> = lengths.collect();
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let all = self.gather_equal(&padded);
        let parts = all.chunks(longest).zip(&lengths);
        parts.map(|(part, length)| part[..*length].to_vec()).collect()
    }

    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let all = self.gather(bytes);
        if self.rank() == 0 { all } else { Vec::new() }
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let own: &[u8] = if self.rank() == 0 { &bytes } else { &[] };
        self.gather(own).swap_remove(0)
    }

    fn barrier(&self) {
        self.gather_equal(&[0]);
    }

    fn abort(&self) -> Abort {
        // The launcher or their watchdogs end the other ranks.
        |code| signal_hook::low_level::exit(code)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: no collective is running, because each was waited for.
        let _ = unsafe { result::comm_destroy(self.comm) };
    }
}

fn meeting_point() -> Result<String, String> {
    let variable = |key: &str| {
        std::env::var(key)
            .map_err(|_| format!("set {MEETING_POINT}=host:port, or MASTER_ADDR and MASTER_PORT"))
    };
    let port = variable("MASTER_PORT")?;
    let port: u16 = port.parse().map_err(|_| format!("MASTER_PORT={port} is not a port"))?;
    Ok(format!("{}:{}", variable("MASTER_ADDR")?, port + 1))
}

/// The address of a tensor's elements on its GPU, after all work on it is done. No other function
/// depends on how Burn stores them.
fn device_pointer(tensor: &Tensor<1>) -> u64 {
    type Server = <CudaRuntime as Runtime>::Server;
    tensor.device().sync().expect("the GPU finishes its work");
    let tensor = tensor.clone().try_into_primitive::<CubeBackend>();
    let tensor = tensor.expect("NCCL is for tensors on a GPU");
    let resource = tensor.client.get_resource::<Server>(tensor.handle.clone());
    resource.expect("the tensor has memory").resource().ptr
}

fn data_type(dtype: DType) -> ncclDataType_t {
    match dtype {
        DType::F32 => ncclDataType_t::ncclFloat32,
        DType::BF16 => ncclDataType_t::ncclBfloat16,
        DType::F16 => ncclDataType_t::ncclFloat16,
        other => unreachable!("neither weights nor gradients are held as {other:?}"),
    }
}
