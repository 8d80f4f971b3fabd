//! Recipes: YAML text with the keys of the alignment-handbook and TRL → checked, typed settings.
//!
//! The steps: [`yaml`] parses the text into a tree that records the place of every key and value.
//! [`overrides`] applies `--key=value` to the tree. [`schema`] lists all keys and reads them
//! through [`reader`], which fills in defaults and collects every error; [`preferences`] lists the
//! keys of the preference objectives, [`optimizers`] those of the optimizer. The results are the
//! types in [`settings`] and [`objectives`]. [`hub`] has keys and settings of the upload,
//! [`evaluation`] those of the evaluation on tasks. [`pipeline`] reads the stages of `favonius
//! run`, [`sweep`] the runs of `favonius sweep`.

mod adapters;
mod any_stage;
mod chat_template;
mod choice;
mod code;
mod dtype;
mod error;
mod evaluation;
mod hub;
mod listed;
mod load;
mod lr_schedule;
mod mixture;
mod number;
mod objectives;
mod optimizers;
mod outside;
mod overrides;
mod pipeline;
mod preferences;
mod quantization;
mod reader;
mod reporters;
mod rules;
mod schema;
mod secret;
mod settings;
mod stage;
mod streaming;
mod sweep;
pub(crate) mod yaml;

#[cfg(test)]
mod tests;

pub use adapters::LoraSettings;
pub use error::{COMMAND_LINE, ErrorPlace, KeyPlace, RecipeError, RecipeErrors};
pub use evaluation::{TaskDefinition, TaskEvaluation};
pub use hub::{HubToken, PushToHub};
pub use lr_schedule::{Better, Curve, LR_END, LrSchedulerKwargs, Schedule, ThresholdMode};
pub use objectives::{
    CpoLoss, CpoSettings, DpoSettings, FDivergence, KtoLoss, KtoSettings, Lengths, LogitsOver,
    LossType, Objective, OrpoSettings, Packing, ReferenceKind, SftLoss, SftSettings, SyncRefModel,
    TpoLoss, TpoSettings, Truncation, WeightedLoss,
};
pub use optimizers::{Optim, SgdSettings};
pub use overrides::text_override;
pub use pipeline::{Pipeline, PipelineStage};
pub use quantization::Quantization;
pub use secret::{holds_token, is_secret_key, masked};
pub use settings::{
    DataSettings, DatasetSpec, DeviceChoice, Dtype, Every, Mixture, ModelSettings, Preprocessing,
    Recipe, Reporter, Resume, Sampling, SplitSize, Stage, TrainSettings, Warmup,
};
pub use sweep::{Sweep, SweepRun};
