//! Greedy texts of several prompts side by side. A prompt takes the place of a finished one.

use super::encoding::{EncodedKind, EncodedRequest};
use crate::data::TokenizerError;
use crate::infer::chat_model::ChatModel;
use crate::infer::decoding::{Decoding, Prompt};
use crate::infer::sampling::{Sampler, Sampling};

/// Most sequences that are generated at a time: with more, reading their keys takes longer than
/// reading the weights, so that little is saved.
const MOST_SEQUENCES: usize = 16;
/// Most tokens of prompts that are read at a time. Activations of more tokens would take more
/// memory than the keys and values of all sequences, and would not be faster.
const READ_AT_ONCE: usize = 2048;

/// The texts of all requests, and the number of tokens that the model read for them.
#[derive(Debug, Default)]
pub struct Generated {
    pub texts: Vec<String>,
    pub tokens: usize,
    /// Tokens of the answers.
    pub new_tokens: usize,
}

/// Continues the prompts of `requests` greedily, as transformers' `generate` does with the settings
/// of generation_config.json. At most `batch_tokens` tokens are kept at a time, those of one
/// sequence at least.
///
/// # Errors
/// The tokenizer cannot decode an answer.
pub fn generate(
    chat: &ChatModel,
    requests: &[&EncodedRequest],
    batch_tokens: usize,
) -> Result<Generated, TokenizerError> {
    let longest = requests.iter().map(|request| request.ids.len() + most_new(request)).max();
    let sequences = (batch_tokens / longest.unwrap_or(1).max(1)).clamp(1, MOST_SEQUENCES);
    let mut batch = Batch {
        chat,
        requests,
        decoding: Decoding::new(&chat.model, sequences),
        answers: (0..sequences).map(|_| None).collect(),
        generated: Generated { texts: vec![String::new(); requests.len()], ..Default::default() },
    };
    let mut waiting = 0;
    loop {
        let free = batch.answers.iter().filter(|answer| answer.is_none()).count();
        // Prompts are read several at a time, so that they can share their beginnings.
        let few_are_active = free * 4 >= sequences;
        if waiting < requests.len() && few_are_active {
            let end = requests.len().min(waiting + free);
            while waiting < end {
                waiting += batch.start(waiting..end, READ_AT_ONCE.min(batch_tokens))?;
            }
        } else if free < sequences {
            batch.step()?;
        } else {
            return Ok(batch.generated);
        }
    }
}

fn most_new(request: &EncodedRequest) -> usize {
    match &request.kind {
        EncodedKind::Generate { max_tokens, .. } => *max_tokens,
        EncodedKind::Loglikelihood { .. } => 0,
    }
}

/// The answer of a sequence so far.
struct Running {
    /// The number of its request.
    request: usize,
    ids: Vec<u32>,
    sampler: Sampler,
}

struct Batch<'a> {
    chat: &'a ChatModel,
    requests: &'a [&'a EncodedRequest],
    decoding: Decoding<'a>,
    /// `None` if the sequence is free.
    answers: Vec<Option<Running>>,
    generated: Generated,
}

impl Batch<'_> {
    /// Reads the first prompts of a range, at most `most_tokens` tokens of them but one prompt at
    /// least. A beginning that a prompt shares with the one before it counts once. Returns the
    /// number of prompts.
    fn start(
        &mut self,
        range: std::ops::Range<usize>,
        most_tokens: usize,
    ) -> Result<usize, TokenizerError> {
        let first = range.start;
        let free = (0..self.answers.len()).filter(|sequence| self.answers[*sequence].is_none());
        let mut prompts: Vec<Prompt> = Vec::new();
        let mut tokens = 0;
        for (sequence, request) in free.zip(&self.requests[range]) {
            let before = prompts.last().map_or(&[][..], |prompt| prompt.ids);
            let shared = request.ids.iter().zip(before).take_while(|(a, b)| a == b).count();
            tokens += request.ids.len() - shared;
            if tokens > most_tokens && !prompts.is_empty() {
                break;
            }
            prompts.push(Prompt { sequence, ids: &request.ids, max_new_tokens: most_new(request) });
        }
        let (logits, read) = self.decoding.read_prompts(&prompts);
        self.generated.tokens += read;
        for (offset, prompt) in prompts.iter().enumerate() {
            let mut sampler = Sampler::new(Sampling::GREEDY, 0);
            self.chat.prepare(&mut sampler, prompt.ids);
            let running = Running { request: first + offset, ids: Vec::new(), sampler };
            self.answers[prompt.sequence] = Some(running);
        }
        let sequences: Vec<usize> = prompts.iter().map(|prompt| prompt.sequence).collect();
        self.choose(&sequences, logits)?;
        Ok(sequences.len())
    }

    /// Reads the last token of each answer and chooses the next one.
    fn step(&mut self) -> Result<(), TokenizerError> {
        let last = |(sequence, answer): (usize, &Option<Running>)| {
            Some((sequence, *answer.as_ref()?.ids.last()?))
        };
        let tokens: Vec<(usize, u32)> = self.answers.iter().enumerate().filter_map(last).collect();
        let logits = self.decoding.read_tokens(&tokens);
        self.generated.tokens += tokens.len();
        let sequences: Vec<usize> = tokens.into_iter().map(|(sequence, _)| sequence).collect();
        self.choose(&sequences, logits)
    }

    /// Appends the most likely token to the answers of `sequences`, and frees those that end.
    fn choose(
        &mut self,
        sequences: &[usize],
        logits: burn::tensor::Tensor<2>,
    ) -> Result<(), TokenizerError> {
        let logits = logits.into_data().convert::<f32>();
        let logits = logits.as_slice::<f32>().expect("the data was converted to float32");
        let rows = logits.chunks_exact(self.chat.model.config.vocab_size);
        for (sequence, row) in sequences.iter().zip(rows) {
            let Some(running) = &mut self.answers[*sequence] else { continue };
            let request = self.requests[running.request];
            let EncodedKind::Generate { until, max_tokens } = &request.kind else { continue };
            let id = if *max_tokens > 0 { Some(running.sampler.next(row)) } else { None };
            let id = id.filter(|id| !self.chat.eos.contains(id));
            running.ids.extend(id);
            self.generated.new_tokens += usize::from(id.is_some());
            let text = self.chat.tokenizer.decode(&running.ids, true)?;
            let is_full = running.ids.len() >= *max_tokens;
            if id.is_none() || is_full || contains_any(&text, until) {
                self.generated.texts[running.request] = up_to_first(&text, until).to_owned();
                self.answers[*sequence] = None;
            }
        }
        Ok(())
    }
}

fn contains_any(text: &str, until: &[String]) -> bool {
    until.iter().any(|stop| !stop.is_empty() && text.contains(stop.as_str()))
}

/// The text before the first occurrence of a text of `until`.
fn up_to_first<'t>(text: &'t str, until: &[String]) -> &'t str {
    let stops = until.iter().filter(|stop| !stop.is_empty());
    let first = stops.filter_map(|stop| text.find(stop.as_str())).min();
    &text[..first.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_before_the_first_stop() {
        let until = ["\n\n".to_owned(), "Question:".to_owned(), String::new()];
        assert_eq!(up_to_first("7 Question: b\n\nc", &until), "7 ");
        assert_eq!(up_to_first("7\n", &until), "7\n");
        assert!(contains_any("a\n\n", &until) && !contains_any("a", &until));
    }
}
