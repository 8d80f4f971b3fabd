//! The results of an evaluation in the form of lm-evaluation-harness: `results.json`, which other
//! tools read, and the table on the screen.

use serde_json::{Map, Value, json};

use super::evaluation::Effort;
use super::scores::{Score, Scores};
use super::task::Definition;

/// A task, or a group of tasks, with its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub scores: Scores,
    pub version: String,
    /// `None` for a group whose tasks differ.
    pub num_fewshot: Option<usize>,
    /// How many groups contain it.
    pub depth: usize,
    /// The names of a group's members; empty for a task.
    pub members: Vec<String>,
    /// Rows of the split, of which `scores.documents` were evaluated.
    pub rows: usize,
    /// Time and tokens of the answers of a task.
    pub effort: Option<Effort>,
}

impl Line {
    fn name(&self) -> &str {
        &self.scores.name
    }
}

/// The evaluated model, for `results.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// As on the command line.
    pub name: String,
    pub parameters: usize,
    /// `float32` or `bfloat16`.
    pub dtype: String,
    pub device: String,
}

/// The settings of an evaluation, for `results.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationSettings {
    pub definition: Definition,
    pub limit: Option<usize>,
    pub seed: i64,
    pub batch_tokens: usize,
    pub apply_chat_template: bool,
    pub fewshot_as_multiturn: bool,
}

/// All results of an evaluation. A group comes before its members.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    pub model: ModelFacts,
    pub settings: EvaluationSettings,
    pub lines: Vec<Line>,
    /// The start, in seconds since 1970.
    pub date: f64,
}

impl Results {
    /// The content of `results.json`.
    pub fn to_json(&self) -> Value {
        let by_name = |value: &dyn Fn(&Line) -> Option<Value>| -> Value {
            let pairs = self.lines.iter();
            let pairs = pairs.filter_map(|line| Some((line.name().to_owned(), value(line)?)));
            Value::Object(pairs.collect())
        };
        let is_group = |line: &Line| !line.members.is_empty();
        let mut all = Map::new();
        all.insert("results".into(), by_name(&|line| Some(metrics(&line.scores))));
        let groups = by_name(&|line| {
            let has_scores = is_group(line) && !line.scores.scores.is_empty();
            has_scores.then(|| metrics(&line.scores))
        });
        if groups.as_object().is_some_and(|groups| !groups.is_empty()) {
            all.insert("groups".into(), groups);
        }
        all.insert("group_subtasks".into(), by_name(&|s| is_group(s).then(|| json!(s.members))));
        all.insert("configs".into(), by_name(&|s| (!is_group(s)).then(|| self.config_of(s))));
        all.insert("versions".into(), by_name(&|s| Some(version(&s.version))));
        all.insert("n-shot".into(), by_name(&|s| s.num_fewshot.map(Value::from)));
        all.insert("higher_is_better".into(), by_name(&|s| Some(directions(&s.scores))));
        all.insert(
            "n-samples".into(),
            by_name(&|line| {
                let counts = json!({"original": line.rows, "effective": line.scores.documents});
                (!is_group(line)).then_some(counts)
            }),
        );
        all.insert("config".into(), self.config());
        all.insert("favonius".into(), self.own_facts());
        all.insert("date".into(), json!(self.date));
        all.insert("model_name".into(), json!(self.model.name));
        Value::Object(all)
    }

    fn config_of(&self, line: &Line) -> Value {
        json!({
            "task": line.name(),
            "task_alias": line.scores.alias,
            "num_fewshot": line.num_fewshot,
            "metadata": {
                "version": version(&line.version),
                "definition": self.settings.definition.to_string(),
            },
        })
    }

    fn config(&self) -> Value {
        let seed = self.settings.seed;
        json!({
            "model": "favonius",
            "model_args": {"pretrained": self.model.name, "dtype": self.model.dtype},
            "model_num_parameters": self.model.parameters,
            "model_dtype": self.model.dtype,
            "batch_size": null,
            "batch_tokens": self.settings.batch_tokens,
            "device": self.model.device,
            "limit": self.settings.limit,
            "apply_chat_template": self.settings.apply_chat_template,
            "fewshot_as_multiturn": self.settings.fewshot_as_multiturn,
            "fewshot_seed": seed,
        })
    }

    /// What lm-eval's form has no place for: the version, the definition of the prompts and, for
    /// each task, the tokens that the model read, those that lm-eval would read, and the requests
    /// that were too long.
    fn own_facts(&self) -> Value {
        let effort = |effort: &Effort| {
            json!({
                "documents": effort.documents,
                "seconds": effort.time.as_secs_f64(),
                "tokens": effort.tokens,
                "tokens_without_sharing": effort.whole_tokens + effort.new_tokens,
                "generated_tokens": effort.new_tokens,
                "truncated_requests": effort.cut,
                "requests": effort.requests,
            })
        };
        let tasks = self.lines.iter();
        let tasks =
            tasks.filter_map(|line| Some((line.name().to_owned(), effort(line.effort.as_ref()?))));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "definition": self.settings.definition.to_string(),
            "tasks": tasks.collect::<Map<_, _>>(),
        })
    }

    /// The table of lm-eval, in Markdown.
    pub fn table(&self) -> String {
        let header = ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"];
        let right = [false, true, false, true, false, false, true, false, true];
        let mut rows: Vec<[String; 9]> = vec![header.map(str::to_owned)];
        for line in &self.lines {
            rows.extend(table_rows(line));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..9).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (index, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).zip(right).map(|((cell, &width), right)| {
                if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            text.push_str(&format!("|{}|\n", cells.collect::<Vec<_>>().join("|")));
            if index == 0 {
                let rule = widths.iter().zip(right).map(|(&width, right)| match right {
                    true => format!("{}:", "-".repeat(width.saturating_sub(1))),
                    false => "-".repeat(width),
                });
                text.push_str(&format!("|{}|\n", rule.collect::<Vec<_>>().join("|")));
            }
        }
        text
    }

    /// A line on the tokens that the model read, and one on requests that were too long.
    pub fn summary(&self) -> String {
        let mut all = Effort::default();
        for effort in self.lines.iter().filter_map(|line| line.effort.as_ref()) {
            all.add(effort);
        }
        let without_sharing = all.whole_tokens + all.new_tokens;
        let mut text = format!(
            "{} documents in {:.1} s; the model read {} tokens, of {} without shared beginnings \
             ({:.1} times as many)",
            all.documents,
            all.time.as_secs_f64(),
            all.tokens,
            without_sharing,
            without_sharing as f64 / all.tokens.max(1) as f64
        );
        if all.kept > 0 {
            text.push_str(&format!("; {} documents were answered before", all.kept));
        }
        if all.cut > 0 {
            text.push_str(&format!(
                "\n{} of {} requests are longer than the model's positions; they were cut from \
                 the left",
                all.cut, all.requests
            ));
        }
        text
    }
}

/// The cells of a task's or group's rows.
fn table_rows(line: &Line) -> Vec<[String; 9]> {
    let alias = &line.scores.alias;
    let name = match line.depth {
        0 => alias.clone(),
        depth => format!("{}- {alias}", " ".repeat(depth)),
    };
    let shots = line.num_fewshot.map_or(String::new(), |shots| shots.to_string());
    let mut rows: Vec<[String; 9]> = Vec::new();
    for (index, score) in line.scores.scores.iter().enumerate() {
        let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
        rows.push([
            first(&name),
            first(&line.version),
            score.filter.clone(),
            shots.clone(),
            score.metric.clone(),
            if score.higher_is_better { "↑" } else { "↓" }.to_owned(),
            format!("{:.4}", score.value),
            "±".to_owned(),
            score.stderr.map_or("N/A".to_owned(), |stderr| format!("{stderr:.4}")),
        ]);
    }
    if rows.is_empty() {
        let mut row: [String; 9] = Default::default();
        (row[0], row[1]) = (name, line.version.clone());
        rows.push(row);
    }
    rows
}

fn metrics(scores: &Scores) -> Value {
    let mut all = Map::new();
    all.insert("name".into(), json!(scores.name));
    all.insert("alias".into(), json!(scores.alias));
    all.insert("sample_len".into(), json!(scores.documents));
    for Score { metric, filter, value, stderr, .. } in &scores.scores {
        all.insert(format!("{metric},{filter}"), json!(value));
        let stderr = stderr.map_or(json!("N/A"), |stderr| json!(stderr));
        all.insert(format!("{metric}_stderr,{filter}"), stderr);
    }
    Value::Object(all)
}

fn directions(scores: &Scores) -> Value {
    let pairs = scores.scores.iter().map(|s| (s.metric.clone(), json!(s.higher_is_better)));
    Value::Object(pairs.collect())
}

/// A version as a number if it is one.
fn version(text: &str) -> Value {
    text.parse::<f64>().map_or_else(|_| json!(text), |number| json!(number))
}

impl Effort {
    /// Adds what another task took.
    pub fn add(&mut self, other: &Effort) {
        self.documents += other.documents;
        self.kept += other.kept;
        self.cut += other.cut;
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.new_tokens += other.new_tokens;
        self.whole_tokens += other.whole_tokens;
        self.time += other.time;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn results() -> Results {
        let score = |metric: &str, value, stderr| Score {
            metric: metric.into(),
            filter: "none".into(),
            value,
            stderr,
            higher_is_better: true,
        };
        let effort = Effort {
            documents: 2,
            cut: 1,
            requests: 8,
            tokens: 100,
            whole_tokens: 430,
            time: Duration::from_millis(1500),
            ..Effort::default()
        };
        let scores = |name: &str, alias: &str, scores: Vec<Score>| Scores {
            name: name.into(),
            alias: alias.into(),
            documents: 2,
            scores,
        };
        let values = vec![score("acc", 0.5, Some(0.5)), score("acc_norm", 0.0, None)];
        let task = Line {
            scores: scores("mmlu_anatomy", "anatomy", values),
            version: "1.0".into(),
            num_fewshot: Some(5),
            depth: 1,
            members: Vec::new(),
            rows: 135,
            effort: Some(effort),
        };
        let group = Line {
            scores: scores("mmlu", "mmlu", vec![score("acc", 0.5, Some(0.5))]),
            version: "2".into(),
            depth: 0,
            members: vec!["mmlu_anatomy".into()],
            effort: None,
            ..task.clone()
        };
        Results {
            model: ModelFacts {
                name: "a/b".into(),
                parameters: 7,
                dtype: "float32".into(),
                device: "cpu".into(),
            },
            settings: EvaluationSettings {
                definition: Definition::LmEval,
                limit: Some(2),
                seed: 1234,
                batch_tokens: 64,
                apply_chat_template: false,
                fewshot_as_multiturn: false,
            },
            lines: vec![group, task],
            date: 0.0,
        }
    }

    #[test]
    fn results_have_the_form_of_lm_eval() {
        let json = results().to_json();
        assert_eq!(json["results"]["mmlu_anatomy"]["acc,none"], 0.5);
        assert_eq!(json["results"]["mmlu_anatomy"]["acc_norm_stderr,none"], "N/A");
        assert_eq!(json["results"]["mmlu_anatomy"]["alias"], "anatomy");
        assert_eq!(json["groups"]["mmlu"]["acc_stderr,none"], 0.5);
        assert_eq!(json["groups"].as_object().unwrap().len(), 1);
        assert_eq!(json["group_subtasks"], json!({"mmlu": ["mmlu_anatomy"]}));
        assert_eq!(json["n-shot"]["mmlu_anatomy"], 5);
        let samples = json!({"original": 135, "effective": 2});
        assert_eq!(json["n-samples"], json!({"mmlu_anatomy": samples}));
        assert_eq!(json["versions"]["mmlu_anatomy"], 1.0);
        assert_eq!(json["favonius"]["tasks"]["mmlu_anatomy"]["truncated_requests"], 1);
    }

    #[test]
    fn the_table_and_the_summary() {
        let results = results();
        let table = results.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "|Tasks     |Version|Filter|n-shot|Metric  | | Value| |Stderr|");
        assert_eq!(lines[2], "|mmlu      |      2|none  |     5|acc     |↑|0.5000|±|0.5000|");
        assert_eq!(lines[3], "| - anatomy|    1.0|none  |     5|acc     |↑|0.5000|±|0.5000|");
        assert_eq!(lines[4], "|          |       |none  |     5|acc_norm|↑|0.0000|±|   N/A|");
        let summary = results.summary();
        assert!(summary.starts_with("2 documents in 1.5 s; the model read 100 tokens, of 430 "));
        assert!(summary.contains("\n1 of 8 requests are longer than the model's positions"));
    }
}
