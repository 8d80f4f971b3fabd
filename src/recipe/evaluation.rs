//! The evaluation on benchmark tasks at the end of a run: `eval_tasks` and its settings.

use std::path::PathBuf;

use serde::Serialize;

use super::choice::choices;
use super::error::KeyPlace;
use super::number::{AT_LEAST_1, NOT_NEGATIVE};
use super::reader::Reader;

/// Whose prompts and rules the tasks follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TaskDefinition {
    /// The task files of lm-evaluation-harness.
    #[serde(rename = "lm-eval")]
    LmEval,
    /// The first Open LLM Leaderboard.
    #[serde(rename = "leaderboard")]
    Leaderboard,
}

choices!(TaskDefinition {
    "lm-eval" => TaskDefinition::LmEval, "leaderboard" => TaskDefinition::Leaderboard,
} unsupported []);

/// The tasks on which the finished model is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskEvaluation {
    /// Names of tasks and groups.
    pub tasks: Vec<String>,
    /// Documents of each task at most.
    pub limit: Option<usize>,
    /// Examples before each question; `None` is each task's own number.
    pub num_fewshot: Option<usize>,
    pub definition: TaskDefinition,
    /// A folder that holds the data sets under their hub ids.
    pub data: Option<PathBuf>,
    /// A folder of task files.
    pub include_path: Option<PathBuf>,
    /// Tokens of a batch at most; `None` is the default.
    #[serde(skip)]
    pub batch_tokens: Option<usize>,
    pub apply_chat_template: bool,
    pub fewshot_as_multiturn: bool,
    /// The place of `eval_tasks` in the recipe.
    #[serde(skip)]
    pub asked_at: KeyPlace,
}

/// Reads all keys of the evaluation. Without `eval_tasks` they are checked but have no effect.
pub(super) fn read(r: &mut Reader) -> Option<TaskEvaluation> {
    let names = r.texts("eval_tasks", "none").unwrap_or_default();
    let limit = r.optional_count("eval_tasks_limit", AT_LEAST_1);
    let num_fewshot = r.optional_count("eval_tasks_num_fewshot", NOT_NEGATIVE);
    let definition = r.choice("eval_tasks_definition", TaskDefinition::LmEval);
    let data = r.optional_text("eval_tasks_data").map(PathBuf::from);
    let include_path = r.optional_text("eval_tasks_include_path").map(PathBuf::from);
    let batch_tokens = r.optional_count("eval_tasks_batch_tokens", AT_LEAST_1);
    let apply_chat_template = r.flag("eval_tasks_apply_chat_template", false);
    let fewshot_as_multiturn = r.flag("eval_tasks_fewshot_as_multiturn", false);
    if fewshot_as_multiturn && !apply_chat_template {
        r.error_on(
            "eval_tasks_fewshot_as_multiturn",
            "`eval_tasks_fewshot_as_multiturn` needs the chat template".to_owned(),
        );
        r.help("set `eval_tasks_apply_chat_template: true`");
    }
    // A text may hold several names, as on the command line.
    let names = names.iter().flat_map(|(text, _)| text.split(','));
    let tasks: Vec<String> = names
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty() && name != "none")
        .collect();
    if tasks.is_empty() {
        return None;
    }
    let asked_at = r.place_of("eval_tasks");
    Some(TaskEvaluation {
        tasks,
        limit,
        num_fewshot,
        definition,
        data,
        include_path,
        batch_tokens,
        apply_chat_template,
        fewshot_as_multiturn,
        asked_at,
    })
}
