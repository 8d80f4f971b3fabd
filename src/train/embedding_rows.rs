//! Rows of the embedding's gradient on their way to the ranks that own them.
//!
//! A row `[d]` may lie in the shards of two ranks. So rows are cut into units: the longest pieces
//! of equal length of which both a row and a shard have a whole number. If a shard has whole rows,
//! a unit is a row. The ids of the rows travel as bytes, from which each rank knows which units it
//! receives; the numbers stay in tensors.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};

use crate::kernels::update::add_rows_into;
use crate::kernels::{in_type, select_rows};

/// How the embedding's elements are shared: rank `r` owns elements `r · shard..(r + 1) · shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShards {
    /// Elements of a row, `d`.
    width: usize,
    /// Elements of a rank's shard.
    shard: usize,
    /// Elements of a unit.
    unit: usize,
}

/// The rows that one rank sends, sorted by the rank that owns them.
pub struct SentRows {
    /// For each rank the width and the ids of the rows that lie in its shard, wholly or in part.
    pub ids: Vec<Vec<u8>>,
    /// For each rank the number of elements that it gets.
    pub lengths: Vec<usize>,
    /// All elements, `[Σ lengths]`.
    pub elements: Tensor<1>,
}

/// What one rank learns about the rows that it gets from another one.
#[derive(Debug, PartialEq, Eq)]
pub struct ComingRows {
    shards: RowShards,
    /// The place of each unit in the shard, in units.
    places: Vec<u32>,
}

impl RowShards {
    /// # Panics
    /// If rows or shards are empty.
    pub fn new(width: usize, shard: usize) -> Self {
        assert!(width > 0 && shard > 0, "rows of {width} elements in shards of {shard}");
        Self { width, shard, unit: greatest_common_divisor(width, shard) }
    }

    /// The units of row `id` in the shard of rank `owner`, counted from the first unit of the
    /// embedding.
    fn units(&self, id: usize, owner: usize) -> Range<usize> {
        let of_row = id * (self.width / self.unit)..(id + 1) * (self.width / self.unit);
        let of_shard = owner * (self.shard / self.unit)..(owner + 1) * (self.shard / self.unit);
        let (start, end) = (of_row.start.max(of_shard.start), of_row.end.min(of_shard.end));
        start..end.max(start)
    }

    /// The ranks that own parts of row `id`.
    fn owners(&self, id: usize) -> Range<usize> {
        let (first, end) = (id * self.width, (id + 1) * self.width);
        first / self.shard..(end - 1) / self.shard + 1
    }

    /// Sorts `rows` (`[t, d]`), which are added to the rows `ids` of the embedding, by owner. Rows
    /// of the same owner keep their order.
    pub fn sort(&self, ids: &[u32], rows: Tensor<2>, ranks: usize) -> SentRows {
        let mut messages = vec![vec![self.width as u32]; ranks];
        let mut units = vec![Vec::new(); ranks];
        let of_row = self.width / self.unit;
        for (row, id) in ids.iter().enumerate() {
            for owner in self.owners(*id as usize) {
                let first = *id as usize * of_row;
                let own = self.units(*id as usize, owner);
                messages[owner].push(*id);
                units[owner].extend(own.map(|unit| row * of_row + unit - first));
            }
        }
        let lengths: Vec<usize> = units.iter().map(|units| units.len() * self.unit).collect();
        let all = rows.reshape([ids.len() * of_row, self.unit]);
        let elements = select_rows(all, &units.concat()).reshape([lengths.iter().sum::<usize>()]);
        let bytes = |message: Vec<u32>| bytemuck::cast_slice(&message).to_vec();
        SentRows { ids: messages.into_iter().map(bytes).collect(), lengths, elements }
    }
}

impl SentRows {
    /// The messages of a rank that had no micro-batch. They are empty.
    pub fn none(ranks: usize, device: &Device, dtype: DType) -> Self {
        let elements = Tensor::zeros([0], (device, dtype));
        Self { ids: vec![Vec::new(); ranks], lengths: vec![0; ranks], elements }
    }
}

impl ComingRows {
    /// Reads another rank's message to rank `owner`, whose shard has `shard` elements. `None` if
    /// that rank had no micro-batch.
    pub fn read(message: &[u8], owner: usize, shard: usize) -> Option<Self> {
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(message);
        let (width, ids) = words.split_first()?;
        let shards = RowShards::new(*width as usize, shard);
        let first = owner * (shard / shards.unit);
        let places = ids.iter().flat_map(|id| shards.units(*id as usize, owner));
        Some(Self { shards, places: places.map(|unit| (unit - first) as u32).collect() })
    }

    /// Elements of these rows.
    pub fn len(&self) -> usize {
        self.places.len() * self.shards.unit
    }

    /// Adds the rows to a shard's sum. `received` are the elements that this rank got from all
    /// ranks, in any float type; those of these rows begin at `start`.
    pub fn add_to(&self, sum: Option<Tensor<1>>, received: &Tensor<1>, start: usize) -> Tensor<1> {
        let zeros = || Tensor::zeros([self.shards.shard], (&received.device(), DType::F32));
        let sum = sum.unwrap_or_else(zeros);
        if self.places.is_empty() {
            return sum;
        }
        let elements = in_type(received.clone().narrow(0, start, self.len()), DType::F32);
        let units = elements.reshape([self.places.len(), self.shards.unit]);
        add_rows_into(sum, &self.places, units)
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    /// Rows of several widths, sent by one rank to all owners, arrive as if they were added to the
    /// whole embedding.
    #[test]
    fn every_element_reaches_its_owner_in_order() {
        let device = Device::flex();
        let ids = [5u32, 0, 7, 5, 2, 2, 6];
        for (width, shard, ranks) in [(8, 16, 4), (6, 16, 3), (12, 8, 12), (5, 40, 1)] {
            let shards = RowShards::new(width, shard);
            let values: Vec<f32> = (0..ids.len() * width).map(|i| (i as f32).sin()).collect();
            let rows: Tensor<2> =
                Tensor::from_data(TensorData::new(values.clone(), [ids.len(), width]), &device);
            let sent = shards.sort(&ids, rows, ranks);
            let mut whole = vec![0f32; shard * ranks];
            for (id, row) in ids.iter().zip(values.chunks(width)) {
                let at = *id as usize * width;
                whole[at..at + width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            let mut at = 0;
            for owner in 0..ranks {
                let coming = ComingRows::read(&sent.ids[owner], owner, shard).unwrap();
                assert_eq!(coming.len(), sent.lengths[owner], "width {width}, rank {owner}");
                let sum = coming.add_to(None, &sent.elements, at).into_data();
                let sum: Vec<f32> = sum.try_into_vec().unwrap();
                at += coming.len();
                assert_eq!(sum, whole[owner * shard..][..shard], "width {width}, rank {owner}");
            }
        }
        assert_eq!(ComingRows::read(&[], 0, 16), None);
    }

    #[test]
    fn a_shard_of_whole_rows_is_not_cut() {
        assert_eq!(RowShards::new(4096, 1 << 20).unit, 4096);
        assert_eq!(RowShards::new(576, 9 * 4096).unit, 576);
        assert_eq!(RowShards::new(576, 4096).unit, 64);
    }
}
