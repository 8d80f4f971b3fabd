//! The key-value cache: keys and values of earlier tokens are kept, so that each forward pass
//! computes the new tokens only.
//!
//! Shapes: `n` new tokens, `p` cached keys of a sequence, `h` query heads, `g` key-value heads, `e`
//! head width, `d` hidden size, `v` vocabulary size.

use burn::tensor::{DType, Tensor, TensorData, activation::softmax};

use crate::kernels::attention::{
    AttentionLayout, Segments, hidden_keys, rotary_angles, rotate, segment_attention,
};
use crate::kernels::soft_cap::soft_cap;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;

/// The cached keys and values of several sequences in one model. No attention between sequences.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    /// `layers[layer][sequence]`.
    layers: Vec<Vec<Option<KeysValues>>>,
    /// The tokens that each sequence has so far, cached or dropped by the window.
    tokens: Vec<Vec<u32>>,
    window: Option<usize>,
    /// See [`ModelConfig::short_positions`].
    short: Option<usize>,
}

/// Keys and values of one sequence in one layer. With a sliding window, only those that later
/// tokens can attend to.
#[derive(Debug, Clone)]
struct KeysValues {
    /// Rotary embedding applied, `[g, p, e]`.
    keys: Tensor<3>,
    /// `[g, p, e]`.
    values: Tensor<3>,
}

impl KeyValueCache {
    /// An empty cache for `sequences` sequences.
    pub fn new(config: &ModelConfig, sequences: usize) -> Self {
        Self {
            layers: vec![vec![None; sequences]; config.num_hidden_layers],
            tokens: vec![Vec::new(); sequences],
            window: config.sliding_window,
            short: config.short_positions(),
        }
    }

    /// The number of tokens that a sequence has so far.
    pub fn len(&self, sequence: usize) -> usize {
        self.tokens[sequence].len()
    }

    /// Whether no sequence has a token.
    pub fn is_empty(&self) -> bool {
        self.tokens.iter().all(Vec::is_empty)
    }

    /// Removes all tokens of a sequence.
    pub fn clear(&mut self, sequence: usize) {
        self.tokens[sequence].clear();
        for layer in &mut self.layers {
            layer[sequence] = None;
        }
    }

    /// Keeps the first `length` tokens of a sequence. If a sliding window has already dropped keys
    /// that the next token needs, or if the keys have the rotary frequencies of longer sequences,
    /// the whole sequence is removed. Returns the number of tokens kept.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> usize {
        let before = self.len(sequence);
        if length >= before {
            return before;
        }
        let dropped = self.window.is_some_and(|window| before >= window);
        if length == 0 || dropped || changes_frequencies(self.short, length, before) {
            self.clear(sequence);
            return 0;
        }
        self.tokens[sequence].truncate(length);
        for cached in self.layers.iter_mut().filter_map(|layer| layer[sequence].as_mut()) {
            cached.keys = cached.keys.clone().narrow(1, 0, length);
            cached.values = cached.values.clone().narrow(1, 0, length);
        }
        length
    }
}

/// Whether a sequence that grows from `before` tokens to `after` gets other rotary frequencies, for
/// all its tokens. Sequences of more than `short` tokens have other ones than shorter sequences.
pub(super) fn changes_frequencies(short: Option<usize>, before: usize, after: usize) -> bool {
    short.is_some_and(|short| before > 0 && before <= short && after > short)
}

/// The new tokens of several sequences, concatenated.
struct Chunks {
    sequences: Vec<usize>,
    segments: Segments,
    /// Cosine and sine of the rotary angles of the new tokens, both `[n, 1, angles]`, for each kind
    /// of layer.
    angles: Vec<[Tensor<3>; 2]>,
}

impl Decoder {
    /// A forward pass over `chunks`: pairs of a sequence and its next tokens (at least one).
    /// Appends their keys and values to `cache`, and returns the logits after each chunk's last
    /// token, `[chunks, v]` in float32. A sequence may occur in one chunk only. A sequence that gets
    /// other rotary frequencies is read again as a whole, as in transformers.
    pub fn forward_cached(
        &self,
        cache: &mut KeyValueCache,
        chunks: &[(usize, &[u32])],
    ) -> Tensor<2> {
        let mut segments = Segments::default();
        let (mut ids, mut positions, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let mut lengths = Vec::new();
        for (sequence, tokens) in chunks {
            let mut first = cache.len(*sequence);
            let length = first + tokens.len();
            if changes_frequencies(cache.short, first, length) {
                ids.append(&mut cache.tokens[*sequence]);
                cache.clear(*sequence);
                first = 0;
            }
            segments.push(length - first, None);
            ids.extend_from_slice(tokens);
            positions.extend((first..length).map(|position| position as u32));
            lengths.resize(ids.len(), length as u32);
            last.push(ids.len() - 1);
        }
        let attention = self.config.attention_shape();
        let angles = attention.kinds.iter().map(|kind| {
            let shape = [positions.len(), 1, kind.rotary_frequencies.len()];
            let table = |values| Tensor::from_data(TensorData::new(values, shape), &self.device());
            let (cos, sin) = rotary_angles(kind, &positions, &lengths);
            [table(cos), table(sin)]
        });
        let angles = angles.collect();
        let sequences = chunks.iter().map(|(sequence, _)| *sequence).collect();
        let new = Chunks { sequences, segments, angles };

        let from_start = new.sequences.iter().all(|sequence| cache.len(*sequence) == 0);
        // If no chunk has earlier tokens, the attention kernel of training applies and is faster.
        let layout = from_start.then(|| AttentionLayout::new(&attention, &new.segments));
        let mut hidden_nd = self.embed(&ids);
        for (layer, cached) in self.layers.iter().zip(&mut cache.layers) {
            let window = attention.kinds[layer.kind].window;
            let angles = &new.angles[layer.kind];
            hidden_nd = layer.forward_with(hidden_nd, |q, k, v| {
                let visible = self.append(cached, window, &new, angles, [k.clone(), v.clone()]);
                match &layout {
                    Some(layout) => {
                        let layout = AttentionLayout::of_layer(layout, layer.kind);
                        segment_attention(q, k, v, layout)
                    }
                    None => self.attend(q, visible, window, &new, angles),
                }
            });
        }
        for (sequence, segment) in new.sequences.iter().zip(new.segments.iter()) {
            let read = &ids[segment.start..segment.start + segment.len];
            cache.tokens[*sequence].extend_from_slice(read);
        }
        self.logits(hidden_nd, &last)
    }

    /// `[n, g · e]` as `[n, g, e]` in float32.
    fn heads(&self, x: Tensor<2>, heads: usize) -> Tensor<3> {
        let rows = x.dims()[0];
        x.cast(DType::F32).reshape([rows, heads, self.config.head_dim])
    }

    /// Appends new keys and values to the cached ones of a layer. Returns, for each chunk, all keys
    /// and values that its new tokens may attend to.
    fn append(
        &self,
        cached: &mut [Option<KeysValues>],
        window: Option<usize>,
        new: &Chunks,
        [cos, sin]: &[Tensor<3>; 2],
        [k, v]: [Tensor<2>; 2],
    ) -> Vec<KeysValues> {
        let kv_heads = self.config.num_key_value_heads;
        let keys = rotate(self.heads(k, kv_heads), cos, sin).swap_dims(0, 1);
        let values = self.heads(v, kv_heads).swap_dims(0, 1);
        let all = new.sequences.iter().zip(new.segments.iter()).map(|(sequence, segment)| {
            let of_segment = |x: &Tensor<3>| x.clone().narrow(1, segment.start, segment.len);
            let (mut keys, mut values) = (of_segment(&keys), of_segment(&values));
            if let Some(before) = cached[*sequence].take() {
                keys = Tensor::cat(vec![before.keys, keys], 1);
                values = Tensor::cat(vec![before.values, values], 1);
            }
            // A later token attends to itself and to the `window - 1` keys before it.
            let count = keys.dims()[1];
            let kept = window.map_or(count, |window| count.min(window - 1).max(1));
            cached[*sequence] = Some(KeysValues {
                keys: keys.clone().narrow(1, count - kept, kept),
                values: values.clone().narrow(1, count - kept, kept),
            });
            KeysValues { keys, values }
        });
        all.collect()
    }

    /// Attention of the new tokens to the `visible` keys and values of their sequence. Returns
    /// `[n, h · e]`.
    fn attend(
        &self,
        q: Tensor<2>,
        visible: Vec<KeysValues>,
        window: Option<usize>,
        new: &Chunks,
        [cos, sin]: &[Tensor<3>; 2],
    ) -> Tensor<2> {
        let config = &self.config;
        let (heads, kv_heads, e) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let dtype = q.dtype();
        let softcap = config.family.attention_softcap.map(|cap| cap as f32);
        let scale = (e as f32).sqrt().recip();
        let q = rotate(self.heads(q, heads), cos, sin).swap_dims(0, 1).mul_scalar(scale);
        let outputs = visible.into_iter().zip(new.segments.iter()).map(|(visible, segment)| {
            let (KeysValues { keys, values }, queries) = (visible, segment.len);
            let own = |x: &Tensor<3>| x.clone().narrow(1, segment.start, queries);
            let earlier = keys.dims()[1] - queries;
            // The query heads of one key-value head are adjacent: one matrix product covers them.
            let repeat = heads / kv_heads;
            let q = own(&q).reshape([kv_heads, repeat * queries, e]);
            let mut scores = soft_cap(q.matmul(keys.swap_dims(1, 2)), softcap);
            if queries > 1 || window.is_some_and(|window| earlier >= window) {
                let shape = [kv_heads, repeat, queries, earlier + queries];
                let hidden = hidden_keys(queries, earlier, window, &scores.device());
                let hidden = hidden.reshape([1, 1, queries, earlier + queries]).expand(shape);
                scores = scores.reshape(shape).mask_fill(hidden, f32::NEG_INFINITY).reshape([
                    kv_heads,
                    repeat * queries,
                    earlier + queries,
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
