//! The state of several sequences that are generated side by side.
//!
//! On the CPU, a sequence keeps its keys and values in main memory ([`KeptKeys`]), and prompts that
//! are read together share their common beginnings. On other devices, the state is a
//! [`KeyValueCache`] and each prompt is read as a whole.

use burn::tensor::Tensor;

use super::kv_cache::{KeyValueCache, changes_frequencies};
use crate::data::ragged::{RaggedBatch, ScoredSequence};
use crate::kernels::attention::{
    AttentionLayout, KeptKeys, attention_to_kept, keeps_keys, segment_attention,
};
use crate::kernels::linear::linear;
use crate::kernels::linear_logp::OutputHead;
use crate::kernels::soft_cap::soft_cap;
use crate::model::decoder::Decoder;

/// A prompt of a sequence, at least one token, and the number of tokens that may follow it.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    pub sequence: usize,
    pub ids: &'a [u32],
    pub max_new_tokens: usize,
}

/// The tokens that several sequences have so far, as the model's layers need them.
pub struct Decoding<'m> {
    model: &'m Decoder,
    state: State,
}

enum State {
    Kept {
        /// `layers[layer][sequence]`.
        layers: Vec<Vec<KeptKeys>>,
        /// The tokens of each sequence.
        tokens: Vec<Vec<u32>>,
    },
    Cached(KeyValueCache),
}

impl<'m> Decoding<'m> {
    /// `sequences` sequences without tokens.
    pub fn new(model: &'m Decoder, sequences: usize) -> Self {
        let state = match keeps_keys(&model.device(), model.dtype()) {
            true => State::Kept {
                layers: vec![vec![KeptKeys::default(); sequences]; model.layers.len()],
                tokens: vec![Vec::new(); sequences],
            },
            false => State::Cached(KeyValueCache::new(&model.config, sequences)),
        };
        Self { model, state }
    }

    /// Reads the prompts of sequences, whose earlier tokens are forgotten. Returns the logits of
    /// the token after each prompt, `[prompts, v]` in float32, and the number of tokens that the
    /// model read.
    pub fn read_prompts(&mut self, prompts: &[Prompt]) -> (Tensor<2>, usize) {
        match &mut self.state {
            State::Cached(cache) => {
                prompts.iter().for_each(|prompt| cache.clear(prompt.sequence));
                let chunks: Vec<(usize, &[u32])> =
                    prompts.iter().map(|prompt| (prompt.sequence, prompt.ids)).collect();
                let read = prompts.iter().map(|prompt| prompt.ids.len()).sum();
                (self.model.forward_cached(cache, &chunks), read)
            }
            State::Kept { layers, tokens } => {
                for prompt in prompts {
                    tokens[prompt.sequence] = prompt.ids.to_vec();
                }
                read_shared(self.model, layers, prompts)
            }
        }
    }

    /// Reads one more token of each given sequence. Returns the logits of the token that follows,
    /// `[tokens, v]` in float32.
    pub fn read_tokens(&mut self, tokens: &[(usize, u32)]) -> Tensor<2> {
        match &mut self.state {
            State::Cached(cache) => {
                let chunks: Vec<(usize, &[u32])> = tokens
                    .iter()
                    .map(|(sequence, id)| (*sequence, std::slice::from_ref(id)))
                    .collect();
                self.model.forward_cached(cache, &chunks)
            }
            State::Kept { layers, tokens: read } => {
                let short = self.model.config.short_positions();
                let grows = tokens.iter().map(|(sequence, _)| {
                    let before = read[*sequence].len();
                    changes_frequencies(short, before, before + 1)
                });
                let grows: Vec<bool> = grows.collect();
                if !grows.contains(&true) {
                    return read_one_each(self.model, layers, read, tokens);
                }
                let rows = tokens.iter().zip(grows).map(|(token, grows)| match grows {
                    true => read_again(self.model, layers, read, *token),
                    false => read_one_each(self.model, layers, read, &[*token]),
                });
                Tensor::cat(rows.collect(), 0)
            }
        }
    }
}

/// Reads prompts in one batch, and keeps the keys and values of all their tokens.
fn read_shared(
    model: &Decoder,
    layers: &mut [Vec<KeptKeys>],
    prompts: &[Prompt],
) -> (Tensor<2>, usize) {
    // The batch scores a token after each prompt; only the state that predicts it is used.
    let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| [prompt.ids, &[0]].concat()).collect();
    let sequences: Vec<ScoredSequence> =
        ids.iter().map(|ids| ScoredSequence { ids, first_scored: ids.len() - 1 }).collect();
    let batch = RaggedBatch::sharing_prefixes(&sequences, model.config.short_positions());
    let mut last = vec![0; prompts.len()];
    for (predictor, sequence) in batch.scored.iter().zip(&batch.sequence) {
        last[*sequence] = *predictor;
    }
    let paths: Vec<Vec<usize>> = last.iter().map(|token| batch.path_to(*token)).collect();
    let layout = AttentionLayout::new(&model.config.attention_shape(), &batch.segments);
    let mut hidden_td = model.embed(&batch.ids);
    for (layer, kept) in model.layers.iter().zip(layers) {
        hidden_td = layer.forward_with(hidden_td, |q_t, k_t, v_t| {
            let layout = AttentionLayout::of_layer(&layout, layer.kind);
            let [k, v] = [&k_t, &v_t].map(|x| x.clone().into_data());
            let [k, v] = [&k, &v].map(|x| x.as_slice::<f32>().expect("kept keys are float32"));
            for (prompt, path) in prompts.iter().zip(&paths) {
                let room = path.len() + prompt.max_new_tokens;
                kept[prompt.sequence] = KeptKeys::of_tokens(k, v, path, layout, room);
            }
            segment_attention(q_t, k_t, v_t, layout)
        });
    }
    (logits(model, hidden_td, &last), batch.tokens())
}

/// Reads a sequence with one more token as a whole, because its rotary frequencies change. Returns
/// its logits, `[1, v]`.
fn read_again(
    model: &Decoder,
    layers: &mut [Vec<KeptKeys>],
    read: &mut [Vec<u32>],
    (sequence, id): (usize, u32),
) -> Tensor<2> {
    read[sequence].push(id);
    let ids = &read[sequence];
    // Room for twice the tokens: further tokens move the keys seldom.
    let prompt = Prompt { sequence, ids, max_new_tokens: ids.len() };
    read_shared(model, layers, &[prompt]).0
}

/// Reads one token of each sequence.
fn read_one_each(
    model: &Decoder,
    layers: &mut [Vec<KeptKeys>],
    read: &mut [Vec<u32>],
    tokens: &[(usize, u32)],
) -> Tensor<2> {
    let shape = model.config.attention_shape();
    let positions: Vec<u32> =
        tokens.iter().map(|(sequence, _)| read[*sequence].len() as u32).collect();
    let mut ids: Vec<u32> = tokens.iter().map(|(_, id)| *id).collect();
    let rows = ids.len();
    // A product of one row sums in another order than one of several rows. With a second row, the
    // logits do not depend on the number of sequences that are still generated.
    let alone = rows == 1;
    if alone {
        ids.push(ids[0]);
    }
    let mut hidden_nd = model.embed(&ids);
    for (layer, kept) in model.layers.iter().zip(layers) {
        let mut kept = chosen(kept, tokens);
        hidden_nd = layer.forward_with(hidden_nd, |q, k, v| {
            let inputs = match alone {
                true => [q, k, v].map(|x| x.narrow(0, 0, 1)),
                false => [q, k, v],
            };
            let out = attention_to_kept(inputs, &mut kept, &positions, &shape, layer.kind);
            if alone { Tensor::cat(vec![out.clone(), out], 0) } else { out }
        });
    }
    for (sequence, id) in tokens {
        read[*sequence].push(*id);
    }
    logits(model, hidden_nd, &(0..ids.len()).collect::<Vec<_>>()).narrow(0, 0, rows)
}

/// The kept keys of the sequences of `tokens`, in their order.
fn chosen<'k>(kept: &'k mut [KeptKeys], tokens: &[(usize, u32)]) -> Vec<&'k mut KeptKeys> {
    let mut all: Vec<Option<&mut KeptKeys>> = kept.iter_mut().map(Some).collect();
    let chosen = tokens.iter().map(|(sequence, _)| all[*sequence].take());
    chosen.map(|kept| kept.expect("a sequence gets one token at a time")).collect()
}

/// Logits of the given rows, `[rows, v]`. A single row is computed as one of two, so that its
/// logits do not depend on the other sequences.
fn logits(model: &Decoder, hidden_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    if let [row] = rows {
        return logits(model, hidden_td, &[*row, *row]).narrow(0, 0, 1);
    }
    let OutputHead { weight_vd, softcap } = model.output_head();
    soft_cap(linear(model.scored_hidden(hidden_td, rows), weight_vd), softcap)
}
