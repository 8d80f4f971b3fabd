//! The file of `favonius sweep`: a base recipe, and the settings that vary between runs.
//!
//! [`runs`] reads `grid` and `list`. [`command_line`] applies overrides of the command line, and
//! maps errors of a run's overrides back to lines of the sweep's file.

mod command_line;
mod runs;
mod setting;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::RecipeErrors;
use super::reader::Reader;
use super::stage::Stage;
use super::yaml::{Sources, read_text};
use setting::settings;
pub use setting::{SweepRun, SweepSetting};

/// `{recipe, kind, output_dir, overrides, grid, list}`: all combinations of `grid`, then the runs
/// of `list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// The file it was read from.
    pub file: PathBuf,
    /// The path of the base recipe; the sweep's folder is already joined.
    pub recipe: PathBuf,
    pub kind: Option<Stage>,
    /// The folder that contains the folders of all runs.
    pub output_dir: PathBuf,
    /// Settings of all runs.
    pub overrides: Vec<SweepSetting>,
    /// At least one run.
    pub runs: Vec<SweepRun>,
}

impl Sweep {
    /// Reads the sweep at `path`. Does not read the recipe, but a missing recipe is an error.
    ///
    /// # Errors
    /// All errors of the file at once.
    pub fn load(path: &Path) -> Result<Sweep, RecipeErrors> {
        Self::parse(&read_text(path)?, path)
    }

    /// Like [`Sweep::load`], for text that is already in memory; the recipe's path is relative to
    /// the folder of `file`.
    ///
    /// # Errors
    /// All errors of the file at once.
    pub fn parse(text: &str, file: &Path) -> Result<Sweep, RecipeErrors> {
        let sources = Sources::new(file, text);
        let root = sources.parse_file()?;
        let mut r = Reader::new(root, &sources, "");
        let stem = file.file_stem().unwrap_or_default();
        let default_output = Path::new("data").join(stem).display().to_string();
        let sweep = Sweep {
            file: file.to_owned(),
            recipe: recipe(&mut r),
            kind: r.optional_choice("kind"),
            output_dir: PathBuf::from(r.text("output_dir", &default_output)),
            overrides: overrides(&mut r),
            runs: runs::read(&mut r),
        };
        r.refuse_leftovers();
        match r.report.errors.is_empty() {
            true => Ok(sweep),
            false => Err(RecipeErrors::in_order(r.report.errors)),
        }
    }

    /// The file's settings of a run, as overrides of the recipe; those of all runs come first.
    pub fn arguments(&self, run: &SweepRun) -> Vec<String> {
        self.settings(run).map(SweepSetting::argument).collect()
    }

    /// The settings of a run in the order of [`Sweep::arguments`].
    fn settings<'a>(&'a self, run: &'a SweepRun) -> impl Iterator<Item = &'a SweepSetting> {
        self.overrides.iter().chain(&run.settings)
    }
}

fn recipe(r: &mut Reader) -> PathBuf {
    let Some(entry) = r.take("recipe") else {
        let error = r.sources.whole_file_error("`recipe` is missing".to_owned());
        r.report
            .errors
            .push(error.with_help("write the base recipe's path, relative to this file's folder"));
        return PathBuf::new();
    };
    r.recipe_path(&entry.value)
}

fn overrides(r: &mut Reader) -> Vec<SweepSetting> {
    let Some(entry) = r.take("overrides") else { return Vec::new() };
    settings(r, "overrides", entry.value)
}

#[cfg(test)]
mod tests {
    use super::setting::LONGEST_NAME;
    use super::*;

    fn parse(text: &str) -> Result<Sweep, RecipeErrors> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.yaml"), "").unwrap();
        Sweep::parse(text, &folder.path().join("scan.yaml"))
    }

    fn errors(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_grid_gives_all_combinations_and_a_list_its_own() {
        let sweep = parse(
            "recipe: base.yaml\nkind: dpo\noverrides: {max_steps: 3}\n\
             grid:\n  loss_type: [ipo, [sigmoid, sft]]\n  beta: [0.1, 5e-1]\n\
             list:\n  - {loss_type: hinge, dataset_mixture.seed: 7}\n",
        )
        .unwrap();
        let names: Vec<&str> = sweep.runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "loss_type-ipo_beta-0.1",
                "loss_type-ipo_beta-5e-1",
                "loss_type-sigmoid__sft_beta-0.1",
                "loss_type-sigmoid__sft_beta-5e-1",
                "loss_type-hinge_seed-7",
            ]
        );
        assert_eq!(
            sweep.arguments(&sweep.runs[2]),
            ["--max_steps=3", "--loss_type=[sigmoid, sft]", "--beta=0.1"]
        );
        assert_eq!((sweep.kind, sweep.output_dir.to_str()), (Some(Stage::Dpo), Some("data/scan")));
    }

    #[test]
    fn values_that_look_alike_have_folders_of_their_own() {
        let names = |values: &str| -> Vec<String> {
            let text = format!("recipe: base.yaml\ngrid: {{run_name: [{values}]}}\n");
            parse(&text).unwrap().runs.into_iter().map(|run| run.name).collect()
        };
        let before = names("data/x, other");
        let names = names("data/x, other, data_x");
        assert_eq!(&names[..2], before.as_slice(), "a longer grid renames no run");
        assert_eq!(names[0], "run_name-data_x");
        assert!(names[2].starts_with("run_name-data_x_"), "{names:?}");
    }

    #[test]
    fn a_long_name_is_cut() {
        let (a, b) = ("a".repeat(400), format!("{}b", "a".repeat(399)));
        let sweep =
            parse(&format!("recipe: base.yaml\nlist: [{{run_name: {a}}}, {{run_name: {b}}}]\n"));
        let runs = sweep.unwrap().runs;
        assert!(runs.iter().all(|run| run.name.len() == LONGEST_NAME + 7), "{runs:?}");
        assert_ne!(runs[0].name, runs[1].name);
    }

    #[test]
    fn equal_runs_and_keys_are_found_in_every_spelling() {
        for values in ["0.1, 1e-1", "0.10, 0.1"] {
            let text = format!("recipe: base.yaml\ngrid: {{beta: [{values}], seed: [1, 2]}}\n");
            assert_eq!(errors(&text).matches("is given twice").count(), 1, "{text}");
        }
        let order = "grid: {beta: [0.1], seed: [1]}\nlist: [{seed: 1, beta: 1e-1}]\n";
        let order = errors(&format!("recipe: base.yaml\n{order}"));
        assert!(order.contains("the run `seed-1_beta-1e-1` is given twice"), "{order}");
        assert!(order.contains("`beta-0.1_seed-1` has the same values"), "{order}");
        let keys = "overrides: {bf16: true, bf16: no}\ngrid: {max-steps: [1], max_steps: [2]}\n\
                    list: [{beta: 1}, {beta: 2, beta: 3}]\n";
        let keys = errors(&format!("recipe: base.yaml\n{keys}"));
        for key in ["overrides.bf16", "grid.max_steps", "list.1.beta"] {
            assert!(keys.contains(&format!("`{key}` is given twice")), "{keys}");
        }
    }

    #[test]
    fn a_grid_of_too_many_runs_is_refused_before_it_is_made() {
        let seeds: Vec<String> = (0..100).map(|seed| seed.to_string()).collect();
        let keys = ["seed", "data_seed", "max_steps", "save_steps"];
        let grid = keys.map(|key| format!("  {key}: [{}]\n", seeds.join(", "))).concat();
        let found = errors(&format!("recipe: base.yaml\ngrid:\n{grid}"));
        assert!(
            found.contains("`grid` has 100000000 combinations, more than 10000 runs"),
            "{found}"
        );
    }

    #[test]
    fn empty_entries_are_named() {
        for (text, message) in [
            ("grid: {}", "`grid` is empty"),
            ("grid: {beta: []}", "`grid.beta` has no values"),
            ("list: []", "`list` is empty"),
            ("list: [{}]", "`list.0` sets nothing"),
            ("list: [{beta: 1}, null]", "`list.1` sets nothing"),
            ("list: [hello]", "`list.0` must be a mapping of keys to values, not `hello`"),
        ] {
            let found = errors(&format!("recipe: base.yaml\n{text}\n"));
            assert!(found.contains(message), "{found}");
        }
        let several = errors("recipe: base.yaml\nlist: [hello, 3]\n");
        assert!(!several.contains("is given twice"), "{several}");
    }

    #[test]
    fn secrets_name_no_run_and_are_not_shown() {
        let token = "hf_abcdefghijklmnopqrstuvwxyz01234567";
        for text in [
            format!("grid: {{hub_token: [{token}, secret], beta: [1]}}"),
            format!("list: [{{push-to-hub-token: {token}}}]"),
            format!("grid: {{run_name: [{token}]}}"),
            format!("list: [{{run_name: a{{{token}}}"),
            format!("overrides: {{run_name: {token}}}\ngrid: {{beta: [1]}}"),
        ] {
            let found = errors(&format!("recipe: base.yaml\n{text}\n"));
            assert!(!found.contains("abcdef") && !found.contains("secret]"), "{found}");
        }
        let found = errors("recipe: base.yaml\ngrid: {hub_token: [a, b]}\n");
        assert!(found.contains("`grid.hub_token` is a secret, which cannot name a run"), "{found}");
        let good =
            format!("recipe: base.yaml\noverrides: {{hub_token: {token}}}\ngrid: {{beta: [1]}}");
        assert!(parse(&good).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(errors("recipe: base.yaml\n").contains("neither `grid` nor `list`"));
        assert!(
            errors("recipe: base.yaml\ngrid: {beta: 0.1}\n").contains("`grid.beta` needs a list")
        );
        assert!(errors("recipe: other.yaml\ngrid: {beta: [1]}\n").contains("no recipe at"));
        assert!(errors("grid: {beta: [1]}\n").contains("`recipe` is missing"));
        let twice = errors("recipe: base.yaml\ngrid: {beta: [0.1, 0.1]}\n");
        assert!(twice.contains("the run `beta-0.1` is given twice"), "{twice}");
        let output = errors("recipe: base.yaml\ngrid: {output-dir: [a, b]}\n");
        assert_eq!(output.matches("every run has its own `output_dir`").count(), 1, "{output}");
        let key = errors("recipe: base.yaml\ngird: {beta: [1]}\n");
        assert!(key.contains("did you mean `grid`?"), "{key}");
    }
}
