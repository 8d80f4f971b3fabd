//! The evaluation of a model on benchmark tasks: of a finished run, if its recipe has `eval_tasks`,
//! and of any model for `favonius evaluate`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use burn::tensor::DType;
use serde_json::{Value, json};

use super::context::Context;
use super::error::RunError;
use super::mark;
use crate::eval::{
    BATCH_TOKENS, Chat, DataFolder, Definition, Evaluation, EvaluationContext, EvaluationError,
    EvaluationSettings, FEWSHOT_SEED, ModelFacts, Options, Results, Selection,
};
use crate::files::replace::replace_file;
use crate::infer::InferError;
use crate::infer::chat_model::ChatModel;
use crate::model::files::dtype_name;
use crate::recipe::{Dtype, Recipe, TaskDefinition, TaskEvaluation};
use crate::report::card_scores::with_scores;
use crate::report::results::{Measure, save_metrics};
use crate::report::scores::{self, FILE, FOLDER};
use crate::train::event::{Event, Observer};

/// The tasks of an evaluation and their settings.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskChoice {
    /// Names of tasks and groups.
    pub tasks: Vec<String>,
    pub definition: Definition,
    /// Documents of each task at most.
    pub limit: Option<usize>,
    pub num_fewshot: Option<usize>,
    /// The seed of the examples in the definition `lm-eval`.
    pub seed: i64,
    pub data: Option<PathBuf>,
    pub include_path: Option<PathBuf>,
    pub apply_chat_template: bool,
    pub fewshot_as_multiturn: bool,
    pub batch_tokens: usize,
}

/// The model that is evaluated, and the folder of its results.
pub struct Target<'a> {
    /// As on the command line.
    pub name: &'a str,
    pub chat: &'a ChatModel,
    pub device: &'a str,
    pub folder: &'a Path,
}

impl TaskChoice {
    /// The evaluation that a recipe asks for.
    fn of_recipe(evaluation: &TaskEvaluation) -> Self {
        Self {
            tasks: evaluation.tasks.clone(),
            definition: match evaluation.definition {
                TaskDefinition::LmEval => Definition::LmEval,
                TaskDefinition::Leaderboard => Definition::Leaderboard,
            },
            limit: evaluation.limit,
            num_fewshot: evaluation.num_fewshot,
            seed: FEWSHOT_SEED,
            data: evaluation.data.clone(),
            include_path: evaluation.include_path.clone(),
            apply_chat_template: evaluation.apply_chat_template,
            fewshot_as_multiturn: evaluation.fewshot_as_multiturn,
            batch_tokens: evaluation.batch_tokens.unwrap_or(BATCH_TOKENS),
        }
    }
}

/// Evaluates a model, and writes `results.json` and the samples into the folder of `target`. `None`
/// if it was asked to stop: the same call continues from the kept answers.
///
/// # Errors
/// A task, its data or a document is wrong, or a file cannot be written.
pub fn evaluate(
    target: &Target,
    choice: &TaskChoice,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Option<Results>, EvaluationError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ranks = context.ranks;
    let selection = ranks.first_before_others("the tasks", || select(choice, Some(target.chat)))?;
    let evaluation = EvaluationContext {
        chat: target.chat,
        batch_tokens: choice.batch_tokens,
        folder: Some(target.folder),
        ranks,
        stop: context.stop,
    };
    let mut evaluation = Evaluation::new(&evaluation)?;
    let samples = ranks.is_first().then_some(target.folder);
    let lines = selection.evaluate(&mut evaluation, samples, observer)?;
    let Some(lines) = lines else { return Ok(None) };
    let results = Results {
        model: ModelFacts {
            name: target.name.to_owned(),
            parameters: target.chat.model.config.parameters(),
            dtype: dtype_name(target.chat.model.dtype()).to_owned(),
            device: target.device.to_owned(),
        },
        settings: EvaluationSettings {
            definition: choice.definition,
            limit: choice.limit,
            seed: choice.seed,
            batch_tokens: choice.batch_tokens,
            apply_chat_template: choice.apply_chat_template,
            fewshot_as_multiturn: choice.fewshot_as_multiturn,
        },
        lines,
        date: since.as_secs_f64(),
    };
    if ranks.is_first() {
        let text = format!("{:#}\n", results.to_json());
        replace_file(&target.folder.join(FILE), text.as_bytes())?;
    }
    Ok(Some(results))
}

/// Loads the chosen tasks. `chat` is the model whose chat template they use, if they use one.
fn select(choice: &TaskChoice, chat: Option<&ChatModel>) -> Result<Selection, EvaluationError> {
    let template = chat.filter(|_| choice.apply_chat_template);
    let template = template
        .map(|chat| Chat::new(chat.tokenizer.clone(), choice.fewshot_as_multiturn))
        .transpose()
        .map_err(InferError::from)?;
    let options = Options {
        num_fewshot: choice.num_fewshot,
        limit: choice.limit.map(|limit| limit as f64),
        fewshot_seed: choice.seed,
        chat: template,
        system_instruction: None,
    };
    let data = DataFolder { folder: choice.data.clone() };
    let include = choice.include_path.as_deref();
    Selection::load(&choice.tasks, choice.definition, include, &data, &options)
}

/// Copies the scores of a finished run's evaluation into its card and its result files
/// (`tasks_results.json`, `all_results.json`).
///
/// # Errors
/// A file cannot be read or written.
pub fn record_scores(run: &Path) -> std::io::Result<()> {
    let scores = scores::of_run(run);
    let measure = |score: &scores::TaskScore| {
        (format!("{}_{}", score.task, score.metric), Measure::Real(score.value))
    };
    save_metrics(run, "tasks", &scores.iter().map(measure).collect::<Vec<_>>())?;
    let path = run.join("README.md");
    let card = std::fs::read_to_string(&path)?;
    let folder = std::path::absolute(run)?;
    let name = card.lines().find_map(|line| line.strip_prefix("# ")).map(str::to_owned);
    let name = name.or_else(|| Some(folder.file_name()?.to_string_lossy().into_owned()));
    let name = name.unwrap_or_else(|| "model".to_owned());
    replace_file(&path, with_scores(&card, &name, &scores).as_bytes())
}

/// Checks the tasks of a recipe before anything is trained: that they exist, and that their data is
/// found.
///
/// # Errors
/// The error of a task with the place of `eval_tasks` in the recipe.
pub fn check(recipe: &Recipe) -> Result<(), RunError> {
    let Some(evaluation) = &recipe.evaluation else { return Ok(()) };
    // The chat template belongs to the trained model, which does not exist yet.
    let choice = TaskChoice {
        apply_chat_template: false,
        fewshot_as_multiturn: false,
        ..TaskChoice::of_recipe(evaluation)
    };
    let loaded = select(&choice, None).map(drop);
    loaded.map_err(|error| {
        let text = error.to_string();
        let (message, help) = match text.split_once("\nhelp: ") {
            Some((message, help)) => (message.to_owned(), Some(help.to_owned())),
            None => (text, None),
        };
        let message = format!("`eval_tasks`: {message}");
        RunError::Recipe(evaluation.asked_at.error(message, help))
    })
}

/// Whether a finished run lacks the evaluation that its recipe asks for.
pub fn is_pending(recipe: &Recipe) -> bool {
    let Some(evaluation) = &recipe.evaluation else { return false };
    mark::read_mark(recipe.output_dir())["eval_tasks"] != settings(evaluation)
}

fn settings(evaluation: &TaskEvaluation) -> Value {
    json!(evaluation)
}

/// Evaluates a finished run if its recipe asks for it and no earlier start did. Returns whether the
/// evaluation is done, and not stopped.
///
/// # Errors
/// See [`evaluate`]; the model cannot be loaded; card or mark cannot be written.
pub fn of_finished_run(
    recipe: &Recipe,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<bool, RunError> {
    let Some(evaluation) = &recipe.evaluation else { return Ok(true) };
    if !context.ranks.decide("the evaluation", || Ok::<_, RunError>(is_pending(recipe)))? {
        return Ok(true);
    }
    let run = recipe.output_dir();
    let folder = run.join(FOLDER);
    if context.ranks.is_first() {
        std::fs::create_dir_all(&folder).map_err(RunError::model(&folder))?;
    }
    let device = recipe.train.device.of_rank(context.ranks.local_rank()).to_string();
    let chat = ChatModel::load(&run.display().to_string(), &device, dtype(recipe));
    let chat = chat.map_err(EvaluationError::from)?;
    let name = run.display().to_string();
    let target = Target { name: &name, chat: &chat, device: &device, folder: &folder };
    let choice = TaskChoice::of_recipe(evaluation);
    let Some(results) = evaluate(&target, &choice, context, observer)? else {
        let text = "stopped by a signal during the evaluation; the same command continues there";
        observer.on(&Event::Message(text))?;
        return Ok(false);
    };
    if context.ranks.is_first() {
        record_scores(run).map_err(RunError::model(run))?;
        let mut finished = mark::read_mark(run);
        finished["eval_tasks"] = settings(evaluation);
        mark::write_mark(run, &finished).map_err(RunError::model(run))?;
    }
    observer.on(&Event::Message(&format!("\n{}\n{}", results.table(), results.summary())))?;
    context.ranks.barrier("the evaluation");
    Ok(true)
}

/// The type in which the run computed.
fn dtype(recipe: &Recipe) -> DType {
    let is_bf16 = recipe.train.bf16 || recipe.model.dtype == Dtype::Bfloat16;
    if is_bf16 { DType::BF16 } else { DType::F32 }
}
