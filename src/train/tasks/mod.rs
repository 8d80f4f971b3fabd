//! The tasks: SFT, preference pairs, and labelled completions.

mod pairs;
mod reference;
mod running_mean;
mod sft;
mod unpaired;

pub use pairs::PreferenceTask;
pub use reference::ReferenceSource;
pub use running_mean::RewardSum;
pub use sft::SftTask;
pub use unpaired::UnpairedTask;
