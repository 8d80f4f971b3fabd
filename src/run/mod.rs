//! [`Plan`](crate::plan::Plan) → finished folder.
//!
//! [`run_recipe`] takes one recipe the whole way; [`run_pipeline`] takes several, each from the model
//! of the one before. What they do, step by step:
//!
//! 1. [`start::open`] looks into the recipe's folder: finished? a checkpoint? in use?
//! 2. [`Plan::new`](crate::plan::Plan::new) resolves and checks everything else.
//! 3. [`Run`] is the training itself: `new`, `resume` if a checkpoint exists, `train` (the reference
//!    pass, then the training loop), `finish` (the best model, the last evaluation, then model,
//!    record, card and the mark of a finished run in the folder).
//! 4. [`upload`] puts the folder on the hub if the recipe says so.

mod agree;
mod card;
mod context;
mod error;
mod facts;
mod finish;
mod identity;
mod load;
pub mod mark;
mod pipeline;
pub mod reference_pass;
mod run_recipe;
pub mod shell;
pub mod start;
mod training;
pub mod upload;

pub use context::Context;
pub use error::RunError;
pub use pipeline::{StageStart, check_folders, recipes_of, run_pipeline};
pub use run_recipe::{Ending, run_recipe};
pub use training::{Run, Trained, Training};
