//! A model that answers: weights, tokenizer and what ends an answer.

use std::path::{Path, PathBuf};

use burn::tensor::DType;

use super::generation::Request;
use super::sampling::{Sampler, Sampling};
use crate::data::{Message, Tokenizer};
use crate::files::hash::hash_model;
use crate::hub::resolve::resolve_model;
use crate::model::decoder::Decoder;
use crate::model::device;
use crate::model::files::{named, read_object};

/// A prompt that leaves no room for an answer.
#[derive(Debug, thiserror::Error)]
#[error("the prompt has {tokens} tokens; the model was made for {longest}")]
pub struct TooLong {
    tokens: usize,
    longest: usize,
}

/// See the module.
pub struct ChatModel {
    folder: PathBuf,
    pub model: Decoder,
    pub tokenizer: Tokenizer,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// Of generation_config.json; 1 where it has none.
    repetition_penalty: f32,
}

impl ChatModel {
    /// Loads a model from a folder or the hub.
    pub fn load(name: &str, device: &str, dtype: DType) -> anyhow::Result<Self> {
        let device = device::find(device)?;
        let folder = resolve_model(name, "main")?;
        let model = Decoder::load(&folder, &device, dtype, |_, _| ())?;
        let tokenizer = Tokenizer::load(&folder, None, None)?;
        let eos = ending_ids(&folder, &tokenizer)?;
        let repetition_penalty = repetition_penalty(&folder)?;
        Ok(Self { folder, model, tokenizer, eos, repetition_penalty })
    }

    /// A hash of weights, configuration and tokenizer.
    pub fn fingerprint(&self) -> anyhow::Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&hash_model(&self.folder)?);
        hasher.update(&self.tokenizer.fingerprint());
        hasher.update(format!("{:?} {}", self.eos, self.repetition_penalty).as_bytes());
        Ok(*hasher.finalize().as_bytes())
    }

    /// Token ids of a chat up to where the answer begins.
    pub fn chat_ids(&self, chat: &[Message]) -> anyhow::Result<Vec<u32>> {
        let text = self.tokenizer.apply_chat_template(chat, true)?;
        self.checked(self.tokenizer.encode(&text, false)?)
    }

    /// Token ids of a text to be continued as it stands.
    pub fn text_ids(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.checked(self.tokenizer.encode(text, true)?)
    }

    fn checked(&self, ids: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        let pieces = self.model.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= pieces) {
            anyhow::bail!("the tokenizer gives id {id}, but the model has only {pieces} pieces");
        }
        anyhow::ensure!(!ids.is_empty(), "the prompt has no token");
        let longest = self.model.config.max_position_embeddings;
        if ids.len() >= longest {
            return Err(TooLong { tokens: ids.len(), longest }.into());
        }
        Ok(ids)
    }

    /// Tokens that an answer to a prompt of `prompt` tokens may have.
    pub fn room(&self, prompt: usize, max_new_tokens: usize) -> usize {
        max_new_tokens.min(self.model.config.max_position_embeddings.saturating_sub(prompt))
    }

    /// Lets `sampler` choose what follows `prompt` as the model's generation_config.json wants it.
    pub fn prepare(&self, sampler: &mut Sampler, prompt: &[u32]) {
        sampler.penalize_repetition(self.repetition_penalty, prompt);
    }

    /// Answers several prompts at a time, with the most likely token each time.
    pub fn answer_greedily(
        &self,
        prompts: &[Vec<u32>],
        max_new_tokens: usize,
    ) -> anyhow::Result<Vec<String>> {
        let sampler = Sampler::new(Sampling::GREEDY, 0);
        let prompts = prompts.iter().map(|prompt| (prompt.as_slice(), sampler.clone()));
        self.answer(prompts.collect(), max_new_tokens)
    }

    /// Answers several prompts at a time, each as far as the model's positions reach.
    pub fn answer(
        &self,
        prompts: Vec<(&[u32], Sampler)>,
        max_new_tokens: usize,
    ) -> anyhow::Result<Vec<String>> {
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

/// As in transformers it holds however tokens are chosen.
fn repetition_penalty(folder: &Path) -> anyhow::Result<f32> {
    let path = folder.join("generation_config.json");
    let Some(object) = read_object(&path)? else { return Ok(1.0) };
    match object.get("repetition_penalty") {
        None | Some(serde_json::Value::Null) => Ok(1.0),
        Some(value) => match value.as_f64() {
            Some(penalty) if penalty > 0.0 => Ok(penalty as f32),
            _ => anyhow::bail!(
                "{}: `repetition_penalty` needs a number above 0, not {value}",
                path.display()
            ),
        },
    }
}

/// `eos_token_id` (one or several) of generation_config.json or, as transformers has it where there is none, config.json;
/// and the tokenizer's own.
fn ending_ids(folder: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        if let Some(object) = read_object(&folder.join(name))? {
            ids.extend(named(&object, "eos_token_id"));
            break;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
