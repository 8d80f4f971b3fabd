//! `favonius sweep`: one recipe with a grid or a list of settings, run after run, and one
//! comparison at the end.
//!
//! Every run is a child process with its own folder inside the sweep's; the runs share the cache of
//! token ids and reference log-probs. After an interruption the same command continues;
//! `--compare-only` starts nothing.

pub mod arguments;
mod comparison;
mod jobs;
mod load;
mod outlook;
mod page;
mod record;
mod results;
mod run;
mod slurm;

use anyhow::bail;

use super::ending::Ending;
use super::errors::usage;
use super::signals::stop_flag;
use crate::parallel::environment::Place;
use crate::recipe::Sweep;
use crate::report::screen::Screen;
use arguments::SweepArguments;
use jobs::Outcome;
use load::load_runs;
use record::StartRecord;
use run::Run;

/// Plans the sweep, runs what is not finished, and compares the runs.
pub fn run(arguments: &SweepArguments, place: Place) -> anyhow::Result<Ending> {
    if place.world > 1 {
        return usage("a sweep starts its runs itself: start it without a launcher");
    }
    arguments.check()?;
    let sweep = Sweep::load(&arguments.sweep)?.with_overrides(&arguments.overrides)?;
    let runs = load_runs(&sweep, &arguments.overrides)?;
    StartRecord::check(&runs)?;
    let screen = Screen::detect(arguments.options.quiet);
    if arguments.compare_only {
        return compare_only(&sweep, &runs, &screen);
    }
    screen.line(&outlook::describe(&sweep, &runs, arguments)?)?;
    if arguments.plan {
        return Ok(Ending::Done);
    }
    if arguments.slurm {
        return slurm::write(&sweep, &runs, arguments, &screen);
    }
    let outcomes = run_missing(&runs, arguments.jobs.unwrap_or(1), &screen)?;
    if outcomes.iter().any(|outcome| *outcome != Outcome::NotDone) {
        results::compare(&sweep, &runs, &outcomes, &screen)?;
    }
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    if outcomes.contains(&Outcome::NotDone) {
        screen.tell("stopped by a signal; the same command continues from here");
        return Ok(Ending::Interrupted);
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed; the same command tries them again", runs.len());
    }
    Ok(Ending::Done)
}

fn compare_only(sweep: &Sweep, runs: &[Run], screen: &Screen) -> anyhow::Result<Ending> {
    let outcomes: Vec<Outcome> = runs.iter().map(Outcome::of_earlier).collect();
    results::compare(sweep, runs, &outcomes, screen)?;
    let finished = outcomes.iter().filter(|outcome| **outcome == Outcome::Finished).count();
    screen.line(&format!("{finished} of {} runs are finished", runs.len()))?;
    Ok(Ending::Done)
}

/// Runs what is not finished, and returns the outcome of every run.
fn run_missing(runs: &[Run], at_once: usize, screen: &Screen) -> anyhow::Result<Vec<Outcome>> {
    let missing: Vec<&Run> = runs.iter().filter(|run| !run.is_finished()).collect();
    let stop = stop_flag()?;
    let mut done = jobs::run_all(&missing, at_once, &stop, screen)?.into_iter();
    let mut outcomes = Vec::new();
    for run in runs {
        let is_missing = missing.iter().any(|other| other.name == run.name);
        let outcome = if is_missing { done.next() } else { None };
        outcomes.push(outcome.unwrap_or(Outcome::Finished));
    }
    Ok(outcomes)
}
