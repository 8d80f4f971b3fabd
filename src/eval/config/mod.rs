//! Task files: YAML with the keys of lm-eval → [`TaskConfig`].

pub mod filters;
pub mod group;
pub mod keys;
pub mod metrics;
pub mod output;
pub mod prompt;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use self::filters::FilterList;
use self::keys::{Key, Keys, optional, version};
use self::metrics::MetricConfig;
use self::output::{OutputType, output};
use self::prompt::{Prompt, template};
use super::row::{ProcessFn, ResultsFn, Row};
use super::tasks::Function;
use super::template::Template;
use crate::recipe::{RecipeError, RecipeErrors};

/// The tokens that are generated at most, if a task does not say.
const MAX_TOKENS: usize = 256;

/// How examples are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// By Python's `random.sample`, for each document anew.
    Random,
    /// The first rows.
    FirstN,
}

/// The source of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// A hub id, a folder, or `parquet` or `json` with `files`.
    pub path: String,
    pub name: Option<String>,
    pub revision: Option<String>,
    /// `data_files`: split → files. Paths are relative to the working directory, else to
    /// `folder`.
    pub files: Vec<(String, Vec<String>)>,
    /// The folder of the task file.
    pub folder: PathBuf,
}

/// Few-shot examples.
#[derive(Debug, Clone)]
pub struct FewshotConfig {
    pub sampler: Sampler,
    pub split: Option<String>,
    /// The rows of the split that may be examples; `None` is all.
    pub indices: Option<Vec<usize>>,
    /// Examples that are written in the task file.
    pub samples: Option<Vec<Row>>,
    pub prompt: Prompt,
}

/// When a generated text ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub until: Vec<String>,
    pub max_tokens: usize,
}

/// A task as its file describes it.
#[derive(Debug, Clone)]
pub struct TaskConfig {
    pub name: String,
    pub alias: Option<String>,
    pub version: String,
    pub data: DataConfig,
    pub training_split: Option<String>,
    pub validation_split: Option<String>,
    pub test_split: Option<String>,
    pub process_docs: Option<ProcessFn>,
    pub prompt: Prompt,
    /// A text before the examples.
    pub description: Option<Arc<Template>>,
    pub fewshot: FewshotConfig,
    /// `None` is 0 and may be replaced by the user; 0 is not replaced.
    pub num_fewshot: Option<usize>,
    pub output: OutputType,
    pub metrics: Vec<MetricConfig>,
    pub filters: Vec<FilterList>,
    pub generation: Generation,
    pub process_results: Option<ResultsFn>,
}

impl TaskConfig {
    /// Reads the keys of a file with `task:`. With `own_functions`, `!function` may name a function
    /// of lm-eval's own task files.
    ///
    /// # Errors
    /// A key is missing, unknown or has a wrong value.
    pub fn read(mut keys: Keys, own_functions: bool) -> Result<Self, RecipeErrors> {
        refuse_unsupported(&mut keys)?;
        let name = match keys.take("task") {
            Some(key) => key.text()?,
            None => return Err(keys.missing("`task` is missing", "write task: NAME").into()),
        };
        let alias = optional(&mut keys, "task_alias", Key::text)?;
        keys.take("tag");
        let version = version(&mut keys)?;
        let data = data(&mut keys)?;
        let mut split = |name: &str| optional(&mut keys, name, Key::text);
        let training_split = split("training_split")?;
        let validation_split = split("validation_split")?;
        let test_split = split("test_split")?;
        if test_split.is_none() && validation_split.is_none() {
            let help = "write test_split: or validation_split: with the split to evaluate";
            return Err(keys.missing("no split to evaluate", help).into());
        }
        let process_docs = match function(&mut keys, "process_docs", own_functions)? {
            Some((_, Function::Process(function))) => Some(function),
            Some((key, _)) => return Err(key.error("not a function of rows", "").into()),
            None => None,
        };
        let process_results = match function(&mut keys, "process_results", own_functions)? {
            Some((_, Function::Results(function))) => Some(function),
            Some((key, _)) => return Err(key.error("not a function of answers", "").into()),
            None => None,
        };
        let prompt = Prompt::read(&mut keys, own_functions)?;
        let description = optional(&mut keys, "description", template)?;
        let fewshot = fewshot(&mut keys, &prompt, own_functions)?;
        let num_fewshot = optional(&mut keys, "num_fewshot", Key::count)?;
        let output = output(&mut keys, &prompt)?;
        let generation = generation(&mut keys, &prompt.fewshot_delimiter)?;
        let metrics = match keys.take("metric_list") {
            None => MetricConfig::defaults(output),
            Some(list) => {
                let read = |item| MetricConfig::read(item, output, process_results.is_some());
                list.items().iter().map(read).collect::<Result<_, _>>()?
            }
        };
        let filters = filters(&mut keys, output)?;
        refuse_unknown(&keys)?;
        Ok(Self {
            name,
            alias,
            version,
            data,
            training_split,
            validation_split,
            test_split,
            process_docs,
            prompt,
            description,
            fewshot,
            num_fewshot,
            output,
            metrics,
            filters,
            generation,
            process_results,
        })
    }

    /// The split whose rows are evaluated.
    pub fn evaluated_split(&self) -> &str {
        self.test_split.as_deref().or(self.validation_split.as_deref()).unwrap_or_default()
    }
}

fn function(
    keys: &mut Keys,
    name: &str,
    own_functions: bool,
) -> Result<Option<(Key, Function)>, RecipeError> {
    let Some(key) = keys.take(name) else { return Ok(None) };
    let named = key.function().filter(|_| own_functions);
    match named.as_deref().map(Function::of) {
        Some(Some(function)) => Ok(Some((key, function))),
        Some(None) => Err(key.error("no such function", "see src/eval/tasks")),
        None => {
            // A tag gives the message about Python.
            key.json()?;
            let message = format!("`{name}` names a Python function, which is not run here");
            Err(key.error(message, "convert the data beforehand"))
        }
    }
}

fn data(keys: &mut Keys) -> Result<DataConfig, RecipeError> {
    let Some(path) = keys.take("dataset_path") else {
        let help =
            "write dataset_path: with a hub id, a folder, or parquet or json with data_files";
        return Err(keys.missing("`dataset_path` is missing", help));
    };
    let name = optional(keys, "dataset_name", Key::text)?;
    let mut config = DataConfig {
        path: path.text()?,
        name,
        revision: None,
        files: Vec::new(),
        folder: path.folder(),
    };
    let is_format = matches!(config.path.as_str(), "json" | "parquet" | "csv" | "text" | "arrow");
    let Some(kwargs) = keys.take("dataset_kwargs") else {
        return match is_format {
            true => Err(without_files(&path, &config.path)),
            false => Ok(config),
        };
    };
    let mut kwargs = Keys::of_key(&kwargs)?;
    kwargs.take("trust_remote_code");
    config.revision = optional(&mut kwargs, "revision", Key::text)?;
    if let Some(folder) = kwargs.take("data_dir") {
        config.path = format!("{}/{}", config.path, folder.text()?);
    }
    if let Some(files) = kwargs.take("data_files") {
        config.files = data_files(&files)?;
    }
    if is_format && config.files.is_empty() {
        return Err(without_files(&path, &config.path));
    }
    match kwargs.rest() {
        None => Ok(config),
        Some(key) => {
            let message = format!("`{}` in `dataset_kwargs` is not supported", key.name);
            Err(key.error_at_name(message, "use data_files, data_dir or revision"))
        }
    }
}

fn without_files(path: &Key, format: &str) -> RecipeError {
    let help = "write dataset_kwargs: {data_files: {test: FILE}} with .parquet or .jsonl files";
    path.error(format!("dataset_path `{format}` is a format, and `data_files` is missing"), help)
}

/// A path or a list of paths is the split `train`, as in `datasets`.
fn data_files(files: &Key) -> Result<Vec<(String, Vec<String>)>, RecipeError> {
    if !files.is_mapping() {
        return Ok(vec![("train".to_owned(), files.texts()?)]);
    }
    let mut splits = Vec::new();
    let mut keys = Keys::of_key(files)?;
    while let Some(name) = keys.rest().map(|key| key.name.clone()) {
        if let Some(paths) = keys.take(&name) {
            splits.push((name, paths.texts()?));
        }
    }
    Ok(splits)
}

fn fewshot(
    keys: &mut Keys,
    prompt: &Prompt,
    own_functions: bool,
) -> Result<FewshotConfig, RecipeError> {
    let split = optional(keys, "fewshot_split", Key::text)?;
    let mut config = FewshotConfig {
        sampler: Sampler::Random,
        split,
        indices: None,
        samples: None,
        prompt: prompt.clone(),
    };
    let Some(key) = keys.take("fewshot_config") else { return Ok(config) };
    let mut keys = Keys::of_key(&key)?;
    if let Some(key) = keys.take("sampler") {
        config.sampler = match key.text()?.as_str() {
            "default" => Sampler::Random,
            "first_n" => Sampler::FirstN,
            other => {
                let message = format!("sampler `{other}` is not supported");
                return Err(key.error(message, "use default or first_n"));
            }
        };
    }
    config.split = optional(&mut keys, "split", Key::text)?.or(config.split);
    if let Some(key) = keys.take("fewshot_indices") {
        config.indices = Some(key.items().iter().map(Key::count).collect::<Result<_, _>>()?);
    }
    if let Some(key) = keys.take("samples") {
        let row = |item: &Key| match item.json()? {
            Json::Object(row) => Ok(row),
            _ => Err(item.error("an example must be a mapping of columns", "write column: value")),
        };
        config.samples = Some(key.items().iter().map(row).collect::<Result<_, _>>()?);
    }
    if let Some(key) = keys.take("process_docs") {
        key.json()?;
        return Err(key.error("`process_docs` is Python, which is not run here", "remove it"));
    }
    config.prompt = prompt.replaced_by(&mut keys, own_functions)?;
    match keys.rest() {
        None => Ok(config),
        Some(key) => {
            let message = format!("`{}` is not a key of `fewshot_config`", key.name);
            Err(key.error_at_name(message, "remove it, or correct its spelling"))
        }
    }
}

fn generation(keys: &mut Keys, fewshot_delimiter: &str) -> Result<Generation, RecipeError> {
    let mut generation =
        Generation { until: vec![fewshot_delimiter.to_owned()], max_tokens: MAX_TOKENS };
    let Some(key) = keys.take("generation_kwargs") else { return Ok(generation) };
    let mut keys = Keys::of_key(&key)?;
    if let Some(key) = keys.take("until") {
        generation.until = key.texts()?;
    }
    let names = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"];
    // The first of several wins, as in lm-eval.
    for name in names.into_iter().rev() {
        if let Some(key) = keys.take(name) {
            generation.max_tokens = key.count()?;
        }
    }
    let samples = optional(&mut keys, "do_sample", Key::flag)?;
    let temperature = keys.take("temperature");
    let is_warm = temperature.as_ref().map(Key::number).transpose()?.is_some_and(|t| t > 0.0);
    if samples == Some(true) || (samples.is_none() && is_warm) {
        let help = "answers are greedy: write do_sample: false";
        return Err(key.error("sampled answers are not supported", help));
    }
    // Settings of sampling have no effect on greedy answers.
    for name in ["top_p", "top_k", "min_p", "seed"] {
        keys.take(name);
    }
    match keys.rest() {
        None => Ok(generation),
        Some(key) => {
            let message = format!("`{}` in `generation_kwargs` is not supported", key.name);
            Err(key.error_at_name(message, "use until and max_gen_toks"))
        }
    }
}

fn filters(keys: &mut Keys, output: OutputType) -> Result<Vec<FilterList>, RecipeError> {
    let Some(key) = keys.take("filter_list") else { return Ok(vec![FilterList::none()]) };
    let lists: Vec<FilterList> =
        key.items().iter().map(FilterList::read).collect::<Result<_, _>>()?;
    if output != OutputType::GenerateUntil && lists.iter().any(|list| !list.is_empty()) {
        let message = format!("filters of texts do not apply to output_type: {output}");
        return Err(key.error(message, "remove `filter_list`, or use generate_until"));
    }
    Ok(lists)
}

/// Refuses keys of lm-eval that have no meaning here, and drops those without effect.
fn refuse_unsupported(keys: &mut Keys) -> Result<(), RecipeErrors> {
    for name in ["should_decontaminate", "doc_to_decontamination_query", "group"] {
        keys.take(name);
    }
    if let Some(key) = keys.take("repeats")
        && key.count()? != 1
    {
        let help = "write repeats: 1; greedy answers are all the same";
        return Err(key.error("repeated answers are not supported", help).into());
    }
    if let Some(key) = keys.take("unsafe_code")
        && key.flag()?
    {
        let message = "generated code is not run here";
        return Err(key.error(message, "this task cannot be evaluated").into());
    }
    let refused = [
        ("class", "tasks that are Python classes are not supported"),
        ("custom_dataset", "data sets made by Python are not supported"),
        ("use_prompt", "prompts of promptsource are not supported"),
        ("doc_to_image", "images are not supported"),
        ("doc_to_audio", "audio is not supported"),
        ("task_list", "several tasks in one file are not supported"),
    ];
    for (name, message) in refused {
        if let Some(key) = keys.take(name) {
            let help = "remove the key, or write the task with templates in a file of its own";
            return Err(key.error_at_name(format!("`{name}`: {message}"), help).into());
        }
    }
    Ok(())
}

fn refuse_unknown(keys: &Keys) -> Result<(), RecipeError> {
    const KNOWN: [&str; 22] = [
        "task",
        "task_alias",
        "tag",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "fewshot_config",
        "num_fewshot",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "output_type",
        "generation_kwargs",
        "filter_list",
        "metric_list",
    ];
    let Some(key) = keys.rest() else { return Ok(()) };
    let near = KNOWN
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, &key.name), known))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let help = match near {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => "the keys are those of lm-eval's task files".to_owned(),
    };
    Err(key.error_at_name(format!("`{}` is not a key of a task file", key.name), help))
}
