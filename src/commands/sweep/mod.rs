//! `favonius sweep`: one recipe with a grid or a list of settings, run after run, and one comparison at the end.
//!
//! Every run is a child process with a folder of its own in the sweep's; side by side they share the cache of
//! token ids and reference log-probs. The same command goes on where it stopped; `--compare-only` starts nothing.

mod comparison;
mod jobs;
mod outlook;
mod page;
mod record;
mod slurm;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::hardware;
use super::plan::load_any_stage;
use super::signals::stop_flag;
use crate::commands::ending::Ending;
use crate::plan::forecast::Hardware;
use crate::recipe::{Recipe, RecipeErrors, Stage, Sweep, SweepRun};
use crate::report::screen::Screen;
use crate::run::upload::folder_name;
use crate::run::{mark, upload};
use comparison::Comparison;
use jobs::Outcome;
use record::StartRecord;

/// What the command line says besides overrides of the recipe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SweepOptions {
    /// Print the plan and stop.
    pub plan: bool,
    /// Write a SLURM job array instead of running.
    pub slurm: bool,
    /// Compare what is there, and start nothing.
    pub compare_only: bool,
    pub quiet: bool,
    /// Runs at a time.
    pub jobs: Option<usize>,
    pub hardware: Hardware,
    pub overrides: Vec<String>,
}

impl SweepOptions {
    /// Takes the options out of what stands behind the sweep's name.
    pub fn take(mut overrides: Vec<String>, ranks: usize, quiet: bool) -> anyhow::Result<Self> {
        let mut flag = |names: &[&str]| {
            let before = overrides.len();
            overrides.retain(|o| !names.contains(&o.as_str()));
            overrides.len() < before
        };
        let (plan, slurm) = (flag(&["--plan", "--dry-run"]), flag(&["--slurm"]));
        let compare_only = flag(&["--compare-only"]);
        let jobs = hardware::option(&mut overrides, "--jobs", crate::commands::quantity::count)?;
        let hardware = hardware::take(&mut overrides, ranks)?;
        if compare_only && (plan || slurm) {
            bail!("--compare-only starts no run: it goes with neither --plan nor --slurm");
        }
        if ranks > 1 && !plan && !slurm {
            bail!("runs of a sweep have one rank each here; --ranks goes with --plan or --slurm");
        }
        Ok(Self { plan, slurm, compare_only, quiet, jobs, hardware, overrides })
    }
}

/// One run, read and resolved.
pub struct Run {
    pub name: String,
    /// What sets it apart: keys and values.
    pub settings: Vec<(String, String)>,
    pub recipe: Recipe,
    /// Its own command line, behind the program's name; no secret is in it.
    pub arguments: Vec<String>,
    /// The hub's token, where the sweep or its command line has one.
    pub token: Option<String>,
}

impl Run {
    fn folder(&self) -> &Path {
        self.recipe.output_dir()
    }

    /// Whether nothing is left to do: trained, and uploaded where the recipe wants that.
    fn is_finished(&self) -> bool {
        self.is_trained() && !upload::is_pending(&self.recipe)
    }

    fn is_trained(&self) -> bool {
        mark::is_finished(self.folder())
    }

    fn log(&self) -> PathBuf {
        self.folder().join(jobs::LOG)
    }
}

/// Plans the sweep at `path`, runs what is not finished, and compares.
pub fn run(path: &Path, options: SweepOptions) -> anyhow::Result<Ending> {
    let sweep = Sweep::load(path)?.with_overrides(&options.overrides)?;
    let runs = load_runs(&sweep, &options.overrides)?;
    StartRecord::check(&runs)?;
    let screen = Screen::detect(options.quiet);
    if options.compare_only {
        let outcomes: Vec<Outcome> = runs.iter().map(Outcome::known).collect();
        compare(&sweep, &runs, &outcomes, &screen)?;
        let finished = outcomes.iter().filter(|outcome| **outcome == Outcome::Finished).count();
        screen.line(&format!("{finished} of {} runs are finished", runs.len()))?;
        return Ok(Ending::Done);
    }
    screen.line(&outlook::describe(&sweep, &runs, &options)?)?;
    if options.plan {
        return Ok(Ending::Done);
    }
    if options.slurm {
        return slurm::write(&sweep, &runs, &options, &screen);
    }
    let outcomes = run_missing(&runs, options.jobs.unwrap_or(1), &screen)?;
    if outcomes.iter().any(|outcome| *outcome != Outcome::NotDone) {
        compare(&sweep, &runs, &outcomes, &screen)?;
    }
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    if outcomes.contains(&Outcome::NotDone) {
        screen.tell("stopped by a signal; the same command goes on from there");
        return Ok(Ending::Interrupted);
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed; the same command tries them again", runs.len());
    }
    Ok(Ending::Done)
}

/// Shows the comparison and writes its files.
fn compare(
    sweep: &Sweep,
    runs: &[Run],
    outcomes: &[Outcome],
    screen: &Screen,
) -> anyhow::Result<()> {
    let comparison = Comparison::new(runs, outcomes);
    screen.tell(&comparison.text());
    std::fs::create_dir_all(&sweep.output_dir)
        .with_context(|| format!("cannot make {}", sweep.output_dir.display()))?;
    for path in comparison.write(sweep)? {
        screen.tell(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Reads all recipes before the first run starts.
fn load_runs(sweep: &Sweep, overrides: &[String]) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut errors: Vec<crate::recipe::RecipeError> = Vec::new();
    let mut kind = sweep.kind;
    for run in &sweep.runs {
        match load_run(sweep, run, kind, overrides) {
            Ok(run) => {
                kind = Some(run.recipe.stage);
                runs.push(run);
            }
            // Most mistakes are the same in many runs.
            Err(found) => {
                for error in found.0 {
                    if !errors.iter().any(|other| other.to_string() == error.to_string()) {
                        errors.push(error);
                    }
                }
            }
        }
    }
    if errors.is_empty() { Ok(runs) } else { Err(RecipeErrors(errors).into()) }
}

/// Reads one recipe, with the settings of its run over it.
fn load_run(
    sweep: &Sweep,
    run: &SweepRun,
    kind: Option<Stage>,
    overrides: &[String],
) -> Result<Run, RecipeErrors> {
    let load = |kind: Option<Stage>, all: &[String]| {
        let loaded = load_any_stage(&sweep.recipe, kind, all);
        loaded.map_err(|errors| sweep.place_errors(run, errors))
    };
    let folder = sweep.output_dir.join(&run.name);
    let mut all = sweep.arguments(run);
    all.extend_from_slice(overrides);
    all.push(format!("--output_dir={}", folder.display()));
    let mut recipe = load(kind, &all)?;
    let own = own_places(sweep, run, &recipe);
    if !own.is_empty() {
        all.extend(own);
        recipe = load(Some(recipe.stage), &all)?;
    }
    let token = take_token(&mut all);
    let start = [recipe.stage.command().to_string(), sweep.recipe.display().to_string()];
    let arguments = start.into_iter().chain(all).chain(["--quiet".into()]).collect();
    let settings = run.settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
    Ok(Run { name: run.name.clone(), settings, recipe, arguments, token })
}

/// Overrides for what a run must not share with the others: the repository that it is uploaded to, and the folder of its
/// event files.
fn own_places(sweep: &Sweep, run: &SweepRun, recipe: &Recipe) -> Vec<String> {
    let id = own_hub_model_id(sweep, run, recipe).map(|id| format!("--hub_model_id={id}"));
    let logs = own_logging_dir(run, recipe);
    let logs = logs.map(|folder| format!("--logging_dir={}", folder.display()));
    id.into_iter().chain(logs).collect()
}

/// `None` where nothing is uploaded, or the run names one. By its folder's name alone, which stands in where no repository
/// is named, it would be that of the same run of every sweep.
fn own_hub_model_id(sweep: &Sweep, run: &SweepRun, recipe: &Recipe) -> Option<String> {
    recipe.train.push_to_hub.as_ref()?;
    if is_set(run, &["hub_model_id", "push_to_hub_model_id"]) {
        return None;
    }
    let shared = recipe.train.hub_model_id.clone().or_else(|| {
        let name = folder_name(&sweep.output_dir);
        (!name.is_empty()).then_some(name)
    })?;
    Some(format!("{shared}-{}", run.name))
}

fn own_logging_dir(run: &SweepRun, recipe: &Recipe) -> Option<PathBuf> {
    let shared = recipe.train.logging_dir.as_ref().filter(|_| !is_set(run, &["logging_dir"]))?;
    Some(shared.join(&run.name))
}

/// Whether the sweep sets one of `keys` for this run.
fn is_set(run: &SweepRun, keys: &[&str]) -> bool {
    run.settings.iter().any(|setting| keys.contains(&setting.key.as_str()))
}

/// Takes the hub's token out of a command line, which others on this machine can read.
fn take_token(arguments: &mut Vec<String>) -> Option<String> {
    const KEYS: [&str; 2] = ["hub_token", "push_to_hub_token"];
    let mut token = None;
    arguments.retain(|argument| {
        let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
        let is_token = KEYS.contains(&key.trim_start_matches('-').replace('-', "_").as_str());
        if is_token {
            token = Some(value.to_owned());
        }
        !is_token
    });
    token
}

/// Runs what is not finished; what became of every run.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of a sweep over a recipe with a model and a data set.
    fn runs_of(recipe: &str, sweep: &str) -> anyhow::Result<Vec<Run>> {
        let folder = tempfile::tempdir().unwrap();
        let base = format!("model_name_or_path: m\ndataset_name: d\n{recipe}");
        std::fs::write(folder.path().join("base.yaml"), base).unwrap();
        let sweep = format!("recipe: base.yaml\nkind: dpo\noutput_dir: out/scan\n{sweep}");
        load_runs(&Sweep::parse(&sweep, &folder.path().join("scan.yaml"))?, &[])
    }

    #[test]
    fn runs_share_no_repository_and_no_event_files() {
        let grid = "grid: {beta: [0.1, 0.2]}\n";
        let ids = |recipe: &str| -> Vec<Option<String>> {
            let runs = runs_of(recipe, grid).unwrap();
            runs.into_iter().map(|run| run.recipe.train.hub_model_id).collect()
        };
        let some = |id: &str| Some(id.to_owned());
        let push = "push_to_hub: true\n";
        assert_eq!(ids(push), [some("scan-beta-0.1"), some("scan-beta-0.2")]);
        let named = format!("{push}hub_model_id: me/dpo\n");
        assert_eq!(ids(&named), [some("me/dpo-beta-0.1"), some("me/dpo-beta-0.2")]);
        assert_eq!(ids(""), [None, None]);

        let folders = |sweep: &str| -> Vec<Option<PathBuf>> {
            let runs = runs_of("logging_dir: logs\n", sweep).unwrap();
            runs.into_iter().map(|run| run.recipe.train.logging_dir).collect()
        };
        let logs = ["logs/beta-0.1", "logs/beta-0.2"].map(|path| Some(PathBuf::from(path)));
        assert_eq!(folders(grid), logs);
        assert_eq!(folders("list: [{logging_dir: mine}]\n"), [Some(PathBuf::from("mine"))]);
    }

    #[test]
    fn a_mistake_of_the_sweep_is_told_once_and_where_it_is() {
        let sweep = "grid:\n  betta: [0.1, 0.2]\n  beta: [x, 1]\n  seed: [1, 2]\n";
        let errors = runs_of("", sweep).err().expect("two mistakes").to_string();
        assert_eq!(errors.matches("scan.yaml:5:3: `betta` is not a known key").count(), 1);
        assert_eq!(errors.matches("scan.yaml:6:10: `beta` needs a number, not `x`").count(), 1);
        assert!(!errors.contains("command line"), "{errors}");
    }

    #[test]
    fn a_token_is_in_no_command_line() {
        let given =
            ["--beta=0.1", "--hub-token=hf_a", "--push_to_hub_token=hf_b", "--hub_token_x=1"];
        let mut arguments: Vec<String> = given.map(String::from).into();
        assert_eq!(take_token(&mut arguments).as_deref(), Some("hf_b"));
        assert_eq!(arguments, ["--beta=0.1", "--hub_token_x=1"]);
        assert_eq!(take_token(&mut arguments), None);
    }

    #[test]
    fn options_are_told_from_overrides() {
        let given = ["--beta=0.2", "--dry-run", "--jobs", "3", "--flops=1e12"];
        let options = SweepOptions::take(given.map(String::from).into(), 1, false).unwrap();
        assert_eq!(options.overrides, ["--beta=0.2"]);
        assert!(options.plan && !options.slurm);
        assert_eq!((options.jobs, options.hardware.flops), (Some(3), Some(1e12)));
        let wrong = SweepOptions::take(vec!["--jobs=none".into()], 1, false).unwrap_err();
        assert!(wrong.to_string().contains("`--jobs` needs a whole number"), "{wrong}");
        assert!(SweepOptions::take(Vec::new(), 8, false).is_err());
        assert!(SweepOptions::take(vec!["--slurm".into()], 8, false).is_ok());
        let only = ["--compare-only", "--beta=0.2"].map(String::from);
        let options = SweepOptions::take(only.to_vec(), 1, false).unwrap();
        assert!(options.compare_only && options.overrides == ["--beta=0.2"]);
        let both = [only.to_vec(), vec!["--slurm".into()]].concat();
        assert!(SweepOptions::take(both, 1, false).is_err());
    }
}
