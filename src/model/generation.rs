//! Text out of a model: greedy continuation.

use super::decoder::Decoder;
use crate::data::ragged::RaggedBatch;

impl Decoder {
    /// Continues `prompt` with the most likely token each time, until `eos` or `max_new_tokens`.
    /// Returns only the new ids, without the final `eos`.
    pub fn generate_greedy(&self, prompt: &[u32], max_new_tokens: usize, eos: &[u32]) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        while ids.len() < prompt.len() + max_new_tokens {
            let next = self.most_likely_next(&ids);
            if eos.contains(&next) {
                break;
            }
            ids.push(next);
        }
        ids.split_off(prompt.len())
    }

    fn most_likely_next(&self, ids: &[u32]) -> u32 {
        let hidden = self.hidden(&RaggedBatch::whole(ids));
        let logits = self.logits(hidden, &[ids.len() - 1]).into_data();
        let logits = logits.try_into_vec::<f32>().expect("logits are float32");
        let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(id, _)| id as u32)
    }
}
