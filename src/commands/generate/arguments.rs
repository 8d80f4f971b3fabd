//! The command line of `favonius generate`.

use std::path::PathBuf;

use clap::Args;

use crate::commands::model_options::{PlaceArguments, SamplingArguments};
use crate::commands::quantity;

#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// The model: a folder or a hub id
    pub model: String,
    /// Rows with `prompt`, `messages`, `instruction` (AlpacaEval) or `turns` (MT-Bench), as .jsonl
    /// or as a .json list
    pub prompts: PathBuf,
    /// The file of the answers: .jsonl, or .json for a list, which alpaca_eval reads. Until all
    /// prompts are answered, FILE.partial keeps the finished answers, and the same command
    /// continues from it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The model's name in the answers; by default the last part of its folder or hub id
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A system message for every chat without one
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Continue each prompt as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = quantity::count)]
    pub max_new_tokens: usize,
    /// Number of prompts to answer at a time
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = quantity::count)]
    pub batch_size: usize,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    #[command(flatten)]
    pub place: PlaceArguments,
    /// Print plain lines without progress bars
    #[arg(long, short)]
    pub quiet: bool,
}
