//! How ranks share the gradients of their micro-batches: bucket by bucket, as the walk leaves them.
//!
//! A bucket is on its way while the walk works on the layer before it. Each is reduce-scattered, and the rank that owns a shard adds up what it gets in the order of the
//! micro-batches. The embedding's gradient is a few rows, which go to their owners as they are; so they
//! are added row by row, as one rank does it.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::gradients::add_to;
use crate::kernels::update::{SQUARES_BLOCK, block_squares};
use crate::parallel::buckets::{Bucket, Layout, Piece};
use crate::parallel::{Arriving, Ranks};

/// Where the gradients of a micro-batch go when ranks share them.
pub struct Exchange<'a> {
    pub ranks: &'a Ranks,
    pub layout: &'a Layout,
    /// How many ranks have a micro-batch in this round: the first so many.
    contributors: usize,
    /// The next bucket that the walk leaves is the one before: from the last to the first.
    next: usize,
    /// What the walk has given of buckets that it has not left, by parameter.
    held: Vec<Option<Tensor<1>>>,
    /// Rows of the embedding's gradient with their places.
    rows: Option<(Vec<u32>, Tensor<2>)>,
    /// The bucket that is on its way: none is held longer than until the next one is sent.
    arriving: Option<(usize, Box<dyn Arriving>)>,
}

impl<'a> Exchange<'a> {
    pub fn new(ranks: &'a Ranks, layout: &'a Layout) -> Self {
        let held = vec![None; layout.parameters()];
        Self { ranks, layout, contributors: 0, next: 0, held, rows: None, arriving: None }
    }

    /// A round begins, in which the first `contributors` ranks each walk back one micro-batch.
    pub fn begin_round(&mut self, contributors: usize) {
        self.contributors = contributors;
        self.next = self.layout.buckets.len();
    }

    /// Takes the gradient of parameter `index`; `sums` are those of this rank's shards.
    pub fn add(&mut self, index: usize, gradient: Tensor<1>, sums: &mut [Option<Tensor<1>>]) {
        self.held[index] = Some(gradient);
        if let Some((_, arriving)) = &mut self.arriving {
            self.ranks.nudge(&mut **arriving);
        }
        self.send_complete(sums);
    }

    /// Takes rows `[t, d]` of the embedding's gradient, with which the walk ends.
    pub fn add_rows(&mut self, ids: &[u32], rows: Tensor<2>, sums: &mut [Option<Tensor<1>>]) {
        self.rows = Some((ids.to_vec(), rows));
        self.send_complete(sums);
    }

    /// The round is over. A rank that had no micro-batch sends nothing here, but takes its part.
    pub fn end_round(&mut self, device: &Device, sums: &mut [Option<Tensor<1>>]) {
        while self.next > 0 {
            self.next -= 1;
            let bucket = &self.layout.buckets[self.next];
            let len = bucket.shard * self.layout.ranks;
            let nothing =
                self.layout.is_dense(self.next).then(|| Tensor::zeros([len], (device, DType::F32)));
            self.send(self.next, nothing, sums, device);
        }
        self.receive(sums);
    }

    /// Sends the buckets that are whole, as long as they come in their order.
    fn send_complete(&mut self, sums: &mut [Option<Tensor<1>>]) {
        while self.next > 0 && self.is_complete(self.next - 1) {
            self.next -= 1;
            let bucket = &self.layout.buckets[self.next];
            let held = &mut self.held[bucket.parameters.clone()];
            let held: Vec<Tensor<1>> = held.iter_mut().filter_map(Option::take).collect();
            let rows = self.rows.as_ref().map(|(_, rows)| rows.device());
            let device = held.first().map(Tensor::device).or(rows);
            let device = device.expect("a whole bucket has a gradient or rows");
            let joined = self
                .layout
                .is_dense(self.next)
                .then(|| join_padded(bucket, held, bucket.shard * self.layout.ranks));
            self.send(self.next, joined, sums, &device);
        }
    }

    fn is_complete(&self, index: usize) -> bool {
        let parameters = self.layout.buckets[index].parameters.clone();
        let is_held = || self.held[parameters].iter().all(Option::is_some);
        let has_rows = index > 0 || self.rows.is_some();
        has_rows && (!self.layout.is_dense(index) || is_held())
    }

    /// Takes in the bucket that is on its way and sends the next one. Of the embedding that is the last thing
    /// in a round, and its rows are exchanged at once.
    fn send(
        &mut self,
        index: usize,
        gradient: Option<Tensor<1>>,
        sums: &mut [Option<Tensor<1>>],
        device: &Device,
    ) {
        self.receive(sums);
        let bucket = &self.layout.buckets[index];
        if let Some(gradient) = gradient {
            let arriving = self.ranks.reduce_scatter(&bucket.name, gradient);
            self.arriving = Some((index, arriving));
        }
        if index > 0 {
            return;
        }
        let rows = self.ranks.exchange_rows(self.messages(bucket.shard));
        let mut received = self.take_arriving().into_iter();
        for contributor in 0..self.contributors {
            // Fewer come where the engine has added them up itself.
            if let Some(gradient) = received.next() {
                add_to(&mut sums[0], gradient);
            }
            if let Some(message) = rows.get(contributor) {
                add_message(&mut sums[0], message, bucket.shard, device);
            }
        }
    }

    /// Waits for the bucket that is on its way and adds up what is this rank's own, in the order of the
    /// micro-batches.
    fn receive(&mut self, sums: &mut [Option<Tensor<1>>]) {
        let Some((index, _)) = self.arriving else { return };
        for gradient in self.take_arriving().into_iter().take(self.contributors) {
            add_to(&mut sums[index], gradient);
        }
    }

    fn take_arriving(&mut self) -> Vec<Tensor<1>> {
        let Some((index, arriving)) = self.arriving.take() else { return Vec::new() };
        self.ranks.finish(&self.layout.buckets[index].name, arriving)
    }

    /// For each rank those parts of the rows that lie in its shard, in the order of the rows: a word with
    /// their number, for each its place in the shard and its length, then their elements.
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

    /// Sums the squares of all ranks' shards as one rank would that had them all.
    pub fn sum_of_squares(&self, sums: &[Option<Tensor<1>>]) -> f64 {
        let mut own = Vec::new();
        for (bucket, sum) in self.layout.buckets.iter().zip(sums) {
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

/// Adds the parts of rows of one of [`Exchange::messages`] to a shard.
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

/// The bucket's vectors in their places, zeros between and behind them.
fn join_padded(bucket: &Bucket, vectors: Vec<Tensor<1>>, len: usize) -> Tensor<1> {
    let ends = bucket.starts.iter().skip(1).copied().chain([len]);
    let paddings = bucket.starts.iter().zip(&bucket.lengths).zip(ends);
    let paddings = paddings.map(|((start, len), end)| end - start - len);
    join(vectors, paddings)
}

/// The pieces of a shard in their places, zeros between and behind them, `[shard]`; none where this
/// rank has none.
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

/// `vectors` end to end, each with so many zeros behind it.
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
