//! Ranks: processes that share a run, started by mpirun, srun or torchrun.
//!
//! [`Ranks`] is the interface for the training loop. It uses one of three engines: a single rank,
//! MPI (feature `mpi`) or NCCL (feature `nccl`). [`buckets`] determines which rank owns which part
//! of the gradients and of the optimizer's state (ZeRO-2).

pub mod buckets;
mod communicator;
pub mod drill;
pub mod environment;
pub mod join;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod ranks;
mod status;
mod watchdog;

pub use communicator::{Abort, Arriving, Communicator, Gathered};
pub use ranks::Ranks;
