//! The settings of an evaluation that hold for all its tasks.

use std::fmt;
use std::sync::Arc;

use crate::data::{Message, TemplateError, Tokenizer};

/// The seed of few-shot examples in lm-eval.
pub const FEWSHOT_SEED: i64 = 1234;

/// Stands behind a message that is continued.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG";

/// The options of an evaluation that change requests.
#[derive(Debug, Clone)]
pub struct Options {
    /// Examples before each question, instead of the task's own number. A task that sets 0 itself
    /// keeps 0, as in lm-eval.
    pub num_fewshot: Option<usize>,
    /// Only the first documents: a number, or a share below 1.
    pub limit: Option<f64>,
    /// The seed of the examples in the definition `lm-eval`.
    pub fewshot_seed: i64,
    /// Prompts as chats.
    pub chat: Option<Chat>,
    /// A text before each prompt.
    pub system_instruction: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            num_fewshot: None,
            limit: None,
            fewshot_seed: FEWSHOT_SEED,
            chat: None,
            system_instruction: None,
        }
    }
}

/// Prompts in the form of the model's chat template.
#[derive(Clone)]
pub struct Chat {
    tokenizer: Arc<Tokenizer>,
    /// Whether each example is a turn of the user and one of the assistant, instead of all of them
    /// being part of one message.
    pub fewshot_as_multiturn: bool,
}

impl Chat {
    /// # Errors
    /// The tokenizer has no chat template.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        fewshot_as_multiturn: bool,
    ) -> Result<Self, TemplateError> {
        // Any chat shows whether the tokenizer has a template.
        let probe = [Message::new("user", "a")];
        match tokenizer.apply_chat_template(&probe, true) {
            Err(error @ TemplateError::Missing(_)) => Err(error),
            _ => Ok(Self { tokenizer, fewshot_as_multiturn }),
        }
    }

    /// The text of a chat. If the template refuses it, the system message is left out, as in
    /// lm-eval. A last message of the assistant is continued.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.text(messages).or_else(|_| {
            let others: Vec<Message> =
                messages.iter().filter(|message| message.role != "system").cloned().collect();
            self.text(&others)
        })
    }

    fn text(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let Some((last, before)) =
            messages.split_last().filter(|(last, _)| last.role == "assistant")
        else {
            return self.tokenizer.apply_chat_template(messages, true);
        };
        // As in transformers, a mark behind the last message shows where the text ends.
        let marked = Message::new("assistant", format!("{}{MARK} ", last.content));
        let messages: Vec<Message> = before.iter().cloned().chain([marked]).collect();
        let text = self.tokenizer.apply_chat_template(&messages, false)?;
        let Some((start, rest)) = text.rsplit_once(MARK) else {
            let message = "the chat template leaves out the beginning of the answer";
            return Err(TemplateError::Refused(message.to_owned()));
        };
        // A template that trims messages has trimmed the blank of the mark too.
        Ok(if rest.starts_with(' ') { start } else { start.trim_end() }.to_owned())
    }
}

impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chat")
            .field("fewshot_as_multiturn", &self.fewshot_as_multiturn)
            .finish_non_exhaustive()
    }
}

/// The number of documents under a limit; `rounded` rounds the number of a share.
pub(super) fn limited(rows: usize, limit: Option<f64>, rounded: fn(f64) -> f64) -> usize {
    match limit {
        None => rows,
        Some(share) if share < 1.0 => (rounded(rows as f64 * share) as usize).min(rows),
        Some(number) => (number as usize).min(rows),
    }
}
