//! The command line of `favonius sweep`.

use std::path::PathBuf;

use clap::Args;

use crate::commands::errors::usage;
use crate::commands::hardware::HardwareArguments;
use crate::commands::quantity;
use crate::commands::recipe_arguments::{OVERRIDES_HELP, RunOptions};
use crate::plan::forecast::Hardware;

#[derive(Debug, Args)]
#[command(after_help = OVERRIDES_HELP)]
#[command(mut_arg("collective_timeout", |arg| arg.hide(true)))]
pub struct SweepArguments {
    /// The sweep in YAML: a base recipe, a grid, a list
    #[arg(value_name = "SWEEP.yaml")]
    pub sweep: PathBuf,
    /// Values of keys of the recipe, for all runs
    #[arg(value_name = "--KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print what would run, and stop
    #[arg(long, visible_alias = "dry-run")]
    pub plan: bool,
    /// Write a SLURM job array instead of running
    #[arg(long)]
    pub slurm: bool,
    /// Compare the runs that exist, and train nothing
    #[arg(long, conflicts_with_all = ["plan", "slurm"])]
    pub compare_only: bool,
    /// Number of runs at a time [default: 1]
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    pub jobs: Option<usize>,
    #[command(flatten)]
    pub options: RunOptions,
    #[command(flatten)]
    hardware: HardwareArguments,
}

impl SweepArguments {
    /// The hardware of one run: one rank if the user gave no number.
    pub fn hardware(&self) -> Hardware {
        self.hardware.hardware(1)
    }

    /// Fails if the options contradict each other in a way that their declarations do not show.
    pub fn check(&self) -> anyhow::Result<()> {
        let starts_here = !self.plan && !self.slurm;
        if self.hardware().ranks > 1 && starts_here {
            return usage(
                "a sweep starts its runs with one rank each; --ranks needs --plan or --slurm",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: SweepArguments,
    }

    #[test]
    fn several_ranks_need_a_plan_or_slurm() {
        let check = |more: &[&str]| {
            let words = [&["sweep", "s.yaml"], more].concat();
            Line::try_parse_from(words).unwrap().arguments.check()
        };
        assert!(check(&["--ranks=8"]).is_err());
        for fine in [&[][..], &["--ranks=1"], &["--ranks=8", "--slurm"], &["--ranks=8", "--plan"]] {
            assert!(check(fine).is_ok(), "{fine:?}");
        }
    }
}
