//! The answers of a model to the requests of documents.
//!
//! Documents are answered in units: consecutive documents whose tokens fit one batch. Few-shot
//! examples that documents share, and the question that the answers of a document share, are
//! computed once in each unit, and only tokens of answers reach the head. Units depend on the
//! documents and the batch size alone, so that the answers do not depend on the number of ranks.

use super::encoding::{EncodedDocument, EncodedKind, EncodedRequest, Encoder, EncodingError};
use super::greedy;
use super::request::{Answer, Document};
use crate::data::TokenizerError;
use crate::data::ragged::{RaggedBatch, ScoredSequence, common_length};
use crate::infer::chat_model::ChatModel;
use crate::kernels::linear_logp::token_scores;
use crate::model::decoder::Decoder;

/// Tokens of a batch unless the user says otherwise.
pub const BATCH_TOKENS: usize = 16_384;

/// Texts that one unit generates at most. Sequences that are generated side by side end at
/// different times; the others of the unit take their places.
const TEXTS_A_UNIT: usize = 32;

/// Answers documents with one model.
pub struct Engine<'a> {
    chat: &'a ChatModel,
    encoder: Encoder<'a>,
    /// Tokens of a batch at most; a document with more is a batch of its own.
    batch_tokens: usize,
}

/// The answers of a unit, document by document, and the tokens that the model read for them.
#[derive(Debug)]
pub struct UnitAnswers {
    pub answers: Vec<Vec<Answer>>,
    pub tokens: usize,
    /// Tokens of generated texts.
    pub new_tokens: usize,
}

impl<'a> Engine<'a> {
    /// # Errors
    /// The tokenizer cannot decode its own BOS or EOS token.
    pub fn new(chat: &'a ChatModel, batch_tokens: usize) -> Result<Self, EncodingError> {
        Ok(Self { chat, encoder: Encoder::new(chat)?, batch_tokens })
    }

    /// The token ids of a document's requests.
    ///
    /// # Errors
    /// A request cannot be encoded, or does not fit the model.
    pub fn encode(&self, document: &Document) -> Result<EncodedDocument, EncodingError> {
        self.encoder.document(document)
    }

    /// Splits documents into units.
    pub fn units<'d>(&self, documents: &'d [EncodedDocument]) -> Vec<&'d [EncodedDocument]> {
        let mut units = Vec::new();
        let (mut from, mut tokens, mut texts) = (0, 0, 0);
        let mut last: &[u32] = &[];
        for (index, document) in documents.iter().enumerate() {
            let own_texts = document.requests.iter().filter(|r| generates(r)).count();
            let own_tokens = new_tokens(document, last);
            let is_full =
                tokens + own_tokens > self.batch_tokens || texts + own_texts > TEXTS_A_UNIT;
            if is_full && index > from {
                units.push(&documents[from..index]);
                (from, tokens, texts, last) = (index, 0, 0, &[]);
            }
            tokens += new_tokens(document, last);
            texts += own_texts;
            last = scored(document).last().map_or(last, EncodedRequest::read);
        }
        if from < documents.len() {
            units.push(&documents[from..]);
        }
        units
    }

    /// Answers all requests of a unit.
    ///
    /// # Errors
    /// The tokenizer cannot decode a generated text.
    pub fn answer(&self, unit: &[EncodedDocument]) -> Result<UnitAnswers, TokenizerError> {
        // On a thread of the pool, the many small operations of generation need not wait for
        // another thread.
        rayon::join(|| self.answer_here(unit), || ()).0
    }

    fn answer_here(&self, unit: &[EncodedDocument]) -> Result<UnitAnswers, TokenizerError> {
        let (mut sequences, mut prompts) = (Vec::new(), Vec::new());
        for request in unit.iter().flat_map(|document| &document.requests) {
            match request.kind {
                EncodedKind::Loglikelihood { first_scored } => {
                    sequences.push(ScoredSequence { ids: &request.ids, first_scored });
                }
                EncodedKind::Generate { .. } => prompts.push(request),
            }
        }
        let (likelihoods, read) = loglikelihoods(&self.chat.model, &sequences);
        let generated = greedy::generate(self.chat, &prompts, self.batch_tokens)?;
        let (mut likelihoods, mut texts) = (likelihoods.into_iter(), generated.texts.into_iter());
        let mut answer = |request: &EncodedRequest| {
            let answer = match request.kind {
                EncodedKind::Loglikelihood { .. } => likelihoods.next(),
                EncodedKind::Generate { .. } => texts.next().map(Answer::Text),
            };
            answer.expect("each request has an answer")
        };
        let answers =
            unit.iter().map(|document| document.requests.iter().map(&mut answer).collect());
        Ok(UnitAnswers {
            answers: answers.collect(),
            tokens: read + generated.tokens,
            new_tokens: generated.new_tokens,
        })
    }
}

/// The log-likelihood of the scored tokens of each sequence, and the number of tokens that the
/// model read.
pub fn loglikelihoods(model: &Decoder, sequences: &[ScoredSequence]) -> (Vec<Answer>, usize) {
    if sequences.is_empty() {
        return (Vec::new(), 0);
    }
    let batch = RaggedBatch::sharing_prefixes(sequences, model.config.short_positions());
    let scores = token_scores(model.scored_states(&batch), model.output_head(), &batch.targets);
    let logps = batch.sum_by_sequence(&scores.logp);
    let mut are_greedy = vec![true; sequences.len()];
    for (sequence, correct) in batch.sequence.iter().zip(&scores.correct) {
        are_greedy[*sequence] &= correct;
    }
    let answers = logps.into_iter().zip(are_greedy);
    let answers = answers.map(|(logp, is_greedy)| Answer::Loglikelihood { logp, is_greedy });
    (answers.collect(), batch.tokens())
}

fn generates(request: &EncodedRequest) -> bool {
    matches!(request.kind, EncodedKind::Generate { .. })
}

fn scored(document: &EncodedDocument) -> impl DoubleEndedIterator<Item = &EncodedRequest> {
    document.requests.iter().filter(|request| !generates(request))
}

/// The tokens that a document adds to a batch that ends with the sequence `last`. Generated texts
/// have a budget of their own.
fn new_tokens(document: &EncodedDocument, last: &[u32]) -> usize {
    let mut last = last;
    let mut tokens = 0;
    for request in scored(document) {
        let read = request.read();
        tokens += read.len() - common_length(last, read);
        last = read;
    }
    tokens
}

/// The tokens that lm-eval's model for transformers reads for a document: each request as a whole
/// sequence, but equal ones once. Its padding and the tokens of generated texts are not counted.
pub fn whole_tokens(document: &EncodedDocument) -> usize {
    let mut seen: Vec<&[u32]> = Vec::new();
    for request in &document.requests {
        if generates(request) || !seen.contains(&request.read()) {
            seen.push(request.read());
        }
    }
    seen.iter().map(|ids| ids.len()).sum()
}
