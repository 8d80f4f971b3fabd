//! Generation: several sequences in one batch, with a key-value cache.

use super::kv_cache::KeyValueCache;
use super::sampling::{Sampler, Sampling};
use crate::model::decoder::Decoder;

/// A prompt to continue, and the sampler that chooses its next tokens.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Token ids, at least one.
    pub prompt: &'a [u32],
    pub sampler: Sampler,
    pub max_new_tokens: usize,
}

impl Decoder {
    /// Continues `prompt` greedily until an id of `eos` or `max_new_tokens` tokens. Returns the new
    /// ids only, without the id of `eos` that ended them.
    pub fn generate_greedy(&self, prompt: &[u32], max_new_tokens: usize, eos: &[u32]) -> Vec<u32> {
        let sampler = Sampler::new(Sampling::GREEDY, 0);
        let request = Request { prompt, sampler, max_new_tokens };
        self.generate(vec![request], eos).pop().unwrap_or_default()
    }

    /// Continues all prompts in one batch, each until an id of `eos` or its `max_new_tokens`.
    /// Returns the new ids of each prompt, without the id of `eos` that ended them.
    pub fn generate(&self, requests: Vec<Request>, eos: &[u32]) -> Vec<Vec<u32>> {
        let mut cache = KeyValueCache::new(&self.config, requests.len());
        let mut new: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
        let limits: Vec<usize> = requests.iter().map(|request| request.max_new_tokens).collect();
        let mut unread: Vec<(usize, Vec<u32>)> =
            requests.iter().map(|request| request.prompt.to_vec()).enumerate().collect();
        unread.retain(|(sequence, _)| limits[*sequence] > 0);
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
                if new[sequence].len() < limits[sequence] {
                    unread.push((sequence, vec![id]));
                }
            }
        }
        new
    }

    /// Runs the model on `chunks`, each a sequence with its next tokens, and samples the token that
    /// follows each chunk with `samplers[sequence]`.
    pub fn next_tokens(
        &self,
        cache: &mut KeyValueCache,
        chunks: &[(usize, &[u32])],
        samplers: &mut [Sampler],
    ) -> Vec<u32> {
        let logits = self.forward_cached(cache, chunks).into_data();
        let logits = logits.try_into_vec::<f32>().expect("logits are float32");
        let rows = logits.chunks_exact(self.config.vocab_size);
        rows.zip(chunks).map(|(row, (sequence, _))| samplers[*sequence].next(row)).collect()
    }
}
