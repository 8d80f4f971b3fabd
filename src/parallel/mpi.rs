//! Ranks over MPI, for tensors on the CPU. Tensors of another device go through the host's memory.
//!
//! Gradients are exchanged with `MPI_Alltoall`, and the caller adds them in the order of the
//! ranks. `MPI_Reduce_scatter` adds in another order, which changes with the number of ranks.

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use bytemuck::Pod;
use half::{bf16, f16};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::*;

use super::communicator::{Abort, Arriving, Communicator, Gathered};
use crate::kernels::host;

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

    fn gather_numbers<T: Number>(&self, shard: Tensor<1>) -> Tensor<1> {
        let device = shard.device();
        let own = values::<T>(shard);
        let all = self.gather_typed::<T::Sent>(bytemuck::cast_slice(&own));
        vector::<T>(bytemuck::cast_vec(all), &device)
    }

    fn exchange_numbers<T: Number>(
        &self,
        vector_sent: Tensor<1>,
        sent: &[usize],
        received: &[usize],
    ) -> Tensor<1> {
        let device = vector_sent.device();
        let own = values::<T>(vector_sent);
        let counts = |lengths: &[usize]| -> Vec<i32> {
            lengths.iter().map(|length| checked(*length) as i32).collect()
        };
        let own: &[T::Sent] = bytemuck::cast_slice(&own);
        let all = self.exchange_typed(own, &counts(sent), &counts(received));
        vector::<T>(bytemuck::cast_vec(all), &device)
    }

    /// Sends the first `sent[0]` elements of `own` to rank 0, and so on. Returns the elements that
    /// all ranks sent to this one, of which `counts[s]` come from rank `s`.
    fn exchange_typed<T>(&self, own: &[T], sent: &[i32], counts: &[i32]) -> Vec<T>
    where
        T: Equivalence + Clone + Default,
    {
        let mut received = buffer(total(counts));
        let (sent_from, received_from) = (starts(sent), starts(counts));
        let spare = Vec::with_capacity(1);
        let own = Partition::new(not_in_place(own, &spare), sent, &sent_from[..]);
        let mut others = PartitionMut::new(&mut received[..], counts, &received_from[..]);
        self.world.all_to_all_varcount_into(&own, &mut others);
        received
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
        checked(bucket.dims()[0]);
        match bucket.dtype() {
            DType::F32 => Box::new(AllToAll::<f32>::begin(&self.world, bucket)),
            DType::BF16 => Box::new(AllToAll::<bf16>::begin(&self.world, bucket)),
            DType::F16 => Box::new(AllToAll::<f16>::begin(&self.world, bucket)),
            other => unreachable!("gradients are not sent as {other:?}"),
        }
    }

    fn all_gather(&self, shard: Tensor<1>) -> Gathered {
        Gathered::complete(match shard.dtype() {
            DType::F32 => self.gather_numbers::<f32>(shard),
            DType::BF16 => self.gather_numbers::<bf16>(shard),
            DType::F16 => self.gather_numbers::<f16>(shard),
            other => unreachable!("weights are not held as {other:?}"),
        })
    }

    fn exchange_elements(
        &self,
        vector: Tensor<1>,
        sent: &[usize],
        received: &[usize],
    ) -> Tensor<1> {
        match vector.dtype() {
            DType::F32 => self.exchange_numbers::<f32>(vector, sent, received),
            DType::BF16 => self.exchange_numbers::<bf16>(vector, sent, received),
            DType::F16 => self.exchange_numbers::<f16>(vector, sent, received),
            other => unreachable!("gradients are not sent as {other:?}"),
        }
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let sent: Vec<i32> = parts.iter().map(|part| checked(part.len()) as i32).collect();
        let mut counts = vec![0; sent.len()];
        self.world.all_to_all_into(&sent[..], &mut counts[..]);
        let received = self.exchange_typed(&parts.concat(), &sent, &counts);
        split(&received, &counts)
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (counts, starts) = self.lengths(bytes.len());
        let mut all = buffer(total(&counts));
        let mut partition = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        let spare = Vec::with_capacity(1);
        self.world.all_gather_varcount_into(not_in_place(bytes, &spare), &mut partition);
        split(&all, &counts)
    }

    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (counts, starts) = self.lengths(bytes.len());
        let root = self.world.process_at_rank(0);
        if self.rank() > 0 {
            root.gather_varcount_into(not_in_place(bytes, &Vec::with_capacity(1)));
            return Vec::new();
        }
        let mut all = buffer(total(&counts));
        let mut partition = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        root.gather_varcount_into_root(not_in_place(bytes, &Vec::with_capacity(1)), &mut partition);
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

/// A number of a tensor.
trait Number: Element + Pod + Default {
    /// The type with the same size as which MPI sends it.
    type Sent: Equivalence + Pod + Default;
}

impl Number for f32 {
    type Sent = f32;
}

impl Number for bf16 {
    type Sent = u16;
}

impl Number for f16 {
    type Sent = u16;
}

/// An exchange of equal pieces between all ranks that has been started. MPI uses the buffers until
/// it ends.
struct AllToAll<T: Number> {
    ranks: usize,
    sent: Vec<T>,
    received: Vec<T>,
    request: ffi::MPI_Request,
    device: Device,
}

impl<T: Number> AllToAll<T> {
    fn begin(world: &SimpleCommunicator, bucket: Tensor<1>) -> Self {
        let device = bucket.device();
        let sent = values::<T>(bucket);
        let ranks = world.size() as usize;
        let mut received = vec![T::default(); sent.len()];
        let piece = (sent.len() / ranks) as i32;
        // SAFETY: a request is plain data, which the call below writes.
        let mut request = unsafe { std::mem::zeroed() };
        // SAFETY: both vectors have `ranks` pieces. Their elements do not move when the struct
        // moves, and nothing accesses them before `MPI_Wait` has returned: `drop` waits too.
        let code = unsafe {
            ffi::MPI_Ialltoall(
                sent.as_ptr().cast(),
                piece,
                T::Sent::equivalent_datatype().as_raw(),
                received.as_mut_ptr().cast(),
                piece,
                T::Sent::equivalent_datatype().as_raw(),
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

impl<T: Number> Arriving for AllToAll<T> {
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

impl<T: Number> Drop for AllToAll<T> {
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

/// `len` zeros in allocated memory, also if `len` is 0: an empty vector of Rust points to its
/// alignment, and address 1 means "in place" to Open MPI.
fn buffer<T: Clone + Default>(len: usize) -> Vec<T> {
    let mut elements = Vec::with_capacity(len.max(1));
    elements.resize(len, T::default());
    elements
}

/// [`buffer`] for elements that are sent. `spare` has allocated memory.
fn not_in_place<'a, T>(own: &'a [T], spare: &'a [T]) -> &'a [T] {
    if own.is_empty() { &spare[..0] } else { own }
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

fn values<T: Element>(tensor: Tensor<1>) -> Vec<T> {
    host::read(tensor).try_into_vec().expect("the caller checked the type")
}

fn vector<T: Element>(values: Vec<T>, device: &Device) -> Tensor<1> {
    let len = values.len();
    host::upload(TensorData::new(values, [len]), device, T::dtype())
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
