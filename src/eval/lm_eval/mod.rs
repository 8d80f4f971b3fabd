//! Tasks as lm-eval 0.4.13 defines and scores them: its own, and task files of users.

mod context;
mod measure;

use serde_json::Value as Json;

use self::context::Contexts;
use self::measure::{Choices, exact_match};
use super::config::TaskConfig;
use super::config::output::OutputType;
use super::data::{DataFolder, Rows};
use super::error::EvalError;
use super::options::{Options, limited};
use super::python::text_of;
use super::request::{Answer, Document, Measured, Request};
use super::row::{Row, only_text};
use super::shots;
use super::task::{Definition, Metric, Task};

/// A task with its documents.
struct LmEvalTask {
    config: TaskConfig,
    options: Options,
    metrics: Vec<Metric>,
    num_fewshot: usize,
    documents: Vec<Row>,
    /// The number of rows in the split.
    rows: usize,
    pool: Vec<Row>,
    /// The places in `pool` of the examples of each document.
    shots: Vec<Vec<usize>>,
    per_choice: bool,
    /// The files of the split, for messages.
    files: Rows,
}

/// Reads the data of a task and draws its examples.
///
/// # Errors
/// The data cannot be read, a row is unusable, or too few examples exist.
pub fn load(
    config: TaskConfig,
    data: &DataFolder,
    options: &Options,
) -> Result<Box<dyn Task>, EvalError> {
    // As in lm-eval, a task that sets 0 examples keeps them.
    let num_fewshot = match config.num_fewshot {
        Some(0) => 0,
        own => options.num_fewshot.or(own).unwrap_or(0),
    };
    let mut read = data.read(&config.name, &config.data, config.evaluated_split())?;
    let rows = read.rows.len();
    // The pool may be the evaluated split, which is then needed as a whole.
    let pool = match num_fewshot {
        0 => None,
        _ => Some(pool(&config, data)?),
    };
    read.rows.truncate(limited(rows, options.limit, f64::ceil));
    let mut documents = std::mem::take(&mut read.rows);
    process(&config, &mut documents, &read)?;
    let (pool, shots) = match pool {
        Some(pool) => examples(&config, options, pool, &documents, num_fewshot)?,
        None => (Vec::new(), vec![Vec::new(); documents.len()]),
    };
    let per_choice = match documents.first() {
        Some(first) => {
            let text = config.prompt.text(first);
            let text = text.map_err(|message| row_error(&config.name, &read, 0, message))?;
            text.is_i64() && config.prompt.choice.is_some()
        }
        None => false,
    };
    let metrics = config.metrics.iter().map(|config| config.metric.clone()).collect();
    let options = options.clone();
    let files = read;
    Ok(Box::new(LmEvalTask {
        config,
        options,
        metrics,
        num_fewshot,
        documents,
        rows,
        pool,
        shots,
        per_choice,
        files,
    }))
}

/// The rows among which examples are chosen.
fn pool(config: &TaskConfig, data: &DataFolder) -> Result<Rows, EvalError> {
    let fewshot = &config.fewshot;
    let mut rows = match (&fewshot.split, &fewshot.samples) {
        (Some(split), _) => data.read(&config.name, &config.data, split)?,
        (None, Some(samples)) => {
            let file = config.data.folder.join("fewshot_config.samples");
            return Ok(Rows::written(samples.clone(), &file));
        }
        (None, None) => {
            let splits = [&config.training_split, &config.validation_split, &config.test_split];
            let split = splits.into_iter().flatten().next();
            data.read(&config.name, &config.data, split.map_or("train", String::as_str))?
        }
    };
    let mut all = std::mem::take(&mut rows.rows);
    process(config, &mut all, &rows)?;
    if let Some(indices) = &fewshot.indices {
        let row = |index: &usize| all.get(*index).cloned();
        all = indices.iter().map(row).collect::<Option<_>>().ok_or_else(|| EvalError::Task {
            task: config.name.clone(),
            message: format!("`fewshot_indices` go beyond the {} rows of the split", all.len()),
            help: "rows are counted from 0".to_owned(),
        })?;
    }
    rows.rows = all;
    Ok(rows)
}

fn process(config: &TaskConfig, rows: &mut [Row], files: &Rows) -> Result<(), EvalError> {
    let Some(process) = config.process_docs else { return Ok(()) };
    for (place, row) in rows.iter_mut().enumerate() {
        process(row).map_err(|message| row_error(&config.name, files, place, message))?;
    }
    Ok(())
}

/// The examples that are used, and their places for each document.
fn examples(
    config: &TaskConfig,
    options: &Options,
    pool: Rows,
    documents: &[Row],
    num_fewshot: usize,
) -> Result<(Vec<Row>, Vec<Vec<usize>>), EvalError> {
    // lm-eval compares the names of the two splits; both may be missing.
    let excluded = (config.fewshot.split == config.test_split).then_some(documents);
    let mut shots = shots::drawn(
        config.fewshot.sampler,
        &pool.rows,
        documents.len(),
        excluded,
        num_fewshot,
        options.fewshot_seed,
    )
    .map_err(|message| EvalError::Task {
        task: config.name.clone(),
        message,
        help: "lower --num_fewshot".to_owned(),
    })?;
    let used = shots::compacted(&mut shots);
    let mut rows = pool.rows;
    let kept = used.into_iter().map(|place| std::mem::take(&mut rows[place])).collect();
    Ok((kept, shots))
}

fn row_error(task: &str, rows: &Rows, place: usize, message: String) -> EvalError {
    let (file, row) = rows.place(place);
    EvalError::Row { task: task.to_owned(), file, row, message }
}

impl LmEvalTask {
    fn contexts(&self) -> Contexts<'_> {
        Contexts { config: &self.config, options: &self.options, per_choice: self.per_choice }
    }

    fn requests(&self, id: usize) -> Result<Vec<Request>, String> {
        let (row, prompt) = (&self.documents[id], &self.config.prompt);
        let examples: Vec<&Row> = self.shots[id].iter().map(|place| &self.pool[*place]).collect();
        let contexts = self.contexts().of(row, &examples)?;
        let first = || contexts.first().cloned().unwrap_or_default();
        Ok(match self.config.output {
            OutputType::GenerateUntil => {
                let generation = self.config.generation.clone();
                vec![Request::Generate {
                    context: first(),
                    until: generation.until,
                    max_tokens: generation.max_tokens,
                }]
            }
            OutputType::Loglikelihood => {
                let continuation = prompt.target(row)?;
                let continuation = continuation.as_str().map(str::to_owned).ok_or_else(|| {
                    format!("`doc_to_target` gives {continuation}, which is not a text")
                })?;
                vec![Request::Loglikelihood { context: first(), continuation }]
            }
            OutputType::MultipleChoice => {
                let delimiter = self.delimiter_of_choices();
                let choices = self.contexts().choices(row)?;
                let mut requests: Vec<Request> = match self.per_choice {
                    true => {
                        let ending = text_of(&prompt.target(row)?);
                        let request = |context| Request::Loglikelihood {
                            context,
                            continuation: format!("{delimiter}{ending}"),
                        };
                        contexts.into_iter().map(request).collect()
                    }
                    false => {
                        let request = |choice: &String| Request::Loglikelihood {
                            context: first(),
                            continuation: format!("{delimiter}{choice}"),
                        };
                        choices.iter().map(request).collect()
                    }
                };
                if self.metrics.iter().any(|metric| metric.name == "acc_mutual_info") {
                    requests.extend(choices.iter().map(|choice| Request::Loglikelihood {
                        context: "".into(),
                        continuation: format!("{delimiter}{choice}"),
                    }));
                }
                requests
            }
        })
    }

    /// Between a prompt and a choice. A chat's prompt ends before the answer, which then needs no
    /// delimiter, unless the answer's beginning is given.
    fn delimiter_of_choices(&self) -> &str {
        let prompt = &self.config.prompt;
        let continues = prompt.gen_prefix.as_ref().is_some_and(|prefix| {
            let source = prefix.source();
            !source.is_empty() && !source.ends_with(crate::data::is_space)
        });
        match self.options.chat.is_some() && !continues {
            true => "",
            false => &prompt.target_delimiter,
        }
    }

    fn measured(&self, id: usize, answers: &[Answer]) -> Result<Vec<Measured>, String> {
        let (config, row) = (&self.config, &self.documents[id]);
        let measure = |answers: &[Answer]| match (config.process_results, config.output) {
            (Some(process), _) => process(row, answers),
            (None, OutputType::MultipleChoice) => {
                let choices = self.contexts().choices(row)?;
                let gold = match self.per_choice {
                    true => config.prompt.text(row)?,
                    false => config.prompt.target(row)?,
                };
                Choices { choices: &choices, gold: &gold, answers }.values(&config.metrics)
            }
            (None, OutputType::Loglikelihood) => self.likelihood_values(answers),
            (None, OutputType::GenerateUntil) => self.text_values(row, answers),
        };
        let filtered = |filter: &super::config::filters::FilterList| {
            let apply = |answer: &Answer| match answer {
                Answer::Text(text) => Answer::Text(filter.apply(text)),
                other => other.clone(),
            };
            let answers: Vec<Answer> = answers.iter().map(apply).collect();
            let values = measure(&answers)?;
            Ok(Measured { filter: filter.name.clone(), answers, values })
        };
        config.filters.iter().map(filtered).collect()
    }

    fn likelihood_values(&self, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
        let [Answer::Loglikelihood { logp, is_greedy }] = answers else {
            return Err("one log-likelihood was asked for, and something else was given".to_owned());
        };
        let value = |metric: &Metric| match metric.name.as_str() {
            "acc" => (metric.name.clone(), f64::from(*is_greedy)),
            _ => (metric.name.clone(), *logp),
        };
        Ok(self.metrics.iter().map(value).collect())
    }

    fn text_values(&self, row: &Row, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
        let text = only_text(answers)?;
        let mut gold = self.config.prompt.target(row)?;
        if let Some(choices) = self.config.prompt.choices(row)? {
            let place = gold.as_u64().and_then(|place| choices.get(usize::try_from(place).ok()?));
            let choice =
                place.ok_or_else(|| format!("the place {gold} is not among the choices"))?;
            gold = Json::from(choice.as_str());
        }
        let value = |config: &super::config::metrics::MetricConfig| {
            (config.metric.name.clone(), exact_match(&config.matching, text, &gold))
        };
        Ok(self.config.metrics.iter().map(value).collect())
    }

    fn error(&self, id: usize, message: String) -> EvalError {
        row_error(&self.config.name, &self.files, id, message)
    }
}

impl Task for LmEvalTask {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn alias(&self) -> &str {
        self.config.alias.as_deref().unwrap_or(&self.config.name)
    }

    fn definition(&self) -> Definition {
        Definition::LmEval
    }

    fn version(&self) -> &str {
        &self.config.version
    }

    fn num_fewshot(&self) -> usize {
        self.num_fewshot
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn documents(&self) -> usize {
        self.documents.len()
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn document(&self, id: usize) -> Result<Document, EvalError> {
        let row = &self.documents[id];
        let failed = |message| self.error(id, message);
        let requests = self.requests(id).map_err(failed)?;
        let target = self.config.prompt.target(row).map_err(failed)?;
        Ok(Document { id, requests, row: row.clone().into(), target })
    }

    fn measure(&self, id: usize, answers: &[Answer]) -> Result<Vec<Measured>, EvalError> {
        self.measured(id, answers).map_err(|message| self.error(id, message))
    }
}
