//! The segments of a batch as tables of numbers, for kernels that do a whole batch in one launch.

use cubecl::prelude::*;

use crate::attention::{Segment, Segments};

/// Numbers of a tile: first token, tokens, position of the first token in its sequence, first span,
/// spans.
const TILE_NUMBERS: usize = 5;

/// Numbers of a span: first token, tokens, position of the first token in its sequence.
const SPAN_NUMBERS: usize = 3;

/// Pieces of segments, each the work of one cube per head, and for each of them the spans of tokens
/// with which it interacts.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TileTable {
    /// [`TILE_NUMBERS`] for each tile.
    pub tiles: Vec<u32>,
    /// [`SPAN_NUMBERS`] for each span.
    pub spans: Vec<u32>,
}

impl TileTable {
    /// Tiles of at most `height` queries. Their spans are the keys that they may see: those of the
    /// segment's prefix, that prefix's prefix and so on, then those of the segment.
    pub fn of_queries(segments: &Segments, height: usize) -> Self {
        let firsts = first_positions(segments);
        let mut table = Self::default();
        for (index, first) in firsts.iter().enumerate() {
            let mut seen = with_ancestors(segments, index);
            seen.reverse();
            let spans = seen.iter().map(|index| (segments.get(*index), firsts[*index]));
            table.push(segments.get(index), *first, height, spans);
        }
        table
    }

    /// Tiles of at most `height` keys. Their spans are the queries that may see them: those of the
    /// segment, then those of the segments that have it as prefix, directly or by other prefixes.
    pub fn of_keys(segments: &Segments, height: usize) -> Self {
        let firsts = first_positions(segments);
        let mut seen_by = vec![Vec::new(); firsts.len()];
        for index in 0..firsts.len() {
            for seen in with_ancestors(segments, index) {
                seen_by[seen].push(index);
            }
        }
        let mut table = Self::default();
        for (index, first) in firsts.iter().enumerate() {
            let spans = seen_by[index].iter().map(|index| (segments.get(*index), firsts[*index]));
            table.push(segments.get(index), *first, height, spans);
        }
        table
    }

    /// The number of tiles.
    pub fn len(&self) -> usize {
        self.tiles.len() / TILE_NUMBERS
    }

    /// Adds the tiles of a segment that begins at position `first` of its sequence, with spans and
    /// the positions at which they begin.
    fn push<'a>(
        &mut self,
        segment: &Segment,
        first: usize,
        height: usize,
        spans: impl Iterator<Item = (&'a Segment, usize)>,
    ) {
        if segment.len == 0 {
            return;
        }
        let first_span = self.spans.len() / SPAN_NUMBERS;
        for (span, position) in spans.filter(|(span, _)| span.len > 0) {
            self.spans.extend([span.start, span.len, position].map(|number| number as u32));
        }
        let spans = self.spans.len() / SPAN_NUMBERS - first_span;
        for start in (0..segment.len).step_by(height) {
            let tokens = height.min(segment.len - start);
            let tile = [segment.start + start, tokens, first + start, first_span, spans];
            self.tiles.extend(tile.map(|number| number as u32));
        }
    }
}

/// A tile of the table, for kernels: first token, tokens, position of the first token in its
/// sequence, first span, end of the spans.
#[cube]
pub(super) fn tile_at(tiles: &[u32], tile: usize) -> (usize, usize, usize, usize, usize) {
    let at = tile * TILE_NUMBERS;
    let first = tiles[at] as usize;
    let count = tiles[at + 1] as usize;
    let position = tiles[at + 2] as usize;
    let first_span = tiles[at + 3] as usize;
    (first, count, position, first_span, first_span + tiles[at + 4] as usize)
}

/// The keys of a span that a tile of queries sees, for kernels: first token, token after the last
/// one, position of the first token in its sequence. Without such keys, the first token is not below
/// the second.
#[cube]
pub(super) fn keys_of_span(
    spans: &[u32],
    span: usize,
    position: usize,
    count: usize,
    window: usize,
) -> (usize, usize, usize) {
    span_between(spans, span, beyond(position + 1, window), position + count)
}

/// The queries of a span that see a tile of keys, as [`keys_of_span`].
#[cube]
pub(super) fn queries_of_span(
    spans: &[u32],
    span: usize,
    position: usize,
    count: usize,
    window: usize,
) -> (usize, usize, usize) {
    span_between(spans, span, position, position + count - 1 + window)
}

/// The tokens of a span at positions from `first` to before `end`, as [`keys_of_span`].
#[cube]
fn span_between(spans: &[u32], span: usize, first: usize, end: usize) -> (usize, usize, usize) {
    let at = span * SPAN_NUMBERS;
    let start = spans[at] as usize;
    let len = spans[at + 1] as usize;
    let position = spans[at + 2] as usize;
    let skipped = beyond(first, position);
    (start + skipped, start + min(len, beyond(end, position)), position + skipped)
}

/// `a − b`, or 0 if `b` is larger.
#[cube]
pub(super) fn beyond(a: usize, b: usize) -> usize {
    max(a, b) - b
}

/// The position of each segment's first token in its sequence.
fn first_positions(segments: &Segments) -> Vec<usize> {
    let mut ends: Vec<usize> = Vec::new();
    let mut firsts = Vec::new();
    for segment in segments.iter() {
        let first = segment.prefix.map_or(0, |prefix| ends[prefix]);
        firsts.push(first);
        ends.push(first + segment.len);
    }
    firsts
}

/// The indices of a segment, its prefix, the prefix of that prefix and so on.
fn with_ancestors(segments: &Segments, index: usize) -> Vec<usize> {
    std::iter::successors(Some(index), |index| segments.get(*index).prefix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 3 tokens, an empty response, a response of 5 tokens, and a sequence of 2.
    fn segments() -> Segments {
        let mut segments = Segments::default();
        let prompt = segments.push(3, None);
        segments.push(0, Some(prompt));
        segments.push(5, Some(prompt));
        segments.push(2, None);
        segments
    }

    #[test]
    fn queries_see_prefix_and_segment() {
        let table = TileTable::of_queries(&segments(), 4);
        assert_eq!(table.spans, [0, 3, 0, 0, 3, 0, 3, 5, 3, 8, 2, 0]);
        let tiles: Vec<&[u32]> = table.tiles.chunks(TILE_NUMBERS).collect();
        let expected: [&[u32]; 4] =
            [&[0, 3, 0, 0, 1], &[3, 4, 3, 1, 2], &[7, 1, 7, 1, 2], &[8, 2, 0, 3, 1]];
        assert_eq!(tiles, expected);
        assert_eq!(table.len(), 4);
    }

    /// A prompt of 3 tokens, a turn of 2 that continues it, and two responses to this turn.
    #[test]
    fn prefixes_of_prefixes_are_seen() {
        let mut segments = Segments::default();
        let prompt = segments.push(3, None);
        let turn = segments.push(2, Some(prompt));
        segments.push(1, Some(turn));
        segments.push(4, Some(turn));
        let table = TileTable::of_queries(&segments, 8);
        let spans: Vec<&[u32]> = table.spans.chunks(SPAN_NUMBERS).collect();
        let turn: [&[u32]; 2] = [&[0, 3, 0], &[3, 2, 3]];
        assert_eq!(&spans[1..3], turn);
        assert_eq!(&spans[6..8], turn);
        assert_eq!(spans[8], [6, 4, 5]);
        assert_eq!(table.tiles[15..], [6, 4, 5, 6, 3]);
        let table = TileTable::of_keys(&segments, 8);
        let spans: Vec<&[u32]> = table.spans.chunks(SPAN_NUMBERS).collect();
        let of_turn: [&[u32]; 3] = [&[3, 2, 3], &[5, 1, 5], &[6, 4, 5]];
        assert_eq!(&spans[1..4], of_turn);
        assert_eq!(&spans[4..7], of_turn);
        assert_eq!(table.tiles[5..10], [3, 2, 3, 4, 3]);
    }

    #[test]
    fn keys_are_seen_by_segment_and_responses() {
        let table = TileTable::of_keys(&segments(), 4);
        assert_eq!(table.spans, [0, 3, 0, 3, 5, 3, 3, 5, 3, 8, 2, 0]);
        let tiles: Vec<&[u32]> = table.tiles.chunks(TILE_NUMBERS).collect();
        let expected: [&[u32]; 4] =
            [&[0, 3, 0, 0, 2], &[3, 4, 3, 2, 1], &[7, 1, 7, 2, 1], &[8, 2, 0, 3, 1]];
        assert_eq!(tiles, expected);
    }
}
