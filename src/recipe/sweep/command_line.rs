//! The overrides of a sweep's command line, and the places of errors: the recipe's reader finds
//! errors in overrides, but some of these overrides come from the sweep's file.

use std::path::Path;

use super::Sweep;
use super::setting::{SweepRun, spelled};
use crate::recipe::error::{COMMAND_LINE, ErrorPlace, RecipeError, RecipeErrors};
use crate::recipe::yaml::Sources;

impl Sweep {
    /// Applies the overrides of the command line. Of the sweep's own keys they may set
    /// `output_dir`.
    ///
    /// # Errors
    /// An empty `output_dir`, or a key that the sweep itself varies.
    pub fn with_overrides(mut self, overrides: &[String]) -> Result<Sweep, RecipeErrors> {
        let mut errors = Vec::new();
        for (index, argument) in overrides.iter().enumerate() {
            // The recipe's reader reports arguments that are not overrides.
            let Some((written, value)) = key_and_value(argument) else { continue };
            let key = spelled(written);
            let wrong = match key.as_str() {
                "output_dir" if value.trim().is_empty() => Some((
                    "`output_dir` is empty".to_owned(),
                    "write --output_dir=FOLDER, or leave it out".to_owned(),
                )),
                "output_dir" => match text_of(argument) {
                    Some(folder) => {
                        self.output_dir = folder.into();
                        None
                    }
                    None => Some((
                        "`output_dir` needs a text".to_owned(),
                        "write --output_dir=FOLDER, in quotes if the name looks like YAML"
                            .to_owned(),
                    )),
                },
                _ => self.refusal(&key),
            };
            errors.extend(wrong.map(|(message, help)| RecipeError {
                file: COMMAND_LINE.into(),
                message,
                place: Some(ErrorPlace {
                    line: index + 1,
                    column: 3,
                    width: written.chars().count().max(1),
                    text: argument.clone(),
                }),
                help: Some(help),
            }));
        }
        if errors.is_empty() { Ok(self) } else { Err(RecipeErrors(errors)) }
    }

    /// Why the command line may not set `key`, with advice; `None` if it may.
    fn refusal(&self, key: &str) -> Option<(String, String)> {
        // Setting a mapping also sets all keys in it.
        let is_set = |tried: &&str| {
            tried.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let all = self.runs.iter().flat_map(|run| &run.settings);
        let tried = all.map(|setting| setting.key.as_str()).find(is_set)?;
        Some((
            format!(
                "`{tried}` varies in the sweep: an override on the command line would make its \
                 runs equal"
            ),
            format!("leave it out, or change its values in {}", self.file.display()),
        ))
    }

    /// Moves errors of settings that come from the sweep's file to their lines in that file. The
    /// recipe must have been read with [`Sweep::arguments`] before all other overrides.
    pub fn place_errors(&self, run: &SweepRun, errors: RecipeErrors) -> RecipeErrors {
        RecipeErrors(errors.0.into_iter().flat_map(|error| self.placed(run, error).0).collect())
    }

    fn placed(&self, run: &SweepRun, error: RecipeError) -> RecipeErrors {
        let of_override = error.place.as_ref().filter(|_| error.file.as_os_str() == COMMAND_LINE);
        let setting = of_override.and_then(|at| {
            let setting = self.settings(run).nth(at.line.checked_sub(1)?)?;
            let key_end = "--".len() + setting.key.chars().count();
            Some(if at.column <= key_end { &setting.key_at } else { &setting.value_at })
        });
        match setting {
            Some(at) => at.error(error.message, error.help),
            None => RecipeErrors(vec![error]),
        }
    }
}

/// The text that an override sets, which is YAML as in every other command.
fn text_of(argument: &str) -> Option<String> {
    let mut sources = Sources::new(Path::new(COMMAND_LINE), "");
    let value_at = argument.find('=')? + 1;
    let (_, node) = sources.parse_override(argument, value_at).ok()?;
    node.text().map(str::to_owned).filter(|text| !text.trim().is_empty())
}

fn key_and_value(argument: &str) -> Option<(&str, &str)> {
    argument.strip_prefix("--")?.split_once('=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, Stage};

    fn sweep(text: &str) -> Sweep {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.yaml"), "").unwrap();
        Sweep::parse(&format!("recipe: base.yaml\n{text}"), &folder.path().join("scan.yaml"))
            .unwrap()
    }

    #[test]
    fn keys_that_vary_cannot_be_overridden() {
        let sweep = sweep("grid: {learning_rate: [1e-3, 1e-4], dataset_mixture.seed: [1, 2]}\n");
        let under = |argument: &str| sweep.clone().with_overrides(&[argument.to_owned()]);
        for argument in ["--learning-rate=1", "--learning_rate=1", "--dataset_mixture={}"] {
            let error = under(argument).unwrap_err().to_string();
            assert!(error.contains("varies in the sweep"), "{error}");
        }
        for argument in ["--beta=0.1", "--learning=1", "--dataset_mixture.seeds=1"] {
            assert_eq!(under(argument).as_ref(), Ok(&sweep), "{argument}");
        }
        assert_eq!(under("--output-dir=x").unwrap().output_dir.to_str(), Some("x"));
        assert!(under("--output_dir=").unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn errors_stand_where_the_sweep_has_them() {
        let sweep = sweep("overrides: {sead: 1}\ngrid:\n  betta: [0.1, 0.2]\n  beta: [x, 1]\n");
        let run = &sweep.runs[0];
        let mut all = sweep.arguments(run);
        all.push("--max_stepps=1".to_owned());
        let text = "model_name_or_path: m\ndataset_name: d\n";
        let errors = Recipe::parse(text, "base.yaml".as_ref(), Stage::Dpo, &all).unwrap_err();
        let shown = sweep.place_errors(run, errors).to_string();
        let file = sweep.file.display();
        for part in [
            format!("{file}:2:13: `sead` is not a known key"),
            format!("{file}:4:3: `betta` is not a known key"),
            format!("{file}:5:10: `beta` needs a number, not `x`"),
            "command line: `max_stepps` is not a known key".to_owned(),
        ] {
            assert!(shown.contains(&part), "{part}\n{shown}");
        }
        assert_eq!(shown.matches("command line").count(), 1, "{shown}");
    }
}
