//! How ranks share the gradients of their micro-batches: bucket by bucket, as soon as the backward
//! pass has computed them.
//!
//! A bucket is sent while the backward pass computes the next ones. It is reduce-scattered, and the
//! rank that owns a shard adds up the gradients that arrive in the order of the micro-batches. The
//! embedding's gradient is a few rows, which go to their owners unchanged, so that they are added
//! row by row, as on one rank ([`super::embedding_rows`]).
//!
//! Gradients stay in tensors of their device. Only the engine decides whether it sends them through
//! the host's memory.

use std::collections::{BTreeMap, VecDeque};

use burn::tensor::{DType, Device, Tensor};

use super::embedding_rows::{ComingRows, RowShards, SentRows};
use crate::kernels::in_type;
use crate::kernels::update::{SQUARES_BLOCK, add_into, all_block_squares, sum_of_blocks};
use crate::model::parameter::ParameterId;
use crate::parallel::buckets::{Bucket, Layout, Piece};
use crate::parallel::{Arriving, Ranks};

/// The gradient sum of several ranks.
pub struct Exchange<'a> {
    ranks: &'a Ranks,
    layout: &'a Layout,
    /// Sum of the gradients of this rank's shard, for each bucket.
    sums: Vec<Option<Tensor<1>>>,
    /// Number of ranks that have a micro-batch in this round: the first ones.
    contributors: usize,
    /// Buckets that are not sent yet in this round. They are sent from the last to the first.
    unsent: usize,
    /// Gradients of buckets that are not complete yet.
    held: BTreeMap<ParameterId, Tensor<1>>,
    /// Rows of the embedding's gradient (`[t, d]`) with the token id of each.
    rows: Option<(Vec<u32>, Tensor<2>)>,
    /// The buckets that are being sent, in the order in which they were started. Together they have
    /// at most as many elements as the largest bucket.
    arriving: VecDeque<(usize, Box<dyn Arriving>)>,
}

impl<'a> Exchange<'a> {
    pub fn new(ranks: &'a Ranks, layout: &'a Layout) -> Self {
        Self {
            ranks,
            layout,
            sums: vec![None; layout.buckets.len()],
            contributors: 0,
            unsent: 0,
            held: BTreeMap::new(),
            rows: None,
            arriving: VecDeque::new(),
        }
    }

    /// Begins a round, in which the first `contributors` ranks each differentiate one micro-batch.
    pub fn begin_round(&mut self, contributors: usize) {
        self.contributors = contributors;
        self.unsent = self.layout.buckets.len();
    }

    /// Accepts the gradient of parameter `id`.
    pub fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        let reduce = self.layout.bucket_of(id).reduce;
        self.held.insert(id, in_type(gradient, reduce));
        if let Some((_, arriving)) = self.arriving.front_mut() {
            self.ranks.nudge(&mut **arriving);
        }
        self.send_complete();
    }

    /// Accepts rows `[t, d]` of the embedding's gradient, the last of a backward pass.
    pub fn add_rows(&mut self, ids: &[u32], rows: Tensor<2>) {
        self.rows = Some((ids.to_vec(), rows));
        self.send_complete();
    }

    /// Ends the round. A rank that had no micro-batch in it sends zeros, and receives its shards.
    pub fn end_round(&mut self, device: &Device) {
        while self.unsent > 0 {
            self.unsent -= 1;
            let bucket = &self.layout.buckets[self.unsent];
            let len = bucket.shard * self.layout.ranks;
            let zeros = bucket.is_dense.then(|| Tensor::zeros([len], (device, bucket.reduce)));
            self.send(self.unsent, zeros, device);
        }
        while self.receive_first() {}
    }

    /// Takes the sum of this rank's shard of bucket `bucket`.
    pub fn take_shard(&mut self, bucket: usize) -> Option<Tensor<1>> {
        self.sums[bucket].take()
    }

    /// Sends all buckets that are complete and whose turn it is.
    fn send_complete(&mut self) {
        while let Some(index) = self.unsent.checked_sub(1) {
            let bucket = &self.layout.buckets[index];
            if !self.is_complete(bucket) {
                return;
            }
            self.unsent = index;
            let held: Vec<Tensor<1>> =
                bucket.parameters.iter().filter_map(|id| self.held.remove(id)).collect();
            let rows = self.rows.as_ref().map(|(_, rows)| rows.device());
            let device = held.first().map(Tensor::device).or(rows);
            let device = device.expect("a complete bucket has a gradient or rows");
            let len = bucket.shard * self.layout.ranks;
            let joined = bucket.is_dense.then(|| join_padded(bucket, held, len));
            self.send(index, joined, &device);
        }
    }

    fn is_complete(&self, bucket: &Bucket) -> bool {
        let is_held = || bucket.parameters.iter().all(|id| self.held.contains_key(id));
        (!bucket.has_rows || self.rows.is_some()) && (!bucket.is_dense || is_held())
    }

    /// Sends a bucket, and receives those that were sent before it if they are too many to be on
    /// their way together. The rows of the embedding, the last in a round, are exchanged at once.
    fn send(&mut self, index: usize, gradient: Option<Tensor<1>>, device: &Device) {
        let bucket = &self.layout.buckets[index];
        if let Some(gradient) = gradient {
            while self.is_too_much(bucket) && self.receive_first() {}
            let arriving = self.ranks.reduce_scatter(&bucket.name, gradient);
            self.arriving.push_back((index, arriving));
        }
        if bucket.has_rows {
            self.exchange_rows(index, device);
        }
    }

    /// Whether `bucket` and the buckets on their way are together larger than the largest one.
    fn is_too_much(&self, bucket: &Bucket) -> bool {
        let elements = |index: &usize| self.layout.buckets[*index].shard;
        let on_the_way: usize = self.arriving.iter().map(|(index, _)| elements(index)).sum();
        let largest = self.layout.buckets.iter().map(|bucket| bucket.shard).max();
        on_the_way + bucket.shard > largest.unwrap_or(0)
    }

    /// Waits for the bucket that was sent first, and adds up this rank's shard in the order of the
    /// micro-batches. Returns whether a bucket was on its way.
    fn receive_first(&mut self) -> bool {
        let Some((index, arriving)) = self.arriving.pop_front() else { return false };
        let received = self.ranks.finish(&self.layout.buckets[index].name, arriving);
        for gradient in received.into_iter().take(self.contributors) {
            let sum = &mut self.sums[index];
            *sum = Some(plus(sum.take(), gradient));
        }
        true
    }

    /// Exchanges the rows of the embedding's gradient, and adds those of this rank's shard. If the
    /// embedding is the head too, the head's gradient of each micro-batch comes before its rows.
    fn exchange_rows(&mut self, index: usize, device: &Device) {
        let bucket = &self.layout.buckets[index];
        let (ranks, shard) = (self.ranks, bucket.shard);
        let sent = self.rows.take().map(|(ids, rows)| {
            let width = rows.dims()[1];
            RowShards::new(width, shard).sort(&ids, rows.cast(bucket.reduce), ranks.world())
        });
        let sent = sent.unwrap_or_else(|| SentRows::none(ranks.world(), device, bucket.reduce));
        let messages = ranks.exchange_row_ids(sent.ids);
        let coming = messages.iter().map(|message| ComingRows::read(message, ranks.rank(), shard));
        let coming: Vec<Option<ComingRows>> = coming.collect();
        let lengths = coming.iter().map(|rows| rows.as_ref().map_or(0, ComingRows::len));
        let lengths: Vec<usize> = lengths.collect();
        let received = ranks.exchange_rows(sent.elements, &sent.lengths, &lengths);

        // Buckets before this one may be on their way.
        while self.arriving.len() > usize::from(bucket.is_dense) && self.receive_first() {}
        let dense = self.arriving.pop_front();
        let dense = dense.map(|(_, arriving)| ranks.finish(&bucket.name, arriving));
        let mut dense = dense.unwrap_or_default().into_iter();
        let (sum, mut start) = (&mut self.sums[index], 0);
        for (rows, length) in coming.iter().zip(lengths).take(self.contributors) {
            if let Some(gradient) = dense.next() {
                *sum = Some(plus(sum.take(), gradient));
            }
            if let Some(rows) = rows {
                *sum = Some(rows.add_to(sum.take(), &received, start));
            }
            start += length;
        }
    }

    /// The sum of the squares of all ranks' shards, with the bits of one rank: the sums of blocks
    /// are brought into the order of the model.
    pub fn sum_of_squares(&self) -> f64 {
        let own: Vec<Tensor<1>> = self.own_pieces().collect();
        let own = all_block_squares(&own.iter().collect::<Vec<_>>());
        let all = self.ranks.gather("gradient norms", bytemuck::cast_slice(&own));
        let of_rank = |bytes: &Vec<u8>| bytemuck::pod_collect_to_vec::<u8, f64>(bytes).into_iter();
        let mut all: Vec<_> = all.iter().map(of_rank).collect();
        let mut blocks = Vec::new();
        for bucket in self.buckets_with_sums() {
            for (rank, of_rank) in all.iter_mut().enumerate() {
                let lengths = bucket.pieces(rank).into_iter().map(|piece| piece.len);
                let count = lengths.map(|len| len.div_ceil(SQUARES_BLOCK)).sum();
                blocks.extend(of_rank.take(count));
            }
        }
        let first = self.sums.iter().flatten().next();
        sum_of_blocks(blocks, &first.map_or_else(Device::flex, Tensor::device))
    }

    /// The buckets that have a gradient, which are the same on all ranks.
    fn buckets_with_sums(&self) -> impl Iterator<Item = &'a Bucket> {
        let buckets = self.layout.buckets.iter().zip(&self.sums);
        buckets.filter_map(|(bucket, sum)| sum.as_ref().map(|_| bucket))
    }

    /// The sum of each piece of a parameter in this rank's shards.
    fn own_pieces(&self) -> impl Iterator<Item = Tensor<1>> {
        let sums = self.buckets_with_sums().zip(self.sums.iter().flatten());
        sums.flat_map(|(bucket, sum)| {
            let pieces = bucket.pieces(self.ranks.rank()).into_iter();
            pieces.map(|piece| sum.clone().narrow(0, piece.at, piece.len))
        })
    }
}

/// `sum + gradient` in float32; without a sum so far, `gradient`.
pub(super) fn plus(sum: Option<Tensor<1>>, gradient: Tensor<1>) -> Tensor<1> {
    match sum {
        Some(sum) => add_into(sum, gradient),
        None => in_type(gradient, DType::F32),
    }
}

/// The bucket's vectors in their places, with zeros between and behind them, `[len]`.
fn join_padded(bucket: &Bucket, vectors: Vec<Tensor<1>>, len: usize) -> Tensor<1> {
    let ends = bucket.starts.iter().skip(1).copied().chain([len]);
    let paddings = bucket.starts.iter().zip(&bucket.lengths).zip(ends);
    let paddings = paddings.map(|((start, len), end)| end - start - len);
    join(vectors, paddings)
}

/// The pieces of a shard in their places, with zeros between and behind them, `[shard]`. None if
/// this rank owns no piece.
pub fn join_pieces(
    pieces: &[Piece],
    vectors: Vec<Tensor<1>>,
    bucket: &Bucket,
) -> Option<Tensor<1>> {
    if vectors.is_empty() {
        return None;
    }
    let ends = pieces.iter().skip(1).map(|piece| piece.at).chain([bucket.shard]);
    let paddings = pieces.iter().zip(ends).map(|(piece, end)| end - piece.at - piece.len);
    Some(join(vectors, paddings))
}

/// `vectors` end to end, each with its number of zeros (`paddings`) behind it.
fn join(vectors: Vec<Tensor<1>>, paddings: impl Iterator<Item = usize>) -> Tensor<1> {
    let mut joined = Vec::with_capacity(2 * vectors.len());
    for (vector, padding) in vectors.into_iter().zip(paddings) {
        let (device, dtype) = (vector.device(), vector.dtype());
        joined.push(vector);
        if padding > 0 {
            joined.push(Tensor::zeros([padding], (&device, dtype)));
        }
    }
    Tensor::cat(joined, 0)
}

#[cfg(test)]
mod tests;
