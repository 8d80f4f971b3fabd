//! The code book of NF4, and the codes of single blocks.
//!
//! Quantization gives the bytes of bitsandbytes 0.50 on the CPU. A full block is multiplied by the
//! reciprocal of its largest magnitude, a short last block is divided by it.

use crate::flex::exp::vectorized;

/// The sixteen values of NF4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of the standard
/// normal distribution, scaled to [-1, 1].
pub const CODE_BOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of 0, which also fills the last byte of an odd number of codes.
pub const ZERO: u8 = 7;

/// The least divisor. A block of zeros would be divided by 0 without it.
const LEAST: f32 = 1e-38;

/// Boundaries between the codes. A value on a boundary belongs to the lower code.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut code = 0;
    while code < 15 {
        midpoints[code] = (CODE_BOOK[code] + CODE_BOOK[code + 1]) / 2.0;
        code += 1;
    }
    midpoints
};

/// The two values of each byte: first that of the high nibble, then that of the low one.
const PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [CODE_BOOK[byte >> 4], CODE_BOOK[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Writes the codes of a block, one per element of `codes`, and returns the block's scale.
/// `is_full` says whether the block has the usual number of values.
pub fn quantize_block(values: &[f32], is_full: bool, codes: &mut [u8]) -> f32 {
    let largest = highest_magnitude(values);
    let divisor = largest.max(LEAST);
    match is_full {
        true => encode_scaled(values, 1.0 / divisor, codes),
        false => encode_divided(values, divisor, codes),
    }
    if is_full { largest } else { divisor }
}

/// Writes the values of the codes from number `from` on, times `scale`. Two codes are in a byte of
/// `bytes`, the first in the high nibble.
pub fn expand(bytes: &[u8], from: usize, scale: f32, out: &mut [f32]) {
    let (odd, out) = out.split_at_mut((from % 2).min(out.len()));
    if let [first] = odd {
        *first = PAIRS[usize::from(bytes[from / 2])][1] * scale;
    }
    let byte = from.div_ceil(2);
    let (pairs, last) = out.as_chunks_mut::<2>();
    let count = pairs.len();
    for (pair, byte) in pairs.iter_mut().zip(&bytes[byte..byte + count]) {
        let [high, low] = PAIRS[usize::from(*byte)];
        *pair = [high * scale, low * scale];
    }
    if let [last] = last {
        *last = PAIRS[usize::from(bytes[byte + count])][0] * scale;
    }
}

vectorized!(fn highest_magnitude(values: &[f32]) -> f32 = highest_magnitude_plain);
vectorized!(fn encode_scaled(values: &[f32], factor: f32, codes: &mut [u8]) = encode_scaled_plain);
vectorized!(fn encode_divided(values: &[f32], by: f32, codes: &mut [u8]) = encode_divided_plain);

#[inline(always)]
fn highest_magnitude_plain(values: &[f32]) -> f32 {
    // In lanes, so that the loop compiles to vector instructions. The order does not matter.
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.abs();
    }
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

#[inline(always)]
fn encode_scaled_plain(values: &[f32], factor: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(values) {
        *code = nearest(*x * factor);
    }
}

#[inline(always)]
fn encode_divided_plain(values: &[f32], by: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(values) {
        *code = nearest(*x / by);
    }
}

/// The number of boundaries below `x`. Values beyond ±1 get the outermost codes.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    MIDPOINTS.iter().fold(0, |code, midpoint| code + u8::from(*midpoint < x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_book_keep_their_codes() {
        let mut codes = [0; 16];
        assert_eq!(quantize_block(&CODE_BOOK, true, &mut codes), 1.0);
        assert_eq!(codes, std::array::from_fn(|code| code as u8));
        assert_eq!(CODE_BOOK[usize::from(ZERO)], 0.0);
    }

    #[test]
    fn a_block_of_zeros_has_the_code_of_zero() {
        let mut codes = [0; 3];
        assert_eq!(quantize_block(&[0.0, -0.0, 0.0], true, &mut codes), 0.0);
        assert_eq!(codes, [ZERO; 3]);
        assert_eq!(quantize_block(&[0.0, -0.0, 0.0], false, &mut codes), LEAST);
        assert_eq!(codes, [ZERO; 3]);
    }

    #[test]
    fn any_range_of_codes_is_expanded() {
        let bytes = [0x0f, 0x7a, 0xc3];
        let nibbles = [0, 15, 7, 10, 12, 3].map(|code: usize| 2.0 * CODE_BOOK[code]);
        for from in 0..6 {
            for to in from..=6 {
                let mut out = vec![f32::NAN; to - from];
                expand(&bytes, from, 2.0, &mut out);
                assert_eq!(out, nibbles[from..to]);
            }
        }
    }
}
