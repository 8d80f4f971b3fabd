//! The sweep's part of a page: tables of runs and means in place of run cards, and the facts that
//! all runs share.

use serde::Serialize;

use super::parts::{Details, LegendEntry, details};
use super::svg;
use crate::report::chart::Look;
use crate::report::columns::numeric_columns;
use crate::report::record::RunRecord;
use crate::report::run_facts::Facts;

/// The tables at the top of the page.
pub struct SweepTables {
    pub runs: SweepTable,
    /// Means over seeds, if settings have several seeds.
    pub means: Option<SweepTable>,
}

/// A table; every row has as many cells as the header.
pub struct SweepTable {
    pub header: Vec<String>,
    pub rows: Vec<SweepRow>,
}

/// A run, or a setting with its means.
pub struct SweepRow {
    /// The style of its curves; `None` if it has none.
    pub look: Option<Look>,
    /// The tooltip.
    pub title: String,
    pub cells: Vec<String>,
    /// The full text of an error; the last cell has its start.
    pub error: Option<String>,
}

/// A [`SweepTable`] in the form that the template reads.
#[derive(Serialize)]
pub struct Table {
    title: &'static str,
    header: Vec<Cell>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// The class of the swatch; empty without curves.
    class: String,
    title: String,
    cells: Vec<Cell>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    is_number: bool,
}

/// Facts with more different values than this are not listed as common.
const MOST_VALUES: usize = 4;
/// Facts that the table of runs already has.
const IN_TABLE: [&str; 2] = ["training time", "epochs"];

impl SweepTables {
    pub fn faced(&self) -> Vec<Table> {
        let means = self.means.as_ref();
        let means = means.map(|table| table.faced("Mean ± standard deviation over seeds"));
        std::iter::once(self.runs.faced("Runs")).chain(means).collect()
    }
}

impl SweepTable {
    fn faced(&self, title: &'static str) -> Table {
        let rows = self.rows.iter().map(|row| row.cells.clone());
        let texts: Vec<Vec<String>> = std::iter::once(self.header.clone()).chain(rows).collect();
        let is_number = numeric_columns(&texts);
        let cells = |texts: &[String]| {
            let cells = texts.iter().zip(&is_number);
            cells.map(|(text, &is_number)| Cell { text: with_minus(text), is_number }).collect()
        };
        let row = |row: &SweepRow| Row {
            class: row.look.map(svg::class).unwrap_or_default(),
            title: row.title.clone(),
            cells: cells(&row.cells),
            error: row.error.clone(),
        };
        Table { title, header: cells(&self.header), rows: self.rows.iter().map(row).collect() }
    }
}

/// Writes a negative number with a true minus sign.
fn with_minus(text: &str) -> String {
    text.strip_prefix('-').map_or_else(|| text.to_owned(), |number| format!("−{number}"))
}

/// One entry per setting; all its runs have the same color.
pub fn legend(runs: &[RunRecord]) -> Vec<LegendEntry> {
    let mut entries: Vec<(usize, LegendEntry)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let look = Look { repeat: 0, ..Look::of(index, run) };
        if entries.iter().all(|(color, _)| *color != look.color) {
            let name = run.setting.as_ref().map_or(&run.name, |setting| &setting.name);
            entries.push((look.color, LegendEntry { class: svg::class(look), name: name.clone() }));
        }
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

/// The facts that all runs share, and those with a few different values.
pub fn common_facts(of_runs: &[Facts]) -> Facts {
    let mut common: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in of_runs.iter().flatten() {
        match common.iter_mut().find(|(other, _)| other == name) {
            Some((_, values)) if values.contains(value) => {}
            Some((_, values)) => values.push(value.clone()),
            None => common.push((name.clone(), vec![value.clone()])),
        }
    }
    let is_listed = |(name, values): &(String, Vec<String>)| {
        values.len() <= MOST_VALUES && !IN_TABLE.contains(&name.as_str())
    };
    let listed = common.into_iter().filter(is_listed);
    listed.map(|(name, values)| (name, values.join(", "))).collect()
}

/// Recipe and environment: first the values that all runs share, then each run's own.
pub fn common_details(runs: &[RunRecord]) -> Vec<Details> {
    let of_runs: Vec<Vec<Details>> = runs.iter().map(details).collect();
    let Some((first, others)) = of_runs.split_first() else { return Vec::new() };
    let has = |run: &[Details], title: &str, fact: &(String, String)| {
        run.iter().any(|part| part.title == title && part.facts.contains(fact))
    };
    let in_all =
        |title: &str, fact: &(String, String)| of_runs.iter().all(|run| has(run, title, fact));
    let mut all = Vec::new();
    for part in first.iter().filter(|_| !others.is_empty()) {
        let facts = part.facts.iter().filter(|fact| in_all(part.title, fact)).cloned();
        all.push(Details { name: "all runs".into(), title: part.title, facts: facts.collect() });
    }
    for (run, parts) in runs.iter().zip(&of_runs) {
        let own = parts.iter().flat_map(|part| {
            part.facts.iter().filter(|fact| others.is_empty() || !in_all(part.title, fact))
        });
        all.push(Details {
            name: run.name.clone(),
            title: "its own",
            facts: own.cloned().collect(),
        });
    }
    all.retain(|part| !part.facts.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run_facts::RunFacts;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn common_facts_are_told_once() {
        let facts = |rows: &str, time: &str| vec![pair("rows", rows), pair("training time", time)];
        let of_runs = [facts("8", "1 s"), facts("8", "2 s"), facts("16", "3 s")];
        assert_eq!(common_facts(&of_runs), [pair("rows", "8, 16")]);
        let many: Vec<Facts> =
            (0..9).map(|i| vec![pair("model", "m"), pair("rows", &i.to_string())]).collect();
        assert_eq!(common_facts(&many), [pair("model", "m")]);
    }

    #[test]
    fn details_are_parted_into_common_and_own() {
        let run = |name: &str, beta: &str| {
            let written = vec![pair("seed", "1"), pair("beta", beta)];
            let facts = RunFacts { stage: "dpo".into(), written, ..RunFacts::default() };
            RunRecord { name: name.into(), facts: Some(facts), ..RunRecord::default() }
        };
        let listed = |runs: &[RunRecord]| -> Vec<(String, Facts)> {
            common_details(runs).into_iter().map(|part| (part.name, part.facts)).collect()
        };
        assert_eq!(
            listed(&[run("a", "0.1"), run("b", "0.2")]),
            [
                ("all runs".to_owned(), vec![pair("seed", "1")]),
                ("a".to_owned(), vec![pair("beta", "0.1")]),
                ("b".to_owned(), vec![pair("beta", "0.2")]),
            ]
        );
        let one = listed(&[run("a", "0.1")]);
        assert_eq!(one, [("a".to_owned(), vec![pair("seed", "1"), pair("beta", "0.1")])]);
        assert!(common_details(&[]).is_empty());
    }
}
