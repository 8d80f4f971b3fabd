//! The command line. [`command_line`] lists the subcommands. The five training stages share
//! `stage`; every other subcommand is a file or a folder with its name.

mod chat;
mod command_line;
mod completions;
mod demo;
mod dist_check;
mod ending;
mod error_file;
mod errors;
mod evaluate;
mod generate;
mod hardware;
mod launch;
mod logs;
mod merge;
mod model_options;
mod observers;
mod out_file;
mod overrides;
mod plan;
mod profile;
mod push;
mod quantity;
mod recipe_arguments;
mod report;
mod run;
mod signals;
mod stage;
mod sweep;

use std::process::ExitCode;

use crate::parallel::environment::Place;
use crate::recipe::Stage;
use command_line::Command;
use ending::Ending;
use error_file::ErrorFile;
use launch::{HOLD_BACK, Launch};
use recipe_arguments::RecipeArguments;

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let place = Place::detect();
    let is_first = place.as_ref().map_or(true, |place| place.rank == 0);
    let command = match command_line::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) if is_first => error.exit(),
        Err(_) => return ExitCode::from(errors::BAD_USAGE),
    };
    errors::print_no_caught_panics();
    let profile = logs::start(is_first);
    let error_file = ErrorFile::from_environment();
    error_file.begin(is_first);
    let ending = place.map_err(anyhow::Error::from).and_then(|place| run_command(command, place));
    if is_first {
        eprint!("{}", profile.table());
    }
    match ending {
        Ok(ending) => {
            if is_first {
                error_file.remove();
            }
            ending.exit_code()
        }
        Err(error) => {
            if !is_first {
                // Rank 0 prints an error that all ranks meet, and its end is the end of the job.
                std::thread::sleep(HOLD_BACK);
            }
            errors::print(&error);
            let (message, code) = errors::message(&error, "");
            error_file.write(message, code);
            ExitCode::from(code)
        }
    }
}

fn run_command(command: Command, place: Place) -> anyhow::Result<Ending> {
    match command {
        Command::Sft(arguments) => run_stage(Stage::Sft, &arguments, place),
        Command::Dpo(arguments) => run_stage(Stage::Dpo, &arguments, place),
        Command::Orpo(arguments) => run_stage(Stage::Orpo, &arguments, place),
        Command::Cpo(arguments) => run_stage(Stage::Cpo, &arguments, place),
        Command::Tpo(arguments) => run_stage(Stage::Tpo, &arguments, place),
        Command::Kto(arguments) => run_stage(Stage::Kto, &arguments, place),
        Command::Run(arguments) => {
            let launch = arguments.launch(place, "run")?;
            run::run(&arguments.recipe, &arguments.overrides, arguments.options.quiet, launch)
        }
        Command::Sweep(arguments) => sweep::run(&arguments, place),
        Command::Plan(arguments) => plan::run(&arguments, place),
        Command::Report(arguments) => report::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments, place),
        Command::Push(arguments) => push::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments.out, arguments.quiet, place),
        Command::DistCheck(arguments) => {
            let launch = Launch { place, timeout: arguments.collective_timeout };
            dist_check::run(&arguments.device, arguments.megabytes, launch)
        }
        Command::Completions { shell } => completions::run(shell, command_line::program()),
    }
}

fn run_stage(stage: Stage, arguments: &RecipeArguments, place: Place) -> anyhow::Result<Ending> {
    let launch = arguments.launch(place, stage.command())?;
    let RecipeArguments { recipe, overrides, options, .. } = arguments;
    stage::run(stage, recipe, overrides, options.quiet, launch)
}
