//! How ranks share the gradients of their micro-batches: bucket by bucket, as soon as the backward
//! pass has computed them.
//!
//! A bucket is sent while the backward pass computes the next one. It is reduce-scattered, and the
//! rank that owns a shard adds up the gradients that arrive in the order of the micro-batches. The
//! embedding's gradient is a few rows, which go to their owners unchanged, so that they are added
//! row by row, as on one rank.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::kernels::update::{SQUARES_BLOCK, add_into, block_squares};
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
    /// The bucket that is being sent. The next bucket is not sent before this one is received.
    arriving: Option<(usize, Box<dyn Arriving>)>,
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
            arriving: None,
        }
    }

    /// Begins a round, in which the first `contributors` ranks each differentiate one micro-batch.
    pub fn begin_round(&mut self, contributors: usize) {
        self.contributors = contributors;
        self.unsent = self.layout.buckets.len();
    }

    /// Accepts the gradient of parameter `id`.
    pub fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        self.held.insert(id, gradient);
        if let Some((_, arriving)) = &mut self.arriving {
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
            let zeros = bucket.is_dense.then(|| Tensor::zeros([len], (device, DType::F32)));
            self.send(self.unsent, zeros, device);
        }
        self.receive();
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

    /// Receives the bucket that is being sent and sends the next one. The rows of the embedding,
    /// the last in a round, are exchanged at once.
    fn send(&mut self, index: usize, gradient: Option<Tensor<1>>, device: &Device) {
        self.receive();
        let bucket = &self.layout.buckets[index];
        if let Some(gradient) = gradient {
            let arriving = self.ranks.reduce_scatter(&bucket.name, gradient);
            self.arriving = Some((index, arriving));
        }
        if !bucket.has_rows {
            return;
        }
        let rows = self.ranks.exchange_rows(self.messages(bucket.shard));
        let mut received = self.take_arriving().into_iter();
        let sum = &mut self.sums[index];
        for contributor in 0..self.contributors {
            // NCCL returns one summed vector, MPI one per rank.
            if let Some(gradient) = received.next() {
                *sum = Some(plus(sum.take(), gradient));
            }
            if let Some(message) = rows.get(contributor) {
                add_message(sum, message, bucket.shard, device);
            }
        }
    }

    /// Waits for the bucket that is being sent and adds up this rank's shard in the order of the
    /// micro-batches.
    fn receive(&mut self) {
        let Some((index, _)) = self.arriving else { return };
        for gradient in self.take_arriving().into_iter().take(self.contributors) {
            let sum = &mut self.sums[index];
            *sum = Some(plus(sum.take(), gradient));
        }
    }

    fn take_arriving(&mut self) -> Vec<Tensor<1>> {
        let Some((index, arriving)) = self.arriving.take() else { return Vec::new() };
        self.ranks.finish(&self.layout.buckets[index].name, arriving)
    }

    /// For each rank the parts of the rows that lie in its shard, in the order of the rows. A
    /// message is the number of parts, for each part its place in the shard and its length, then
    /// all elements.
    fn messages(&mut self, shard: usize) -> Vec<Vec<u8>> {
        let Some((ids, rows)) = self.rows.take() else {
            return vec![Vec::new(); self.layout.ranks];
        };
        let width = rows.dims()[1];
        let rows = rows.cast(DType::F32).into_data();
        let rows: Vec<f32> = rows.try_into_vec().expect("it was cast to float32");
        let mut parts: Vec<Vec<(u32, &[f32])>> = vec![Vec::new(); self.layout.ranks];
        for (id, row) in ids.iter().zip(rows.chunks_exact(width.max(1))) {
            let mut at = *id as usize * width;
            let mut rest = row;
            while !rest.is_empty() {
                let (owner, place) = (at / shard, at % shard);
                let (part, behind) = rest.split_at(rest.len().min(shard - place));
                parts[owner].push((place as u32, part));
                at += part.len();
                rest = behind;
            }
        }
        let message = |parts: Vec<(u32, &[f32])>| {
            let mut words = vec![parts.len() as u32];
            words.extend(parts.iter().flat_map(|(place, part)| [*place, part.len() as u32]));
            let mut bytes = bytemuck::cast_slice(&words).to_vec();
            for (_, part) in parts {
                bytes.extend_from_slice(bytemuck::cast_slice(part));
            }
            bytes
        };
        parts.into_iter().map(message).collect()
    }

    /// Sums the squares of all ranks' shards in the order in which one rank sums them.
    pub fn sum_of_squares(&self) -> f64 {
        let mut own = Vec::new();
        for (bucket, sum) in self.layout.buckets.iter().zip(&self.sums) {
            let first = own.len();
            own.resize(first + bucket.shard / SQUARES_BLOCK, 0.0);
            let Some(sum) = sum else { continue };
            for piece in bucket.pieces(self.ranks.rank()) {
                let blocks = block_squares(&sum.clone().narrow(0, piece.at, piece.len));
                let at = first + piece.at / SQUARES_BLOCK;
                own[at..at + blocks.len()].copy_from_slice(&blocks);
            }
        }
        let all = self.ranks.gather("gradient norms", bytemuck::cast_slice(&own));
        let (mut total, mut at) = (0.0, 0);
        for bucket in &self.layout.buckets {
            let to = at + bucket.shard / SQUARES_BLOCK * 8;
            for bytes in &all {
                let blocks = bytes[at..to].as_chunks::<8>().0;
                total = blocks.iter().fold(total, |total, b| total + f64::from_ne_bytes(*b));
            }
            at = to;
        }
        total
    }
}

/// `sum + gradient`; without a sum so far, `gradient`.
pub(super) fn plus(sum: Option<Tensor<1>>, gradient: Tensor<1>) -> Tensor<1> {
    match sum {
        Some(sum) => add_into(sum, gradient),
        None => gradient,
    }
}

/// Adds the parts of rows in one of [`Exchange::messages`] to a shard.
fn add_message(sum: &mut Option<Tensor<1>>, message: &[u8], shard: usize, device: &Device) {
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(message);
    let Some((count, words)) = words.split_first() else { return };
    let (places, elements) = words.split_at(2 * *count as usize);
    let mut elements: &[f32] = bytemuck::cast_slice(elements);
    let mut sums = match sum.take() {
        Some(sum) => sum.into_data().try_into_vec().expect("gradients are float32"),
        None => vec![0f32; shard],
    };
    for place in places.as_chunks::<2>().0 {
        let [at, len] = place.map(|word| word as usize);
        let (part, rest) = elements.split_at(len);
        elements = rest;
        for (sum, element) in sums[at..at + len].iter_mut().zip(part) {
            *sum += element;
        }
    }
    *sum = Some(Tensor::from_data(TensorData::new(sums, [shard]), (device, DType::F32)));
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
