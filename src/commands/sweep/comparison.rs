//! The results of the runs of a sweep side by side: one line for each run, and means over seeds.

use super::jobs::Outcome;
use super::run::Run;
use crate::recipe::{Objective, Recipe};
use crate::report::columns::aligned;
use crate::report::scores::{self, TaskScore};
use crate::train::state::{StateError, TrainerState};

/// Keys over which means are taken.
const SEEDS: [&str; 2] = ["seed", "data_seed"];
/// The measures to compare, in this order.
const MEASURES: [&str; 5] =
    ["eval_loss", "eval_accuracy", "eval_margin", "chosen_log_ratio", "train_runtime"];
/// Digits after the decimal point, for each of [`MEASURES`].
const DIGITS: [usize; 5] = [4, 4, 4, 3, 1];

/// Final values of a run, in the order of [`MEASURES`]: held-out loss, accuracy and margin; the
/// mean log-ratio of chosen responses to the reference in nats, which measures how far the policy
/// has moved away from it; seconds of training.
type Values = [Option<f64>; 5];
const NOTHING: Values = [None; 5];

/// A run and its outcome.
pub(super) struct Line<'a> {
    pub(super) run: &'a Run,
    pub(super) outcome: &'a Outcome,
    /// Why the record of a trained run cannot be read. The other runs are compared anyway.
    damage: Option<String>,
    values: Values,
    /// The benchmark scores of its evaluation.
    scores: Vec<TaskScore>,
}

impl<'a> Line<'a> {
    fn new(run: &'a Run, outcome: &'a Outcome) -> Self {
        let values = if run.is_trained() { values(run) } else { Ok(NOTHING) };
        let scores = if run.is_trained() { scores::of_run(run.folder()) } else { Vec::new() };
        match values {
            Ok(values) => Line { run, outcome, damage: None, values, scores },
            Err(error) => {
                Line { run, outcome, damage: Some(error.to_string()), values: NOTHING, scores }
            }
        }
    }

    /// The outcome in words; an error is shortened in the table for people.
    fn status(&self, for_people: bool) -> String {
        let error = |error: &str| if for_people { shortened(error) } else { error.to_string() };
        match (self.outcome, &self.damage) {
            (Outcome::Failed(failure), _) => format!("FAILED: {}", error(failure)),
            (_, Some(damage)) => format!("NO RECORD: {}", error(damage)),
            (Outcome::Finished, None) => "finished".into(),
            (Outcome::NotDone, None) => "not done".into(),
        }
    }

    /// What is wrong with the run, in full.
    pub(super) fn error(&self) -> Option<String> {
        self.outcome.error().or_else(|| self.damage.clone())
    }

    /// Whether the run is trained and its record could be read.
    pub(super) fn has_record(&self) -> bool {
        self.run.is_trained() && self.damage.is_none()
    }
}

/// All runs side by side.
pub struct Comparison<'a> {
    /// Keys that some run sets, in the order of the runs.
    pub(super) keys: Vec<&'a str>,
    pub(super) lines: Vec<Line<'a>>,
    /// The benchmark scores that some run has, each once.
    scored: Vec<Scored>,
}

/// A column of benchmark scores.
#[derive(PartialEq)]
struct Scored {
    task: String,
    metric: String,
    /// "ARC (25-shot)"
    label: String,
}

impl Scored {
    /// Digits after the decimal point of a score in percent.
    const DIGITS: usize = 2;

    fn of(score: &TaskScore) -> Self {
        Self { task: score.task.clone(), metric: score.metric.clone(), label: score.label() }
    }

    fn title(&self, for_people: bool) -> String {
        match for_people {
            true => self.label.clone(),
            false => format!("{}_{}", self.task, self.metric),
        }
    }

    /// The score of a run; in percent for people.
    fn value(&self, line: &Line, for_people: bool) -> Option<f64> {
        let score = line.scores.iter().find(|score| Self::of(score) == *self)?;
        Some(if for_people { score.percent() } else { score.value })
    }
}

impl<'a> Comparison<'a> {
    /// Reads the records of the finished runs.
    pub fn new(runs: &'a [Run], outcomes: &'a [Outcome]) -> Self {
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in runs.iter().flat_map(|run| &run.settings) {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        let lines = runs.iter().zip(outcomes).map(|(run, outcome)| Line::new(run, outcome));
        let lines: Vec<Line> = lines.collect();
        let mut scored = Vec::new();
        for column in lines.iter().flat_map(|line| &line.scores).map(Scored::of) {
            if !scored.contains(&column) {
                scored.push(column);
            }
        }
        Self { keys, lines, scored }
    }

    /// Both tables as text.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}", aligned(&self.table(true)));
        if let Some(means) = self.means(true) {
            text.push_str(&format!("\nmean ± standard deviation over seeds\n{}", aligned(&means)));
        }
        text
    }

    /// The header and one row for each of [`Self::lines`]; the status is the last column.
    pub(super) fn table(&self, for_people: bool) -> Vec<Vec<String>> {
        let mut header: Vec<String> = self.keys.iter().map(|key| key.to_string()).collect();
        header.extend(titles(for_people));
        header.extend(self.scored.iter().map(|column| column.title(for_people)));
        header.push("status".into());
        let rows = self.lines.iter().map(|line| {
            let mut row: Vec<String> = self.keys.iter().map(|key| setting(line.run, key)).collect();
            let values = line.values.iter().zip(DIGITS);
            row.extend(values.map(|(value, digits)| number(*value, digits, for_people)));
            let scores = self.scored.iter().map(|column| column.value(line, for_people));
            row.extend(scores.map(|value| number(value, Scored::DIGITS, for_people)));
            row.push(line.status(for_people));
            row
        });
        std::iter::once(header).chain(rows).collect()
    }

    /// The keys without the seeds.
    pub(super) fn tried_keys(&self) -> Vec<&'a str> {
        self.keys.iter().copied().filter(|key| !SEEDS.contains(key)).collect()
    }

    /// Groups of runs that differ only in their seeds, as indices of [`Self::lines`].
    pub(super) fn groups(&self) -> Vec<Vec<usize>> {
        let keys = self.tried_keys();
        let mut groups: Vec<(Vec<String>, Vec<usize>)> = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let own: Vec<String> = keys.iter().map(|key| plain(&setting(line.run, key))).collect();
            match groups.iter_mut().find(|(settings, _)| *settings == own) {
                Some((_, lines)) => lines.push(index),
                None => groups.push((own, vec![index])),
            }
        }
        groups.into_iter().map(|(_, lines)| lines).collect()
    }

    /// One row for each of [`Self::groups`]; `None` if every group is a single run.
    pub(super) fn means(&self, for_people: bool) -> Option<Vec<Vec<String>>> {
        let (keys, groups) = (self.tried_keys(), self.groups());
        if groups.iter().all(|lines| lines.len() < 2) {
            return None;
        }
        let mut header: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        header.push("runs".into());
        let scored = self.scored.iter().map(|column| column.title(for_people));
        for title in titles(for_people).into_iter().chain(scored) {
            header.push(title.clone());
            if !for_people {
                header.push(format!("{title}_deviation"));
            }
        }
        let rows = groups.into_iter().map(|indices| {
            let lines: Vec<&Line> = indices.iter().map(|index| &self.lines[*index]).collect();
            let mut row: Vec<String> = keys.iter().map(|key| setting(lines[0].run, key)).collect();
            row.push(lines.iter().filter(|line| line.has_record()).count().to_string());
            let measured = DIGITS.into_iter().enumerate().map(|(index, digits)| {
                let values: Vec<f64> = lines.iter().filter_map(|line| line.values[index]).collect();
                (values, digits)
            });
            let scores = self.scored.iter().map(|column| {
                let values = lines.iter().filter_map(|line| column.value(line, for_people));
                (values.collect(), Scored::DIGITS)
            });
            for (values, digits) in measured.chain(scores) {
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

/// At most 60 characters; the whole error is in the log and in `runs.csv`.
fn shortened(error: &str) -> String {
    match error.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &error[..end]),
        None => error.to_string(),
    }
}

fn titles(for_people: bool) -> [String; 5] {
    match for_people {
        true => ["held-out loss", "accuracy", "margin", "chosen log-ratio", "train seconds"],
        false => MEASURES,
    }
    .map(String::from)
}

/// [`value`], or a dash if it has none.
pub(super) fn setting(run: &Run, key: &str) -> String {
    value(run, key).unwrap_or_else(|| "–".into())
}

/// The value of a key in the run's recipe, set by the sweep, the command line, the file or a
/// default.
pub(super) fn value(run: &Run, key: &str) -> Option<String> {
    let Recipe { written, filled, .. } = &run.recipe;
    // A key in its other spelling stands only in the sweep's settings.
    let all = written.iter().chain(filled).chain(&run.settings);
    all.into_iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
}

/// A value in one spelling: `5e-1` becomes `0.5`.
pub(super) fn plain(value: &str) -> String {
    value.parse::<f64>().map_or_else(|_| value.to_string(), |number| number.to_string())
}

fn number(value: Option<f64>, digits: usize, for_people: bool) -> String {
    match value {
        Some(value) if for_people => format!("{value:.digits$}"),
        Some(value) => value.to_string(),
        None if for_people => "–".into(),
        None => String::new(),
    }
}

/// Mean and standard deviation of a sample; the deviation is `None` for fewer than two values.
fn mean_and_deviation(values: &[f64]) -> (Option<f64>, Option<f64>) {
    let count = values.len() as f64;
    if values.is_empty() {
        return (None, None);
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (Some(mean), (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()))
}

/// The values of the final model of a trained run. Evaluations of earlier steps do not count,
/// because they evaluated other weights.
fn values(run: &Run) -> Result<Values, StateError> {
    let state = TrainerState::read(&run.folder().join("trainer_state.json"))?;
    let at_the_end = state.log_history.iter().rev().filter(|row| row.step == state.global_step);
    let last = |name: &str| at_the_end.clone().find_map(|row| row.get(name));
    let chosen = last("eval_rewards/chosen");
    let log_ratio = beta(&run.recipe).zip(chosen).map(|(beta, reward)| reward / beta);
    Ok([
        last("eval_loss"),
        last("eval_rewards/accuracies"),
        last("eval_rewards/margins"),
        log_ratio,
        last("train_runtime"),
    ])
}

/// β, for objectives whose rewards are β times a log-ratio.
pub(super) fn beta(recipe: &Recipe) -> Option<f64> {
    match &recipe.objective {
        Objective::Dpo(dpo) => Some(dpo.beta).filter(|_| !dpo.reference_free),
        Objective::Kto(kto) => Some(kto.beta),
        Objective::Sft(_) | Objective::Orpo(_) | Objective::Cpo(_) | Objective::Tpo(_) => None,
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

    #[test]
    fn numbers_are_the_same_in_every_spelling() {
        assert_eq!(plain("5e-1"), plain("0.50"));
        assert_ne!(plain("sigmoid"), plain("ipo"));
    }
}
