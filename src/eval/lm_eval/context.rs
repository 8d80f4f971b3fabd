//! Prompts as lm-eval builds them: description, examples, question; as text or as a chat.

use std::sync::Arc;

use serde_json::Value as Json;

use crate::data::Message;
use crate::eval::config::TaskConfig;
use crate::eval::config::prompt::resolved;
use crate::eval::options::Options;
use crate::eval::python::text_of;
use crate::eval::row::Row;
use crate::eval::template::Template;

/// A part of a prompt. As text, `delimiter` follows it.
#[derive(Debug, Clone)]
struct Turn {
    role: &'static str,
    content: String,
    delimiter: String,
}

/// The prompts of one task.
#[derive(Debug)]
pub struct Contexts<'a> {
    pub config: &'a TaskConfig,
    pub options: &'a Options,
    /// Whether the task has one context for each choice: `doc_to_text` is then a number.
    pub per_choice: bool,
}

impl Contexts<'_> {
    /// The contexts of a row behind its examples: one, or one for each choice.
    ///
    /// # Errors
    /// A row lacks something that the task needs, or the chat template refuses the chat.
    pub fn of(&self, row: &Row, examples: &[&Row]) -> Result<Vec<Arc<str>>, String> {
        let prompt = &self.config.prompt;
        let gen_prefix = prefix(prompt.gen_prefix.as_deref(), row)?;
        let mut turns = self.system(row)?;
        for example in examples {
            self.add_example(&mut turns, example)?;
        }
        let questions = match self.per_choice {
            true => self.choices(row)?,
            false => vec![question_text(&prompt.text(row)?)?],
        };
        let delimiter = if self.per_choice { "" } else { prompt.target_delimiter.as_str() };
        let context = |question: String| {
            let mut turns = turns.clone();
            turns.extend(turn_of(question, None, gen_prefix.as_deref(), delimiter, ""));
            self.rendered(turns, gen_prefix.is_some())
        };
        questions.into_iter().map(context).collect()
    }

    /// The choices of a row.
    ///
    /// # Errors
    /// The task has none, or the row lacks something.
    pub fn choices(&self, row: &Row) -> Result<Vec<String>, String> {
        let choices = self.config.prompt.choices(row)?;
        choices.ok_or_else(|| "the task has no `doc_to_choice`".to_owned())
    }

    fn system(&self, row: &Row) -> Result<Vec<Turn>, String> {
        let description = match &self.config.description {
            Some(template) => text_of(&resolved(template, row)?),
            None => String::new(),
        };
        let instruction = self.options.system_instruction.as_deref().unwrap_or_default();
        let text = joined(instruction, &description, &self.config.prompt.fewshot_delimiter);
        let is_empty = text.is_empty();
        let turn = Turn { role: "system", content: text, delimiter: String::new() };
        Ok(if is_empty { Vec::new() } else { vec![turn] })
    }

    fn add_example(&self, turns: &mut Vec<Turn>, row: &Row) -> Result<(), String> {
        let prompt = &self.config.fewshot.prompt;
        let mut choices = prompt.choices(row)?;
        let mut question = prompt.text(row)?;
        if self.per_choice {
            let own = choices.take().ok_or("the examples have no `doc_to_choice`")?;
            question = Json::from(chosen(&own, &question)?);
        }
        let answer = answer_text(&prompt.target(row)?, choices.as_deref())?;
        let gen_prefix = prefix(prompt.gen_prefix.as_deref(), row)?;
        turns.extend(turn_of(
            question_text(&question)?,
            answer,
            gen_prefix.as_deref(),
            &prompt.target_delimiter,
            &prompt.fewshot_delimiter,
        ));
        Ok(())
    }

    fn rendered(&self, turns: Vec<Turn>, continues: bool) -> Result<Arc<str>, String> {
        let Some(chat) = &self.options.chat else {
            let text = turns.into_iter().map(|turn| turn.content + &turn.delimiter);
            return Ok(text.collect::<String>().into());
        };
        let messages = match chat.fewshot_as_multiturn {
            true => turns.into_iter().map(|turn| Message::new(turn.role, turn.content)).collect(),
            false => single_turn(turns, continues),
        };
        chat.render(&messages).map(Arc::from).map_err(|error| error.to_string())
    }
}

/// All turns of the examples and the question in one message of the user. A system message before
/// them, and the beginning of an answer behind them, stay messages of their own.
fn single_turn(mut turns: Vec<Turn>, continues: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    if turns.first().is_some_and(|turn| turn.role == "system") {
        messages.push(Message::new("system", turns.remove(0).content));
    }
    let answer = if continues { turns.pop() } else { None };
    let last = turns.pop();
    let mut text: String = turns.into_iter().map(|turn| turn.content + &turn.delimiter).collect();
    text.extend(last.map(|turn| turn.content));
    messages.push(Message::new("user", text));
    messages.extend(answer.map(|turn| Message::new("assistant", turn.content)));
    messages
}

/// A question, with its answer if it is an example.
fn turn_of(
    question: String,
    answer: Option<String>,
    gen_prefix: Option<&str>,
    target_delimiter: &str,
    fewshot_delimiter: &str,
) -> Vec<Turn> {
    let delimiter = match (&answer, gen_prefix) {
        (Some(_), None) => target_delimiter,
        (_, Some(prefix)) if needs_delimiter(&question, prefix) => target_delimiter,
        _ => "",
    };
    let turn =
        |role, content, delimiter: &str| Turn { role, content, delimiter: delimiter.to_owned() };
    let question = turn("user", question, delimiter);
    match (answer, gen_prefix) {
        (Some(answer), prefix) => {
            let answer = joined(prefix.unwrap_or_default(), &answer, " ");
            vec![question, turn("assistant", answer, fewshot_delimiter)]
        }
        (None, Some(prefix)) => vec![question, turn("assistant", prefix.to_owned(), "")],
        (None, None) => vec![question],
    }
}

/// The beginning of an answer.
fn prefix(template: Option<&Template>, row: &Row) -> Result<Option<String>, String> {
    let Some(template) = template else { return Ok(None) };
    let text = text_of(&resolved(template, row)?);
    Ok((!text.is_empty()).then_some(text))
}

fn question_text(value: &Json) -> Result<String, String> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| format!("`doc_to_text` gives {value}, which is not a text"))
}

/// The text of an answer: itself, the choice at its place, or the first of several answers. An
/// empty answer is none.
fn answer_text(target: &Json, choices: Option<&[String]>) -> Result<Option<String>, String> {
    let first = match target {
        Json::Array(answers) => answers.first().ok_or("`doc_to_target` gives an empty list")?,
        other => other,
    };
    match (first, choices) {
        (Json::String(text), _) if text.is_empty() && !target.is_array() => Ok(None),
        (Json::String(text), _) => Ok(Some(text.clone())),
        (Json::Number(_), Some(choices)) if !target.is_array() => chosen(choices, first).map(Some),
        _ => Err(format!("`doc_to_target` gives {target}, which is not the text of an answer")),
    }
}

/// The choice at a place; a negative place counts from the end.
fn chosen(choices: &[String], place: &Json) -> Result<String, String> {
    let found = place.as_i64().and_then(|place| {
        let from_end = choices.len().checked_sub(place.unsigned_abs() as usize);
        let place = if place < 0 { from_end } else { usize::try_from(place).ok() };
        choices.get(place?).cloned()
    });
    found.ok_or_else(|| format!("the place {place} is not among {} choices", choices.len()))
}

/// Both texts, with the delimiter between them if neither has white space there.
fn joined(before: &str, after: &str, delimiter: &str) -> String {
    match needs_delimiter(before, after) && !after.is_empty() {
        true => format!("{before}{delimiter}{after}"),
        false => format!("{before}{after}"),
    }
}

fn needs_delimiter(before: &str, after: &str) -> bool {
    let is_space = |character: Option<char>| character.is_some_and(crate::data::is_space);
    !before.is_empty() && !is_space(before.chars().next_back()) && !is_space(after.chars().next())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(turns: Vec<Turn>) -> String {
        turns.into_iter().map(|turn| turn.content + &turn.delimiter).collect()
    }

    #[test]
    fn delimiters_stand_only_between_texts() {
        let turns = |answer: Option<&str>, prefix: Option<&str>| {
            text(turn_of("Q".to_owned(), answer.map(str::to_owned), prefix, " ", "\n\n"))
        };
        assert_eq!(turns(Some("a"), None), "Q a\n\n");
        assert_eq!(turns(None, None), "Q");
        assert_eq!(turns(None, Some("The")), "Q The");
        assert_eq!(turns(None, Some("\nThe")), "Q\nThe");
        assert_eq!(turns(Some("a"), Some("The")), "Q The a\n\n");
        assert_eq!(joined("", "x", "-"), "x");
        assert_eq!(joined("x", "", "-"), "x");
        assert_eq!(joined("x", "y", "-"), "x-y");
        assert_eq!(joined("x\n", "y", "-"), "x\ny");
    }

    #[test]
    fn answers_are_texts_or_places_of_choices() {
        let choices = ["x".to_owned(), "y".to_owned()];
        let answer = |target: Json| answer_text(&target, Some(&choices));
        assert_eq!(answer(json!(1)), Ok(Some("y".to_owned())));
        assert_eq!(answer(json!(-2)), Ok(Some("x".to_owned())));
        assert_eq!(answer(json!(["a", "b"])), Ok(Some("a".to_owned())));
        assert_eq!(answer(json!("")), Ok(None));
        assert!(answer(json!(2)).is_err());
        assert!(answer(json!(null)).is_err());
        assert!(answer_text(&json!(1), None).is_err());
    }

    #[test]
    fn a_single_turn_has_the_examples_in_the_users_message() {
        let turns = |continues: bool| {
            let mut turns =
                vec![Turn { role: "system", content: "S".into(), delimiter: "".into() }];
            turns.extend(turn_of("Q".into(), Some("a".into()), None, " ", "\n\n"));
            turns.extend(turn_of("R".into(), None, continues.then_some("The"), " ", ""));
            single_turn(turns, continues)
        };
        let (system, user) = (Message::new("system", "S"), Message::new("user", "Q a\n\nR"));
        assert_eq!(turns(false), [system.clone(), user.clone()]);
        assert_eq!(turns(true), [system, user, Message::new("assistant", "The")]);
    }
}
