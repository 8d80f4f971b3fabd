//! Who owns what: parameters in buckets, buckets in shards (ZeRO-2, Rajbhandari et al. 2020).
//!
//! A bucket is one layer flattened; embedding, final norm and head are their own. Every rank holds
//! all weights, but the gradient sum, the float32 master and the optimizer's state of its own shard
//! only. Parameters and shards begin at multiples of [`BLOCK`], the unit in which squares are
//! summed: so the gradient's norm has the same bits on any number of ranks.

use std::ops::Range;

use crate::kernels::update::SQUARES_BLOCK as BLOCK;
use crate::model::decoder::Decoder;

/// A layer, or another part of the model, that is sent as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Such as `model.layers.3`.
    pub name: String,
    /// Its parameters, as indices into `Decoder::parameters`.
    pub parameters: Range<usize>,
    /// Where each parameter begins in the bucket.
    pub starts: Vec<usize>,
    /// Elements of each parameter.
    pub lengths: Vec<usize>,
    /// Elements of one rank's shard.
    pub shard: usize,
}

/// The part of a parameter that lies in a rank's shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index into `Decoder::parameters`.
    pub parameter: usize,
    /// First element within the parameter.
    pub start: usize,
    pub len: usize,
    /// First element within the shard.
    pub at: usize,
}

/// The buckets of a model on a number of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the parameters: embedding, layers, final norm, head.
    pub buckets: Vec<Bucket>,
    pub ranks: usize,
    /// The embedding is the head too.
    pub tied: bool,
}

impl Layout {
    /// Groups parameters, given by name and number of elements in the order of the model.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = (&'a str, usize)>,
        ranks: usize,
        tied: bool,
    ) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        for (index, (name, len)) in parameters.into_iter().enumerate() {
            let part = part_of(name);
            if buckets.last().is_none_or(|bucket| bucket.name != part) {
                buckets.push(Bucket {
                    name: part.to_string(),
                    parameters: index..index,
                    starts: Vec::new(),
                    lengths: Vec::new(),
                    shard: 0,
                });
            }
            let bucket = buckets.last_mut().expect("one was pushed where there was none");
            bucket.starts.push(bucket.used());
            bucket.lengths.push(len);
            bucket.parameters.end = index + 1;
        }
        for bucket in &mut buckets {
            bucket.shard = bucket.used().div_ceil(BLOCK * ranks) * BLOCK;
        }
        Self { buckets, ranks, tied }
    }

    /// The layout of a model that is loaded.
    pub fn of(model: &Decoder, ranks: usize) -> Self {
        let parameters = model.parameters();
        let named = parameters.iter().map(|p| (&*p.name, p.len()));
        Self::new(named, ranks, model.lm_head.is_none())
    }

    /// Bytes that one rank sends in an optimizer step of `rounds` micro-batches: each bucket's
    /// gradient (float32) is reduce-scattered once a round, its new weights of `weight_bytes` each
    /// all-gathered once. That is `(N−1)/N · P · (4 · rounds + weight_bytes)` but for padding, and without
    /// the embedding's gradient: only the rows of a micro-batch's own tokens are sent of that.
    pub fn bytes_sent(&self, rounds: usize, weight_bytes: usize) -> u64 {
        let of_bucket = |(index, bucket): (usize, &Bucket)| {
            let gradients = if self.is_dense(index) { rounds } else { 0 };
            (self.ranks - 1) * bucket.shard * (4 * gradients + weight_bytes)
        };
        self.buckets.iter().enumerate().map(of_bucket).sum::<usize>() as u64
    }

    /// Whether a bucket has a gradient in every element: an embedding that is not the head has rows.
    pub fn is_dense(&self, bucket: usize) -> bool {
        bucket > 0 || self.tied
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| bucket.parameters.end)
    }

    /// Elements of one rank's shards together.
    pub fn shard_elements(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.shard).sum()
    }
}

impl Bucket {
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
        let ranges = self.parameters.clone().zip(self.starts.iter().zip(&self.lengths));
        let pieces = ranges.filter_map(|(parameter, (start, len))| {
            let from = shard.start.max(*start);
            let to = shard.end.min(start + len);
            (from < to).then(|| Piece {
                parameter,
                start: from - start,
                len: to - from,
                at: from - shard.start,
            })
        });
        pieces.collect()
    }
}

/// `model.layers.3` of `model.layers.3.mlp.up_proj.weight`; other names without their last part.
fn part_of(name: &str) -> &str {
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.find('.'));
    match in_layer {
        Some(dot) => &name[..dot + "model.layers.".len()],
        None => name.rsplit_once('.').map_or(name, |(part, _)| part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: [(&str, usize); 6] = [
        ("model.embed_tokens.weight", 100_000),
        ("model.layers.0.input_layernorm.weight", 64),
        ("model.layers.0.mlp.up_proj.weight", 50_000),
        ("model.layers.10.input_layernorm.weight", 64),
        ("model.norm.weight", 64),
        ("lm_head.weight", 9_000),
    ];

    #[test]
    fn a_layer_is_a_bucket_and_the_ends_are_their_own() {
        let layout = Layout::new(PARAMETERS, 4, false);
        let names: Vec<&str> = layout.buckets.iter().map(|b| b.name.as_str()).collect();
        let expected =
            ["model.embed_tokens", "model.layers.0", "model.layers.10", "model.norm", "lm_head"];
        assert_eq!(names, expected);
        assert_eq!(layout.buckets[1].parameters, 1..3);
        assert_eq!(layout.buckets[1].starts, [0, BLOCK]);
    }

    #[test]
    fn the_pieces_of_all_ranks_are_every_element_once() {
        for ranks in [1, 2, 3, 4, 16, 61] {
            let layout = Layout::new(PARAMETERS, ranks, false);
            let mut seen: Vec<usize> = vec![0; PARAMETERS.len()];
            for bucket in &layout.buckets {
                for piece in (0..ranks).flat_map(|rank| bucket.pieces(rank)) {
                    assert_eq!(piece.start, seen[piece.parameter], "in order, without a hole");
                    assert!(piece.start.is_multiple_of(BLOCK) && piece.at.is_multiple_of(BLOCK));
                    assert!(piece.at + piece.len <= bucket.shard);
                    seen[piece.parameter] += piece.len;
                }
            }
            assert_eq!(seen, PARAMETERS.map(|(_, len)| len), "{ranks} ranks");
        }
    }

    #[test]
    fn what_is_sent_follows_the_formula() {
        let weights = 16 * 1024 * BLOCK;
        let parameters = [("model.embed_tokens.weight", weights), ("lm_head.weight", weights)];
        let share = 15.0 / 16.0 * weights as f64;
        let tied = Layout::new(parameters, 16, true);
        // bfloat16 both ways would be 2 + 2; here gradients are float32.
        assert_eq!(tied.bytes_sent(1, 2) as f64, share * 2.0 * 6.0);
        assert_eq!(tied.bytes_sent(3, 4) as f64, share * 2.0 * 16.0);
        let untied = Layout::new(parameters, 16, false);
        assert_eq!(untied.bytes_sent(3, 4) as f64, share * (16.0 + 4.0));
    }
}
