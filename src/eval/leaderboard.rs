//! Tasks as the first Open LLM Leaderboard defined them: lm-evaluation-harness at commit b281b09.
//!
//! `Random(42)` shuffles the documents, and the same generator then draws the examples of one
//! document after another. Examples are separated by blank lines. An example is the question
//! followed by the answer, which begins with a blank.

use super::config::DataConfig;
use super::data::{DataFolder, Rows};
use super::error::EvalError;
use super::options::{Options, limited};
use super::random::Random;
use super::request::{Answer, Document, Measured};
use super::row::Row;
use super::rules::{Rules, Shots};
use super::task::{Aggregation, Definition, Metric, Task};

/// The seed of the leaderboard.
const SEED: i64 = 42;

/// A task with its documents.
struct LeaderboardTask {
    rules: Rules,
    metrics: Vec<Metric>,
    num_fewshot: usize,
    /// Prepared rows in the order of the shuffle, with their places in the split.
    documents: Vec<(usize, Row)>,
    rows: usize,
    pool: Vec<Row>,
    /// The places in `pool` of the examples of each document.
    shots: Vec<Vec<usize>>,
    /// The files of the split, for messages.
    files: Rows,
}

/// Reads the data of a task and draws its examples.
///
/// # Errors
/// The data cannot be read, a row is unusable, or too few examples exist.
pub fn load(
    rules: Rules,
    data: &DataFolder,
    options: &Options,
) -> Result<Box<dyn Task>, EvalError> {
    let failed = |message: String, help: &str| EvalError::Task {
        task: rules.name.clone(),
        message,
        help: help.to_owned(),
    };
    let num_fewshot = match (rules.shots, options.num_fewshot) {
        (Shots::None, _) => 0,
        (_, asked) => asked.unwrap_or(rules.num_fewshot),
    };
    let source = DataConfig {
        path: rules.data_path.to_owned(),
        name: rules.data_name.clone(),
        revision: None,
        files: Vec::new(),
        folder: Default::default(),
    };
    let mut read = data.read(&rules.name, &source, rules.split)?;
    let rows = read.rows.len();
    let mut order: Vec<usize> = (0..rows).collect();
    let mut rnd = Random::new(SEED);
    rnd.shuffle(&mut order);
    order.truncate(limited(rows, options.limit, f64::floor));

    let split = match rules.shots {
        Shots::Drawn(split) | Shots::First(split) if num_fewshot > 0 => Some(split),
        _ => None,
    };
    let pool = split.map(|split| data.read(&rules.name, &source, split)).transpose()?;
    let pool_size = pool.as_ref().map_or(0, |pool| pool.rows.len());
    if num_fewshot > pool_size {
        let message = format!("{num_fewshot} examples are asked for, and {pool_size} rows exist");
        return Err(failed(message, "lower --num_fewshot"));
    }
    let shots = order.iter().map(|_| match rules.shots {
        Shots::Drawn(_) => rnd.sample(pool_size, num_fewshot).unwrap_or_default(),
        _ => (0..num_fewshot).collect(),
    });
    let mut shots: Vec<Vec<usize>> = shots.collect();
    let pool = match pool {
        Some(pool) => prepared_pool(&rules, pool, &mut shots)?,
        None => Vec::new(),
    };

    let mut documents = Vec::with_capacity(order.len());
    for place in order {
        let row = std::mem::take(&mut read.rows[place]);
        let row = (rules.prepare)(&row)
            .map_err(|message| row_error(&rules.name, &read, place, message))?;
        documents.push((place, row));
    }
    read.rows.clear();
    let metric = |name: &&str| Metric {
        name: (*name).to_owned(),
        aggregation: Aggregation::Mean,
        higher_is_better: true,
    };
    let metrics = rules.metrics.iter().map(metric).collect();
    let files = read;
    Ok(Box::new(LeaderboardTask {
        rules,
        metrics,
        num_fewshot,
        documents,
        rows,
        pool,
        shots,
        files,
    }))
}

/// Prepares the rows that are examples; `shots` then has their places among these.
fn prepared_pool(
    rules: &Rules,
    pool: Rows,
    shots: &mut [Vec<usize>],
) -> Result<Vec<Row>, EvalError> {
    let used = super::shots::compacted(shots);
    let prepare = |place: &usize| {
        (rules.prepare)(&pool.rows[*place])
            .map_err(|message| row_error(&rules.name, &pool, *place, message))
    };
    used.iter().map(prepare).collect()
}

fn row_error(task: &str, rows: &Rows, place: usize, message: String) -> EvalError {
    let (file, row) = rows.place(place);
    EvalError::Row { task: task.to_owned(), file, row, message }
}

impl LeaderboardTask {
    fn context(&self, id: usize) -> Result<String, String> {
        let mut context = String::new();
        if let Some(description) = &self.rules.description {
            context.push_str(description);
            context.push_str("\n\n");
        }
        for shot in &self.shots[id] {
            let row = &self.pool[*shot];
            context.push_str(&(self.rules.question)(row)?);
            context.push_str(&(self.rules.answer)(row)?);
            context.push_str("\n\n");
        }
        if !self.rules.own_question {
            context.push_str(&(self.rules.question)(&self.documents[id].1)?);
        }
        Ok(context)
    }

    fn error(&self, id: usize, message: String) -> EvalError {
        row_error(&self.rules.name, &self.files, self.documents[id].0, message)
    }
}

impl Task for LeaderboardTask {
    fn name(&self) -> &str {
        &self.rules.name
    }

    fn alias(&self) -> &str {
        &self.rules.alias
    }

    fn definition(&self) -> Definition {
        Definition::Leaderboard
    }

    fn version(&self) -> &str {
        self.rules.version
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
        let (_, row) = &self.documents[id];
        let failed = |message| self.error(id, message);
        let context = self.context(id).map_err(failed)?;
        let requests = (self.rules.requests)(row, context.into()).map_err(failed)?;
        let target = (self.rules.answer)(row).map_err(failed)?.into();
        Ok(Document { id, requests, row: row.clone().into(), target })
    }

    fn measure(&self, id: usize, answers: &[Answer]) -> Result<Vec<Measured>, EvalError> {
        let values = (self.rules.measure)(&self.documents[id].1, answers);
        let values = values.map_err(|message| self.error(id, message))?;
        Ok(vec![Measured { filter: "none".to_owned(), answers: answers.to_vec(), values }])
    }
}
