//! Objectives: the SFT loss, losses over preference pairs (DPO and others) and over labelled
//! completions (KTO), and the log-probs of the reference.

pub mod desirable_length;
mod dpo;
pub mod label_smoothing;
pub mod preference;
pub mod reference;
pub mod sft;
pub mod unpaired;
mod vector;
