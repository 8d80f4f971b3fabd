//! The interface of an engine that connects ranks, and the engine of a single rank.

use burn::tensor::Tensor;

/// The collectives that training needs. All ranks call them in the same order.
///
/// A rank that fails in a collective ends the job, so no method returns an error.
pub trait Communicator {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, `N`.
    fn world(&self) -> usize;

    /// Starts to send piece `s` of `bucket` (`[N · shard]`, float32) to rank `s`. Several buckets
    /// may be on their way; they must be finished in the order in which they were started.
    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving>;

    /// Joins the `[shard]` vectors of all ranks, in the order of the ranks, `[N · shard]`.
    fn all_gather(&self, shard: Tensor<1>) -> Tensor<1>;

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

    /// Waits for this rank's piece. Returns vectors of `[shard]` whose sum, in their order, is the
    /// reduced piece. MPI gives one vector for each rank, in the order of the ranks, so that the
    /// order of the sum is fixed. NCCL gives a single vector, its own sum.
    fn finish(self: Box<Self>) -> Vec<Tensor<1>>;
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

    fn all_gather(&self, shard: Tensor<1>) -> Tensor<1> {
        shard
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
