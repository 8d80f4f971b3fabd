//! The scales of blocks: plain numbers, or quantized a second time to 8 bits.
//!
//! Double quantization gives the bytes of bitsandbytes 0.50 on the CPU with torch on one thread.
//! The offset is a mean, so its last bits depend on the order of summation: [`torch_sum`] is
//! torch's order. With more than 32,768 blocks and several threads, torch's own order depends on
//! the number of threads.

use super::error::Nf4Error;

/// Blocks of the second quantization.
const NESTED_BLOCK: usize = 256;

/// The scale of each block of codes.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// One float32 for each block.
    Float(Vec<f32>),
    /// One byte for each block.
    Nested(NestedScales),
}

/// Scales in 8 bits: `map[codes[i]] · absmax[i / block] + offset`.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScales {
    /// One for each scale.
    pub codes: Vec<u8>,
    /// One for each `block` scales.
    pub absmax: Vec<f32>,
    /// The values of the codes, 256 of them in ascending order.
    pub map: Vec<f32>,
    /// The mean of all scales, which was subtracted before the second quantization.
    pub offset: f32,
    /// Scales of a block of the second quantization.
    pub block: usize,
}

impl Scales {
    /// The scale of block `block`.
    pub fn of(&self, block: usize) -> f32 {
        match self {
            Self::Float(scales) => scales[block],
            Self::Nested(nested) => nested.of(block),
        }
    }

    /// The number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::Float(scales) => scales.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    /// Whether no scale exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(scales) => 4 * scales.len(),
            Self::Nested(nested) => {
                nested.codes.len() + 4 * (nested.absmax.len() + nested.map.len())
            }
        }
    }
}

impl NestedScales {
    /// Quantizes `scales` to 8 bits, in blocks of 256.
    pub fn quantize(scales: &[f32]) -> Self {
        let offset = torch_sum(scales) / scales.len().max(1) as f32;
        let map = dynamic_map();
        let midpoints: Vec<f32> = map.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let shifted: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for block in shifted.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            absmax.push(largest);
            let inverse = 1.0 / largest;
            codes.extend(block.iter().map(|x| match largest {
                0.0 => 0,
                _ => nearest(x * inverse, &midpoints),
            }));
        }
        Self { codes, absmax, map, offset, block: NESTED_BLOCK }
    }

    /// Checks the sizes of parts that were read from a file.
    ///
    /// # Errors
    /// A part has another number of elements than the codes ask for.
    pub fn check(&self) -> Result<(), Nf4Error> {
        let blocks = self.codes.len().div_ceil(self.block.max(1));
        let sizes = [("nested_absmax", self.absmax.len(), blocks), ("map", self.map.len(), 256)];
        match sizes.into_iter().find(|(_, found, expected)| found != expected) {
            None => Ok(()),
            Some((part, found, expected)) => Err(Nf4Error::Size { part, found, expected }),
        }
    }

    fn of(&self, index: usize) -> f32 {
        self.map[usize::from(self.codes[index])] * self.absmax[index / self.block] + self.offset
    }
}

/// The code of a value between -1 and 1. As in bitsandbytes, the value is first rounded to one of
/// 65,536 steps, and the code is the nearest to this step.
fn nearest(x: f32, midpoints: &[f32]) -> u8 {
    const STEPS: f32 = 65_535.0;
    let step = (x.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5;
    let rounded = -1.0 + (2.0 * step.floor()) / STEPS;
    midpoints.partition_point(|midpoint| *midpoint < rounded) as u8
}

/// The signed dynamic 8-bit type (arXiv 1511.04561, as bitsandbytes builds it): for each power of
/// ten from 10⁻⁶ to 1 twice as many values as for the one before, besides 0 and 1; ascending.
pub fn dynamic_map() -> Vec<f32> {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = vec![0.0, 1.0];
    for (index, power) in POWERS.into_iter().enumerate() {
        let ends = linspace((1 << index) + 1);
        for pair in ends.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            map.extend([power * mean, -power * mean]);
        }
    }
    map.sort_unstable_by(f32::total_cmp);
    map
}

/// `count` numbers from 0.1 to 1, rounded as by torch's `linspace`.
fn linspace(count: usize) -> Vec<f32> {
    let step = (1.0 - 0.1f32) / (count - 1) as f32;
    let number = |index: usize| match index < count / 2 {
        true => step.mul_add(index as f32, 0.1),
        false => (-step).mul_add((count - 1 - index) as f32, 1.0),
    };
    (0..count).map(number).collect()
}

/// The sum in the order of torch's CPU kernel on one thread: vectors of eight numbers are added to
/// four sums in turn, and the sums of runs to sums of higher levels.
fn torch_sum(x: &[f32]) -> f32 {
    const LANES: usize = 8;
    if x.len() < LANES {
        return row_sum(x.len(), |index| [x[index]])[0];
    }
    let (vectors, rest) = x.as_chunks::<LANES>();
    let lanes = row_sum(vectors.len(), |index| vectors[index]);
    let rest = rest.iter().fold(0.0, |sum, x| sum + x);
    lanes.into_iter().fold(rest, |sum, lane| sum + lane)
}

/// The sum of `count` rows.
fn row_sum<const N: usize>(count: usize, row: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    const PARTS: usize = 4;
    const LEVELS: usize = 4;
    let steps = count / PARTS;
    let power = (steps.max(1).next_power_of_two().ilog2() as usize / LEVELS).max(4);
    let mut sums = [[[0.0; N]; PARTS]; LEVELS];
    for step in 0..steps {
        for (part, sum) in sums[0].iter_mut().enumerate() {
            add(sum, row(step * PARTS + part));
        }
        let done = step + 1;
        if !done.is_multiple_of(1 << power) {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut sums[level - 1], [[0.0; N]; PARTS]);
            add_parts(&mut sums[level], below);
            if !(done >> (level * power)).is_multiple_of(1 << power) {
                break;
            }
        }
    }
    let [mut parts, levels @ ..] = sums;
    levels.into_iter().for_each(|level| add_parts(&mut parts, level));
    (steps * PARTS..count).for_each(|index| add(&mut parts[0], row(index)));
    let [mut sum, others @ ..] = parts;
    others.into_iter().for_each(|part| add(&mut sum, part));
    sum
}

fn add<const N: usize>(sum: &mut [f32; N], row: [f32; N]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += x;
    }
}

fn add_parts<const N: usize, const M: usize>(sums: &mut [[f32; N]; M], rows: [[f32; N]; M]) {
    for (sum, row) in sums.iter_mut().zip(rows) {
        add(sum, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_is_symmetric_besides_its_ends() {
        let map = dynamic_map();
        assert_eq!(map.len(), 256);
        assert!(map.is_sorted());
        let [negative, positive] = [&map[..127], &map[128..255]];
        assert!(negative.iter().rev().zip(positive).all(|(low, high)| -low == *high));
        assert_eq!([map[127], map[255]], [0.0, 1.0]);
    }

    #[test]
    fn sums_of_whole_numbers_are_exact() {
        for len in [0, 1, 7, 8, 31, 33, 1000, 4099, 40_000] {
            let x: Vec<f32> = (0..len).map(|i| (i % 17) as f32).collect();
            assert_eq!(torch_sum(&x), x.iter().sum::<f32>(), "{len}");
        }
    }

    #[test]
    fn nested_scales_are_close_to_the_scales() {
        let scales: Vec<f32> = (0..700).map(|i| 0.1 + (i % 37) as f32 * 0.01).collect();
        let nested = NestedScales::quantize(&scales);
        assert_eq!(nested.check(), Ok(()));
        let nested = Scales::Nested(nested);
        for (index, scale) in scales.iter().enumerate() {
            assert!((nested.of(index) - scale).abs() < 4e-3, "{index}");
        }
    }

    #[test]
    fn equal_scales_are_the_offset() {
        let nested = NestedScales::quantize(&[0.25; 300]);
        assert_eq!((nested.offset, nested.absmax.as_slice()), (0.25, [0.0; 2].as_slice()));
        assert_eq!(Scales::Nested(nested).of(299), 0.25);
    }
}
