//! The arguments of commands that run a recipe.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::errors::usage;
use super::launch::Launch;
use crate::parallel::environment::Place;

/// One recipe, or one pipeline of recipes, to run.
#[derive(Debug, Args)]
#[command(after_help = OVERRIDES_HELP)]
pub struct RecipeArguments {
    /// The recipe in YAML; for `run` the pipeline
    #[arg(value_name = "RECIPE.yaml")]
    pub recipe: PathBuf,
    /// Values of keys of the recipe
    #[arg(value_name = "--KEY=VALUE")]
    pub overrides: Vec<String>,
    #[command(flatten)]
    pub options: RunOptions,
    /// For `plan` and `sweep` only.
    #[arg(long, value_name = "N", hide = true)]
    ranks: Option<String>,
}

/// How overrides are written, for the help of each command that takes them.
pub const OVERRIDES_HELP: &str = "\
Every --KEY=VALUE or --KEY.SUB=VALUE that is not an option of this command sets a key of the recipe,
before or after its path: --learning_rate=5e-7 --lr_scheduler_kwargs.min_lr_rate=0.1";

/// Options of a command that trains.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// Print plain lines without progress bars
    #[arg(long, short)]
    pub quiet: bool,
    /// How long ranks wait for each other in one collective operation
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_timeout)]
    pub collective_timeout: Duration,
}

impl RecipeArguments {
    /// The ranks that the launcher started.
    ///
    /// # Errors
    /// `--ranks` was given: it starts none. `command` is the subcommand, for the message.
    pub fn launch(&self, place: Place, command: &str) -> anyhow::Result<Launch> {
        if self.ranks.is_some() {
            return usage(format!(
                "--ranks is for `plan` and `sweep`; start ranks with `mpirun -n N favonius \
                 {command} …`"
            ));
        }
        Ok(Launch { place, timeout: self.options.collective_timeout })
    }
}

/// Seconds above 0.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().unwrap_or(f64::NAN);
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
    duration.ok_or_else(|| "a number of seconds above 0 is expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_above_0() {
        assert_eq!(parse_timeout("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["0", "-1", "", "nan", "soon"] {
            assert!(parse_timeout(wrong).is_err(), "{wrong}");
        }
    }
}
