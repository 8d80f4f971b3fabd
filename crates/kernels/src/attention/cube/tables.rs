//! The segments of a batch as tables of numbers, for kernels that do a whole batch in one launch.

use crate::attention::{Segment, Segments};

/// Numbers of a tile: first token, tokens, position of the first token in its sequence, first span,
/// spans.
pub(super) const TILE_NUMBERS: usize = 5;

/// Numbers of a span: first token, tokens, position of the first token in its sequence.
pub(super) const SPAN_NUMBERS: usize = 3;

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
    /// prefix, then those of the segment.
    pub fn of_queries(segments: &Segments, height: usize) -> Self {
        let mut table = Self::default();
        for segment in segments.iter() {
            let prefix = segments.prefix_of(segment);
            let first = prefix.map_or(0, |prefix| prefix.len);
            let spans = prefix.map(|prefix| (prefix, 0)).into_iter().chain([(segment, first)]);
            table.push(segment, first, height, spans);
        }
        table
    }

    /// Tiles of at most `height` keys. Their spans are the queries that may see them: those of the
    /// segment, then those of the segments of which it is the prefix.
    pub fn of_keys(segments: &Segments, height: usize) -> Self {
        let mut table = Self::default();
        for (index, segment) in segments.iter().enumerate() {
            let first = segments.prefix_of(segment).map_or(0, |prefix| prefix.len);
            let later = segments.iter().filter(|later| later.prefix == Some(index));
            let spans =
                [(segment, first)].into_iter().chain(later.map(|later| (later, segment.len)));
            table.push(segment, first, height, spans);
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
