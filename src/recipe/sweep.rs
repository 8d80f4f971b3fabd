//! The file of `favonius sweep`: a base recipe, and what changes from run to run.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::RecipeErrors;
use super::reader::Reader;
use super::settings::Stage;
use super::yaml::{Entry, Node, Sources, Value, read_text};

/// `{recipe, kind, output_dir, overrides, grid, list}`: all combinations of `grid`, then the runs of `list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// The file it came from.
    pub file: PathBuf,
    /// The base recipe; the sweep's folder is in front already.
    pub recipe: PathBuf,
    pub kind: Option<Stage>,
    /// Every run has a folder in it.
    pub output_dir: PathBuf,
    /// For all runs: `--key=value`, as [`super::Recipe::load`] takes them.
    pub overrides: Vec<String>,
    /// At least one.
    pub runs: Vec<SweepRun>,
}

/// What sets a run apart from the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepRun {
    /// Its folder: keys and values, such as `beta-0.1_seed-1`.
    pub name: String,
    /// Keys and values in the order of the file.
    pub settings: Vec<(String, String)>,
}

impl SweepRun {
    fn new(settings: Vec<(String, String)>) -> Self {
        let part = |(key, value): &(String, String)| {
            let key = key.rsplit('.').next().unwrap_or(key);
            format!("{key}-{}", as_file_name(value))
        };
        let name = settings.iter().map(part).collect::<Vec<_>>().join("_");
        Self { name, settings }
    }

    /// Tells it from others whose values look alike as names of files.
    fn name_by_hash(&mut self) {
        let settings = format!("{:?}", self.settings);
        self.name.push_str(&format!("_{}", &blake3::hash(settings.as_bytes()).to_hex()[..6]));
    }

    /// Its settings as overrides of a recipe.
    pub fn overrides(&self) -> Vec<String> {
        self.settings.iter().map(|(key, value)| format!("--{key}={value}")).collect()
    }
}

fn as_file_name(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    let plain: String = value.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    plain.trim_matches('_').to_owned()
}

impl Sweep {
    /// Reads the sweep at `path`. The recipe itself is not read; one that is not there is an error.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub fn load(path: &Path) -> Result<Sweep, RecipeErrors> {
        Self::parse(&read_text(path)?, path)
    }

    /// As [`Sweep::load`], for text that is already there; the recipe is looked for beside `file`.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
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
            runs: runs(&mut r),
        };
        r.refuse_leftovers();
        match r.report.errors.is_empty() {
            true => Ok(sweep),
            false => Err(RecipeErrors::in_order(r.report.errors)),
        }
    }
}

fn recipe(r: &mut Reader) -> PathBuf {
    let Some(entry) = r.take("recipe") else {
        let error = r.sources.whole_file_error("`recipe` is missing".to_owned());
        r.report
            .errors
            .push(error.with_help("write the base recipe's path, from this file's folder"));
        return PathBuf::new();
    };
    r.recipe_path(&entry.value)
}

fn overrides(r: &mut Reader) -> Vec<String> {
    let Some(entry) = r.take("overrides") else { return Vec::new() };
    let settings = settings(r, "overrides", entry.value);
    settings.iter().map(|(key, value)| format!("--{key}={value}")).collect()
}

/// A mapping of keys to values, as texts.
fn settings(r: &mut Reader, what: &str, node: Node) -> Vec<(String, String)> {
    r.mapping(what, node).into_iter().filter_map(|entry| setting(r, entry)).collect()
}

/// A key of the recipe; the sweep itself says where a run goes.
fn setting(r: &mut Reader, entry: Entry) -> Option<(String, String)> {
    if entry.key == "output_dir" {
        r.error(entry.key_at, "every run has its own `output_dir`".to_owned());
        r.help("write output_dir beside `recipe`: the runs' folders are made in it");
        return None;
    }
    Some((entry.key, entry.value.to_string()))
}

fn runs(r: &mut Reader) -> Vec<SweepRun> {
    let (grid, list) = (r.take("grid"), r.take("list"));
    if grid.is_none() && list.is_none() {
        let error = r.sources.whole_file_error("there is neither `grid` nor `list`".to_owned());
        r.report.errors.push(error.with_help("write grid: {beta: [0.1, 0.5], seed: [1, 2]}"));
        return Vec::new();
    }
    let mut runs: Vec<SweepRun> = Vec::new();
    for entry in [&grid, &list].into_iter().flatten() {
        let at = entry.value.at;
        let found = match entry.key.as_str() {
            "grid" => combinations(r, entry.value.clone()),
            _ => listed(r, entry.value.clone()),
        };
        for settings in found {
            let run = SweepRun::new(settings);
            if runs.iter().any(|other| other.settings == run.settings) {
                r.error(at, format!("the run `{}` comes up twice", run.name));
            }
            runs.push(run);
        }
    }
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let is_shared = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    runs.iter_mut().filter(|run| is_shared(&run.name)).for_each(SweepRun::name_by_hash);
    runs
}

/// All combinations; the last key changes fastest.
fn combinations(r: &mut Reader, node: Node) -> Vec<Vec<(String, String)>> {
    let (at, kind) = (node.at, node.kind());
    let Value::Map(entries) = node.value else {
        r.error(at, format!("`grid` needs a mapping of keys to lists of values, not {kind}"));
        return Vec::new();
    };
    let mut all = vec![Vec::new()];
    for entry in entries {
        let values = match &entry.value.value {
            Value::List(items) if !items.is_empty() => items.clone(),
            _ => {
                let message = format!(
                    "`grid.{}` needs a list of values, not {}",
                    entry.key,
                    entry.value.kind()
                );
                r.error(entry.value.at, message);
                continue;
            }
        };
        let mut longer = Vec::new();
        for before in &all {
            for value in &values {
                let entry = Entry { value: value.clone(), ..entry.clone() };
                let mut settings = before.clone();
                settings.extend(setting(r, entry));
                longer.push(settings);
            }
        }
        all = longer;
    }
    all.retain(|settings| !settings.is_empty());
    all
}

fn listed(r: &mut Reader, node: Node) -> Vec<Vec<(String, String)>> {
    let (at, kind) = (node.at, node.kind());
    match node.value {
        Value::List(items) if !items.is_empty() => {
            items.into_iter().map(|item| settings(r, "list", item)).collect()
        }
        _ => {
            r.error(at, format!("`list` needs a list of runs, not {kind}"));
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(sweep.runs[2].overrides(), ["--loss_type=[sigmoid, sft]", "--beta=0.1"]);
        assert_eq!(sweep.overrides, ["--max_steps=3"]);
        assert_eq!((sweep.kind, sweep.output_dir.to_str()), (Some(Stage::Dpo), Some("data/scan")));
    }

    #[test]
    fn values_that_look_alike_have_folders_of_their_own() {
        let sweep =
            parse("recipe: base.yaml\ngrid: {run_name: [data/x, data_x, other]}\n").unwrap();
        let names: Vec<&str> = sweep.runs.iter().map(|run| run.name.as_str()).collect();
        assert!(
            names[0].starts_with("run_name-data_x_") && names[1].starts_with("run_name-data_x_")
        );
        assert_ne!(names[0], names[1]);
        assert_eq!(names[2], "run_name-other");
    }

    #[test]
    fn mistakes_are_named() {
        assert!(errors("recipe: base.yaml\n").contains("neither `grid` nor `list`"));
        assert!(
            errors("recipe: base.yaml\ngrid: {beta: 0.1}\n").contains("`grid.beta` needs a list")
        );
        assert!(
            errors("recipe: other.yaml\ngrid: {beta: [1]}\n").contains("there is no recipe at")
        );
        assert!(errors("grid: {beta: [1]}\n").contains("`recipe` is missing"));
        let twice = errors("recipe: base.yaml\ngrid: {beta: [0.1, 0.1]}\n");
        assert!(twice.contains("the run `beta-0.1` comes up twice"), "{twice}");
        let output = errors("recipe: base.yaml\ngrid: {output_dir: [a, b]}\n");
        assert!(output.contains("every run has its own `output_dir`"), "{output}");
        let key = errors("recipe: base.yaml\ngird: {beta: [1]}\n");
        assert!(key.contains("did you mean `grid`?"), "{key}");
    }
}
