//! The segments of a batch: which tokens attend to which keys.

/// A run of consecutive tokens of a batch. Its queries attend causally to the keys of its prefix
/// followed by its own keys.
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
    /// If `prefix` is not an earlier segment, or has a prefix itself: prefixes do not nest.
    pub fn push(&mut self, len: usize, prefix: Option<usize>) -> usize {
        if let Some(prefix) = prefix {
            assert!(self.0[prefix].prefix.is_none(), "a prefix may not have a prefix itself");
        }
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

    /// Number of tokens covered.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |last| last.start + last.len)
    }

    /// Rotary position of each token, `[t]`: a segment continues from the end of its prefix.
    pub fn positions(&self) -> Vec<u32> {
        self.0
            .iter()
            .flat_map(|segment| {
                let first = self.prefix_of(segment).map_or(0, |prefix| prefix.len);
                (first..first + segment.len).map(|position| position as u32)
            })
            .collect()
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
