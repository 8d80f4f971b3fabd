//! What is minimised: log-probs of tokens, the SFT loss, objectives over pairs and over single responses,
//! reference log-probs.

pub mod desirable_length;
mod pair_losses;
pub mod preference;
pub mod reference;
pub mod sft;
pub mod unpaired;
mod vector;
