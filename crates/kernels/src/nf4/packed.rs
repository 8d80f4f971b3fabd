//! A tensor in NF4, in the memory of the host.

use rayon::prelude::*;

use super::code::{ZERO, expand, quantize_block};
use super::error::Nf4Error;
use super::scales::{NestedScales, Scales};
use crate::flex::fresh::filled;

/// Values of a block that share a scale, unless a file says otherwise.
pub const BLOCK: usize = 64;

/// A flat tensor of 4-bit codes with one scale for each block: `value = CODE_BOOK[code] · scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    len: usize,
    block: usize,
    /// Two codes in a byte, the first in the high nibble.
    codes: Vec<u8>,
    scales: Scales,
}

impl Packed {
    /// Quantizes `values` in blocks of 64; if `nested`, the scales too. The result does not depend
    /// on the number of threads.
    pub fn quantize(values: &[f32], nested: bool) -> Self {
        /// Blocks that a thread quantizes at a time.
        const RUN: usize = 64;
        let mut codes = vec![0; values.len().div_ceil(2)];
        let mut scales = vec![0.0; values.len().div_ceil(BLOCK)];
        let runs = codes.par_chunks_mut(RUN * BLOCK / 2).zip(scales.par_chunks_mut(RUN));
        values.par_chunks(RUN * BLOCK).zip(runs).for_each(|(values, (codes, scales))| {
            let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2));
            for ((values, codes), scale) in blocks.zip(scales) {
                let mut unpacked = [ZERO; BLOCK];
                *scale = quantize_block(values, values.len() == BLOCK, &mut unpacked);
                for (byte, [high, low]) in codes.iter_mut().zip(unpacked.as_chunks::<2>().0) {
                    *byte = high << 4 | low;
                }
            }
        });
        let scales = match nested {
            true => Scales::Nested(NestedScales::quantize(&scales)),
            false => Scales::Float(scales),
        };
        Self { len: values.len(), block: BLOCK, codes, scales }
    }

    /// A tensor of `len` values from parts that were read from a file.
    ///
    /// # Errors
    /// A part has another number of elements than the tensor needs, or `block` is odd.
    pub fn from_parts(
        len: usize,
        block: usize,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Result<Self, Nf4Error> {
        if block == 0 || block % 2 == 1 {
            return Err(Nf4Error::Block(block));
        }
        for (part, found, expected) in
            [("codes", codes.len(), len.div_ceil(2)), ("absmax", scales.len(), len.div_ceil(block))]
        {
            if found != expected {
                return Err(Nf4Error::Size { part, found, expected });
            }
        }
        if let Scales::Nested(nested) = &scales {
            nested.check()?;
        }
        Ok(Self { len, block, codes, scales })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the tensor has no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The codes, two in a byte, the first in the high nibble.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales of the blocks.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    /// All values.
    pub fn dequantize(&self) -> Vec<f32> {
        const CHUNK: usize = 1 << 14;
        filled(self.len, CHUNK, |index, chunk| self.write(index * CHUNK, chunk))
    }

    /// Writes the values from number `from` on into `out`.
    pub fn write(&self, from: usize, mut out: &mut [f32]) {
        let mut at = from;
        while !out.is_empty() {
            let block = at / self.block;
            let len = ((block + 1) * self.block - at).min(out.len());
            let (now, later) = out.split_at_mut(len);
            expand(&self.codes, at, self.scales.of(block), now);
            (out, at) = (later, at + len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8).collect()
    }

    #[test]
    fn any_range_equals_that_part_of_the_whole() {
        let packed = Packed::quantize(&numbers(300), true);
        let whole = packed.dequantize();
        for (from, len) in [(0, 300), (1, 298), (63, 2), (64, 64), (257, 43), (299, 1), (5, 0)] {
            let mut out = vec![f32::NAN; len];
            packed.write(from, &mut out);
            assert_eq!(out, whole[from..from + len]);
        }
    }

    #[test]
    fn values_are_within_half_a_step() {
        let values = numbers(64 * 33 + 5);
        let packed = Packed::quantize(&values, false);
        for (value, quantized) in values.iter().zip(packed.dequantize()) {
            // The widest step of the code book is 0.304 times the block's largest magnitude.
            assert!((value - quantized).abs() <= 0.1521 * 0.9, "{value} {quantized}");
        }
        assert_eq!(packed.bytes(), (64usize * 33 + 5).div_ceil(2) + 4 * 34);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let values = numbers(64 * 5000 + 17);
        let on_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let packed = Packed::quantize(&values, true);
                (packed.dequantize(), packed)
            })
        };
        let one = on_threads(1);
        for threads in [2, 3, 16] {
            assert!(on_threads(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        let parts = |len, block, codes: usize, scales: usize| {
            Packed::from_parts(len, block, vec![0; codes], Scales::Float(vec![0.0; scales]))
        };
        assert!(parts(130, 64, 65, 3).is_ok());
        let size = |part, found, expected| Err(Nf4Error::Size { part, found, expected });
        assert_eq!(parts(130, 64, 64, 3), size("codes", 64, 65));
        assert_eq!(parts(130, 64, 65, 2), size("absmax", 2, 3));
        assert_eq!(parts(130, 63, 65, 3), Err(Nf4Error::Block(63)));
    }
}
