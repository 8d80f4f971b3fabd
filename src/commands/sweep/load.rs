//! The runs of a sweep, read before the first one starts.

use std::path::PathBuf;

use super::run::Run;
use crate::recipe::{Recipe, RecipeError, RecipeErrors, Stage, Sweep, SweepRun, text_override};
use crate::run::upload::folder_name;

/// Reads the recipes of all runs.
///
/// # Errors
/// The errors of all recipes, each one once.
pub fn load_runs(sweep: &Sweep, overrides: &[String]) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut errors: Vec<RecipeError> = Vec::new();
    let mut kind = sweep.kind;
    for run in &sweep.runs {
        match load_run(sweep, run, kind, overrides) {
            Ok(run) => {
                kind = Some(run.recipe.stage);
                runs.push(run);
            }
            // Most errors are the same in many runs.
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

/// Reads the recipe of one run, with the overrides of the sweep and of the command line.
fn load_run(
    sweep: &Sweep,
    run: &SweepRun,
    kind: Option<Stage>,
    overrides: &[String],
) -> Result<Run, RecipeErrors> {
    let load = |kind: Option<Stage>, all: &[String]| {
        let loaded = Recipe::load_any(&sweep.recipe, kind, all);
        loaded.map_err(|errors| sweep.place_errors(run, errors))
    };
    let folder = sweep.output_dir.join(&run.name);
    let mut all = sweep.arguments(run);
    all.extend_from_slice(overrides);
    all.push(text_override("output_dir", &folder.display().to_string()));
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

/// Overrides for what a run must not share with the others: the repository that it is uploaded to,
/// and the folder of its event files.
fn own_places(sweep: &Sweep, run: &SweepRun, recipe: &Recipe) -> Vec<String> {
    let id = own_hub_model_id(sweep, run, recipe).map(|id| text_override("hub_model_id", &id));
    let logs = own_logging_dir(run, recipe);
    let logs = logs.map(|folder| text_override("logging_dir", &folder.display().to_string()));
    id.into_iter().chain(logs).collect()
}

/// The repository of a run; `None` if nothing is uploaded, or if the sweep names one for this run.
/// Its folder's name alone would be the same for runs of different sweeps.
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

/// Removes the hub's token from a command line, which other users of this machine can read.
pub fn take_token(arguments: &mut Vec<String>) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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
    fn the_folders_of_runs_are_taken_literally() {
        let folder = tempfile::tempdir().unwrap();
        let base = "model_name_or_path: m\ndataset_name: d\nlogging_dir: \"logs #1\"\n";
        std::fs::write(folder.path().join("base.yaml"), base).unwrap();
        let sweep = |output_dir: &str, overrides: &[String]| {
            let text = format!(
                "recipe: base.yaml\nkind: dpo\noutput_dir: {output_dir:?}\ngrid: {{beta: [0.1]}}\n"
            );
            let sweep = Sweep::parse(&text, &folder.path().join("scan.yaml")).unwrap();
            let sweep = sweep.with_overrides(overrides).unwrap();
            load_runs(&sweep, overrides).unwrap().remove(0)
        };
        for output_dir in ["scan #2", "a: b", "{{ x }}", "[x", "it's"] {
            let run = sweep(output_dir, &[]);
            assert_eq!(run.folder(), Path::new(output_dir).join("beta-0.1"));
            assert_eq!(run.recipe.train.logging_dir.as_deref(), Some("logs #1/beta-0.1".as_ref()));
            // The process of the run reads its command line again.
            let overrides = &run.arguments[2..run.arguments.len() - 1];
            let file = folder.path().join("base.yaml");
            let again = Recipe::load(&file, Stage::Dpo, overrides).unwrap();
            assert_eq!(again.train, run.recipe.train);
        }
        let run = sweep("out", &["--output_dir=\"scan #3\"".to_owned()]);
        assert_eq!(run.folder(), Path::new("scan #3/beta-0.1"), "as for every other command");
    }

    #[test]
    fn a_mistake_of_the_sweep_is_reported_once_at_its_place() {
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
}
