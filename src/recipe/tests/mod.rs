//! What a user sees of recipes: values, messages, whole files.

mod conflicts;
mod data_messages;
mod defaults;
mod handbook;
mod messages;
mod overriding;
mod pipelines;

use std::path::Path;

use super::{DpoSettings, Objective, Recipe, RecipeErrors, SftSettings, Stage};

/// The least that an SFT or DPO recipe needs.
const LEAST: &str = "model_name_or_path: m\ndataset_name: d\n";

fn parse(text: &str, stage: Stage, overrides: &[&str]) -> Result<Recipe, RecipeErrors> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::parse(text, Path::new("r.yaml"), stage, &overrides)
}

/// [`LEAST`] and `more`, which is right.
fn good(more: &str, stage: Stage) -> Recipe {
    match parse(&format!("{LEAST}{more}"), stage, &[]) {
        Ok(recipe) => recipe,
        Err(errors) => panic!("{errors}"),
    }
}

/// The errors of [`LEAST`] and `more`, as the user sees them. `more` begins on line 3.
fn bad(more: &str, stage: Stage) -> String {
    let parsed = parse(&format!("{LEAST}{more}"), stage, &[]);
    parsed.expect_err("this must be an error").to_string()
}

fn sft(recipe: &Recipe) -> &SftSettings {
    match &recipe.objective {
        Objective::Sft(sft) => sft,
        _ => panic!("an SFT recipe"),
    }
}

fn dpo(recipe: &Recipe) -> &DpoSettings {
    match &recipe.objective {
        Objective::Dpo(dpo) => dpo,
        _ => panic!("a DPO recipe"),
    }
}

/// One error: its first line, the caret's line in full, and the help.
#[track_caller]
fn check(more: &str, stage: Stage, first: &str, help: &str) {
    let shown = bad(more, stage);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], first, "{shown}");
    let last = lines[lines.len() - 1];
    assert_eq!(last.strip_prefix("  help: ").unwrap_or(""), help, "{shown}");
    let heads = lines.iter().filter(|line| line.starts_with("r.yaml:")).count();
    assert_eq!(heads, 1, "one error only:\n{shown}");
}
