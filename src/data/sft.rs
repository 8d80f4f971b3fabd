//! A row of an SFT data set → token ids and labels, as in TRL 1.16 (`SFTTrainer._prepare_dataset`).

use super::DataError;
use super::Message;
use super::SftDocument;
use super::Tokenizer;
use super::TokenizerError;
use super::assistant_spans::Family;
use super::report::BadRow;
use super::row::{Outcome, Refusable, Refused, checked, encode, in_one_form, render, with_system};
use super::source::Cell;
use super::template_values::TemplateValues;
use crate::recipe::SftSettings;

/// The kind of columns that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SftLayout {
    /// A chat.
    Messages,
    /// Prompt and completion, either both texts or both chats.
    PromptCompletion,
    /// A text.
    Text,
}

/// The settings that determine the token ids and labels of a row.
pub(super) struct SftRules<'a> {
    pub tokenizer: &'a Tokenizer,
    pub sft: &'a SftSettings,
    /// Insert an empty system message into chats that have none.
    pub insert_system: bool,
    /// Whether rows are packed later; then they are not truncated here.
    pub packing: bool,
}

impl SftRules<'_> {
    /// Chooses from the columns `there`: `prompt` and `completion`, else a chat (`messages`,
    /// `conversations`), else the text field.
    pub fn columns(&self, there: &[String]) -> Option<(SftLayout, Vec<String>)> {
        let has = |name: &str| there.iter().any(|column| column == name);
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        if has("prompt") && has("completion") {
            return Some((SftLayout::PromptCompletion, own(&["prompt", "completion"])));
        }
        if let Some(chat) = ["messages", "conversations"].into_iter().find(|name| has(name)) {
            return Some((SftLayout::Messages, own(&[chat])));
        }
        let text = self.text_field();
        has(text).then(|| (SftLayout::Text, own(&[text])))
    }

    /// The column of plain text.
    pub fn text_field(&self) -> &str {
        self.sft.dataset_text_field.as_deref().unwrap_or("text")
    }

    /// Refuses label settings that do not fit this layout or the chat template. (TRL replaces the
    /// templates of some models by its own, marked ones.)
    pub fn check_labels(&self, split: &'static str, layout: SftLayout) -> Result<(), DataError> {
        let refuse = |message: &str, help: &str| {
            Err(DataError::Labels { split, message: message.to_owned(), help: help.to_owned() })
        };
        if self.sft.completion_only_loss == Some(true) && layout != SftLayout::PromptCompletion {
            return refuse(
                "completion_only_loss needs the columns `prompt` and `completion`, which the data \
                 set lacks",
                "leave completion_only_loss out, or use assistant_only_loss for chats",
            );
        }
        if self.sft.assistant_only_loss && layout == SftLayout::Text {
            return refuse(
                "assistant_only_loss needs chats, but the data set has plain text",
                "leave assistant_only_loss out",
            );
        }
        if self.sft.assistant_only_loss && !self.tokenizer.template()?.finds_answers() {
            let families = Family::names();
            return refuse(
                &format!(
                    "assistant_only_loss needs a chat template that marks the assistant's text \
                     with {{% generation %}} … {{% endgeneration %}}, or one of a known family \
                     ({families})"
                ),
                "copy the model's template, add these two tags, and set `chat_template` to the \
                 copy",
            );
        }
        Ok(())
    }

    /// Makes a document from a row's cells, in the order of [`SftRules::columns`]. `values` go to
    /// the chat template.
    pub fn document(
        &self,
        layout: SftLayout,
        columns: &[String],
        cells: Vec<Cell>,
        values: &TemplateValues,
    ) -> Result<Outcome<SftDocument>, TokenizerError> {
        let made = match layout {
            SftLayout::PromptCompletion => self.prompt_completion(cells, values),
            SftLayout::Messages | SftLayout::Text => self.whole(&columns[0], cells, values),
        };
        let mut document = match made {
            Ok(document) => document,
            Err(refused) => return refused.into_outcome(),
        };
        if let (Some(length), false) = (self.sft.max_length, self.packing) {
            document.ids.truncate(length);
            document.labels.truncate(length);
        }
        Ok(if document.targets() == 0 { Outcome::NoLabel } else { Outcome::Kept(document) })
    }

    fn whole(
        &self,
        column: &str,
        cells: Vec<Cell>,
        values: &TemplateValues,
    ) -> Refusable<SftDocument> {
        match cells.into_iter().next() {
            Some(Cell::Chat(chat)) => {
                let chat = self.checked(chat, column)?;
                let assistant = chat.iter().rfind(|message| message.role == "assistant");
                match assistant {
                    None => return Err(Refused::Row(BadRow::NoAssistantTurn)),
                    Some(last) if last.is_blank() => {
                        return Err(Refused::Row(BadRow::Empty(column.to_owned())));
                    }
                    Some(_) => {}
                }
                self.chat_document(&with_system(&chat, self.insert_system), values)
            }
            Some(Cell::Text(text)) if text.trim().is_empty() => {
                Err(Refused::Row(BadRow::Empty(column.to_owned())))
            }
            Some(Cell::Text(text)) => {
                let ids = encode(self.tokenizer, &self.ended(&text)?, true)?;
                Ok(SftDocument { labels: vec![true; ids.len()], ids })
            }
            Some(Cell::Flag(_) | Cell::Json(_)) => {
                Err(Refused::Row(BadRow::WrongType(column.to_owned())))
            }
            Some(Cell::Bad(reason)) => Err(Refused::Row(reason)),
            None => Err(Refused::Row(BadRow::MissingField(column.to_owned()))),
        }
    }

    fn prompt_completion(
        &self,
        cells: Vec<Cell>,
        values: &TemplateValues,
    ) -> Refusable<SftDocument> {
        let Ok([prompt, completion]) = <[Cell; 2]>::try_from(cells) else {
            return Err(Refused::Row(BadRow::MissingField("completion".to_owned())));
        };
        let (prompt_ids, mut document) = match in_one_form(prompt, completion) {
            (Cell::Bad(reason), _) | (_, Cell::Bad(reason)) => return Err(Refused::Row(reason)),
            (Cell::Chat(prompt), Cell::Chat(completion)) => {
                let prompt = with_system(&self.checked(prompt, "prompt")?, self.insert_system);
                let completion = self.checked(completion, "completion")?;
                if completion.iter().all(Message::is_blank) {
                    return Err(Refused::Row(BadRow::Empty("completion".to_owned())));
                }
                if !completion.iter().any(|message| message.role == "assistant") {
                    return Err(Refused::Row(BadRow::NoAssistantTurn));
                }
                let prompt_ids =
                    encode(self.tokenizer, &render(self.tokenizer, &prompt, true, values)?, false)?;
                (prompt_ids, self.chat_document(&[prompt, completion].concat(), values)?)
            }
            (Cell::Text(prompt), Cell::Text(completion)) => {
                if completion.trim().is_empty() {
                    return Err(Refused::Row(BadRow::Empty("completion".to_owned())));
                }
                let whole = self.ended(&format!("{prompt}{completion}"))?;
                let ids = encode(self.tokenizer, &whole, true)?;
                let document = SftDocument { labels: vec![true; ids.len()], ids };
                (encode(self.tokenizer, &prompt, true)?, document)
            }
            _ => return Err(Refused::Row(BadRow::WrongType("completion".to_owned()))),
        };
        if self.sft.completion_only_loss != Some(false) {
            let prompt = prompt_ids.iter().zip(&document.ids).take_while(|(a, b)| a == b).count();
            document.labels[..prompt].fill(false);
        }
        Ok(document)
    }

    fn checked(&self, chat: Vec<Message>, field: &str) -> Refusable<Vec<Message>> {
        checked(self.tokenizer, chat, field).map_err(Refused::Row)
    }

    /// The text, with EOS appended if it does not end with it.
    fn ended(&self, text: &str) -> Refusable<String> {
        let eos = self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        Ok(if text.ends_with(eos) { text.to_owned() } else { format!("{text}{eos}") })
    }

    fn chat_document(&self, chat: &[Message], values: &TemplateValues) -> Refusable<SftDocument> {
        if !self.sft.assistant_only_loss {
            let ids = encode(self.tokenizer, &render(self.tokenizer, chat, false, values)?, false)?;
            return Ok(SftDocument { labels: vec![true; ids.len()], ids });
        }
        let rendered = self
            .tokenizer
            .render_answers(chat, values)
            .map_err(|error| Refused::Row(BadRow::Template(error.to_string())))?;
        let encoding =
            self.tokenizer.encode_with_places(&rendered.text).map_err(Refused::Tokenizer)?;
        let token_at = |character: usize| encoding.char_to_token(character, 0);
        Ok(SftDocument {
            ids: encoding.get_ids().to_vec(),
            labels: generation_labels(encoding.len(), &rendered.generated, token_at),
        })
    }
}

/// The labels of transformers' `return_assistant_tokens_mask`: each span covers the tokens from the
/// one of its first character to the one of its last. As in transformers, if several byte tokens
/// spell the last character, only the first of them is labelled; and if the last character maps to
/// no token, or to token 0, the span runs to the end.
fn generation_labels(
    tokens: usize,
    spans: &[(usize, usize)],
    token_at: impl Fn(usize) -> Option<usize>,
) -> Vec<bool> {
    let mut labels = vec![false; tokens];
    for (start, end) in spans {
        let Some(first) = token_at(*start) else { break };
        let last = end.checked_sub(1).and_then(&token_at).filter(|last| *last > 0);
        let end = last.map_or(tokens, |last| last + 1);
        if first < end {
            labels[first..end].fill(true);
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_characters_become_labels() {
        // Tokens of the characters 0, 1–3, 4–5 and 4–5 (a character in two byte tokens), 6.
        let places = [(0, 1), (1, 4), (4, 6), (4, 6), (6, 7)];
        let token_at = |character: usize| {
            places.iter().position(|(start, end)| (*start..*end).contains(&character))
        };
        let labels = |spans: &[(usize, usize)]| {
            let labels = generation_labels(places.len(), spans, token_at);
            labels.into_iter().map(u8::from).collect::<Vec<_>>()
        };
        assert_eq!(labels(&[(2, 4), (6, 7)]), [0, 1, 0, 0, 1]);
        assert_eq!(labels(&[(1, 6)]), [0, 1, 1, 0, 0]);
        assert_eq!(labels(&[(4, 9)]), [0, 0, 1, 1, 1]);
        assert_eq!(labels(&[(9, 10), (0, 1)]), [0, 0, 0, 0, 0]);
        assert_eq!(labels(&[(4, 4)]), [0, 0, 0, 0, 0]);
    }
}
