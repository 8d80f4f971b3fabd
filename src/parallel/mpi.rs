//! Ranks over MPI, for tensors on the CPU.
//!
//! Gradients are exchanged with `MPI_Alltoall`, and the receiver adds them in the order of the
//! ranks. `MPI_Reduce_scatter` adds in another order, which changes with the number of ranks.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::*;

use super::communicator::{Abort, Arriving, Communicator};

/// All ranks that mpirun or srun started.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Whether the watchdog may call MPI while the training thread is inside it.
    any_thread: bool,
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

impl Mpi {
    /// Starts MPI.
    pub fn start() -> Result<Self, String> {
        let (universe, level) =
            mpi::initialize_with_threading(Threading::Multiple).ok_or("it is running already")?;
        let world = universe.world();
        Ok(Self { world, any_thread: level == Threading::Multiple, _universe: universe })
    }

    fn gather_typed<T: Equivalence + Clone + Default>(&self, own: &[T]) -> Vec<T> {
        let mut all = vec![T::default(); checked(own.len()) * self.world()];
        self.world.all_gather_into(own, &mut all[..]);
        all
    }

    /// The number of bytes of each rank, and the start of each part when they are joined.
    fn lengths(&self, own: usize) -> (Vec<i32>, Vec<i32>) {
        let counts = self.gather_typed(&[checked(own) as i32]);
        let starts = starts(&counts);
        (counts, starts)
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving> {
        let device = bucket.device();
        let sent: Vec<f32> = values(bucket);
        checked(sent.len());
        Box::new(AllToAll::begin(&self.world, sent, device))
    }

    fn all_gather(&self, shard: Tensor<1>) -> Tensor<1> {
        let device = shard.device();
        match shard.dtype() {
            DType::F32 => vector(self.gather_typed(&values::<f32>(shard)), &device),
            DType::BF16 => {
                let bits: Vec<u16> = values(shard).into_iter().map(bf16::to_bits).collect();
                let all = self.gather_typed(&bits).into_iter().map(bf16::from_bits);
                vector(all.collect::<Vec<bf16>>(), &device)
            }
            DType::F16 => {
                let bits: Vec<u16> = values(shard).into_iter().map(f16::to_bits).collect();
                let all = self.gather_typed(&bits).into_iter().map(f16::from_bits);
                vector(all.collect::<Vec<f16>>(), &device)
            }
            other => unreachable!("weights are not held as {other:?}"),
        }
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let sent: Vec<i32> = parts.iter().map(|part| checked(part.len()) as i32).collect();
        let mut counts = vec![0; sent.len()];
        self.world.all_to_all_into(&sent[..], &mut counts[..]);
        let mut received = buffer(total(&counts));
        let (sent_from, received_from) = (starts(&sent), starts(&counts));
        let all = parts.concat();
        let own = Partition::new(not_in_place(&all), &sent[..], &sent_from[..]);
        let mut others = PartitionMut::new(&mut received[..], &counts[..], &received_from[..]);
        self.world.all_to_all_varcount_into(&own, &mut others);
        split(&received, &counts)
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (counts, starts) = self.lengths(bytes.len());
        let mut all = buffer(total(&counts));
        let mut partition = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        self.world.all_gather_varcount_into(not_in_place(bytes), &mut partition);
        split(&all, &counts)
    }

    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (counts, starts) = self.lengths(bytes.len());
        let root = self.world.process_at_rank(0);
        if self.rank() > 0 {
            root.gather_varcount_into(not_in_place(bytes));
            return Vec::new();
        }
        let mut all = buffer(total(&counts));
        let mut partition = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        root.gather_varcount_into_root(not_in_place(bytes), &mut partition);
        split(&all, &counts)
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let root = self.world.process_at_rank(0);
        let mut len = checked(bytes.len()) as i32;
        root.broadcast_into(&mut len);
        bytes.reserve(1);
        bytes.resize(len as usize, 0);
        root.broadcast_into(&mut bytes[..]);
        bytes
    }

    fn barrier(&self) {
        self.world.barrier();
    }

    fn abort(&self) -> Abort {
        match self.any_thread {
            true => |code| SimpleCommunicator::world().abort(code),
            // mpirun ends the job when a rank exits without leaving MPI.
            false => |code| signal_hook::low_level::exit(code),
        }
    }
}

/// An exchange of equal pieces between all ranks that has been started. MPI uses the buffers until
/// it ends.
struct AllToAll {
    ranks: usize,
    sent: Vec<f32>,
    received: Vec<f32>,
    request: ffi::MPI_Request,
    device: Device,
}

impl AllToAll {
    fn begin(world: &SimpleCommunicator, sent: Vec<f32>, device: Device) -> Self {
        let ranks = world.size() as usize;
        let mut received = vec![0f32; sent.len()];
        let piece = (sent.len() / ranks) as i32;
        // SAFETY: a request is plain data, which the call below writes.
        let mut request = unsafe { std::mem::zeroed() };
        // SAFETY: both vectors have `ranks` pieces. Their elements do not move when the struct
        // moves, and nothing accesses them before `MPI_Wait` has returned: `drop` waits too.
        let code = unsafe {
            ffi::MPI_Ialltoall(
                sent.as_ptr().cast(),
                piece,
                f32::equivalent_datatype().as_raw(),
                received.as_mut_ptr().cast(),
                piece,
                f32::equivalent_datatype().as_raw(),
                world.as_raw(),
                &mut request,
            )
        };
        assert_eq!(code, ffi::MPI_SUCCESS as i32, "MPI_Ialltoall fails");
        Self { ranks, sent, received, request, device }
    }

    fn wait(&mut self) {
        // SAFETY: the request belongs to `self`. MPI resets it at its end, and a reset request
        // returns at once.
        let code = unsafe { ffi::MPI_Wait(&mut self.request, ffi::RSMPI_STATUS_IGNORE) };
        assert_eq!(code, ffi::MPI_SUCCESS as i32, "MPI_Wait fails");
    }
}

impl Arriving for AllToAll {
    fn nudge(&mut self) {
        let mut done = 0;
        // SAFETY: as in `wait`. If MPI has no thread of its own, it sends data only during its
        // calls.
        let code = unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        assert_eq!(code, ffi::MPI_SUCCESS as i32, "MPI_Test fails");
    }

    fn finish(mut self: Box<Self>) -> Vec<Tensor<1>> {
        self.wait();
        self.sent = Vec::new();
        let received = std::mem::take(&mut self.received);
        let shard = received.len() / self.ranks;
        // The first vector usually becomes the sum, so it gets memory of its own.
        let first = vector(received[..shard].to_vec(), &self.device);
        let all = vector(received, &self.device);
        let others = (1..self.ranks).map(|rank| all.clone().narrow(0, rank * shard, shard));
        std::iter::once(first).chain(others).collect()
    }
}

impl Drop for AllToAll {
    fn drop(&mut self) {
        // After a panic, do not wait: the other ranks may never answer.
        if std::thread::panicking() {
            std::mem::forget(std::mem::take(&mut self.sent));
            std::mem::forget(std::mem::take(&mut self.received));
        } else {
            self.wait();
        }
    }
}

/// Fails if MPI, which counts in 32 bits, cannot count the elements.
fn checked(elements: usize) -> usize {
    assert!(i32::try_from(elements).is_ok(), "{elements} elements are too many for one MPI call");
    elements
}

/// `len` zeros in allocated memory, also if `len` is 0: an empty vector of Rust points to address
/// 1, which means "in place" to Open MPI.
fn buffer(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len.max(1));
    bytes.resize(len, 0);
    bytes
}

/// [`buffer`] for bytes that are sent.
fn not_in_place(bytes: &[u8]) -> &[u8] {
    const SOMEWHERE: &[u8] = &[0];
    if bytes.is_empty() { &SOMEWHERE[..0] } else { bytes }
}

fn total(counts: &[i32]) -> usize {
    checked(counts.iter().map(|count| *count as usize).sum())
}

/// The start of each part when they are joined.
fn starts(counts: &[i32]) -> Vec<i32> {
    total(counts);
    let starts = counts.iter().scan(0, |at, count| {
        *at += count;
        Some(*at - count)
    });
    starts.collect()
}

fn values<T: burn::tensor::Element>(tensor: Tensor<1>) -> Vec<T> {
    tensor.into_data().try_into_vec().expect("the caller checked the type")
}

fn vector<T: burn::tensor::Element>(values: Vec<T>, device: &Device) -> Tensor<1> {
    let len = values.len();
    let dtype = T::dtype();
    Tensor::from_data(TensorData::new(values, [len]), (device, dtype))
}

fn split(all: &[u8], counts: &[i32]) -> Vec<Vec<u8>> {
    let mut rest = all;
    let parts = counts.iter().map(|count| {
        let (part, left) = rest.split_at(*count as usize);
        rest = left;
        part.to_vec()
    });
    parts.collect()
}
