//! A model that answers chats: the decoder, its tokenizer and the ids that end an answer.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;
use serde_json::Value;

use super::error::InferError;
use super::generation::Request;
use super::sampling::{Sampler, Sampling};
use crate::data::{Message, TemplateValues, Tokenizer};
use crate::hub::resolve::resolve_model;
use crate::model::adapter::ModelSource;
use crate::model::adapter::source::Outermost;
use crate::model::decoder::Decoder;
use crate::model::device;
use crate::model::files::{named, read_object};
use crate::model::weights::WeightsError;

const GENERATION: &str = "generation_config.json";

/// A decoder with its tokenizer, loaded from the folder of a model or of an adapter.
pub struct ChatModel {
    source: ModelSource,
    pub model: Decoder,
    pub tokenizer: Arc<Tokenizer>,
    /// Token ids that end an answer.
    pub eos: Vec<u32>,
    /// `repetition_penalty` of generation_config.json; 1 (no effect) if it is not set.
    repetition_penalty: f32,
}

impl ChatModel {
    /// Loads the model or adapter `name`, a folder or a hub id, for inference in `dtype`.
    ///
    /// # Errors
    /// The device does not exist, or a file of the model is missing or damaged.
    pub fn load(name: &str, device: &str, dtype: DType) -> Result<Self, InferError> {
        let device = device::find(device)?;
        let folder = resolve_model(name, "main")?;
        let source = ModelSource::of(&folder).map_err(WeightsError::from)?;
        let model = source.load(Outermost::Attached, &device, dtype, |_, _| ())?;
        let tokenizer = Tokenizer::load(source.folder_with("tokenizer.json"), None, None)?;
        let tokenizer = Arc::new(tokenizer);
        let beside = source.folder_with(GENERATION);
        let eos = ending_ids(beside, &tokenizer)?;
        let repetition_penalty = repetition_penalty(beside)?;
        Ok(Self { source, model, tokenizer, eos, repetition_penalty })
    }

    /// A hash of the weights, the configuration and the tokenizer.
    ///
    /// # Errors
    /// A file of the model cannot be read.
    pub fn fingerprint(&self) -> Result<[u8; 32], InferError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.source.hash().map_err(|error| InferError::ModelFile(error.into()))?);
        hasher.update(&self.tokenizer.fingerprint());
        hasher.update(format!("{:?} {}", self.eos, self.repetition_penalty).as_bytes());
        Ok(*hasher.finalize().as_bytes())
    }

    /// Token ids of a chat, rendered by the chat template with the generation prompt at its end.
    ///
    /// # Errors
    /// The template fails, or the prompt is empty, too long or outside the model's vocabulary.
    pub fn chat_ids(&self, chat: &[Message]) -> Result<Vec<u32>, InferError> {
        self.chat_ids_with(chat, &TemplateValues::default())
    }

    /// As [`Self::chat_ids`], with values of a row for the chat template.
    pub(crate) fn chat_ids_with(
        &self,
        chat: &[Message],
        values: &TemplateValues,
    ) -> Result<Vec<u32>, InferError> {
        let rendered = self.tokenizer.render_with(chat, true, values)?;
        self.checked(self.tokenizer.encode(&rendered.text, false)?)
    }

    /// Token ids of a text that the model continues without a chat template.
    ///
    /// # Errors
    /// The prompt is empty, too long or outside the model's vocabulary.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>, InferError> {
        self.checked(self.tokenizer.encode(text, true)?)
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>, InferError> {
        let vocab_size = self.model.config.vocab_size;
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(InferError::NotInVocabulary { id, vocab_size });
        }
        if ids.is_empty() {
            return Err(InferError::NoTokens);
        }
        let longest = self.model.config.max_position_embeddings;
        if ids.len() >= longest {
            return Err(InferError::TooLong { tokens: ids.len(), longest });
        }
        Ok(ids)
    }

    /// The largest number of tokens in the answer to a prompt of `prompt` tokens: `max_new_tokens`
    /// or, if that is less, the positions that the prompt leaves free.
    pub fn room(&self, prompt: usize, max_new_tokens: usize) -> usize {
        max_new_tokens.min(self.model.config.max_position_embeddings.saturating_sub(prompt))
    }

    /// Applies the repetition penalty of generation_config.json to `sampler`, for this `prompt`.
    pub fn prepare(&self, sampler: &mut Sampler, prompt: &[u32]) {
        sampler.penalize_repetition(self.repetition_penalty, prompt);
    }

    /// Answers several prompts in one batch; each next token is the most likely one.
    ///
    /// # Errors
    /// The tokenizer cannot decode an answer.
    pub fn answer_greedily(
        &self,
        prompts: &[Vec<u32>],
        max_new_tokens: usize,
    ) -> Result<Vec<String>, InferError> {
        let sampler = Sampler::new(Sampling::GREEDY, 0);
        let prompts = prompts.iter().map(|prompt| (prompt.as_slice(), sampler.clone()));
        self.answer(prompts.collect(), max_new_tokens)
    }

    /// Answers several prompts in one batch. An answer ends at an EOS token, after
    /// `max_new_tokens` tokens, or at the model's last position.
    ///
    /// # Errors
    /// The tokenizer cannot decode an answer.
    pub fn answer(
        &self,
        prompts: Vec<(&[u32], Sampler)>,
        max_new_tokens: usize,
    ) -> Result<Vec<String>, InferError> {
        let requests = prompts.into_iter().map(|(prompt, mut sampler)| {
            self.prepare(&mut sampler, prompt);
            let max_new_tokens = self.room(prompt.len(), max_new_tokens);
            Request { prompt, sampler, max_new_tokens }
        });
        let answers = self.model.generate(requests.collect(), &self.eos);
        let texts = answers.iter().map(|ids| Ok(self.tokenizer.decode(ids, true)?));
        texts.collect()
    }
}

/// `repetition_penalty` of generation_config.json. As in transformers, it also applies to greedy
/// decoding.
fn repetition_penalty(folder: &Path) -> Result<f32, InferError> {
    let path = folder.join(GENERATION);
    let Some(object) = optional_json(&path)? else { return Ok(1.0) };
    match object.get("repetition_penalty") {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => match value.as_f64() {
            Some(penalty) if penalty > 0.0 => Ok(penalty as f32),
            _ => Err(InferError::RepetitionPenalty { path, value: value.clone() }),
        },
    }
}

/// The ids that end an answer: the tokenizer's EOS, and `eos_token_id` (one id or several) of
/// generation_config.json. Without that file, `eos_token_id` of config.json, as in transformers.
fn ending_ids(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, InferError> {
    let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    for name in [GENERATION, "config.json"] {
        if let Some(object) = optional_json(&folder.join(name))? {
            ids.extend(named(&object, "eos_token_id"));
            break;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// A JSON object file; `None` if the file does not exist.
fn optional_json(path: &Path) -> Result<Option<Value>, InferError> {
    read_object(path).map_err(|error| InferError::ModelFile(error.into()))
}
