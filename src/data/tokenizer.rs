//! A Hugging Face tokenizer folder: tokenizer.json, special tokens, chat template.

mod error;
mod folder;
mod save;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Once,
};

use serde_json::Value as Json;
use tokenizers::{
    AddedToken, Encoding, ModelWrapper, SplitDelimiterBehavior,
    pre_tokenizers::split::{Split, SplitPattern},
};

use super::Message;
use super::added_tokens::{AddedTokens, set_flags};
use super::assistant_spans::Rendered;
use super::template::{ChatTemplate, TemplateError};
use super::template_values::TemplateValues;
use super::words::{Words, words_are_independent};
use crate::files::caught::caught;
use crate::files::hash::PartsHasher;
pub use error::TokenizerError;
use folder::{
    ADDED, CONFIG, FILES, SPECIAL, class_means_other_ids, own_template, read_json, special_tokens,
};

/// The tries of one search of a regular expression: some tenths of a second of work. A search of a
/// real tokenizer makes at most a few for each character of a word or of a run of blanks.
/// Oniguruma's own limit is the same number, but for each place at which a search tries to match.
const MOST_TRIES: std::ffi::c_ulong = 10_000_000;
/// Turns text and chats into token ids. tokenizer.json determines the ids, with the tokens that
/// transformers registers on loading (see [`super::added_tokens`]); the class in
/// tokenizer_config.json is ignored.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    words: Option<Words>,
    dir: PathBuf,
    special: BTreeMap<String, String>,
    template: Option<ChatTemplate>,
    template_is_ours: bool,
    class_means_other_ids: bool,
    eos_is_ours: bool,
    fingerprint: [u8; 32],
}

impl Tokenizer {
    /// Loads the tokenizer in `dir`. `chat_template` and `eos_override` (the text of a token)
    /// replace the folder's own.
    pub fn load(
        dir: &Path,
        chat_template: Option<&str>,
        eos_override: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let slow =
                ["tokenizer.model", "vocab.json"].iter().any(|name| dir.join(name).is_file());
            return Err(TokenizerError::Missing { dir: dir.to_owned(), slow });
        }
        let bytes = std::fs::read(&path)
            .map_err(|source| TokenizerError::Io { path: path.clone(), source })?;
        let broken = |message: String| TokenizerError::Broken { path: path.clone(), message };
        let mut definition: Json =
            serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        let config = read_json(&dir.join(CONFIG))?;
        let bytes = match set_flags(&mut definition, &config) {
            true => definition.to_string().into_bytes(),
            false => bytes,
        };
        limit_backtracking();
        let read = caught(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(broken)?;
        let mut inner = read.map_err(|error| broken(error.to_string()))?;
        // Sequences are truncated by the data rules, and never padded.
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?.with_padding(None);
        let map = read_json(&dir.join(SPECIAL))?;
        let mut special = special_tokens(&config, &map);
        let unregistered = AddedTokens { config: &config, map: &map, special: &special }
            .missing_in(&inner, &read_json(&dir.join(ADDED))?);
        caught(|| inner.add_tokens(&unregistered)).map_err(broken)?;
        switch_dropout_off(&mut inner, &path);
        let words = caught(|| Words::of(&inner, &definition)).map_err(broken)?;
        if words_are_independent(&definition) {
            let before_blanks = Split::new(
                SplitPattern::Regex("\u{2581}+".to_owned()),
                SplitDelimiterBehavior::MergedWithNext,
                false,
            )
            .map_err(|error| broken(error.to_string()))?;
            inner.with_pre_tokenizer(Some(before_blanks));
        }
        if let Some(eos) = eos_override {
            special.insert("eos_token".to_owned(), eos.to_owned());
        }
        for name in ["eos_token", "bos_token"] {
            if let Some(token) =
                special.get(name).filter(|token| inner.token_to_id(token).is_none())
            {
                let (path, name) = match eos_override {
                    Some(_) if name == "eos_token" => (dir, "the recipe's eos_token"),
                    _ => (&*dir.join(CONFIG), name),
                };
                let (path, name, token) = (path.to_owned(), name.to_owned(), token.clone());
                return Err(TokenizerError::NotInVocabulary { path, name, token });
            }
        }
        let own_template = own_template(dir, &config)?;
        // As in Python, which reads text files so, and in Jinja, each line ends in \n.
        let source = chat_template.map(str::to_owned).or(own_template);
        let source = source.map(|text| text.replace("\r\n", "\n").replace('\r', "\n"));
        let fingerprint = fingerprint(&bytes, &unregistered, &special, source.as_deref());
        let template =
            source.map(|source| ChatTemplate::new(&source, special.clone())).transpose()?;
        Ok(Self {
            inner,
            words,
            dir: dir.to_owned(),
            special,
            template,
            template_is_ours: chat_template.is_some(),
            class_means_other_ids: class_means_other_ids(dir, &config)?,
            eos_is_ours: eos_override.is_some(),
            fingerprint,
        })
    }

    /// The token ids of a text. `add_special_tokens` runs the post-processor of tokenizer.json,
    /// which may add BOS.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.tried(|| match &self.words {
            Some(words) => words.encode(&self.inner, text, add_special_tokens),
            None => self
                .inner
                .encode_fast(text, add_special_tokens)
                .map(|encoding| encoding.get_ids().to_vec()),
        })
    }

    /// Runs a part of the tokenizer. If it panics, as on a damaged table, that is an error too.
    fn tried<T>(&self, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
        let path = || self.dir.join("tokenizer.json");
        let failed = |message: String| TokenizerError::Failed { path: path(), message };
        caught(work).map_err(failed)?.map_err(|error| failed(error.to_string()))
    }

    /// The tokens of a text with their positions in characters.
    pub(super) fn encode_with_places(&self, text: &str) -> Result<Encoding, TokenizerError> {
        self.tried(|| self.inner.encode_char_offsets(text, false))
    }

    /// The text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.tried(|| self.inner.decode(ids, skip_special))
    }

    /// The number of tokens, including added ones. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// The id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The id of the padding token; as in TRL, EOS if the tokenizer has none.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id("pad_token").or_else(|| self.eos_id())
    }

    /// The text of the end-of-sequence token.
    pub(super) fn eos_token(&self) -> Result<&str, TokenizerError> {
        self.special
            .get("eos_token")
            .map(String::as_str)
            .ok_or_else(|| TokenizerError::NoEos(self.dir.clone()))
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.special.get(name).and_then(|token| self.inner.token_to_id(token))
    }

    /// The text of a chat, byte for byte as in transformers.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render(messages, add_generation_prompt).map(|rendered| rendered.text)
    }

    /// The text of a chat, with the spans of its `{% generation %}` blocks.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        self.render_with(messages, add_generation_prompt, &TemplateValues::default())
    }

    /// As [`Self::render`], with the values that a row gives to the template.
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        self.template()?.render(messages, add_generation_prompt, values)
    }

    /// The text of a chat with the spans of the assistant's text. They are the `{% generation %}`
    /// blocks of the template, or, if it has none, the answers in the form of its family.
    pub fn render_answers(
        &self,
        messages: &[Message],
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        self.template()?.render_answers(messages, values)
    }

    pub(super) fn template(&self) -> Result<&ChatTemplate, TemplateError> {
        self.template.as_ref().ok_or_else(|| TemplateError::Missing(self.dir.display().to_string()))
    }

    /// The text of the chat template, if the tokenizer has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// A hash of all that determines the ids of a text or chat.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The paths of the tokenizer's files.
    pub fn files(&self) -> Vec<PathBuf> {
        FILES.iter().map(|name| self.dir.join(name)).filter(|path| path.is_file()).collect()
    }
}

/// Limits the tries of one search of a regular expression. Without it, a pattern whose tries grow
/// with a power of the text's length would run for hours.
fn limit_backtracking() {
    static LIMITED: Once = Once::new();
    // SAFETY: the function only sets a number that later searches read, before the first search.
    LIMITED.call_once(|| {
        unsafe { onig_sys::onig_set_retry_limit_in_search(MOST_TRIES) };
    });
}

/// Switches off BPE dropout, which would make the ids random.
fn switch_dropout_off(tokenizer: &mut tokenizers::Tokenizer, path: &Path) {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return };
    if bpe.dropout.is_none_or(|dropout| dropout == 0.0) {
        return;
    }
    let mut bpe = bpe.clone();
    bpe.dropout = None;
    tokenizer.with_model(bpe);
    tracing::warn!(
        "{}: `dropout` of the model makes token ids random; it is switched off",
        path.display()
    );
}

fn fingerprint(
    definition: &[u8],
    added: &[AddedToken],
    special: &BTreeMap<String, String>,
    template: Option<&str>,
) -> [u8; 32] {
    let mut hasher = PartsHasher::default();
    hasher.part(definition);
    for AddedToken { content, single_word, lstrip, rstrip, normalized, special } in added {
        hasher.part(content.as_bytes());
        let flags = [single_word, lstrip, rstrip, normalized, special];
        hasher.part(&flags.map(|flag| u8::from(*flag)));
    }
    for (name, token) in special {
        hasher.part(name.as_bytes());
        hasher.part(token.as_bytes());
    }
    hasher.part(template.unwrap_or_default().as_bytes());
    *hasher.finish().as_bytes()
}

#[cfg(test)]
mod tests;
