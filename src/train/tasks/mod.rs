//! The tasks that exist: SFT, preference pairs, and labelled responses.

mod pairs;
mod reference;
mod sft;
mod unpaired;

pub use pairs::PreferenceTask;
pub use reference::ReferenceSource;
pub use sft::SftTask;
pub use unpaired::UnpairedTask;
