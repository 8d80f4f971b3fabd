//! The command line as clap reads it: the subcommands and their help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use super::chat::ChatArguments;
use super::dist_check::DistCheckArguments;
use super::evaluate::EvaluateArguments;
use super::generate::arguments::GenerateArguments;
use super::merge::MergeArguments;
use super::overrides::overrides_last;
use super::plan::PlanArguments;
use super::push::PushArguments;
use super::recipe_arguments::RecipeArguments;
use super::report::ReportArguments;
use super::sweep::arguments::SweepArguments;

/// Alignment training on Burn from YAML recipes: SFT, DPO and its family, ORPO, CPO, SimPO, TPO,
/// KTO
#[derive(Debug, Parser)]
#[command(version, about, args_override_self = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// A subcommand with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Supervised fine-tuning on chats or texts
    Sft(RecipeArguments),
    /// Direct preference optimization against a reference, with every loss of its family
    Dpo(RecipeArguments),
    /// Odds-ratio preference optimization, without a reference
    Orpo(RecipeArguments),
    /// Contrastive preference optimization and SimPO, without a reference
    Cpo(RecipeArguments),
    /// Triple preference optimization on pairs with a gold response, without a reference model
    Tpo(RecipeArguments),
    /// Kahneman-Tversky optimization on single responses with a label
    Kto(RecipeArguments),
    /// Run the stages of a pipeline file in turn; finished stages are not run again
    Run(RecipeArguments),
    /// Run a recipe with a grid or a list of settings, and compare the runs
    Sweep(SweepArguments),
    /// Print what a recipe would do: rows, tokens, steps, memory, every default
    Plan(PlanArguments),
    /// Show runs of Favonius or TRL on one HTML page
    Report(ReportArguments),
    /// Talk with a model in the terminal
    Chat(ChatArguments),
    /// Answer a file of prompts, in the formats of AlpacaEval and MT-Bench
    Generate(GenerateArguments),
    /// Add a LoRA adapter to the weights of its base, and write the full model
    Merge(MergeArguments),
    /// Score a model on benchmark tasks, with the prompts and numbers of lm-eval
    Evaluate(EvaluateArguments),
    /// Upload a finished run to the Hugging Face hub
    Push(PushArguments),
    /// Make a small data set, train SFT and DPO on it, and show what changed
    Demo(DemoArguments),
    /// Check and measure the collective operations between ranks
    DistCheck(DistCheckArguments),
    /// Print a script that completes commands and options in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The folder of the data, the models and the runs
    #[arg(long, default_value = "favonius-demo", value_name = "FOLDER")]
    pub out: PathBuf,
    /// Print plain lines without progress bars
    #[arg(long, short)]
    pub quiet: bool,
}

/// The subcommands in the order of the help, by purpose.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Train", &["sft", "dpo", "orpo", "cpo", "tpo", "kto", "run", "sweep"]),
    ("Plan and compare", &["plan", "report"]),
    ("Use a model", &["chat", "generate", "evaluate", "merge", "push"]),
    ("Start here", &["demo", "dist-check", "completions", "help"]),
];

const EXAMPLES: &str = "\
Examples:
  favonius demo
  favonius plan recipes/zephyr-7b-beta/dpo/published.yaml
  favonius dpo recipes/stories260k/dpo.yaml --beta=0.05 --output_dir=out/beta-0.05
  favonius run recipes/stories260k/pipeline.yaml
  favonius sweep recipes/ablations/scan_stories260k.yaml --jobs 2

Exit codes: 0 done; 1 failed or interrupted; 2 bad usage or recipe.
RUST_LOG=debug prints more; FAVONIUS_PROFILE=1 prints the time of each operation at the end.";

/// The declaration of the whole program.
pub fn program() -> clap::Command {
    let mut program = CommandLine::command().after_help(EXAMPLES);
    program.build();
    let groups = grouped(&program);
    program.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} \
         {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}"
    ))
}

/// The subcommands with what they do, under the titles of [`GROUPS`].
fn grouped(program: &clap::Command) -> String {
    let names = GROUPS.iter().flat_map(|(_, names)| names.iter());
    let width = names.map(|name| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for name in names {
            let about = program.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {name:<width$}  {about}\n"));
        }
        text.push('\n');
    }
    text
}

/// Reads the words of a command line, the program's name first.
///
/// # Errors
/// A wrong command line, or a request for help or the version: both are texts to print.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let mut program = program();
    let words = overrides_last(words.into_iter().collect(), &program);
    let matches = program.try_get_matches_from_mut(words)?;
    let line = CommandLine::from_arg_matches(&matches);
    line.map(|line| line.command).map_err(|error| error.format(&mut program))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::commands::overrides::OVERRIDES;
    use crate::parallel::join::DEFAULT_TIMEOUT;
    use crate::recipe::{Recipe, Stage};

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_declaration_is_sound_and_every_command_is_in_the_help() {
        program().debug_assert();
        let mut listed: Vec<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let program = program();
        let mut declared: Vec<&str> = program.get_subcommands().map(|c| c.get_name()).collect();
        listed.sort_unstable();
        declared.sort_unstable();
        assert_eq!(listed, declared);
    }

    /// An option with the name of a key would take that key's overrides away.
    #[test]
    fn no_option_has_the_name_of_a_recipes_key() {
        let program = program();
        let takes_overrides = |command: &&clap::Command| {
            command.get_positionals().any(|argument| argument.get_id() == OVERRIDES)
        };
        let commands = program.get_subcommands().filter(takes_overrides);
        let options = commands.flat_map(|command| command.get_arguments());
        for option in options.filter_map(|argument| argument.get_long()) {
            let key = option.replace('-', "_");
            let text = format!("model_name_or_path: m\ndataset_name: d\n{key}: 1\n");
            for stage in Stage::ALL {
                let errors = Recipe::parse(&text, "r.yaml".as_ref(), stage, &[]).unwrap_err();
                let expected = format!("`{key}` is not a known key");
                assert!(errors.to_string().contains(&expected), "{errors}");
            }
        }
    }

    #[test]
    fn a_run_has_options_and_overrides() {
        let line = "favonius dpo --beta=0.1 r.yaml --collective-timeout=2.5 -q -q --seed=1";
        let Ok(Command::Dpo(run)) = parsed(line) else { panic!("dpo") };
        assert_eq!(run.recipe, PathBuf::from("r.yaml"));
        assert_eq!(run.overrides, ["--beta=0.1", "--seed=1"]);
        assert_eq!(run.options.collective_timeout, Duration::from_millis(2500));
        assert!(run.options.quiet);
        let Ok(Command::Sft(run)) = parsed("favonius sft r.yaml") else { panic!("sft") };
        assert_eq!((run.options.quiet, run.options.collective_timeout), (false, DEFAULT_TIMEOUT));
    }

    #[test]
    fn a_plan_has_hardware() {
        let line =
            "favonius plan r.yaml --ranks 16 --stage=kto --flops 312T --beta=0.1 -q --ranks=8";
        let Ok(Command::Plan(plan)) = parsed(line) else { panic!("plan") };
        assert_eq!((plan.stage, plan.overrides), (Some(Stage::Kto), vec!["--beta=0.1".to_owned()]));
        let hardware = plan.hardware.hardware(1);
        assert_eq!((hardware.ranks, hardware.flops, hardware.mfu), (8, Some(312e12), None));
    }

    #[test]
    fn a_sweep_has_its_options() {
        let line = "favonius sweep s.yaml --beta=0.2 --dry-run --jobs 3 --flops=1e12";
        let Ok(Command::Sweep(sweep)) = parsed(line) else { panic!("sweep") };
        assert_eq!(sweep.overrides, ["--beta=0.2"]);
        assert!(sweep.plan && !sweep.slurm && !sweep.compare_only);
        assert_eq!((sweep.jobs, sweep.hardware().flops), (Some(3), Some(1e12)));
    }

    #[test]
    fn wrong_options_are_named() {
        for (line, word) in [
            ("dpo r.yaml --collective-timeout=0", "a number of seconds above 0"),
            ("dpo r.yaml --collective-timeout", "a value is required"),
            ("plan r.yaml --ranks=two", "a whole number of at least 1"),
            ("plan r.yaml --device-memory=lots", "80GB"),
            ("plan r.yaml --stage=grpo", "sft, dpo, orpo, cpo, tpo, kto"),
            ("sweep s.yaml --jobs=none", "a whole number of at least 1"),
            ("sweep s.yaml --compare-only --plan", "cannot be used with"),
            ("sweep s.yaml --slurm --compare-only", "cannot be used with"),
            ("sft --seed=1", "<RECIPE.yaml>"),
        ] {
            let error = parsed(&format!("favonius {line}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }
}
