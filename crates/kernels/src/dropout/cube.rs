//! The GPU form of dropout: one pass, with the bits of the CPU form.

use burn::backend::{Cube, tensor::FloatTensor};
use cubecl::prelude::*;

use super::{Dropout, GOLDEN, Mask};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{ELEMENTWISE_UNITS, Ptx, Target, argument, device, properties, settings};
use crate::cube::{address, buffer, contiguous, elements, elementwise, empty};
use crate::timed;

impl Dropout for Cube {
    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        timed!("dropout");
        let x = contiguous(x);
        let [tokens, width] = x.meta.shape().dims();
        let out = empty(&x, [tokens, width], x.dtype);
        let pairs = width.div_ceil(2);
        let (count, cube) = elementwise(&x.client, tokens * pairs);
        if tokens * width > 0 {
            // SAFETY: a unit has two elements of one row, or the last one of a row.
            unsafe {
                drop_pairs::launch_unchecked(
                    &x.client,
                    count,
                    cube,
                    address([&x]),
                    buffer(&x),
                    buffer(&mask.tokens.on_device(&x)),
                    buffer(&out),
                    width,
                    pairs,
                    mask.place,
                    mask.threshold(),
                    mask.scale(),
                    elements(x.dtype),
                );
            }
        }
        out
    }
}

/// [`super::splitmix64`].
#[cube]
fn mixed(counter: u64) -> u64 {
    let z = counter + comptime!(GOLDEN).runtime();
    let z = (z ^ (z >> 30u64)) * 0xBF58_476D_1CE4_E5B9u64;
    let z = (z ^ (z >> 27u64)) * 0x94D0_49BB_1331_11EBu64;
    z ^ (z >> 31u64)
}

#[cube]
fn kept<E: Float>(x: E, bits: u32, threshold: u32, scale: f32) -> E {
    let mut kept = E::cast_from(f32::cast_from(x) * scale);
    if bits < threshold {
        kept = E::cast_from(0.0f32);
    }
    kept
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn drop_pairs<E: Float>(
    x: &[E],
    keys: &[u64],
    out: &mut [E],
    width: usize,
    pairs: usize,
    place: u64,
    threshold: u32,
    scale: f32,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < keys.len() * pairs {
        let token = ABSOLUTE_POS / pairs;
        let pair = ABSOLUTE_POS % pairs;
        let key = mixed(keys[token] ^ place);
        let bits = mixed(key + u64::cast_from(pair) * comptime!(GOLDEN).runtime());
        let at = token * width + 2 * pair;
        out[at] = kept::<E>(x[at], u32::cast_from(bits & 0xFFFF_FFFFu64), threshold, scale);
        if 2 * pair + 1 < width {
            out[at + 1] = kept::<E>(x[at + 1], u32::cast_from(bits >> 32u64), threshold, scale);
        }
    }
}

/// The kernel as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Ptx {
    let (b, threads) = (argument, ELEMENTWISE_UNITS);
    let pairs = drop_pairs::DropPairs::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        (),
        target.elements,
    );
    target.compile("dropout", threads, pairs)
}
