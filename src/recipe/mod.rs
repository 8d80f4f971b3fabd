//! Recipes: YAML text with the keys of the alignment-handbook and TRL → checked, typed settings.
//!
//! The way through the files: [`yaml`] makes a tree in which every key and value knows its place, [`overrides`] lays
//! `--key=value` over it, [`schema`] is the list of all keys (it reads them through [`reader`], which fills in defaults and
//! collects every error; [`preferences`] has those of the preference objectives), [`settings`] and [`objectives`] are what
//! comes out; [`hub`] has both for the upload. [`pipeline`] lists the stages of `favonius run`, [`sweep`] the runs of `favonius sweep`.

mod choice;
mod code;
mod error;
mod hub;
mod load;
mod mixture;
mod number;
mod objectives;
mod outside;
mod overrides;
mod pipeline;
mod preferences;
mod reader;
mod rules;
mod schema;
mod settings;
mod sweep;
mod yaml;

#[cfg(test)]
mod tests;

pub use error::{COMMAND_LINE, ErrorPlace, KeyPlace, RecipeError, RecipeErrors};
pub use hub::{HubToken, PushToHub};
pub use objectives::{
    CpoLoss, CpoSettings, DpoSettings, FDivergence, KtoLoss, KtoSettings, Lengths, LogitsOver,
    LossType, Objective, OrpoSettings, Packing, SftSettings, SyncRefModel, Truncation, Wanted,
    WeightedLoss,
};
pub use pipeline::{Pipeline, PipelineStage};
pub use settings::{
    DataSettings, DatasetSpec, DeviceChoice, Dtype, Every, LrSchedulerKwargs, Mixture,
    ModelSettings, Optim, Preprocessing, Recipe, Reporter, Resume, Sampling, Schedule, SplitSize,
    Stage, TrainSettings, Warmup,
};
pub use sweep::{Sweep, SweepRun};
