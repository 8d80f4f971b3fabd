//! The segments of a batch: which tokens attend to which keys.

/// A run of consecutive tokens of a batch. Its queries attend causally to the keys of its prefix
/// followed by its own keys. A prefix may have a prefix itself, whose keys come before its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First token of the segment in the batch.
    pub start: usize,
    /// Tokens in the segment.
    pub len: usize,
    /// Index of the earlier segment whose keys all of this segment's queries see.
    pub prefix: Option<usize>,
}

/// The segments of a batch in order; together they cover its tokens exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// Appends a segment of `len` tokens and returns its index.
    ///
    /// # Panics
    /// If `prefix` is not an earlier segment.
    pub fn push(&mut self, len: usize, prefix: Option<usize>) -> usize {
        assert!(prefix.is_none_or(|prefix| prefix < self.0.len()), "a prefix comes first");
        self.0.push(Segment { start: self.tokens(), len, prefix });
        self.0.len() - 1
    }

    /// The segment with this index.
    ///
    /// # Panics
    /// If `index` is not smaller than the number of segments.
    pub fn get(&self, index: usize) -> &Segment {
        &self.0[index]
    }

    /// All segments, in the order of their tokens.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.0.iter()
    }

    /// The prefix of a segment, if it has one.
    pub fn prefix_of(&self, segment: &Segment) -> Option<&Segment> {
        segment.prefix.map(|index| &self.0[index])
    }

    /// The prefix of a segment, the prefix of that prefix and so on, in the order of their
    /// positions: the root comes first.
    pub fn ancestors(&self, segment: &Segment) -> Vec<Segment> {
        let next = |segment: &Segment| self.prefix_of(segment).copied();
        let mut ancestors: Vec<Segment> = std::iter::successors(next(segment), next).collect();
        ancestors.reverse();
        ancestors
    }

    /// Number of tokens covered.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |last| last.start + last.len)
    }

    /// Rotary position of each token, `[t]`: a segment continues from the end of its prefix.
    pub fn positions(&self) -> Vec<u32> {
        let mut ends: Vec<usize> = Vec::with_capacity(self.0.len());
        let mut positions = Vec::with_capacity(self.tokens());
        for segment in &self.0 {
            let first = segment.prefix.map_or(0, |prefix| ends[prefix]);
            ends.push(first + segment.len);
            positions.extend((first..first + segment.len).map(|position| position as u32));
        }
        positions
    }

    /// For each token the tokens of its sequence, `[t]`. Segments with the same root count as one
    /// sequence, the longest of them: so a prompt has one length for all its responses.
    pub fn lengths(&self) -> Vec<u32> {
        let positions = self.positions();
        let mut lengths = vec![0; positions.len()];
        for group in self.groups() {
            let tokens = || group.iter().flat_map(|s| s.start..s.start + s.len);
            let longest = tokens().map(|token| positions[token] + 1).max().unwrap_or(0);
            tokens().for_each(|token| lengths[token] = longest);
        }
        lengths
    }

    /// Segments that are processed together: each root, first, with the segments that see it.
    pub fn groups(&self) -> Vec<Vec<Segment>> {
        let mut group_of = vec![0; self.0.len()];
        let mut groups: Vec<Vec<Segment>> = Vec::new();
        for (index, segment) in self.0.iter().enumerate() {
            match segment.prefix {
                Some(prefix) => group_of[index] = group_of[prefix],
                None => {
                    group_of[index] = groups.len();
                    groups.push(Vec::new());
                }
            }
            groups[group_of[index]].push(*segment);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_the_length_of_its_longest_response() {
        let mut segments = Segments::default();
        let prompt = segments.push(2, None);
        segments.push(1, Some(prompt));
        segments.push(3, Some(prompt));
        segments.push(0, None);
        segments.push(2, None);
        assert_eq!(segments.positions(), [0, 1, 2, 2, 3, 4, 0, 1]);
        assert_eq!(segments.lengths(), [5, 5, 5, 5, 5, 5, 2, 2]);
    }
}
