//! What the runs of a sweep came to: one line a run, and means over seeds.

use std::path::PathBuf;

use anyhow::Context;

use super::Run;
use super::jobs::Outcome;
use super::record::RunRecord;
use crate::recipe::{Objective, Recipe, Sweep};
use crate::report::columns::{aligned, csv};
use crate::report::page::Page;
use crate::report::record::RunRecord as Record;
use crate::train::state::TrainerState;
use crate::train::state::file::replace_file;

/// Keys over which means are taken.
const SEEDS: [&str; 2] = ["seed", "data_seed"];
/// What is compared, in this order.
const MEASURES: [&str; 5] =
    ["eval_loss", "eval_accuracy", "eval_margin", "chosen_log_ratio", "seconds"];
/// Digits behind the point of each of [`MEASURES`].
const DIGITS: [usize; 5] = [4, 4, 4, 3, 1];

/// Final values of a run, in the order of [`MEASURES`]: held-out loss, accuracy and margin; the mean log-ratio of
/// chosen responses to the reference in nats, which says how far the policy has drifted; training time.
type Values = [Option<f64>; 5];

struct Line<'a> {
    run: &'a Run,
    outcome: &'a Outcome,
    values: Values,
}

/// All runs side by side.
pub struct Comparison<'a> {
    /// Keys that some run sets, in the order in which they come up.
    keys: Vec<&'a str>,
    lines: Vec<Line<'a>>,
}

impl<'a> Comparison<'a> {
    /// Reads what the finished runs left.
    pub fn new(runs: &'a [Run], outcomes: &'a [Outcome]) -> Self {
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in runs.iter().flat_map(|run| &run.settings) {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        let line = |(run, outcome): (&'a Run, &'a Outcome)| {
            let values = if *outcome == Outcome::Finished { values(run) } else { [None; 5] };
            Line { run, outcome, values }
        };
        Self { keys, lines: runs.iter().zip(outcomes).map(line).collect() }
    }

    /// Both tables as text.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}", aligned(&self.table(true)));
        if let Some(means) = self.means(true) {
            text.push_str(&format!("\nmean ± standard deviation over seeds\n{}", aligned(&means)));
        }
        text
    }

    /// `runs.csv`, `means.csv` where there are seeds, and the report page `sweep.html` with the curves of the
    /// finished runs over each other, in the sweep's folder.
    pub fn write(&self, sweep: &Sweep) -> anyhow::Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        let mut write = |name: &str, text: &str| {
            let path = sweep.output_dir.join(name);
            replace_file(&path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
            anyhow::Ok(())
        };
        write("runs.csv", &csv(&self.table(false)))?;
        if let Some(means) = self.means(false) {
            write("means.csv", &csv(&means))?;
        }
        if let Some(page) = self.page(sweep)? {
            write("sweep.html", &page)?;
        }
        Ok(written)
    }

    /// The report page of the finished runs; `None` where there are none.
    fn page(&self, sweep: &Sweep) -> anyhow::Result<Option<String>> {
        let finished = self.lines.iter().filter(|line| *line.outcome == Outcome::Finished);
        let read = |line: &Line| Record::read(line.run.folder(), line.run.name.clone());
        let runs = finished.map(read).collect::<Result<Vec<_>, _>>()?;
        if runs.is_empty() {
            return Ok(None);
        }
        let stem = sweep.file.file_stem().unwrap_or_default();
        let page = Page {
            title: stem.to_string_lossy().into_owned(),
            runs: &runs,
            prompts: &[],
            answers: &[],
            answers_note: String::new(),
        };
        page.to_html().map(Some).context("the page cannot be made")
    }

    fn table(&self, for_people: bool) -> Vec<Vec<String>> {
        let mut header: Vec<String> = self.keys.iter().map(|key| key.to_string()).collect();
        header.extend(titles(for_people));
        header.push("status".into());
        let rows = self.lines.iter().map(|line| {
            let mut row: Vec<String> = self.keys.iter().map(|key| setting(line.run, key)).collect();
            let values = line.values.iter().zip(DIGITS);
            row.extend(values.map(|(value, digits)| number(*value, digits, for_people)));
            row.push(match line.outcome {
                Outcome::Finished => "finished".into(),
                Outcome::NotDone => "not done".into(),
                Outcome::Failed(error) if for_people => format!("FAILED: {}", shortened(error)),
                Outcome::Failed(error) => format!("FAILED: {error}"),
            });
            row
        });
        std::iter::once(header).chain(rows).collect()
    }

    /// Runs that differ in their seeds only are one line; `None` where no two do.
    fn means(&self, for_people: bool) -> Option<Vec<Vec<String>>> {
        let keys: Vec<&str> =
            self.keys.iter().copied().filter(|key| !SEEDS.contains(key)).collect();
        let mut groups: Vec<(Vec<String>, Vec<&Line>)> = Vec::new();
        for line in &self.lines {
            let own: Vec<String> = keys.iter().map(|key| setting(line.run, key)).collect();
            match groups.iter_mut().find(|(settings, _)| *settings == own) {
                Some((_, lines)) => lines.push(line),
                None => groups.push((own, vec![line])),
            }
        }
        if groups.iter().all(|(_, lines)| lines.len() < 2) {
            return None;
        }
        let mut header: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        header.push("runs".into());
        for title in titles(for_people) {
            header.push(title.clone());
            if !for_people {
                header.push(format!("{title}_deviation"));
            }
        }
        let rows = groups.into_iter().map(|(mut row, lines)| {
            let finished = lines.iter().filter(|line| *line.outcome == Outcome::Finished);
            row.push(finished.count().to_string());
            for (index, digits) in DIGITS.into_iter().enumerate() {
                let values: Vec<f64> = lines.iter().filter_map(|line| line.values[index]).collect();
                let (mean, deviation) = mean_and_deviation(&values);
                let [mean, spread] = [mean, deviation].map(|x| number(x, digits, for_people));
                match (for_people, deviation) {
                    (true, Some(_)) => row.push(format!("{mean} ± {spread}")),
                    (true, None) => row.push(mean),
                    (false, _) => row.extend([mean, spread]),
                }
            }
            row
        });
        Some(std::iter::once(header).chain(rows).collect())
    }
}

/// At most 60 characters: the rest stands in the log and in `runs.csv`.
fn shortened(error: &str) -> String {
    match error.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &error[..end]),
        None => error.to_string(),
    }
}

fn titles(for_people: bool) -> [String; 5] {
    match for_people {
        true => ["held-out loss", "accuracy", "margin", "chosen log-ratio", "seconds"],
        false => MEASURES,
    }
    .map(String::from)
}

fn setting(run: &Run, key: &str) -> String {
    let found = run.settings.iter().find(|(other, _)| other == key);
    found.map_or_else(|| "–".to_string(), |(_, value)| value.clone())
}

fn number(value: Option<f64>, digits: usize, for_people: bool) -> String {
    match value {
        Some(value) if for_people => format!("{value:.digits$}"),
        Some(value) => value.to_string(),
        None if for_people => "–".into(),
        None => String::new(),
    }
}

/// The sample's standard deviation; `None` of fewer than two values.
fn mean_and_deviation(values: &[f64]) -> (Option<f64>, Option<f64>) {
    let count = values.len() as f64;
    if values.is_empty() {
        return (None, None);
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (Some(mean), (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()))
}

/// The last evaluation of a finished run, and its time.
fn values(run: &Run) -> Values {
    let path = run.folder().join("trainer_state.json");
    let Ok(state) = TrainerState::read(&path) else { return [None; 5] };
    let last = |name: &str| state.log_history.iter().rev().find_map(|row| row.get(name));
    let chosen = last("eval_rewards/chosen");
    let log_ratio = beta(&run.recipe).zip(chosen).map(|(beta, reward)| reward / beta);
    let seconds = RunRecord::read(run).map(|record| record.seconds).filter(|s| *s > 0.0);
    [
        last("eval_loss"),
        last("eval_rewards/accuracies"),
        last("eval_rewards/margins"),
        log_ratio,
        seconds.or_else(|| last("train_runtime")),
    ]
}

/// β of objectives whose rewards are β times a log-ratio.
fn beta(recipe: &Recipe) -> Option<f64> {
    match &recipe.objective {
        Objective::Dpo(dpo) => Some(dpo.beta).filter(|_| !dpo.reference_free),
        Objective::Kto(kto) => Some(kto.beta),
        Objective::Sft(_) | Objective::Orpo(_) | Objective::Cpo(_) => None,
    }
    .filter(|beta| *beta > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_those_of_a_sample() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (Some(2.0), Some(2f64.sqrt())));
        assert_eq!(mean_and_deviation(&[4.0]), (Some(4.0), None));
        assert_eq!(mean_and_deviation(&[]), (None, None));
    }
}
