//! [`Plan`](crate::plan::Plan) → finished folder.
//!
//! [`run_recipe`] runs one recipe from its folder to its upload. [`run_pipeline`] runs several;
//! each starts from the model of the one before. The steps of a recipe:
//!
//! 1. [`start::open`] locks the recipe's folder and looks for a finished run or a checkpoint in it.
//! 2. [`Plan::new`](crate::plan::Plan::new) resolves and checks everything else.
//! 3. [`Run`] is the training. [`Run::new`] finds the device, [`Run::resume`] reads a checkpoint if
//!    one exists, and [`Run::train`] loads the weights, runs the reference pass and the
//!    training loop. [`Trained::finish`] writes model, record, card and the mark of a finished run.
//! 4. [`evaluation`] scores the model on benchmark tasks if the recipe says so.
//! 5. [`upload`] puts the folder on the hub if the recipe says so.

mod agree;
mod card;
mod context;
mod error;
pub mod evaluation;
mod facts;
mod finish;
mod identity;
mod load;
pub mod mark;
mod pipeline;
mod reference_model;
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
