//! The chosen tasks and groups: their documents are answered and scored, task by task.

use std::path::Path;

use super::catalogue::{Catalogue, Entry, Group};
use super::data::DataFolder;
use super::evaluation::Evaluation;
use super::evaluation_error::EvaluationError;
use super::options::Options;
use super::results::Line;
use super::samples::sample;
use super::scores::{self, Score, Scores};
use super::task::{Definition, Task};
use crate::files::replace::replace_file;
use crate::train::event::Observer;

/// The metric of a group that averages the leading scores of its members.
const AVERAGE: &str = "average";

/// Tasks and groups with their data.
pub struct Selection(Vec<Chosen>);

enum Chosen {
    Task(Box<dyn Task>),
    Group { group: Group, members: Vec<Chosen> },
}

impl Selection {
    /// Finds tasks and groups by their names, and reads the data of all tasks. `include` is a
    /// folder of task files.
    ///
    /// # Errors
    /// A name is unknown, or the data of a task is not found or damaged.
    pub fn load(
        names: &[String],
        definition: Definition,
        include: Option<&Path>,
        data: &DataFolder,
        options: &Options,
    ) -> Result<Self, EvaluationError> {
        let mut catalogue = Catalogue::new(definition);
        if let Some(folder) = include {
            catalogue.add_folder(folder)?;
        }
        let load = |entry| Chosen::load(entry, data, options);
        Ok(Self(catalogue.find(names)?.into_iter().map(load).collect::<Result<_, _>>()?))
    }

    /// Answers and scores all documents. With `folder`, the answers to each document are written
    /// into `samples_TASK.jsonl` there. `None` if the evaluation was asked to stop.
    ///
    /// # Errors
    /// See [`Evaluation::answers`]; a file cannot be written.
    pub fn evaluate(
        &self,
        evaluation: &mut Evaluation,
        folder: Option<&Path>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<Line>>, EvaluationError> {
        let mut lines = Vec::new();
        let mut run = Run { evaluation, folder, observer, lines: &mut lines };
        for chosen in &self.0 {
            if !run.add(chosen, 0)? {
                return Ok(None);
            }
        }
        Ok(Some(lines))
    }
}

impl Chosen {
    fn load(entry: Entry, data: &DataFolder, options: &Options) -> Result<Self, EvaluationError> {
        Ok(match entry {
            Entry::Task(spec) => Self::Task(spec.load(data, options)?),
            Entry::Group(mut group) => {
                let entries = std::mem::take(&mut group.entries).into_iter();
                let members = entries.map(|entry| Self::load(entry, data, options));
                Self::Group { members: members.collect::<Result<_, _>>()?, group }
            }
        })
    }

    fn name(&self) -> &str {
        match self {
            Self::Task(task) => task.name(),
            Self::Group { group, .. } => &group.name,
        }
    }
}

struct Run<'a, 'e> {
    evaluation: &'a mut Evaluation<'e>,
    folder: Option<&'a Path>,
    observer: &'a mut dyn Observer,
    lines: &'a mut Vec<Line>,
}

impl Run<'_, '_> {
    /// Adds the lines of a task or group. Returns false if the evaluation was asked to stop.
    fn add(&mut self, chosen: &Chosen, depth: usize) -> Result<bool, EvaluationError> {
        match chosen {
            Chosen::Task(task) => self.add_task(&**task, depth),
            Chosen::Group { group, members } => {
                // The group stands before its members, whose scores it needs.
                let at = self.lines.len();
                self.lines.push(empty_line(group, members, depth));
                for member in members {
                    if !self.add(member, depth + 1)? {
                        return Ok(false);
                    }
                }
                let (before, inside) = self.lines.split_at_mut(at + 1);
                complete(&mut before[at], group, inside);
                Ok(true)
            }
        }
    }

    fn add_task(&mut self, task: &dyn Task, depth: usize) -> Result<bool, EvaluationError> {
        let Some(answered) = self.evaluation.answers(task, self.observer)? else {
            return Ok(false);
        };
        let mut measured = Vec::with_capacity(answered.answers.len());
        let mut samples = String::new();
        for (id, answers) in answered.answers.iter().enumerate() {
            if self.folder.is_none() {
                measured.push(task.measure(id, answers)?);
                continue;
            }
            let (rows, values) = sample(task, id, answers)?;
            samples.extend(rows.iter().map(|row| format!("{row}\n")));
            measured.push(values);
        }
        if let Some(folder) = self.folder {
            let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            let name = task.name().chars().map(|c| if is_plain(c) { c } else { '_' });
            let name: String = name.collect();
            replace_file(&folder.join(format!("samples_{name}.jsonl")), samples.as_bytes())?;
        }
        self.lines.push(Line {
            scores: scores::of_task(task, &measured),
            version: task.version().to_owned(),
            num_fewshot: Some(task.num_fewshot()),
            depth,
            members: Vec::new(),
            rows: task.rows(),
            effort: Some(answered.effort),
        });
        Ok(true)
    }
}

fn empty_line(group: &Group, members: &[Chosen], depth: usize) -> Line {
    let (name, alias) = (group.name.clone(), group.alias.clone());
    Line {
        scores: Scores { name, alias, documents: 0, scores: Vec::new() },
        version: group.version.clone(),
        num_fewshot: None,
        depth,
        members: members.iter().map(|member| member.name().to_owned()).collect(),
        rows: 0,
        effort: None,
    }
}

/// Fills in what a group's line takes from the lines inside the group.
fn complete(line: &mut Line, group: &Group, inside: &[Line]) {
    let tasks: Vec<&Line> = inside.iter().filter(|line| line.members.is_empty()).collect();
    let of_tasks: Vec<&Scores> = tasks.iter().map(|line| &line.scores).collect();
    line.scores = scores::of_group(&group.name, &group.alias, &group.metrics, &of_tasks);
    line.scores.scores.extend(average(group, inside));
    line.rows = tasks.iter().map(|line| line.rows).sum();
    let shots = tasks.first().and_then(|line| line.num_fewshot);
    line.num_fewshot = shots.filter(|_| tasks.iter().all(|line| line.num_fewshot == shots));
}

/// The plain mean of the scores that count for the group; `None` if one of them is missing. Its
/// standard error is that of a mean of independent scores.
fn average(group: &Group, inside: &[Line]) -> Option<Score> {
    let found = group.average.iter().map(|headline| {
        let line = inside.iter().find(|line| line.scores.name == headline.name)?;
        line.scores.get(&headline.metric, &headline.filter)
    });
    let found: Vec<&Score> = found.collect::<Option<_>>()?;
    if found.is_empty() {
        return None;
    }
    let count = found.len() as f64;
    let errors: Option<Vec<f64>> = found.iter().map(|score| score.stderr).collect();
    let squares = errors.map(|errors| errors.iter().map(|error| error * error).sum::<f64>());
    Some(Score {
        metric: AVERAGE.to_owned(),
        filter: "none".to_owned(),
        value: found.iter().map(|score| score.value).sum::<f64>() / count,
        stderr: squares.map(|squares| squares.sqrt() / count),
        higher_is_better: true,
    })
}
