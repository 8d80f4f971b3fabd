//! The built-in tasks, one file each: the keys of lm-eval's definition as YAML, the functions that
//! it needs, and the rules of the leaderboard's definition.

mod arc;
mod drop;
mod gsm8k;
mod hellaswag;
pub mod mmlu;
pub mod openllm;
mod truthfulqa;
mod winogrande;

use super::row::{ProcessFn, ResultsFn, ValueFn};
use super::rules::Rules;

/// A function that lm-eval's own task file names.
#[derive(Debug, Clone, Copy)]
pub enum Function {
    Process(ProcessFn),
    Value(ValueFn),
    Results(ResultsFn),
}

impl Function {
    /// The function with this name in a built-in task file.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "hellaswag.process_docs" => Self::Process(hellaswag::process_docs),
            "truthfulqa.question" => Self::Value(truthfulqa::question),
            "truthfulqa.mc2" => Self::Results(truthfulqa::mc2),
            "winogrande.right_option" => Self::Value(winogrande::right_option),
            "winogrande.ending" => Self::Value(winogrande::ending),
            "winogrande.beginnings" => Self::Value(winogrande::beginnings),
            "drop.process_docs" => Self::Process(drop::process_docs),
            "drop.em_and_f1" => Self::Results(drop::em_and_f1),
            _ => return None,
        })
    }
}

/// The built-in tasks besides the subjects of MMLU.
pub const NAMES: [&str; 8] = [
    "arc_challenge",
    "arc_easy",
    "hellaswag",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "winogrande",
    "gsm8k",
    "drop",
];

/// lm-eval's definition of a built-in task as YAML.
pub fn lm_eval(name: &str) -> Option<String> {
    let text = match name {
        "arc_easy" => include_str!("arc_easy.yaml"),
        "arc_challenge" => return Some(arc::challenge()),
        "hellaswag" => include_str!("hellaswag.yaml"),
        "truthfulqa_mc1" => include_str!("truthfulqa_mc1.yaml"),
        "truthfulqa_mc2" => include_str!("truthfulqa_mc2.yaml"),
        "winogrande" => include_str!("winogrande.yaml"),
        "gsm8k" => include_str!("gsm8k.yaml"),
        "drop" => include_str!("drop.yaml"),
        _ => return mmlu::subject_of(name).map(mmlu::lm_eval),
    };
    Some(text.to_owned())
}

/// The leaderboard's definition of a built-in task.
pub fn leaderboard(name: &str) -> Option<Rules> {
    Some(match name {
        "arc_easy" | "arc_challenge" => arc::leaderboard(name),
        "hellaswag" => hellaswag::leaderboard(),
        "truthfulqa_mc1" | "truthfulqa_mc2" => truthfulqa::leaderboard(name),
        "winogrande" => winogrande::leaderboard(),
        "gsm8k" => gsm8k::leaderboard(),
        "drop" => drop::leaderboard(),
        _ => return mmlu::subject_of(name).map(mmlu::leaderboard),
    })
}
