//! Which rank owns which part: parameters in buckets, buckets in shards (ZeRO-2, Rajbhandari et al.
//! 2020).
//!
//! A bucket is the trainable parameters of one layer, flattened; embedding, final norm and head are
//! buckets of their own, and so are the adapters of a layer. Every rank holds all weights, but only
//! its own shards of the gradient sum, of the float32 master weights and of the optimizer's state.
//! Parameters and shards begin at multiples of [`BLOCK`], the unit in which squares are summed. So
//! the norm of the gradient has the same bits on any number of ranks.

use burn::tensor::DType;

use crate::kernels::update::SQUARES_BLOCK as BLOCK;
use crate::model::decoder::{Decoder, EMBED_TOKENS};
use crate::model::parameter::{Parameter, ParameterId};
use crate::recipe::{Dtype, TrainSettings};

/// A layer, or another part of the model, whose gradients are sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Such as `model.layers.3`.
    pub name: String,
    /// Its trainable parameters, in the order of the model.
    pub parameters: Vec<ParameterId>,
    /// The first element of each parameter in the bucket.
    pub starts: Vec<usize>,
    /// Elements of each parameter.
    pub lengths: Vec<usize>,
    /// Elements of one rank's shard.
    pub shard: usize,
    /// Whether a micro-batch gives a gradient for every element. This holds for all buckets, except
    /// for an embedding that is not the head too.
    pub is_dense: bool,
    /// Whether a micro-batch gives rows of the embedding's gradient, one for each of its tokens.
    pub has_rows: bool,
    /// The type in which gradients of a micro-batch are sent. Their sums are float32.
    pub reduce: DType,
}

/// The part of a parameter that lies in a rank's shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub parameter: ParameterId,
    /// First element within the parameter.
    pub start: usize,
    pub len: usize,
    /// First element within the shard.
    pub at: usize,
}

/// The buckets of a model on a number of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the model: embedding, layers, final norm, head.
    pub buckets: Vec<Bucket>,
    pub ranks: usize,
}

impl Layout {
    /// Groups the trainable ones of `parameters`, which are in the order of the model. `tied`: the
    /// embedding is the head too.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = &'a Parameter>,
        ranks: usize,
        tied: bool,
    ) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        for parameter in parameters.into_iter().filter(|parameter| parameter.trainable) {
            let name = match is_of_adapter(&parameter.name) {
                true => format!("{}.lora", bucket_of(&parameter.name)),
                false => bucket_of(&parameter.name).to_owned(),
            };
            if buckets.last().is_none_or(|bucket| bucket.name != name) {
                buckets.push(Bucket::new(&name, tied));
            }
            let bucket = buckets.last_mut().expect("a bucket was pushed if none was present");
            bucket.starts.push(bucket.used());
            bucket.lengths.push(parameter.len());
            bucket.parameters.push(parameter.id);
        }
        for bucket in &mut buckets {
            bucket.shard = bucket.used().div_ceil(BLOCK * ranks) * BLOCK;
        }
        Self { buckets, ranks }
    }

    /// The layout of a model that is loaded. Gradients are sent in float32.
    pub fn of(model: &Decoder, ranks: usize) -> Self {
        Self::new(model.parameters(), ranks, model.lm_head.is_none())
    }

    /// The same layout of `model`, with gradients of weights of type `t` sent in `reduce(t)`.
    pub fn reduced_in(mut self, model: &Decoder, reduce: impl Fn(DType) -> DType) -> Self {
        let parameters = model.parameters();
        for bucket in &mut self.buckets {
            bucket.reduce = reduce(parameters[bucket.parameters[0].index()].value.dtype());
        }
        self
    }

    /// Bytes that one rank sends in an optimizer step of `rounds` micro-batches: each bucket's
    /// gradient of `b` bytes ([`Bucket::reduce`]) is reduce-scattered once per round, its new
    /// weights of `weight_bytes` each are all-gathered once. That is
    /// `(N−1)/N · P · (b · rounds + weight_bytes)`, apart from padding. It does not count the
    /// gradient of an untied embedding, of which only the rows of a micro-batch's own tokens are
    /// sent.
    pub fn bytes_sent(&self, rounds: usize, weight_bytes: usize) -> u64 {
        let sum: u128 = self
            .buckets
            .iter()
            .map(|bucket| {
                let gradients = rounds as u128 * u128::from(self.gradient_bytes(bucket));
                gradients + u128::from(self.sent(bucket, weight_bytes))
            })
            .sum();
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// Bytes of the gradient of `bucket` that one rank sends for a micro-batch, without rows.
    pub fn gradient_bytes(&self, bucket: &Bucket) -> u64 {
        if bucket.is_dense { self.sent(bucket, bucket.reduce.size()) } else { 0 }
    }

    /// Bytes of a shard of numbers of `size` bytes to each of the other ranks.
    pub fn sent(&self, bucket: &Bucket, size: usize) -> u64 {
        ((self.ranks - 1) * bucket.shard * size) as u64
    }

    /// The bucket of a trainable parameter.
    ///
    /// # Panics
    /// If the parameter is frozen, or of another model.
    pub fn bucket_of(&self, id: ParameterId) -> &Bucket {
        // Ids grow in the order of the model.
        let behind = self.buckets.partition_point(|bucket| bucket.parameters[0] <= id);
        let bucket = behind.checked_sub(1).map(|index| &self.buckets[index]);
        let bucket = bucket.filter(|bucket| bucket.parameters.contains(&id));
        bucket.expect("the parameter is trained")
    }

    /// Elements of one rank's shards together.
    pub fn shard_elements(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.shard).sum()
    }
}

impl Bucket {
    /// A bucket without parameters.
    fn new(name: &str, tied: bool) -> Self {
        let has_rows = name == bucket_of(EMBED_TOKENS);
        Self {
            name: name.to_string(),
            parameters: Vec::new(),
            starts: Vec::new(),
            lengths: Vec::new(),
            shard: 0,
            is_dense: tied || !has_rows,
            has_rows,
            reduce: DType::F32,
        }
    }

    /// Elements up to the end of the last parameter's last block.
    pub fn used(&self) -> usize {
        match (self.starts.last(), self.lengths.last()) {
            (Some(start), Some(len)) => (start + len).next_multiple_of(BLOCK),
            _ => 0,
        }
    }

    /// The pieces of parameters in `rank`'s shard, in order.
    pub fn pieces(&self, rank: usize) -> Vec<Piece> {
        let shard = rank * self.shard..(rank + 1) * self.shard;
        let ranges = self.parameters.iter().zip(self.starts.iter().zip(&self.lengths));
        let pieces = ranges.filter_map(|(parameter, (start, len))| {
            let from = shard.start.max(*start);
            let to = shard.end.min(start + len);
            (from < to).then(|| Piece {
                parameter: *parameter,
                start: from - start,
                len: to - from,
                at: from - shard.start,
            })
        });
        pieces.collect()
    }
}

/// The type in which ranks exchange gradients of weights of type `weights`: key
/// `gradient_reduce_dtype`. On the CPU the default is float32, so that no number changes; a GPU
/// sends gradients of bfloat16 weights in the type in which it computes them.
pub fn reduce_dtype(train: &TrainSettings, weights: DType) -> DType {
    match train.gradient_reduce_dtype {
        Dtype::Float32 => DType::F32,
        Dtype::Bfloat16 => DType::BF16,
        Dtype::Float16 => DType::F16,
        Dtype::Auto if train.device.gpu().is_some() && weights == DType::BF16 => DType::BF16,
        Dtype::Auto => DType::F32,
    }
}

/// Whether a parameter is one of an adapter's matrices. They are float32 even if the layer is not,
/// so they have a bucket of their own.
fn is_of_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

/// The name of a parameter's bucket: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`;
/// other names without their last component.
fn bucket_of(name: &str) -> &str {
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.find('.'));
    match in_layer {
        Some(dot) => &name[..dot + "model.layers.".len()],
        None => name.rsplit_once('.').map_or(name, |(module, _)| module),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::parameter::{ParameterIds, Weight};

    const PARAMETERS: [(&str, usize); 6] = [
        (EMBED_TOKENS, 100_000),
        ("model.layers.0.input_layernorm.weight", 64),
        ("model.layers.0.mlp.up_proj.weight", 50_000),
        ("model.layers.10.input_layernorm.weight", 64),
        ("model.norm.weight", 64),
        ("lm_head.weight", 9_000),
    ];

    fn parameters(named: &[(&str, usize)]) -> Vec<Parameter> {
        let mut ids = ParameterIds::default();
        let value = Weight::from_values(Vec::new(), &Device::flex(), DType::F32);
        let parameter = |(name, len): &(&str, usize)| Parameter {
            id: ids.assign(),
            name: (*name).into(),
            shape: vec![*len],
            value: value.clone(),
            trainable: true,
        };
        named.iter().map(parameter).collect()
    }

    #[test]
    fn a_layer_is_a_bucket_and_the_ends_are_their_own() {
        let parameters = parameters(&PARAMETERS);
        let layout = Layout::new(&parameters, 4, false);
        let names: Vec<&str> = layout.buckets.iter().map(|b| b.name.as_str()).collect();
        let expected =
            ["model.embed_tokens", "model.layers.0", "model.layers.10", "model.norm", "lm_head"];
        assert_eq!(names, expected);
        assert_eq!(layout.buckets[1].parameters, [parameters[1].id, parameters[2].id]);
        assert_eq!(layout.buckets[1].starts, [0, BLOCK]);
        let rows: Vec<_> = layout.buckets.iter().map(|b| (b.has_rows, b.is_dense)).collect();
        assert_eq!(rows[..2], [(true, false), (false, true)]);
    }

    #[test]
    fn frozen_parameters_are_in_no_bucket() {
        let mut parameters = parameters(&PARAMETERS);
        for frozen in [0, 2, 3] {
            parameters[frozen].trainable = false;
        }
        let layout = Layout::new(&parameters, 2, true);
        let ids: Vec<_> = layout.buckets.iter().map(|b| b.parameters.as_slice()).collect();
        assert_eq!(ids, [[parameters[1].id], [parameters[4].id], [parameters[5].id]]);
        assert!(layout.buckets.iter().all(|bucket| bucket.is_dense && !bucket.has_rows));
    }

    #[test]
    fn the_pieces_of_all_ranks_are_every_element_once() {
        let parameters = parameters(&PARAMETERS);
        for ranks in [1, 2, 3, 4, 16, 61] {
            let layout = Layout::new(&parameters, ranks, false);
            let mut seen: Vec<usize> = vec![0; PARAMETERS.len()];
            for bucket in &layout.buckets {
                for piece in (0..ranks).flat_map(|rank| bucket.pieces(rank)) {
                    let seen = &mut seen[piece.parameter.index()];
                    assert_eq!(piece.start, *seen, "in order, without a hole");
                    assert!(piece.start.is_multiple_of(BLOCK) && piece.at.is_multiple_of(BLOCK));
                    assert!(piece.at + piece.len <= bucket.shard);
                    *seen += piece.len;
                }
            }
            assert_eq!(seen, PARAMETERS.map(|(_, len)| len), "{ranks} ranks");
        }
    }

    #[test]
    fn what_is_sent_follows_the_formula() {
        let weights = 16 * 1024 * BLOCK;
        let parameters = parameters(&[(EMBED_TOKENS, weights), ("lm_head.weight", weights)]);
        let share = 15.0 / 16.0 * weights as f64;
        let tied = Layout::new(&parameters, 16, true);
        assert_eq!(tied.bytes_sent(1, 2) as f64, share * 2.0 * 6.0);
        assert_eq!(tied.bytes_sent(3, 4) as f64, share * 2.0 * 16.0);
        let untied = Layout::new(&parameters, 16, false);
        assert_eq!(untied.bytes_sent(3, 4) as f64, share * (16.0 + 4.0));
        let mut halves = tied.clone();
        halves.buckets.iter_mut().for_each(|bucket| bucket.reduce = DType::BF16);
        assert_eq!(halves.bytes_sent(1, 2) as f64, share * 2.0 * 4.0);
        assert_eq!(halves.bytes_sent(3, 2) as f64, share * 2.0 * 8.0);
    }
}
