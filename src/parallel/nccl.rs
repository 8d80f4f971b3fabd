//! Ranks over NCCL, for tensors on NVIDIA GPUs. Compiled and linked, not run: see the README.
//!
//! NCCL works on a stream of its own. Before a collective it waits for the work that CubeCL's
//! stream has at that moment, and CubeCL's stream waits for the collective when the result is
//! taken. Both wait on the GPU, by events; the host waits only for messages of bytes. So gradients
//! are sent while the GPU computes the next layer.
//!
//! A reduce-scatter is an exchange of pieces: the caller adds them, in float32 and in the order of
//! the ranks, as with MPI. A GPU sends as many bytes as in `ncclReduceScatter`, which adds in the
//! type that is sent.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::ServerStorage;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};
use cubecl_server::stream::WriteScoped;
use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result;
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t};

use super::communicator::{Abort, Arriving, Communicator, Gathered};
use super::environment::Place;
use crate::model::parameter::Arrival;

/// The address of NCCL's rank 0, `host:port`.
const MEETING_POINT: &str = "NCCL_COMM_ID";

type Server = <CudaRuntime as Runtime>::Server;
type Resource = ManagedResource<<<Server as ServerStorage>::Storage as ComputeStorage>::Resource>;

/// The engine on GPUs, one for each rank.
pub struct Nccl {
    place: Place,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    comm: ncclComm_t,
}

/// The memory of a tensor on its GPU.
struct Memory {
    tensor: CubeTensor,
    /// While this exists, CubeCL neither frees nor moves the memory.
    resource: Resource,
}

/// A part of a vector: its memory, its first element and its number of elements.
type Span<'a> = (&'a Memory, usize, usize);

/// Work of NCCL's stream.
struct Work {
    /// When the work is done.
    done: CudaEvent,
    /// What it reads and writes; empty if CubeCL's stream waits for it already.
    memory: Mutex<Vec<Memory>>,
    context: Arc<CudaContext>,
}

/// Pieces that are on their way to this rank.
struct Pieces {
    pieces: Vec<Tensor<1>>,
    work: Work,
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
        Ok(Self { place, context, stream, comm })
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

    /// Makes NCCL's stream wait for the work so far on CubeCL's stream of `memory`.
    fn after_compute(&self, memory: &Memory) {
        let compute = memory.stream(&self.context);
        self.stream.join(&compute).expect("NCCL's stream waits for CubeCL's");
    }

    /// The work so far of NCCL's stream, which uses `memory`.
    fn work(&self, memory: Vec<Memory>) -> Work {
        let done = self.stream.record_event(None).expect("an event is recorded");
        Work { done, memory: Mutex::new(memory), context: self.context.clone() }
    }

    /// Sends `sent[s]` to rank `s`, and receives `received[s]` from it, in one group.
    fn send_and_receive(&self, sent: &[Span], received: &[Span]) {
        let stream = self.stream.cu_stream() as _;
        result::group_start().expect("NCCL begins a group");
        for (peer, (out, into)) in sent.iter().zip(received).enumerate() {
            // SAFETY: the vectors have these elements, and the caller keeps them until NCCL's
            // stream has done its work.
            unsafe {
                let (memory, start, len) = *out;
                let from = memory.address(start) as _;
                result::send(from, len, memory.data_type(), peer as i32, self.comm, stream)
                    .expect("NCCL sends");
                let (memory, start, len) = *into;
                let to = memory.address(start) as _;
                result::recv(to, len, memory.data_type(), peer as i32, self.comm, stream)
                    .expect("NCCL receives");
            }
        }
        result::group_end().expect("NCCL ends a group");
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
        let world = self.world();
        let shard = bucket.dims()[0] / world;
        let pieces: Vec<Tensor<1>> = (0..world).map(|_| Self::empty(&bucket, shard)).collect();
        let into: Vec<Memory> = pieces.iter().map(Memory::of).collect();
        let from = Memory::of(&bucket);
        self.after_compute(&from);
        let sent: Vec<Span> = (0..world).map(|rank| (&from, rank * shard, shard)).collect();
        let received: Vec<Span> = into.iter().map(|memory| (memory, 0, shard)).collect();
        self.send_and_receive(&sent, &received);
        let work = self.work(into.into_iter().chain([from]).collect());
        Box::new(Pieces { pieces, work })
    }

    fn all_gather(&self, shard: Tensor<1>) -> Gathered {
        let len = shard.dims()[0];
        let all = Self::empty(&shard, len * self.world());
        let (from, to) = (Memory::of(&shard), Memory::of(&all));
        self.after_compute(&from);
        // SAFETY: both vectors have the given length. They are kept until CubeCL's stream waits for
        // NCCL's, or the host does.
        let sent = unsafe {
            result::all_gather(
                from.address(0) as _,
                to.address(0) as _,
                len,
                from.data_type(),
                self.comm,
                self.stream.cu_stream() as _,
            )
        };
        sent.expect("NCCL gathers");
        Gathered::arriving(all, Arc::new(self.work(vec![from, to])))
    }

    fn exchange_elements(
        &self,
        vector: Tensor<1>,
        sent: &[usize],
        received: &[usize],
    ) -> Tensor<1> {
        let spans = |lengths: &[usize]| {
            let starts = lengths.iter().scan(0, |at, len| {
                *at += len;
                Some((*at - len, *len))
            });
            starts.collect::<Vec<_>>()
        };
        // Memory for one element at least: an empty vector has no address.
        let all = Self::empty(&vector, received.iter().sum::<usize>().max(1));
        let vector = if vector.dims()[0] == 0 { Self::empty(&vector, 1) } else { vector };
        let (from, to) = (Memory::of(&vector), Memory::of(&all));
        self.after_compute(&from);
        let sent = spans(sent).into_iter().map(|(start, len)| (&from, start, len));
        let coming = spans(received).into_iter().map(|(start, len)| (&to, start, len));
        self.send_and_receive(&sent.collect::<Vec<_>>(), &coming.collect::<Vec<_>>());
        self.work(vec![from, to]).wait();
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

impl Memory {
    /// No other function depends on how Burn stores tensors.
    fn of(tensor: &Tensor<1>) -> Self {
        let tensor = tensor.clone().try_into_primitive::<CubeBackend>();
        let tensor = tensor.expect("NCCL is for tensors on a GPU");
        assert!(tensor.is_contiguous(), "the vector has no gaps");
        let resource = tensor.client.get_resource::<Server>(tensor.handle.clone());
        Self { resource: resource.expect("the tensor has memory"), tensor }
    }

    /// The address of element `index`.
    fn address(&self, index: usize) -> u64 {
        self.resource.resource().ptr + (index * self.tensor.dtype.size()) as u64
    }

    fn data_type(&self) -> ncclDataType_t {
        data_type(self.tensor.dtype)
    }

    /// CubeCL's stream, on which the tensor was made, after everything so far has been put on it.
    fn stream(&self, context: &Arc<CudaContext>) -> Arc<CudaStream> {
        let server = DeviceHandle::<Server>::new(self.tensor.client.service_id().device);
        let id = self.tensor.handle.stream;
        let stream = server.submit_blocking(move |server| {
            server.write_streams().try_stream_mut(&id).map(|stream| stream.sys as usize)
        });
        let stream = stream.ok().flatten().expect("the tensor's stream exists");
        // SAFETY: CubeCL keeps a stream until the process ends. NCCL's stream and this one are
        // ordered by events.
        unsafe { context.wrap_borrowed_stream(stream as CUstream) }
    }
}

impl Arrival for Work {
    /// Makes CubeCL's stream wait, not the host. Memory that is freed afterwards is used again
    /// after the wait.
    fn wait(&self) {
        let memory = std::mem::take(&mut *self.memory());
        if let Some(first) = memory.first() {
            let compute = first.stream(&self.context);
            compute.wait(&self.done).expect("CubeCL's stream waits for NCCL's");
        }
    }
}

impl Work {
    fn memory(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited_for = self.memory().is_empty();
        f.debug_struct("Work").field("waited_for", &waited_for).finish_non_exhaustive()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut *self.memory());
        if memory.is_empty() {
            return;
        }
        // Nobody waited: NCCL may still use the memory. After a panic, do not wait for it, because
        // the other ranks may never answer.
        match std::thread::panicking() {
            true => std::mem::forget(memory),
            false => self.done.synchronize().expect("the GPU's stream ends without an error"),
        }
    }
}

impl Arriving for Pieces {
    fn finish(self: Box<Self>) -> Vec<Tensor<1>> {
        self.work.wait();
        self.pieces
    }
}

fn data_type(dtype: DType) -> ncclDataType_t {
    match dtype {
        DType::F32 => ncclDataType_t::ncclFloat32,
        DType::BF16 => ncclDataType_t::ncclBfloat16,
        DType::F16 => ncclDataType_t::ncclFloat16,
        other => unreachable!("neither weights nor gradients are held as {other:?}"),
    }
}
