//! Benchmark scores of a model: the leading metric of each task, from a `results.json` of this
//! program or of lm-evaluation-harness.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::files::json_object::read_object;

/// The folder of a run that holds the results of its evaluation.
pub const FOLDER: &str = "eval";
/// The file of the results.
pub const FILE: &str = "results.json";

/// The score of a task or a group in the metric by which it is usually reported.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskScore {
    /// `arc_challenge`
    pub task: String,
    pub num_fewshot: Option<u64>,
    /// `acc_norm`
    pub metric: String,
    /// In the unit of the metric: a share of 1 for accuracies.
    pub value: f64,
    pub stderr: Option<f64>,
    /// `lm-eval` or `leaderboard`.
    pub definition: String,
    /// If only the first documents were evaluated: at most how many.
    pub limit: Option<u64>,
}

impl TaskScore {
    /// The task with its examples, as in `ARC (25-shot)`.
    pub fn label(&self) -> String {
        let name = known(&self.task).map_or(self.task.as_str(), |task| task.short);
        match self.num_fewshot {
            Some(shots) => format!("{name} ({shots}-shot)"),
            None => name.to_owned(),
        }
    }

    /// The value as the leaderboard shows it: in percent.
    pub fn percent(&self) -> f64 {
        self.value * 100.0
    }
}

/// How a task of the Open LLM Leaderboard is described on the hub.
pub struct KnownTask {
    /// All names of the task.
    pub names: &'static [&'static str],
    /// The name in tables.
    pub short: &'static str,
    /// The name in a model index.
    pub long: &'static str,
    pub dataset: &'static str,
    pub config: Option<&'static str>,
    pub split: &'static str,
    /// The metrics by which it is reported, the preferred one first.
    pub metrics: &'static [&'static str],
}

/// The tasks of the Open LLM Leaderboard, in its order.
pub const KNOWN: [KnownTask; 7] = [
    KnownTask {
        names: &["arc_challenge"],
        short: "ARC",
        long: "AI2 Reasoning Challenge",
        dataset: "ai2_arc",
        config: Some("ARC-Challenge"),
        split: "test",
        metrics: &["acc_norm"],
    },
    KnownTask {
        names: &["hellaswag"],
        short: "HellaSwag",
        long: "HellaSwag",
        dataset: "hellaswag",
        config: None,
        split: "validation",
        metrics: &["acc_norm"],
    },
    KnownTask {
        names: &["mmlu"],
        short: "MMLU",
        long: "MMLU",
        dataset: "cais/mmlu",
        config: Some("all"),
        split: "test",
        metrics: &["acc"],
    },
    KnownTask {
        names: &["truthfulqa_mc2", "truthfulqa_mc"],
        short: "TruthfulQA",
        long: "TruthfulQA",
        dataset: "truthful_qa",
        config: Some("multiple_choice"),
        split: "validation",
        metrics: &["mc2", "acc"],
    },
    KnownTask {
        names: &["winogrande"],
        short: "Winogrande",
        long: "Winogrande",
        dataset: "winogrande",
        config: Some("winogrande_xl"),
        split: "validation",
        metrics: &["acc"],
    },
    KnownTask {
        names: &["gsm8k"],
        short: "GSM8K",
        long: "GSM8k",
        dataset: "gsm8k",
        config: Some("main"),
        split: "test",
        metrics: &["acc", "exact_match"],
    },
    KnownTask {
        names: &["drop"],
        short: "DROP",
        long: "Drop",
        dataset: "drop",
        config: None,
        split: "validation",
        metrics: &["f1"],
    },
];

/// The description of a task of the leaderboard.
pub fn known(task: &str) -> Option<&'static KnownTask> {
    KNOWN.iter().find(|known| known.names.contains(&task))
}

/// The scores of the card of HuggingFaceH4/zephyr-7b-beta, in percent: task, examples, metric,
/// value. The definition is that of the leaderboard.
const ZEPHYR: [(&str, u64, &str, f64); 7] = [
    ("arc_challenge", 25, "acc_norm", 62.03),
    ("hellaswag", 10, "acc_norm", 84.36),
    ("mmlu", 5, "acc", 61.07),
    ("truthfulqa_mc2", 0, "mc2", 57.45),
    ("winogrande", 5, "acc", 77.74),
    ("gsm8k", 5, "acc", 12.74),
    ("drop", 3, "f1", 9.66),
];

/// The published scores of a model; empty if none are known.
pub fn published(name: &str) -> Vec<TaskScore> {
    if name != "zephyr-7b-beta" {
        return Vec::new();
    }
    let score = |&(task, shots, metric, percent): &(&str, u64, &str, f64)| TaskScore {
        task: task.to_owned(),
        num_fewshot: Some(shots),
        metric: metric.to_owned(),
        value: percent / 100.0,
        stderr: None,
        definition: "leaderboard".to_owned(),
        limit: None,
    };
    ZEPHYR.iter().map(score).collect()
}

/// The scores in `eval/results.json` of a run's or model's folder; empty if it has none, or if the
/// file is damaged.
pub fn of_run(folder: &Path) -> Vec<TaskScore> {
    let path: PathBuf = folder.join(FOLDER).join(FILE);
    match read_object(&path, |text| serde_json::from_str(text)) {
        Ok(Some(results)) => of_results(&Value::Object(results)),
        Ok(None) => Vec::new(),
        Err(error) => {
            tracing::warn!("{error}; no scores are shown");
            Vec::new()
        }
    }
}

/// The scores in the content of a `results.json`: those of the tasks and groups that are not part
/// of a group.
pub fn of_results(results: &Value) -> Vec<TaskScore> {
    let subtasks = results["group_subtasks"].as_object();
    let has_scores = |group: &str| score(results, group).is_some();
    let members: Vec<&str> = subtasks
        .into_iter()
        .flatten()
        .filter(|(group, _)| has_scores(group))
        .flat_map(|(_, members)| members.as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let tasks = results["results"].as_object().into_iter().flatten();
    let outer = tasks.map(|(name, _)| name.as_str()).filter(|name| !members.contains(name));
    outer.filter_map(|name| score(results, name)).collect()
}

fn score(results: &Value, task: &str) -> Option<TaskScore> {
    let values = results["results"].get(task)?.as_object()?;
    let metric = leading_metric(task, values)?;
    let name = metric.split_once(',').map_or(metric, |(name, _)| name);
    let stderr = metric.replacen(name, &format!("{name}_stderr"), 1);
    Some(TaskScore {
        task: task.to_owned(),
        num_fewshot: results["n-shot"][task].as_u64(),
        metric: name.to_owned(),
        value: values[metric].as_f64()?,
        stderr: values.get(&stderr).and_then(Value::as_f64),
        definition: results["favonius"]["definition"].as_str().unwrap_or("lm-eval").to_owned(),
        limit: results["config"]["limit"].as_f64().map(|limit| limit as u64),
    })
}

/// The key of the metric by which a task is reported: for the tasks of the leaderboard its metric,
/// for others the first one.
fn leading_metric<'v>(task: &str, values: &'v Map<String, Value>) -> Option<&'v str> {
    let is_metric = |key: &&String| {
        key.split_once(',').is_some_and(|(name, _)| !name.ends_with("_stderr"))
            && values[key.as_str()].is_number()
    };
    let keys: Vec<&str> = values.keys().filter(is_metric).map(String::as_str).collect();
    let preferred = known(task).map_or(&[][..], |task| task.metrics);
    let found = preferred.iter().find_map(|metric| {
        keys.iter().find(|key| key.split_once(',').is_some_and(|(name, _)| name == *metric))
    });
    found.or(keys.first()).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_leading_metric_of_each_outer_task_is_read() {
        let results = json!({
            "results": {
                "mmlu": {"alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.01},
                "mmlu_anatomy": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
                "arc_challenge": {"acc,none": 0.2, "acc_norm,none": 0.3, "acc_norm_stderr,none": 0.02},
                "gsm8k": {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2},
                "own": {"alias": "own", "f1,none": 0.75, "f1_stderr,none": "N/A"},
                "openllm": {"alias": "openllm"},
            },
            "group_subtasks": {"mmlu": ["mmlu_anatomy"], "openllm": ["mmlu", "gsm8k"]},
            "n-shot": {"mmlu": 5, "arc_challenge": 25, "gsm8k": 5, "own": 0},
        });
        let scores = of_results(&results);
        let found: Vec<(String, &str, f64)> =
            scores.iter().map(|s| (s.label(), s.metric.as_str(), s.value)).collect();
        let expected = [
            ("MMLU (5-shot)".to_owned(), "acc", 0.25),
            ("ARC (25-shot)".to_owned(), "acc_norm", 0.3),
            ("GSM8K (5-shot)".to_owned(), "exact_match", 0.1),
            ("own (0-shot)".to_owned(), "f1", 0.75),
        ];
        assert_eq!(found, expected);
        assert_eq!(scores[1].stderr, Some(0.02));
        assert_eq!(of_results(&json!({})), []);
    }

    #[test]
    fn the_published_scores_average_to_that_of_the_card() {
        let scores = published("zephyr-7b-beta");
        let mean = scores.iter().map(TaskScore::percent).sum::<f64>() / scores.len() as f64;
        assert!((mean - 52.15).abs() < 0.005, "{mean}");
        assert!(published("another").is_empty());
    }
}
