//! Requests as token ids, by the rules of lm-eval's model for transformers.
//!
//! - Blanks at the end of a context belong to the continuation.
//! - The ids of a continuation are those of the whole text that follow as many ids as the context
//!   alone has.
//! - The post-processor of the tokenizer runs (it may add BOS), unless the text begins with the BOS
//!   token already.
//! - A continuation without a context follows the BOS token, or EOS if the tokenizer has no BOS.
//! - What does not fit the model's positions is cut from the left.

use std::sync::Arc;

use super::request::{Document, Request};
use crate::data::{Tokenizer, TokenizerError};
use crate::infer::chat_model::ChatModel;

/// A document with its requests as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedDocument {
    /// The place of the document in its task.
    pub id: usize,
    pub requests: Vec<EncodedRequest>,
}

/// A request as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedRequest {
    pub ids: Vec<u32>,
    /// The tokens that did not fit and were cut from the left.
    pub cut: usize,
    pub kind: EncodedKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EncodedKind {
    /// The tokens of the continuation begin at `first_scored`, at least 1.
    Loglikelihood { first_scored: usize },
    /// A text of at most `max_tokens` tokens that ends before the first occurrence of a text of
    /// `until`.
    Generate { until: Vec<String>, max_tokens: usize },
}

impl EncodedRequest {
    /// The tokens that the model reads for this request alone. The last token of a continuation
    /// predicts nothing and is not read.
    pub fn read(&self) -> &[u32] {
        match self.kind {
            EncodedKind::Loglikelihood { .. } => &self.ids[..self.ids.len() - 1],
            EncodedKind::Generate { .. } => &self.ids,
        }
    }
}

/// A request that has no token ids which the model can read.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the continuation {continuation:?} adds no token to its context")]
    NoTokens { continuation: String },
    #[error(
        "the continuation has {tokens} tokens, but the model reads {longest} at most\nhelp: leave \
         out this task, or evaluate a model with more positions"
    )]
    ContinuationTooLong { tokens: usize, longest: usize },
    #[error(
        "the task generates up to {max_tokens} tokens, but the model has {longest} positions in \
         all\nhelp: leave out this task, or evaluate a model with more positions"
    )]
    NoRoom { max_tokens: usize, longest: usize },
    #[error("the tokenizer has neither a BOS nor an EOS token for an empty context")]
    NoPrefixToken,
    #[error("the tokenizer gives id {id}, but the model has only {vocab_size} token embeddings")]
    NotInVocabulary { id: u32, vocab_size: usize },
}

/// Encodes the requests of one model.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// BOS or EOS: its id and its text.
    prefix: Option<(u32, String)>,
    /// The text of BOS.
    bos: Option<String>,
    /// Positions of the model.
    longest: usize,
    vocab_size: usize,
}

/// The ids of the context that the last request had.
#[derive(Default)]
struct LastContext(Option<(Arc<str>, Vec<u32>)>);

impl<'a> Encoder<'a> {
    /// # Errors
    /// The tokenizer cannot decode its own BOS or EOS token.
    pub fn new(chat: &'a ChatModel) -> Result<Self, EncodingError> {
        let tokenizer = &chat.tokenizer;
        let text = |id: u32| Ok::<_, TokenizerError>((id, tokenizer.decode(&[id], false)?));
        Ok(Self {
            tokenizer,
            prefix: tokenizer.bos_id().or(tokenizer.eos_id()).map(text).transpose()?,
            bos: tokenizer.bos_id().map(text).transpose()?.map(|(_, text)| text),
            longest: chat.model.config.max_position_embeddings,
            vocab_size: chat.model.config.vocab_size,
        })
    }

    /// # Errors
    /// A request cannot be encoded, or does not fit the model.
    pub fn document(&self, document: &Document) -> Result<EncodedDocument, EncodingError> {
        let mut last = LastContext::default();
        let requests = document.requests.iter().map(|request| match request {
            Request::Loglikelihood { context, continuation } => {
                self.continuation(context, continuation, &mut last)
            }
            Request::Generate { context, until, max_tokens } => {
                self.prompt(context, until, *max_tokens)
            }
        });
        Ok(EncodedDocument { id: document.id, requests: requests.collect::<Result<_, _>>()? })
    }

    fn continuation(
        &self,
        context: &Arc<str>,
        continuation: &str,
        last: &mut LastContext,
    ) -> Result<EncodedRequest, EncodingError> {
        let (context_ids, own) = self.pair(context, continuation, last)?;
        if own.is_empty() {
            return Err(EncodingError::NoTokens { continuation: continuation.to_owned() });
        }
        if own.len() > self.longest {
            let (tokens, longest) = (own.len(), self.longest);
            return Err(EncodingError::ContinuationTooLong { tokens, longest });
        }
        // The last token is not read, so that one more fits.
        let cut = (context_ids.len() + own.len()).saturating_sub(self.longest + 1);
        let first_scored = context_ids.len() - cut;
        let ids = [&context_ids[cut..], &own].concat();
        self.check(&ids)?;
        Ok(EncodedRequest { ids, cut, kind: EncodedKind::Loglikelihood { first_scored } })
    }

    /// The ids of the context, at least one, and of the continuation.
    fn pair(
        &self,
        context: &Arc<str>,
        continuation: &str,
        last: &mut LastContext,
    ) -> Result<(Vec<u32>, Vec<u32>), EncodingError> {
        let (kept, blanks) = context.split_at(context.trim_end_matches(is_blank_in_python).len());
        let context_ids = match &last.0 {
            Some((known, ids)) if known == context => ids.clone(),
            _ => {
                let ids = if kept.is_empty() { Vec::new() } else { self.ids(kept)? };
                last.0 = Some((context.clone(), ids.clone()));
                ids
            }
        };
        if !context_ids.is_empty() {
            let mut whole = self.ids(&format!("{context}{continuation}"))?;
            let own = whole.split_off(context_ids.len().min(whole.len()));
            return Ok((context_ids, own));
        }
        let mut ids = self.tokenizer.encode(&format!("{blanks}{continuation}"), false)?;
        let (prefix, _) = self.prefix.as_ref().ok_or(EncodingError::NoPrefixToken)?;
        if ids.first() == Some(prefix) {
            let own = ids.split_off(1);
            return Ok((ids, own));
        }
        Ok((vec![*prefix], ids))
    }

    fn prompt(
        &self,
        context: &str,
        until: &[String],
        max_tokens: usize,
    ) -> Result<EncodedRequest, EncodingError> {
        if max_tokens >= self.longest {
            return Err(EncodingError::NoRoom { max_tokens, longest: self.longest });
        }
        let has_bos = self.bos.as_ref().is_some_and(|bos| context.starts_with(bos.as_str()));
        let mut ids = self.tokenizer.encode(context, !has_bos)?;
        if ids.is_empty() {
            ids.push(self.prefix.as_ref().ok_or(EncodingError::NoPrefixToken)?.0);
        }
        let cut = ids.len().saturating_sub(self.longest - max_tokens);
        ids.drain(..cut);
        self.check(&ids)?;
        let kind = EncodedKind::Generate { until: until.to_vec(), max_tokens };
        Ok(EncodedRequest { ids, cut, kind })
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let has_prefix =
            self.prefix.as_ref().is_some_and(|(_, prefix)| text.starts_with(prefix.as_str()));
        self.tokenizer.encode(text, !has_prefix)
    }

    fn check(&self, ids: &[u32]) -> Result<(), EncodingError> {
        let vocab_size = self.vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(EncodingError::NotInVocabulary { id: *id, vocab_size }),
            None => Ok(()),
        }
    }
}

/// The characters that Python's `str.rstrip` removes.
fn is_blank_in_python(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
