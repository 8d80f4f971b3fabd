//! A check of the Thrift structures of parquet files, before the library reads them.
//!
//! The library counts through the items of a list that it skips. A truth value in a list takes no
//! bytes there, so a few bytes of a damaged file can announce hours of work.

use std::io::{self, BufRead, Read};

/// The most truth values of a list. The structures of parquet have lists of a column's pages at
/// most, and those are in an index that is not read.
const MOST_TRUTH_VALUES: u64 = 256;
/// The most structures within structures. Those of parquet have fewer than ten.
const DEEPEST: usize = 64;

/// Why a structure is not read to its end.
enum Stop {
    /// It is no structure, or ends too early. The library says so.
    NotReadable,
    TooManyItems,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::NotReadable
    }
}

/// Checks the structure (in the compact protocol) that `input` begins with.
///
/// # Errors
/// One of its lists or maps has more truth values than any parquet file has.
pub(super) fn check_lists(input: &mut impl BufRead) -> io::Result<()> {
    match skip(input, Type::Struct, DEEPEST) {
        Ok(()) | Err(Stop::NotReadable) => Ok(()),
        Err(Stop::TooManyItems) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a list in the description of a page or of the file is too long",
        )),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    TruthValue,
    /// A fixed number of bytes.
    Bytes(u64),
    Number,
    Binary,
    List,
    Map,
    Struct,
}

impl Type {
    fn of(nibble: u8) -> Result<Self, Stop> {
        Ok(match nibble {
            1 | 2 => Self::TruthValue,
            3 => Self::Bytes(1),
            4..=6 => Self::Number,
            7 => Self::Bytes(8),
            8 => Self::Binary,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            13 => Self::Bytes(16),
            _ => return Err(Stop::NotReadable),
        })
    }
}

fn skip(input: &mut impl BufRead, kind: Type, depth: usize) -> Result<(), Stop> {
    let below = depth.checked_sub(1).ok_or(Stop::NotReadable)?;
    match kind {
        Type::TruthValue => Ok(()),
        Type::Bytes(count) => skip_bytes(input, count),
        Type::Number => number(input).map(drop),
        Type::Binary => {
            let length = number(input)?;
            skip_bytes(input, length)
        }
        Type::List => {
            let header = byte(input)?;
            let items = match header >> 4 {
                15 => number(input)?,
                few => u64::from(few),
            };
            skip_items(input, items, &[Type::of(header & 15)?], below)
        }
        Type::Map => {
            let items = number(input)?;
            if items == 0 {
                return Ok(());
            }
            let header = byte(input)?;
            let kinds = [Type::of(header >> 4)?, Type::of(header & 15)?];
            skip_items(input, items, &kinds, below)
        }
        Type::Struct => loop {
            let header = byte(input)?;
            if header & 15 == 0 {
                return Ok(());
            }
            // The field's number, if it is not the difference in the upper half.
            if header >> 4 == 0 {
                number(input)?;
            }
            skip(input, Type::of(header & 15)?, below)?;
        },
    }
}

fn skip_items(
    input: &mut impl BufRead,
    items: u64,
    kinds: &[Type],
    depth: usize,
) -> Result<(), Stop> {
    if kinds.iter().all(|kind| *kind == Type::TruthValue) {
        return if items > MOST_TRUTH_VALUES { Err(Stop::TooManyItems) } else { Ok(()) };
    }
    // Each item takes a byte at least, so the input ends this.
    (0..items).try_for_each(|_| kinds.iter().try_for_each(|kind| skip(input, *kind, depth)))
}

fn byte(input: &mut impl BufRead) -> Result<u8, Stop> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A number of up to ten bytes, seven bits in each, the lowest first.
fn number(input: &mut impl BufRead) -> Result<u64, Stop> {
    let mut number = 0;
    for shift in (0..70).step_by(7) {
        let byte = byte(input)?;
        number |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if byte < 128 {
            return Ok(number);
        }
    }
    Err(Stop::NotReadable)
}

fn skip_bytes(input: &mut impl BufRead, count: u64) -> Result<(), Stop> {
    let skipped = io::copy(&mut input.by_ref().take(count), &mut io::sink())?;
    if skipped == count { Ok(()) } else { Err(Stop::NotReadable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) -> Result<(), String> {
        check_lists(&mut { bytes }).map_err(|error| error.to_string())
    }

    #[test]
    fn endless_lists_of_truth_values_are_refused() {
        let endless = [0xff, 0xff, 0xff, 0xff, 7];
        let list = [&[0x19, 0xf1][..], &endless, &[0]].concat();
        let map = [&[0x1b][..], &endless, &[0x12, 0]].concat();
        let nested = [&[0x1c, 0x19, 0x29][..], &[0x01], &[0xf2], &endless].concat();
        for bytes in [list, map, nested] {
            assert!(check(&bytes).unwrap_err().contains("too long"), "{bytes:x?}");
        }
    }

    #[test]
    fn other_structures_are_left_to_the_library() {
        // A page header, a short list, a field with a number of its own, and no structure at all.
        let header = [0x15, 0, 0x15, 8, 0x15, 8, 0x2c, 0x15, 2, 0x15, 0, 0, 0];
        let cases: [&[u8]; 7] = [
            &header,
            &[0x19, 0x31, 0],
            &[0x08, 4, 2, b'a', b'b', 0],
            &[0x18, 200],
            &[0x19, 0xf8, 0xff, 0xff, 0xff, 0xff, 7, 1, b'a'],
            &[0x1e, 1],
            &[0x1c; 200],
        ];
        for bytes in cases {
            assert_eq!(check(bytes), Ok(()), "{bytes:x?}");
        }
    }
}
