//! The interface of an engine that connects ranks, and the engine of a single rank.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::kernels::update::{is_view, part};
use crate::model::parameter::{Arrival, Weight};

/// The collectives that training needs. All ranks call them in the same order.
///
/// Tensors are float32, bfloat16 or float16, and results are on the device of the argument. An
/// engine for GPUs sends them from the GPU's memory; MPI copies them through the host's.
///
/// A rank that fails in a collective ends the job, so no method returns an error.
pub trait Communicator {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, `N`.
    fn world(&self) -> usize;

    /// Starts to send piece `s` of `bucket` (`[N · shard]`) to rank `s`. Several buckets may be on
    /// their way; they must be finished in the order in which they were started.
    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving>;

    /// Starts to join the `[shard]` vectors of all ranks, in the order of the ranks.
    fn all_gather(&self, shard: Tensor<1>) -> Gathered;

    /// Sends `sent[s]` elements of `vector` to rank `s`: the first ones to rank 0, and so on. Returns
    /// the elements that all ranks sent to this one, in the order of the ranks; `received[s]` of
    /// them come from rank `s`.
    fn exchange_elements(&self, vector: Tensor<1>, sent: &[usize], received: &[usize])
    -> Tensor<1>;

    /// Sends `parts[s]`, of any length, to rank `s`. Returns the part that each rank sent to this
    /// one.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>>;

    /// The byte strings of all ranks, of any length, on every rank.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// The byte strings of all ranks, of any length, on rank 0. The other ranks get none.
    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Rank 0's bytes on every rank.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Returns when all ranks have called it.
    fn barrier(&self);

    /// A function that ends the whole job, from any thread.
    fn abort(&self) -> Abort;
}

/// A reduce-scatter that has been started.
pub trait Arriving {
    /// Lets it make progress, without waiting for it.
    fn nudge(&mut self) {}

    /// Waits for this rank's piece. Returns a vector of `[shard]` from each rank, in the order of
    /// the ranks: the caller adds them, so that it chooses the order and the type of the sum. The
    /// first vector has memory of its own.
    fn finish(self: Box<Self>) -> Vec<Tensor<1>>;
}

/// The vectors of all ranks, `[N · shard]`, which may still be on their way.
pub struct Gathered {
    vector: Tensor<1>,
    /// `None` if they are complete.
    arrival: Option<Arc<dyn Arrival>>,
}

impl Gathered {
    /// A vector that is complete.
    pub fn complete(vector: Tensor<1>) -> Self {
        Self { vector, arrival: None }
    }

    /// A vector that is complete after [`Arrival::wait`].
    pub fn arriving(vector: Tensor<1>, arrival: Arc<dyn Arrival>) -> Self {
        Self { vector, arrival: Some(arrival) }
    }

    /// The complete vector.
    pub fn wait(self) -> Tensor<1> {
        if let Some(arrival) = self.arrival {
            arrival.wait();
        }
        self.vector
    }

    /// Elements `start..start + len` as a parameter, see [`part`]. If they are a view, their first
    /// reader waits for them.
    pub fn weight(&self, start: usize, len: usize) -> Weight {
        let Some(arrival) = &self.arrival else {
            return Weight::Float(part(&self.vector, start, len));
        };
        let view = part(&self.vector, start, len);
        if is_view(&view, &self.vector) {
            return Weight::Arriving(view, arrival.clone());
        }
        // It is a copy, which was made too early.
        arrival.wait();
        Weight::Float(part(&self.vector, start, len))
    }
}

/// A result that is complete already.
impl Arriving for Vec<Tensor<1>> {
    fn finish(self: Box<Self>) -> Vec<Tensor<1>> {
        *self
    }
}

/// Ends the whole job with an exit code.
pub type Abort = fn(i32) -> !;

/// The engine of a run on one process: nothing is sent, nothing is copied.
pub struct OneRank;

impl Communicator for OneRank {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving> {
        Box::new(vec![bucket])
    }

    fn all_gather(&self, shard: Tensor<1>) -> Gathered {
        Gathered::complete(shard)
    }

    fn exchange_elements(&self, vector: Tensor<1>, _: &[usize], _: &[usize]) -> Tensor<1> {
        vector
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        parts
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn barrier(&self) {}

    fn abort(&self) -> Abort {
        |code| std::process::exit(code)
    }
}
