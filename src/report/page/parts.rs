//! Parts of the page that single runs and sweeps share.

use serde::Serialize;

use crate::report::record::RunRecord;
use crate::report::run_facts::Facts;

#[derive(Serialize)]
pub struct LegendEntry {
    pub class: String,
    pub name: String,
}

#[derive(Serialize)]
pub struct Details {
    pub name: String,
    pub title: &'static str,
    pub facts: Facts,
}

/// The details at the end of the page: recipe and environment.
pub fn details(run: &RunRecord) -> Vec<Details> {
    let mut parts: Vec<(&'static str, Facts)> = Vec::new();
    if let Some(known) = &run.facts {
        parts.extend([
            ("plan", known.facts.clone()),
            ("written in the recipe", known.written.clone()),
            ("filled in", known.filled.clone()),
            ("machine", known.machine.clone()),
        ]);
    }
    // The recipe of an own run has the same values and more.
    if run.facts.is_none() || run.is_published {
        parts.push(("hyperparameters", run.hyperparameters.clone()));
    }
    parts.push(("framework versions", run.versions.clone()));
    let parts = parts.into_iter().filter(|(_, facts)| !facts.is_empty());
    parts.map(|(title, facts)| Details { name: run.name.clone(), title, facts }).collect()
}
