//! Training: the layer-wise backward pass, tasks, the optimizer, the learning rate, evaluation,
//! checkpoints, and the loop over all of them.

pub mod balance;
pub mod checkpoint;
mod clock;
mod embedding_rows;
pub mod error;
pub mod evaluation;
pub mod event;
mod exchange;
pub mod expert_load;
pub mod gradients;
pub mod identity;
pub mod layerwise;
mod manifest;
mod measured;
pub mod metrics;
pub mod noise;
pub mod optimizer;
pub mod schedule;
pub mod state;
pub mod steps;
pub mod task;
pub mod tasks;
pub mod trainer;
