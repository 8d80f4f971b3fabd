//! Text out of a model: several sequences at a time, each token read once.

use super::kv_cache::KeyValueCache;
use super::sampling::{Sampler, Sampling};
use crate::model::decoder::Decoder;

/// A prompt to be continued, and what chooses its tokens.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Not empty.
    pub prompt: &'a [u32],
    pub sampler: Sampler,
    pub max_new_tokens: usize,
}

impl Decoder {
    /// Continues `prompt` with the most likely token each time, until `eos` or `max_new_tokens`.
    /// Returns only the new ids, without the final `eos`.
    pub fn generate_greedy(&self, prompt: &[u32], max_new_tokens: usize, eos: &[u32]) -> Vec<u32> {
        let sampler = Sampler::new(Sampling::GREEDY, 0);
        let request = Request { prompt, sampler, max_new_tokens };
        self.generate(vec![request], eos).pop().unwrap_or_default()
    }

    /// Continues each prompt, all at a time, until an id of `eos` or its `max_new_tokens`. Returns only the new ids, without
    /// the final `eos`.
    pub fn generate(&self, requests: Vec<Request>, eos: &[u32]) -> Vec<Vec<u32>> {
        let mut cache = KeyValueCache::new(&self.config, requests.len());
        let mut new: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
        let most: Vec<usize> = requests.iter().map(|request| request.max_new_tokens).collect();
        let mut unread: Vec<(usize, Vec<u32>)> =
            requests.iter().map(|request| request.prompt.to_vec()).enumerate().collect();
        unread.retain(|(sequence, _)| most[*sequence] > 0);
        let mut samplers: Vec<Sampler> =
            requests.into_iter().map(|request| request.sampler).collect();
        while !unread.is_empty() {
            let chunks: Vec<(usize, &[u32])> =
                unread.iter().map(|(sequence, tokens)| (*sequence, tokens.as_slice())).collect();
            let next = self.next_tokens(&mut cache, &chunks, &mut samplers);
            let read: Vec<usize> = unread.iter().map(|(sequence, _)| *sequence).collect();
            unread.clear();
            for (sequence, id) in read.into_iter().zip(next) {
                if eos.contains(&id) {
                    continue;
                }
                new[sequence].push(id);
                if new[sequence].len() < most[sequence] {
                    unread.push((sequence, vec![id]));
                }
            }
        }
        new
    }

    /// Reads `chunks` (sequence and its next tokens) and chooses the token that follows each; `samplers[sequence]` chooses.
    pub fn next_tokens(
        &self,
        cache: &mut KeyValueCache,
        chunks: &[(usize, &[u32])],
        samplers: &mut [Sampler],
    ) -> Vec<u32> {
        let logits = self.read_on(cache, chunks).into_data();
        let logits = logits.try_into_vec::<f32>().expect("logits are float32");
        let rows = logits.chunks_exact(self.config.vocab_size);
        rows.zip(chunks).map(|(row, (sequence, _))| samplers[*sequence].next(row)).collect()
    }
}
