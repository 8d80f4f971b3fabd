//! How a row becomes a question, an answer and choices: `doc_to_text`, `doc_to_target`,
//! `doc_to_choice` and the texts between them.

use std::sync::Arc;

use serde_json::Value as Json;

use super::keys::{Key, Keys};
use crate::eval::python::{is_digits, literal_eval};
use crate::eval::row::{Row, ValueFn};
use crate::eval::tasks::Function;
use crate::eval::template::Template;
use crate::recipe::RecipeError;

/// The value of a row in one of lm-eval's forms.
#[derive(Debug, Clone)]
pub enum Field {
    /// The name of a column, or a Jinja template.
    Text(Arc<Template>),
    /// A whole number, as it is.
    Whole(i64),
    /// A list, as it is.
    List(Vec<Json>),
    /// A function of lm-eval's own task files.
    Function(ValueFn),
}

impl Field {
    fn read(key: &Key, own_functions: bool) -> Result<Self, RecipeError> {
        if own_functions && let Some(name) = key.function() {
            return match Function::of(&name) {
                Some(Function::Value(function)) => Ok(Self::Function(function)),
                _ => Err(key.error(format!("no function `{name}`"), "see src/eval/tasks")),
            };
        }
        match key.json()? {
            Json::Array(items) => Ok(Self::List(items)),
            Json::Object(fields) => Ok(Self::List(fields.into_iter().map(|(_, v)| v).collect())),
            Json::Number(number) if number.is_i64() => {
                Ok(Self::Whole(number.as_i64().unwrap_or_default()))
            }
            _ => template(key).map(Self::Text),
        }
    }
}

/// A key's text as a template.
///
/// # Errors
/// It is not Jinja.
pub fn template(key: &Key) -> Result<Arc<Template>, RecipeError> {
    let source = key.text()?;
    Template::new(&source).map(Arc::new).map_err(|message| {
        key.error(format!("`{}`: {message}", key.name), "templates are Jinja, as in lm-eval")
    })
}

/// The value of the column that a template names, else its text.
///
/// # Errors
/// The template fails for this row.
pub fn resolved(template: &Template, row: &Row) -> Result<Json, String> {
    match row.get(template.source()) {
        Some(value) => Ok(value.clone()),
        None => template.render(row).map(Json::String),
    }
}

/// The keys that make texts of a row.
#[derive(Debug, Clone)]
pub struct Prompt {
    pub text: Field,
    pub target: Field,
    pub choice: Option<Field>,
    /// The beginning of the answer.
    pub gen_prefix: Option<Arc<Template>>,
    /// Between a question and its answer.
    pub target_delimiter: String,
    /// After an example.
    pub fewshot_delimiter: String,
}

impl Prompt {
    /// Reads the keys of a task.
    ///
    /// # Errors
    /// A key is missing or has a wrong value.
    pub fn read(keys: &mut Keys, own_functions: bool) -> Result<Self, RecipeError> {
        let mut field =
            |name: &str| keys.take(name).map(|key| Field::read(&key, own_functions)).transpose();
        let (text, target, choice) =
            (field("doc_to_text")?, field("doc_to_target")?, field("doc_to_choice")?);
        let required = |field: Option<Field>, name: &str| {
            field.ok_or_else(|| {
                keys.missing(
                    format!("`{name}` is missing"),
                    format!("write {name}: with a column's name or a Jinja template"),
                )
            })
        };
        let (text, target) = (required(text, "doc_to_text")?, required(target, "doc_to_target")?);
        let gen_prefix = keys.take("gen_prefix").map(|key| template(&key)).transpose()?;
        let mut delimiter = |name: &str, default: &str| match keys.take(name) {
            Some(key) => key.text(),
            None => Ok(default.to_owned()),
        };
        let target_delimiter = delimiter("target_delimiter", " ")?;
        let fewshot_delimiter = delimiter("fewshot_delimiter", "\n\n")?;
        Ok(Self { text, target, choice, gen_prefix, target_delimiter, fewshot_delimiter })
    }

    /// Reads the keys of `fewshot_config`, which replace those of the task in the examples.
    ///
    /// # Errors
    /// A key has a wrong value.
    pub fn replaced_by(&self, keys: &mut Keys, own_functions: bool) -> Result<Self, RecipeError> {
        let mut own = self.clone();
        let mut field =
            |name: &str| keys.take(name).map(|key| Field::read(&key, own_functions)).transpose();
        own.text = field("doc_to_text")?.unwrap_or(own.text);
        own.target = field("doc_to_target")?.unwrap_or(own.target);
        own.choice = field("doc_to_choice")?.or(own.choice);
        if let Some(key) = keys.take("gen_prefix") {
            own.gen_prefix = Some(template(&key)?);
        }
        if let Some(key) = keys.take("target_delimiter") {
            own.target_delimiter = key.text()?;
        }
        if let Some(key) = keys.take("fewshot_delimiter") {
            own.fewshot_delimiter = key.text()?;
        }
        Ok(own)
    }

    /// `doc_to_text`: a text, or a number if the task has one context for each choice.
    ///
    /// # Errors
    /// The row lacks something.
    pub fn text(&self, row: &Row) -> Result<Json, String> {
        match &self.text {
            Field::Whole(number) => Ok(Json::from(*number)),
            Field::Function(function) => function(row),
            Field::List(_) => Err("`doc_to_text` is a list, not a text".to_owned()),
            Field::Text(template) => match row.get(template.source()) {
                Some(value) => Ok(value.clone()),
                None => template.render(row).map(|text| self.number_or_text(text)),
            },
        }
    }

    /// `doc_to_target`: a text, the place of the right choice, or a list of these.
    ///
    /// # Errors
    /// The row lacks something.
    pub fn target(&self, row: &Row) -> Result<Json, String> {
        match &self.target {
            Field::Whole(number) => Ok(Json::from(*number)),
            Field::Function(function) => function(row),
            Field::List(items) => Ok(Json::Array(items.clone())),
            Field::Text(template) => match row.get(template.source()) {
                Some(value) => Ok(value.clone()),
                None => template.render(row).map(|text| {
                    let is_list = text.len() >= 2 && text.starts_with('[') && text.ends_with(']');
                    let list = is_list.then(|| literal_eval(&text)).flatten();
                    list.unwrap_or_else(|| self.number_or_text(text))
                }),
            },
        }
    }

    /// `doc_to_choice`, if the task has it.
    ///
    /// # Errors
    /// The row lacks something, or the value is not a list of texts.
    pub fn choices(&self, row: &Row) -> Result<Option<Vec<String>>, String> {
        let Some(field) = &self.choice else { return Ok(None) };
        let value = match field {
            Field::List(items) => Json::Array(items.clone()),
            Field::Function(function) => function(row)?,
            Field::Whole(number) => Json::from(*number),
            Field::Text(template) => match row.get(template.source()) {
                Some(value) => value.clone(),
                None => {
                    let text = template.render(row)?;
                    literal_eval(&text).ok_or_else(|| {
                        format!("`doc_to_choice` gives `{text}`, which is not a Python list")
                    })?
                }
            },
        };
        let texts = value.as_array().map(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        match texts.flatten() {
            Some(texts) if !texts.is_empty() => Ok(Some(texts)),
            _ => Err(format!("`doc_to_choice` gives {value}, which is not a list of texts")),
        }
    }

    /// As in lm-eval, digits are a number if the task has choices.
    fn number_or_text(&self, text: String) -> Json {
        let number = (self.choice.is_some() && is_digits(&text)).then(|| text.parse::<i64>().ok());
        number.flatten().map_or(Json::String(text), Json::from)
    }
}
