//! What is minimised: log-probs of tokens, the SFT loss, preference losses, reference log-probs.

pub mod linear_logp;
pub mod preference;
pub mod reference;
pub mod sft;
