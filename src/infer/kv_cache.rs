//! Keys and values of the tokens that a model has read, so that a sequence grows by a token without reading it again.
//!
//! Legend: `n` new tokens, `p` keys of a sequence, `h` query heads, `g` key-value heads, `e` head width, `d` width, `v`
//! vocabulary.

use burn::tensor::{DType, Tensor, TensorData, activation::softmax};

use crate::kernels::attention::{
    AttentionLayout, Segments, hidden_keys, rotary_angles, rotate, segment_attention,
};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;

/// Several sequences as one model has read them. Sequences do not see each other.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    /// `layers[layer][sequence]`.
    layers: Vec<Vec<Option<Read>>>,
    /// Tokens of each sequence that were read.
    lengths: Vec<usize>,
    window: Option<usize>,
}

/// Of one sequence in one layer. With a sliding window, only what later tokens can see.
#[derive(Debug, Clone)]
struct Read {
    /// With rotary embedding, `[g, p, e]`.
    keys: Tensor<3>,
    /// `[g, p, e]`.
    values: Tensor<3>,
}

impl KeyValueCache {
    /// For `sequences` sequences of which nothing is read.
    pub fn new(config: &ModelConfig, sequences: usize) -> Self {
        Self {
            layers: vec![vec![None; sequences]; config.num_hidden_layers],
            lengths: vec![0; sequences],
            window: config.sliding_window,
        }
    }

    /// Tokens of a sequence that were read.
    pub fn len(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Whether nothing of any sequence was read.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|length| *length == 0)
    }

    /// Forgets a sequence.
    pub fn clear(&mut self, sequence: usize) {
        self.lengths[sequence] = 0;
        for layer in &mut self.layers {
            layer[sequence] = None;
        }
    }

    /// Forgets what was read of a sequence after its first `length` tokens; all of it where a sliding window has already
    /// dropped keys that those tokens' successors would see. Returns the tokens that are still known.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> usize {
        let before = self.lengths[sequence];
        if length >= before {
            return before;
        }
        let dropped = self.window.is_some_and(|window| before >= window);
        if length == 0 || dropped {
            self.clear(sequence);
            return 0;
        }
        self.lengths[sequence] = length;
        for read in self.layers.iter_mut().filter_map(|layer| layer[sequence].as_mut()) {
            read.keys = read.keys.clone().narrow(1, 0, length);
            read.values = read.values.clone().narrow(1, 0, length);
        }
        length
    }
}

/// New tokens of several sequences, laid end to end.
struct Chunks {
    sequences: Vec<usize>,
    segments: Segments,
    /// Of the new tokens, `[n, 1, e / 2]`.
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Decoder {
    /// Reads `tokens` (not empty) as the next ones of each sequence, and returns the logits of what follows, `[sequences, v]`
    /// in float32. A sequence may be named once.
    pub fn read_on(&self, cache: &mut KeyValueCache, chunks: &[(usize, &[u32])]) -> Tensor<2> {
        let mut segments = Segments::default();
        let (mut ids, mut positions, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, tokens) in chunks {
            let first = cache.len(*sequence);
            segments.push(tokens.len(), None);
            ids.extend_from_slice(tokens);
            positions.extend((first..first + tokens.len()).map(|position| position as u32));
            last.push(ids.len() - 1);
        }
        let (cos, sin) = rotary_angles(&self.config.rotary_frequencies(), &positions);
        let shape = [positions.len(), 1, self.config.head_dim / 2];
        let table = |values| Tensor::from_data(TensorData::new(values, shape), &self.device());
        let sequences = chunks.iter().map(|(sequence, _)| *sequence).collect();
        let new = Chunks { sequences, segments, cos: table(cos), sin: table(sin) };

        let from_start = new.sequences.iter().all(|sequence| cache.len(*sequence) == 0);
        // Whole prompts: the kernel that training uses is the faster one.
        let layout =
            from_start.then(|| AttentionLayout::new(&self.config.attention_shape(), &new.segments));
        let mut hidden_nd = self.embed(&ids);
        for (layer, read) in self.layers.iter().zip(&mut cache.layers) {
            let window = self.config.sliding_window.filter(|_| layer.windowed);
            hidden_nd = layer.forward_with(hidden_nd, |q, k, v| {
                let seen = self.remember(read, window, &new, k.clone(), v.clone());
                match &layout {
                    Some(layout) => segment_attention(
                        q,
                        k,
                        v,
                        AttentionLayout::of_layer(layout, layer.windowed),
                    ),
                    None => self.attend(q, seen, window, &new),
                }
            });
        }
        for (sequence, tokens) in chunks {
            cache.lengths[*sequence] += tokens.len();
        }
        self.logits(hidden_nd, &last)
    }

    /// `[n, g · e]` as `[n, g, e]` in float32.
    fn heads(&self, x: Tensor<2>, heads: usize) -> Tensor<3> {
        let rows = x.dims()[0];
        x.cast(DType::F32).reshape([rows, heads, self.config.head_dim])
    }

    /// Appends new keys and values to those that were read. Returns all that the new tokens may see, by sequence.
    fn remember(
        &self,
        read: &mut [Option<Read>],
        window: Option<usize>,
        new: &Chunks,
        k: Tensor<2>,
        v: Tensor<2>,
    ) -> Vec<Read> {
        let kv_heads = self.config.num_key_value_heads;
        let keys = rotate(self.heads(k, kv_heads), &new.cos, &new.sin).swap_dims(0, 1);
        let values = self.heads(v, kv_heads).swap_dims(0, 1);
        let all = new.sequences.iter().zip(new.segments.iter()).map(|(sequence, segment)| {
            let of_segment = |x: &Tensor<3>| x.clone().narrow(1, segment.start, segment.len);
            let (mut keys, mut values) = (of_segment(&keys), of_segment(&values));
            if let Some(before) = read[*sequence].take() {
                keys = Tensor::cat(vec![before.keys, keys], 1);
                values = Tensor::cat(vec![before.values, values], 1);
            }
            // A later token sees itself and the `window - 1` keys before it.
            let known = keys.dims()[1];
            let kept = window.map_or(known, |window| known.min(window - 1).max(1));
            read[*sequence] = Some(Read {
                keys: keys.clone().narrow(1, known - kept, kept),
                values: values.clone().narrow(1, known - kept, kept),
            });
            Read { keys, values }
        });
        all.collect()
    }

    /// Attention of new tokens to all that they may see, `[n, h · e]`.
    fn attend(
        &self,
        q: Tensor<2>,
        seen: Vec<Read>,
        window: Option<usize>,
        new: &Chunks,
    ) -> Tensor<2> {
        let config = &self.config;
        let (heads, kv_heads, e) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let dtype = q.dtype();
        let scale = (e as f32).sqrt().recip();
        let q = rotate(self.heads(q, heads), &new.cos, &new.sin).swap_dims(0, 1).mul_scalar(scale);
        let outputs = seen.into_iter().zip(new.segments.iter()).map(|(seen, segment)| {
            let (Read { keys, values }, queries) = (seen, segment.len);
            let own = |x: &Tensor<3>| x.clone().narrow(1, segment.start, queries);
            let known = keys.dims()[1] - queries;
            // The query heads of a key-value head lie side by side: one product for all of them.
            let repeat = heads / kv_heads;
            let q = own(&q).reshape([kv_heads, repeat * queries, e]);
            let mut scores = q.matmul(keys.swap_dims(1, 2));
            if queries > 1 || window.is_some_and(|window| known >= window) {
                let shape = [kv_heads, repeat, queries, known + queries];
                let hidden = hidden_keys(queries, known, window, &scores.device());
                let hidden = hidden.reshape([1, 1, queries, known + queries]).expand(shape);
                scores = scores.reshape(shape).mask_fill(hidden, f32::NEG_INFINITY).reshape([
                    kv_heads,
                    repeat * queries,
                    known + queries,
                ]);
            }
            softmax(scores, 2)
                .matmul(values)
                .reshape([heads, queries, e])
                .swap_dims(0, 1)
                .reshape([queries, heads * e])
        });
        Tensor::cat(outputs.collect(), 0).cast(dtype)
    }
}
