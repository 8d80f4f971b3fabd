//! Answers batches of prompts, turn by turn.

use anyhow::bail;
use serde_json::Value;

use super::arguments::GenerateArguments;
use super::partial::Answer;
use crate::data::{Message, TemplateValues};
use crate::infer::InferError;
use crate::infer::chat_model::ChatModel;
use crate::infer::prompts::{PromptRow, Question};
use crate::infer::sampling::Sampler;

/// The answers to `rows`. Each turn is answered for the whole batch at a time. `first` is the
/// number of the first row.
pub fn answer_batch(
    model: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
    first: usize,
) -> anyhow::Result<Vec<Answer>> {
    let mut talks: Vec<Talk> =
        (first..).zip(rows).map(|(number, row)| Talk::new(number, row, arguments)).collect();
    loop {
        let mut asked = Vec::new();
        for talk in &mut talks {
            if let Some(ids) = talk.ask(model, arguments.raw)? {
                asked.push((talk, ids));
            }
        }
        if asked.is_empty() {
            break;
        }
        let prompts = asked.iter().map(|(talk, ids)| (ids.as_slice(), talk.sampler(arguments)));
        let texts = model.answer(prompts.collect(), arguments.max_new_tokens)?;
        for ((talk, _), text) in asked.into_iter().zip(texts) {
            talk.add_answer(text, arguments.raw);
        }
    }
    Ok(talks.into_iter().map(|talk| talk.answer).collect())
}

/// The conversation of a row so far.
struct Talk<'a> {
    row: &'a PromptRow,
    chat: Vec<Message>,
    answer: Answer,
}

impl<'a> Talk<'a> {
    fn new(number: usize, row: &'a PromptRow, arguments: &GenerateArguments) -> Self {
        let answer = Answer { row: number, turns: Vec::new(), unanswered: None };
        Self { row, chat: opening(row, arguments), answer }
    }

    /// Token ids up to the next answer; `None` if no turn is left.
    ///
    /// Earlier answers may leave no room for a later turn. The answers from that turn on stay
    /// empty, so that a judge still gets a complete file with all other rows.
    fn ask(&mut self, model: &ChatModel, raw: bool) -> anyhow::Result<Option<Vec<u32>>> {
        let turn = self.answer.turns.len();
        let turns = match &self.row.question {
            Question::Chat(_) => 1,
            Question::Turns(turns) => turns.len(),
        };
        if turn == turns {
            return Ok(None);
        }
        if let Question::Turns(turns) = &self.row.question
            && turn > 0
        {
            self.chat.push(Message::new("user", &turns[turn]));
        }
        match encode(model, raw, &self.chat, &self.row.values) {
            Ok(ids) => Ok(Some(ids)),
            Err(error) if turn > 0 && is_too_long(&error) => {
                self.answer.unanswered =
                    Some(format!("no answer from turn {} on: {error}", turn + 1));
                self.answer.turns.resize(turns, String::new());
                Ok(None)
            }
            Err(error) => Err(error.context(self.row.place.clone())),
        }
    }

    /// The sampler of the next answer. Its seed depends on row and turn only, not on the batch.
    fn sampler(&self, arguments: &GenerateArguments) -> Sampler {
        let (row, turn) = (self.answer.row as u64, self.answer.turns.len() as u64);
        Sampler::new(arguments.sampling.sampling(temperature(self.row)), (row << 16) | turn)
    }

    fn add_answer(&mut self, text: String, raw: bool) {
        let text = if raw { text } else { text.trim().to_owned() };
        self.chat.push(Message::new("assistant", &text));
        self.answer.turns.push(text);
    }
}

/// The chat up to the first answer.
pub fn opening(row: &PromptRow, arguments: &GenerateArguments) -> Vec<Message> {
    let mut chat = match &row.question {
        Question::Chat(messages) => messages.clone(),
        Question::Turns(turns) => vec![Message::new("user", &turns[0])],
    };
    if let Some(system) = &arguments.system
        && chat.first().is_none_or(|message| message.role != "system")
    {
        chat.insert(0, Message::new("system", system));
    }
    chat
}

/// Token ids up to the answer. `values` go to the chat template.
pub fn encode(
    model: &ChatModel,
    raw: bool,
    chat: &[Message],
    values: &TemplateValues,
) -> anyhow::Result<Vec<u32>> {
    match (raw, chat) {
        (true, [one]) => Ok(model.text_ids(&one.content)?),
        (true, _) => bail!("--raw continues one text; this is a chat"),
        (false, chat) => Ok(model.chat_ids_with(chat, values)?),
    }
}

/// Whether the prompt leaves no room for an answer.
pub fn is_too_long(error: &anyhow::Error) -> bool {
    error.downcast_ref::<InferError>().is_some_and(InferError::is_too_long)
}

/// FastChat's temperature for the category of an MT-Bench row; 0 for every other row.
fn temperature(row: &PromptRow) -> f64 {
    match (&row.question, row.fields.get("category").and_then(Value::as_str)) {
        (Question::Chat(_), _) => 0.0,
        (_, Some("extraction" | "math" | "coding" | "reasoning")) => 0.0,
        (_, Some("stem" | "humanities")) => 0.1,
        _ => 0.7,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::generate::judges::tests::row;

    #[test]
    fn temperatures_are_fastchats() {
        let category = |name: &str| temperature(&row(json!({"category": name, "turns": ["a"]})));
        assert_eq!(category("math"), 0.0);
        assert_eq!(category("humanities"), 0.1);
        assert_eq!(category("writing"), 0.7);
        assert_eq!(temperature(&row(json!({"prompt": "a", "category": "writing"}))), 0.0);
    }
}
