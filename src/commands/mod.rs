//! The command line: each subcommand is one file.

pub mod demo;
mod forecast;
mod known;
mod outline;
mod outputs;
mod plan;
mod prepare;
mod quantity;
mod reference;
mod run;
mod signals;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

use crate::recipe::{RecipeErrors, Stage};
use crate::report::profile::{self, Profile};

/// Exit code of a wrong command line or recipe.
const BAD_USAGE: u8 = 2;

/// Alignment training on Burn: SFT on chats, then DPO on preference pairs against a frozen
/// reference, driven by YAML recipes.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  favonius demo
  favonius plan recipes/zephyr-7b-beta/dpo/published.yaml
  favonius dpo recipes/stories260k/dpo.yaml --beta=0.05 --output_dir=out/beta-0.05
  favonius run recipes/stories260k/pipeline.yaml

Exit codes: 0 done; 1 failed or interrupted; 2 bad usage or recipe.
RUST_LOG=debug shows more; FAVONIUS_PROFILE=1 ends with the times of all operations.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Supervised fine-tuning, as a recipe says
    Sft(RecipeArguments),
    /// Direct preference optimization against a reference, and every loss of its family
    Dpo(RecipeArguments),
    /// Odds-ratio preference optimization: pairs, no reference
    Orpo(RecipeArguments),
    /// Contrastive preference optimization and SimPO: pairs, no reference
    Cpo(RecipeArguments),
    /// Kahneman-Tversky optimization: single responses with a label
    Kto(RecipeArguments),
    /// Run the stages of a pipeline file in turn: finished ones are not run again
    Run(RecipeArguments),
    /// Print what a recipe would do, and stop: rows, tokens, steps, memory, every default
    Plan(PlanArguments),
    /// Make a small world, train SFT and DPO on it, and show what changed
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
struct RecipeArguments {
    /// The recipe (or, for `run`, the pipeline) in YAML
    recipe: PathBuf,
    /// Overrides as --key=value or --key.sub=value, for any key of the recipe; `--quiet` for plain
    /// lines without bars
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--key=value")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct PlanArguments {
    /// The recipe in YAML
    recipe: PathBuf,
    /// sft, dpo, orpo, cpo or kto; told from the recipe's name and keys where not given
    #[arg(long, value_parser = parse_stage)]
    stage: Option<Stage>,
    /// Overrides as --key=value or --key.sub=value; the hardware as --ranks 16 --device-memory 80GB --flops
    /// 312e12 --mfu 0.4 --bandwidth 25GB (of one rank); --rows N where the data is not here
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--key=value")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// Where the world and the runs go
    #[arg(long, default_value = "favonius-demo")]
    out: PathBuf,
    /// Plain lines without bars
    #[arg(long)]
    quiet: bool,
}

fn parse_stage(text: &str) -> Result<Stage, String> {
    let known = Stage::ALL.map(Stage::command).join(", ");
    Stage::of_command(text).ok_or_else(|| format!("one of {known} is expected"))
}

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let profile = start_tracing();
    let CommandLine { command } = CommandLine::parse();
    let ending = run_command(command);
    eprint!("{}", profile.table());
    match ending {
        Ok(stage::Ending::Done) => ExitCode::SUCCESS,
        Ok(stage::Ending::Interrupted) => ExitCode::FAILURE,
        Err(error) => report(&error),
    }
}

/// Logs go to standard error, as `RUST_LOG` says; operations are measured where somebody asks.
fn start_tracing() -> Profile {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    let profile = Profile::default();
    let wanted = Profile::is_wanted();
    let measured = profile
        .clone()
        .with_filter(filter_fn(move |metadata| wanted && metadata.target() == profile::TARGET));
    tracing_subscriber::registry().with(lines).with(measured).init();
    profile
}

fn run_command(command: Command) -> anyhow::Result<stage::Ending> {
    match command {
        Command::Sft(arguments) => run_stage(Stage::Sft, arguments),
        Command::Dpo(arguments) => run_stage(Stage::Dpo, arguments),
        Command::Orpo(arguments) => run_stage(Stage::Orpo, arguments),
        Command::Cpo(arguments) => run_stage(Stage::Cpo, arguments),
        Command::Kto(arguments) => run_stage(Stage::Kto, arguments),
        Command::Run(arguments) => {
            let (overrides, quiet) = split_quiet(arguments.overrides, "run");
            run::run(&arguments.recipe, &overrides, quiet)
        }
        Command::Plan(arguments) => {
            let (overrides, _) = split_quiet(arguments.overrides, "plan");
            plan::run(&arguments.recipe, arguments.stage, overrides)
        }
        Command::Demo(arguments) => demo::run(&arguments.out, arguments.quiet),
    }
}

fn run_stage(stage: Stage, arguments: RecipeArguments) -> anyhow::Result<stage::Ending> {
    let (overrides, quiet) = split_quiet(arguments.overrides, stage.command());
    stage::run(stage, &arguments.recipe, &overrides, quiet)
}

/// Takes `--quiet` and `--help` out of what stands behind the recipe's name.
fn split_quiet(mut overrides: Vec<String>, command: &str) -> (Vec<String>, bool) {
    if overrides.iter().any(|o| o == "--help" || o == "-h") {
        CommandLine::parse_from(["favonius", command, "--help"]);
    }
    let before = overrides.len();
    overrides.retain(|o| o != "--quiet" && o != "-q");
    let quiet = overrides.len() < before;
    (overrides, quiet)
}

/// Prints an error with its causes; a recipe's errors stand for themselves.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(errors) = error.downcast_ref::<RecipeErrors>() {
        eprintln!("{errors}");
        return ExitCode::from(BAD_USAGE);
    }
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    ExitCode::FAILURE
}
