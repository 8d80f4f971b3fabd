//! A conversation with a model: each answer reads only the tokens that the model has not read yet.

use std::io::{self, Write};

use super::InferError;
use super::chat_model::ChatModel;
use super::kv_cache::KeyValueCache;
use super::sampling::{Sampler, Sampling};
use crate::data::{Message, Tokenizer};

/// Why a message has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    /// The model cannot answer the conversation so far.
    #[error(transparent)]
    Infer(#[from] InferError),
    #[error("cannot write the answer: {0}")]
    Write(#[from] io::Error),
}

/// How a model takes part in a conversation.
#[derive(Debug, Clone)]
pub struct ConversationSettings {
    /// The system message at the start.
    pub system: Option<String>,
    /// Tokens of one answer at most.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
}

/// The messages so far, and the keys and values of the tokens that the model has read.
pub struct Conversation<'a> {
    model: &'a ChatModel,
    settings: ConversationSettings,
    chat: Vec<Message>,
    cache: KeyValueCache,
    /// The tokens in the cache.
    read: Vec<u32>,
    sampler: Sampler,
}

impl<'a> Conversation<'a> {
    /// A conversation without any message of the user.
    pub fn new(model: &'a ChatModel, settings: ConversationSettings) -> Self {
        let cache = KeyValueCache::new(&model.model.config, 1);
        let sampler = Sampler::new(settings.sampling, 0);
        let mut new = Self { model, settings, chat: Vec::new(), cache, read: Vec::new(), sampler };
        new.clear();
        new
    }

    /// Forgets all messages but the system message.
    pub fn clear(&mut self) {
        let system = self.settings.system.iter();
        self.chat = system.map(|text| Message::new("system", text)).collect();
    }

    /// The messages so far, the system message first.
    pub fn messages(&self) -> &[Message] {
        &self.chat
    }

    /// Answers `text`, and writes the answer to `out` token by token.
    ///
    /// # Errors
    /// The model cannot answer, or `out` cannot be written. The conversation is then the one before
    /// this message.
    pub fn say(&mut self, text: &str, out: &mut impl Write) -> Result<(), SayError> {
        self.chat.push(Message::new("user", text));
        match self.answer(out) {
            Ok(answer) => {
                self.chat.push(Message::new("assistant", answer));
                Ok(())
            }
            Err(error) => {
                self.chat.pop();
                Err(error)
            }
        }
    }

    fn answer(&mut self, out: &mut impl Write) -> Result<String, SayError> {
        let prompt = self.model.chat_ids(&self.chat)?;
        let mut unread = self.unread(&prompt);
        self.model.prepare(&mut self.sampler, &prompt);
        let mut answer = StreamedText::default();
        for _ in 0..self.model.room(prompt.len(), self.settings.max_new_tokens) {
            let samplers = std::slice::from_mut(&mut self.sampler);
            let next = self.model.model.next_tokens(&mut self.cache, &[(0, &unread)], samplers);
            self.read.append(&mut unread);
            let id = next[0];
            if self.model.eos.contains(&id) {
                break;
            }
            unread.push(id);
            out.write_all(answer.push(id, &self.model.tokenizer)?.as_bytes())?;
            out.flush()?;
        }
        out.write_all(answer.rest().as_bytes())?;
        out.flush()?;
        Ok(answer.text.trim().to_owned())
    }

    /// The tokens of `prompt` that are not in the cache yet: at least the last one.
    fn unread(&mut self, prompt: &[u32]) -> Vec<u32> {
        let same = self.read.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = self.cache.truncate(0, same.min(prompt.len() - 1));
        self.read.truncate(kept);
        prompt[kept..].to_vec()
    }
}

/// The text of an answer, token by token. A token may be a part of a character, whose text then
/// waits for the other parts.
#[derive(Default)]
struct StreamedText {
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` that were returned.
    returned: usize,
}

impl StreamedText {
    /// Adds a token and returns the text that it completes.
    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<&str, InferError> {
        self.ids.push(id);
        self.text = tokenizer.decode(&self.ids, true)?;
        let whole = self.text.trim_end_matches('\u{fffd}').len();
        Ok(self.up_to(whole))
    }

    /// The text that was held back.
    fn rest(&mut self) -> &str {
        self.up_to(self.text.len())
    }

    fn up_to(&mut self, end: usize) -> &str {
        let from = self.returned;
        self.returned = end.max(from);
        self.text.get(from..end).unwrap_or_default()
    }
}
