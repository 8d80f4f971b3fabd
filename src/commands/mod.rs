//! The command line: each subcommand is one file.

mod chat;
pub mod demo;
mod dist_check;
mod ending;
mod generate;
mod hardware;
mod launch;
mod model_options;
mod observers;
mod out_file;
mod plan;
mod push;
mod quantity;
mod report;
mod run;
mod signals;
mod stage;
mod sweep;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

use crate::parallel::environment::Place;
use crate::parallel::join::DEFAULT_TIMEOUT;
use crate::recipe::{RecipeErrors, Stage};
use crate::report::profile::{self, Profile};
use ending::Ending;
use launch::{HOLD_BACK, Launch};

/// Exit code of a wrong command line or recipe.
const BAD_USAGE: u8 = 2;

/// A command line that cannot be meant so; what it says is the message, with a `help:` line where something can be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// What is logged where `RUST_LOG` says nothing. The hub's libraries log every try; what fails in the end is told
/// anyway.
const DEFAULT_LOG: &str =
    "warn,hf_hub=off,xet=off,xet_client=off,xet_data=off,xet_runtime=off,xet_core_structures=off";

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
  favonius sweep recipes/ablations/scan_stories260k.yaml --jobs 2

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
    /// Run a recipe with a grid or list of settings, run after run, and compare what came of them
    Sweep(SweepArguments),
    /// Check each collective between ranks against a serial sum, and measure it
    DistCheck(DistCheckArguments),
    /// Show runs, of Favonius or TRL, as one HTML page with curves and tables
    Report(report::ReportArguments),
    /// Talk with a model: answers as they come
    Chat(chat::ChatArguments),
    /// Answer a file of prompts, in the forms that AlpacaEval and MT-Bench judge
    Generate(generate::GenerateArguments),
    /// Upload a finished run to the hub: model, tokenizer, record and card
    Push(push::PushArguments),
    /// Make a small world, train SFT and DPO on it, and show what changed
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
struct RecipeArguments {
    /// The recipe (or, for `run`, the pipeline) in YAML
    recipe: PathBuf,
    /// Overrides as --key=value or --key.sub=value, for any key of the recipe; `--quiet` for plain
    /// lines without bars; `--collective-timeout=SECONDS` for how long ranks wait for each other (600)
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
struct SweepArguments {
    /// The sweep in YAML: a base recipe, a grid, a list
    sweep: PathBuf,
    /// --plan (or --dry-run) to see what would run; --jobs N for N runs at a time; --slurm for a job
    /// array instead, --ranks N for runs on N ranks each in it; --compare-only to compare what is there
    /// and train nothing; --quiet; --flops 312e12 --mfu 0.4 for the hours. Everything else is an override
    /// of all runs, as --key=value
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

#[derive(Debug, Args)]
struct DistCheckArguments {
    /// Size of the vectors that are measured, in MiB
    #[arg(long, default_value_t = 64)]
    megabytes: usize,
    /// cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seconds that ranks wait for each other
    #[arg(long, default_value_t = 600.0)]
    collective_timeout: f64,
}

fn parse_stage(text: &str) -> Result<Stage, String> {
    let known = Stage::ALL.map(Stage::command).join(", ");
    Stage::of_command(text).ok_or_else(|| format!("one of {known} is expected"))
}

/// Of what there is at least one: no tokens and no rows are no work.
fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "a whole number of at least 1 is expected".into())
}

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let place = Place::detect();
    let is_first = place.as_ref().map_or(true, |place| place.rank == 0);
    let command = match CommandLine::try_parse() {
        Ok(CommandLine { command }) => command,
        Err(error) if is_first => error.exit(),
        Err(_) => return ExitCode::from(BAD_USAGE),
    };
    let profile = start_tracing(is_first);
    let ending = place.map_err(anyhow::Error::from).and_then(|place| run_command(command, place));
    if is_first {
        eprint!("{}", profile.table());
    }
    match ending {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::FAILURE,
        Err(error) => {
            if !is_first {
                // What is wrong on all ranks is told by rank 0, whose end is the end of the others.
                std::thread::sleep(HOLD_BACK);
            }
            tell(&error)
        }
    }
}

/// Logs go to standard error, as `RUST_LOG` says, those of rank 0 only; operations are measured where somebody
/// asks.
fn start_tracing(is_first: bool) -> Profile {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT_LOG));
    let filter = if is_first { filter } else { tracing_subscriber::EnvFilter::new("off") };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Colours are for a terminal; in a file they are noise.
    let lines = if std::io::stderr().is_terminal() { lines } else { lines.with_ansi(false) };
    let lines = lines.with_filter(filter);
    let profile = Profile::default();
    let wanted = Profile::is_wanted();
    let measured = profile
        .clone()
        .with_filter(filter_fn(move |metadata| wanted && metadata.target() == profile::TARGET));
    tracing_subscriber::registry().with(lines).with(measured).init();
    profile
}

fn run_command(command: Command, place: Place) -> anyhow::Result<Ending> {
    match command {
        Command::Sft(arguments) => run_stage(Stage::Sft, arguments, place),
        Command::Dpo(arguments) => run_stage(Stage::Dpo, arguments, place),
        Command::Orpo(arguments) => run_stage(Stage::Orpo, arguments, place),
        Command::Cpo(arguments) => run_stage(Stage::Cpo, arguments, place),
        Command::Kto(arguments) => run_stage(Stage::Kto, arguments, place),
        Command::Run(arguments) => {
            let options = Options::take(arguments.overrides, "run")?;
            let launch = options.launch(place);
            run::run(&arguments.recipe, &options.overrides, options.quiet, launch)
        }
        Command::Plan(arguments) => {
            let options = Options::take(arguments.overrides, "plan")?;
            let ranks = options.ranks.unwrap_or(place.world);
            if place.rank > 0 {
                return Ok(Ending::Done);
            }
            plan::run(&arguments.recipe, arguments.stage, options.overrides, ranks)
        }
        Command::Sweep(arguments) => {
            let options = Options::take(arguments.overrides, "sweep")?;
            if place.world > 1 {
                return usage("a sweep starts its runs itself: start it without a launcher");
            }
            let ranks = options.ranks.unwrap_or(1);
            let options = sweep::SweepOptions::take(options.overrides, ranks, options.quiet);
            let options = options.map_err(as_usage)?;
            sweep::run(&arguments.sweep, options)
        }
        Command::DistCheck(arguments) => {
            let timeout = seconds(arguments.collective_timeout)?;
            dist_check::run(&arguments.device, arguments.megabytes, Launch { place, timeout })
        }
        Command::Report(arguments) => report::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Push(arguments) => push::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments.out, arguments.quiet, place),
    }
}

fn run_stage(stage: Stage, arguments: RecipeArguments, place: Place) -> anyhow::Result<Ending> {
    let options = Options::take(arguments.overrides, stage.command())?;
    let launch = options.launch(place);
    stage::run(stage, &arguments.recipe, &options.overrides, options.quiet, launch)
}

/// What may stand among the overrides and is no key of a recipe.
struct Options {
    overrides: Vec<String>,
    quiet: bool,
    collective_timeout: Option<Duration>,
    ranks: Option<usize>,
}

impl Options {
    /// Takes the options out of what stands behind the recipe's name; `--help` ends the program.
    fn take(mut overrides: Vec<String>, command: &str) -> anyhow::Result<Self> {
        if overrides.iter().any(|o| o == "--help" || o == "-h") {
            CommandLine::parse_from(["favonius", command, "--help"]);
        }
        let before = overrides.len();
        overrides.retain(|o| o != "--quiet" && o != "-q");
        let quiet = overrides.len() < before;
        let collective_timeout = match take_value(&mut overrides, "--collective-timeout") {
            Some(value) => Some(seconds(value.parse().unwrap_or(f64::NAN))?),
            None => None,
        };
        let ranks = match take_value(&mut overrides, "--ranks") {
            Some(value) => match value.parse() {
                Ok(ranks) if ranks > 0 => Some(ranks),
                _ => return usage(format!("--ranks={value} is not a number of ranks")),
            },
            None => None,
        };
        if ranks.is_some() && !["plan", "sweep"].contains(&command) {
            return usage(format!(
                "--ranks is for `plan`; start ranks with `mpirun -n N favonius {command} …`"
            ));
        }
        Ok(Self { overrides, quiet, collective_timeout, ranks })
    }

    fn launch(&self, place: Place) -> Launch {
        Launch { place, timeout: self.collective_timeout.unwrap_or(DEFAULT_TIMEOUT) }
    }
}

/// Takes `key=value`, or `key` and the value behind it.
fn take_value(overrides: &mut Vec<String>, key: &str) -> Option<String> {
    let is_key = |o: &String| o.split('=').next() == Some(key);
    let place = overrides.iter().position(is_key)?;
    let taken = overrides.remove(place);
    match taken.split_once('=') {
        Some((_, value)) => Some(value.to_string()),
        None if place < overrides.len() => Some(overrides.remove(place)),
        None => Some(String::new()),
    }
}

fn seconds(value: f64) -> anyhow::Result<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => usage("--collective-timeout must be a number of seconds above 0"),
    }
}

/// Fails: the command line is wrong.
fn usage<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(UsageError(text.into()).into())
}

/// The same error, as one of the command line.
fn as_usage(error: anyhow::Error) -> anyhow::Error {
    if error.is::<UsageError>() { error } else { UsageError(format!("{error:#}")).into() }
}

/// An error with its causes behind the place where it happened, and its exit code. A recipe's errors stand for
/// themselves.
fn message(error: &anyhow::Error, place: &str) -> (String, u8) {
    if let Some(errors) = error.downcast_ref::<RecipeErrors>() {
        return (errors.to_string(), BAD_USAGE);
    }
    let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
    let mut text = format!("{place}{error}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many a message names its cause itself.
        if !text.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
        }
    }
    (text, if error.is::<UsageError>() { BAD_USAGE } else { 1 })
}

/// Prints an error; a recipe's errors stand for themselves.
fn tell(error: &anyhow::Error) -> ExitCode {
    let (text, code) = message(error, "");
    let before = if error.is::<RecipeErrors>() { "" } else { "error: " };
    // Where nobody listens the exit code still tells.
    let _ = writeln!(std::io::stderr(), "{before}{text}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read a: no such file");
        assert_eq!(message(&error, "").0, "cannot read a: no such file");
        let error = anyhow::anyhow!("no such file").context("cannot read a");
        assert_eq!(message(&error, "r").0, "r: cannot read a\n  because: no such file");
    }

    fn options(overrides: &[&str]) -> anyhow::Result<Options> {
        Options::take(overrides.iter().map(|o| o.to_string()).collect(), "plan")
    }

    #[test]
    fn options_are_taken_out_of_the_overrides() {
        let given = ["--beta=0.1", "--collective-timeout=2.5", "-q", "--ranks", "16"];
        let options = options(&given).unwrap();
        assert_eq!(options.overrides, ["--beta=0.1"]);
        assert_eq!(options.collective_timeout, Some(Duration::from_millis(2500)));
        assert_eq!((options.quiet, options.ranks), (true, Some(16)));
    }

    #[test]
    fn options_without_sense_are_refused() {
        for wrong in ["--collective-timeout=0", "--collective-timeout", "--ranks=0", "--ranks=two"]
        {
            let error = options(&[wrong]).err().expect(wrong);
            assert_eq!(message(&error, "").1, BAD_USAGE, "{wrong}");
        }
    }

    #[test]
    fn errors_of_the_command_line_have_their_exit_code() {
        let error = as_usage(anyhow::anyhow!("no").context("--jobs"));
        assert_eq!(message(&error, ""), ("--jobs: no".to_owned(), BAD_USAGE));
        assert_eq!(message(&as_usage(error), "").1, BAD_USAGE);
        assert_eq!(message(&anyhow::anyhow!("no"), "").1, 1);
    }
}
