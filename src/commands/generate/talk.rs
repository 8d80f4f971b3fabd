//! Batches of prompts, answered turn by turn.

use anyhow::bail;
use serde_json::Value;

use super::GenerateArguments;
use super::partial::Answer;
use crate::data::Message;
use crate::infer::InferError;
use crate::infer::chat_model::ChatModel;
use crate::infer::prompts::{PromptRow, Question};
use crate::infer::sampling::Sampler;

/// The answers to `rows`, turn by turn over the whole batch. `first` is the number of the first row.
pub fn answer_batch(
    speaker: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
    first: usize,
) -> anyhow::Result<Vec<Answer>> {
    let mut talks: Vec<Talk> =
        (first..).zip(rows).map(|(number, row)| Talk::new(number, row, arguments)).collect();
    loop {
        let mut asked = Vec::new();
        for talk in &mut talks {
            if let Some(ids) = talk.ask(speaker, arguments.raw)? {
                asked.push((talk, ids));
            }
        }
        if asked.is_empty() {
            break;
        }
        let prompts = asked.iter().map(|(talk, ids)| (ids.as_slice(), talk.sampler(arguments)));
        let texts = speaker.answer(prompts.collect(), arguments.max_new_tokens)?;
        for ((talk, _), text) in asked.into_iter().zip(texts) {
            talk.hear(text, arguments.raw);
        }
    }
    Ok(talks.into_iter().map(|talk| talk.answer).collect())
}

/// A row's conversation as far as it has gone.
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

    /// Token ids up to where the next answer begins; `None` where nothing is left to ask.
    ///
    /// The answers before it may leave a later turn no room. Its answer and those after it stay empty then: a judge gets a
    /// whole file, and no other row is lost.
    fn ask(&mut self, speaker: &ChatModel, raw: bool) -> anyhow::Result<Option<Vec<u32>>> {
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
        match encode(speaker, raw, &self.chat) {
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

    /// What draws the next answer: each row and each turn draws anew, whatever is in its batch.
    fn sampler(&self, arguments: &GenerateArguments) -> Sampler {
        let (row, turn) = (self.answer.row as u64, self.answer.turns.len() as u64);
        Sampler::new(arguments.sampling.sampling(temperature(self.row)), (row << 16) | turn)
    }

    fn hear(&mut self, text: String, raw: bool) {
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

/// Token ids up to where the answer begins.
pub fn encode(speaker: &ChatModel, raw: bool, chat: &[Message]) -> anyhow::Result<Vec<u32>> {
    match (raw, chat) {
        (true, [one]) => Ok(speaker.text_ids(&one.content)?),
        (true, _) => bail!("--raw continues one text; this is a chat"),
        (false, chat) => Ok(speaker.chat_ids(chat)?),
    }
}

/// Whether the prompt leaves no room for an answer.
pub fn is_too_long(error: &anyhow::Error) -> bool {
    error.downcast_ref::<InferError>().is_some_and(InferError::is_too_long)
}

/// FastChat's temperature of an MT-Bench category; greedy for every other row.
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
    use crate::commands::generate::tests::row;

    #[test]
    fn temperatures_are_fastchats() {
        let category = |name: &str| temperature(&row(json!({"category": name, "turns": ["a"]})));
        assert_eq!(category("math"), 0.0);
        assert_eq!(category("humanities"), 0.1);
        assert_eq!(category("writing"), 0.7);
        assert_eq!(temperature(&row(json!({"prompt": "a", "category": "writing"}))), 0.0);
    }
}
