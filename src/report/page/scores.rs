//! The benchmark scores of all models as bars, task by task. A published score is a wider bar
//! behind them.

use serde::Serialize;

use super::svg;
use crate::report::chart::Look;
use crate::report::record::RunRecord;
use crate::report::scores::TaskScore;

/// A task with a bar for each run that has a score.
#[derive(Debug, Serialize, PartialEq)]
pub struct ScoreTask {
    pub label: String,
    pub metric: String,
    /// The published score in percent, and the text that names its model.
    pub published: Option<(f64, String)>,
    pub bars: Vec<ScoreBar>,
}

#[derive(Debug, Serialize, PartialEq)]
pub struct ScoreBar {
    pub class: String,
    pub name: String,
    /// The length, 0 to 100.
    pub percent: f64,
    /// "62.03 ± 1.42"
    pub text: String,
}

/// The tasks for which at least one own run has a score, in the order of the runs.
pub fn score_tasks(runs: &[RunRecord]) -> Vec<ScoreTask> {
    let mut tasks: Vec<ScoreTask> = Vec::new();
    for (index, run) in runs.iter().enumerate().filter(|(_, run)| !run.is_published) {
        for score in &run.scores {
            let bar = ScoreBar {
                class: svg::class(Look::of(index, run)),
                name: run.name.clone(),
                percent: length(score),
                text: text(score),
            };
            let (label, metric) = (score.label(), score.metric.clone());
            match tasks.iter_mut().find(|task| task.label == label && task.metric == metric) {
                Some(task) => task.bars.push(bar),
                None => {
                    let published = published(score, runs);
                    tasks.push(ScoreTask { label, metric, published, bars: vec![bar] });
                }
            }
        }
    }
    tasks
}

fn length(score: &TaskScore) -> f64 {
    (score.percent() * 100.0).round().clamp(0.0, 10_000.0) / 100.0
}

fn text(score: &TaskScore) -> String {
    match score.stderr {
        Some(stderr) => format!("{:.2} ± {:.2}", score.percent(), 100.0 * stderr),
        None => format!("{:.2}", score.percent()),
    }
}

/// The published score of the same task with the same number of examples.
fn published(score: &TaskScore, runs: &[RunRecord]) -> Option<(f64, String)> {
    let run = runs.iter().find(|run| run.is_published)?;
    let theirs = run.scores.iter().find(|theirs| theirs.label() == score.label())?;
    Some((length(theirs), format!("{}: {}", run.name, text(theirs))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{published, scores};

    #[test]
    fn a_task_has_a_bar_for_each_run_and_the_published_score_behind() {
        let published = published::find("zephyr-7b-beta").unwrap();
        let own = |name: &str, value: f64| {
            let mut score = scores::published("zephyr-7b-beta").remove(0);
            (score.value, score.stderr) = (value, Some(0.015));
            RunRecord { name: name.into(), scores: vec![score], ..RunRecord::default() }
        };
        let tasks = score_tasks(&[own("a", 0.25), own("b", 0.305), published]);
        assert_eq!(tasks.len(), 1, "no own run has a score of the other tasks");
        assert_eq!(tasks[0].label, "ARC (25-shot)");
        let (percent, text) = tasks[0].published.clone().unwrap();
        assert_eq!((percent, text.as_str()), (62.03, "Zephyr-7B-β (published): 62.03"));
        let bars: Vec<(f64, &str)> =
            tasks[0].bars.iter().map(|bar| (bar.percent, bar.text.as_str())).collect();
        assert_eq!(bars, [(25.0, "25.00 ± 1.50"), (30.5, "30.50 ± 1.50")]);
    }
}
