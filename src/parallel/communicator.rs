//! What an engine between ranks must be able to do, and the engine of a single rank.

use burn::tensor::Tensor;

/// The collectives that training needs. Every rank calls each of them in the same order.
///
/// Whoever fails inside ends the job: no method returns an error.
pub trait Communicator {
    /// This process among all, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, `N`.
    fn world(&self) -> usize;

    /// Begins to give piece `s` of `bucket` (`[N · shard]`, float32) to rank `s`. Several may be on their way;
    /// they end in the order in which they began.
    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving>;

    /// Joins the ranks' `[shard]` vectors in the order of the ranks, `[N · shard]`.
    fn all_gather(&self, shard: Tensor<1>) -> Tensor<1>;

    /// Gives `parts[s]` to rank `s`, of any length, and returns what each rank had for this one.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>>;

    /// Joins byte strings of any lengths, on every rank.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Joins byte strings of any lengths on rank 0; the others get none.
    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Rank 0's bytes on every rank.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Returns when all ranks have come here.
    fn barrier(&self);

    /// How this engine ends the whole job from any thread.
    fn abort(&self) -> Abort;
}

/// A reduce-scatter on its way.
pub trait Arriving {
    /// Lets it go on, without waiting for it.
    fn nudge(&mut self) {}

    /// Waits for what came for this rank's own piece: vectors of `[shard]` whose sum, taken in their order,
    /// is the reduced piece. MPI gives one vector a rank, in the order of the ranks, so that the sum does not
    /// depend on the engine; NCCL gives the one sum that it made.
    fn finish(self: Box<Self>) -> Vec<Tensor<1>>;
}

/// What needs no waiting.
impl Arriving for Vec<Tensor<1>> {
    fn finish(self: Box<Self>) -> Vec<Tensor<1>> {
        *self
    }
}

/// Ends the whole job with an exit code.
pub type Abort = fn(i32) -> !;

/// A run on one process: nothing is sent, nothing is copied.
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
