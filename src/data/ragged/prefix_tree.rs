//! A batch of sequences in which each shared beginning is computed once.
//!
//! The sequences form a tree: a node is a segment of tokens, its prefix is its parent, and
//! sequences branch at the first token in which they differ. Few-shot examples that many questions
//! share, and a question that several answers share, are then inner nodes.

use super::RaggedBatch;

/// A sequence whose last tokens are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoredSequence<'a> {
    /// Token ids, at least two.
    pub ids: &'a [u32],
    /// The first scored token, at least 1; all tokens after it are scored too.
    pub first_scored: usize,
}

impl ScoredSequence<'_> {
    /// The tokens that the model reads: nothing follows the last one, so it is not read.
    fn read(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }
}

/// A shorter beginning is computed again for each sequence: a segment of a few tokens costs more
/// than it saves.
const LEAST_SHARED: usize = 8;

/// The number of leading tokens that both lists have in common.
pub fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl RaggedBatch {
    /// A batch in which sequences share their common beginnings. Sequence `i` of the batch is
    /// `sequences[i]`. A sequence of which more than `short` tokens are read shares nothing with
    /// those that have no more, because the model may compute it in another way.
    ///
    /// # Panics
    /// If a sequence has fewer than two tokens, or if its first token is scored.
    pub fn sharing_prefixes(sequences: &[ScoredSequence], short: Option<usize>) -> Self {
        assert!(sequences.iter().all(|s| s.ids.len() > 1 && s.first_scored > 0));
        let mut sorted: Vec<(usize, ScoredSequence)> =
            sequences.iter().copied().enumerate().collect();
        let is_long = |s: &ScoredSequence| short.is_some_and(|short| s.read().len() > short);
        sorted.sort_by(|(_, a), (_, b)| {
            is_long(a).cmp(&is_long(b)).then_with(|| a.read().cmp(b.read()))
        });
        let batch = Self { sequences: sequences.len(), ..Self::default() };
        let mut tree = Tree { batch, path: Vec::new() };
        for alike in sorted.chunk_by(|(_, a), (_, b)| is_long(a) == is_long(b)) {
            tree.grow(alike, None);
            tree.path.clear();
        }
        tree.batch
    }

    /// The tokens that the token with this index sees, in the order of their positions, itself
    /// last.
    pub fn path_to(&self, token: usize) -> Vec<usize> {
        let own = self.segments.iter().find(|s| (s.start..s.start + s.len).contains(&token));
        let own = own.expect("segments cover all tokens of the batch");
        let ancestors = self.segments.ancestors(own).into_iter();
        ancestors.flat_map(|s| s.start..s.start + s.len).chain(own.start..=token).collect()
    }
}

struct Tree {
    batch: RaggedBatch,
    /// The batch's token at each position of the current node and its ancestors.
    path: Vec<usize>,
}

impl Tree {
    /// Adds the rest of `sequences`, which are sorted and have the tokens of `path` in common.
    /// `parent` is the segment at the end of `path`.
    fn grow(&mut self, sequences: &[(usize, ScoredSequence)], parent: Option<usize>) {
        let ([(_, first), ..], [.., (_, last)]) = (sequences, sequences) else { return };
        let from = self.path.len();
        // The first and the last in order differ most.
        let common = common_length(first.read(), last.read());
        let branches = last.read().len() > common;
        let mut parent = parent;
        if common > from && (!branches || common - from >= LEAST_SHARED) {
            let start = self.batch.tokens();
            parent = Some(self.batch.append(&first.read()[from..common], parent));
            self.path.extend(start..self.batch.tokens());
        }
        let mut rest = sequences;
        while let [(number, sequence), others @ ..] = rest
            && sequence.read().len() == self.path.len()
        {
            self.score_end(*number, sequence);
            rest = others;
        }
        // If the common tokens were too few to share, each branch begins with them.
        let at = if branches { common } else { self.path.len() };
        for branch in rest.chunk_by(|(_, a), (_, b)| a.read().get(at) == b.read().get(at)) {
            let depth = self.path.len();
            self.grow(branch, parent);
            self.path.truncate(depth);
        }
    }

    /// Scores the last tokens of a sequence whose other tokens are the path.
    fn score_end(&mut self, number: usize, sequence: &ScoredSequence) {
        for (place, target) in sequence.ids.iter().enumerate().skip(sequence.first_scored) {
            self.batch.scored.push(self.path[place - 1]);
            self.batch.targets.push(*target);
            self.batch.sequence.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOTS: [u32; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

    fn after_shots(ids: &[u32]) -> Vec<u32> {
        [&SHOTS, ids].concat()
    }

    fn batch(sequences: &[(Vec<u32>, usize)]) -> RaggedBatch {
        let sequences: Vec<ScoredSequence> = sequences
            .iter()
            .map(|(ids, first_scored)| ScoredSequence { ids, first_scored: *first_scored })
            .collect();
        RaggedBatch::sharing_prefixes(&sequences, None)
    }

    #[test]
    fn long_sequences_share_nothing_with_short_ones() {
        let ids = [[1, 2].as_slice(), &[1, 2, 3], &[1, 2, 3, 4]].map(after_shots);
        let sequences = ids.each_ref().map(|ids| ScoredSequence { ids, first_scored: 9 });
        let batch = RaggedBatch::sharing_prefixes(&sequences, Some(12));
        // The last one has 13 tokens that are read. The others share 11 of 11 and 12.
        assert_eq!(batch.segments.groups().len(), 2);
        assert_eq!(batch.tokens(), 12 + 13);
        let together = RaggedBatch::sharing_prefixes(&sequences, None);
        // Two branches, each with the twelfth token, which is too little to share.
        assert_eq!((together.segments.groups().len(), together.tokens()), (1, 14));
    }

    fn seen(batch: &RaggedBatch, token: usize) -> Vec<u32> {
        batch.path_to(token).into_iter().map(|token| batch.ids[token]).collect()
    }

    fn assert_sound(sequences: &[(Vec<u32>, usize)]) -> RaggedBatch {
        let batch = batch(sequences);
        let mut found = vec![Vec::new(); sequences.len()];
        for ((predictor, target), sequence) in
            batch.scored.iter().zip(&batch.targets).zip(&batch.sequence)
        {
            found[*sequence].push([seen(&batch, *predictor), vec![*target]].concat());
        }
        for (found, (ids, first)) in found.iter().zip(sequences) {
            let expected: Vec<&[u32]> = (*first..ids.len()).map(|end| &ids[..=end]).collect();
            assert_eq!(found, &expected);
        }
        assert_eq!(batch.segments.tokens(), batch.ids.len());
        batch
    }

    #[test]
    fn shots_questions_and_answers_are_computed_once() {
        let question = |n: u32| after_shots(&[20 + n; 9]);
        let answer = |n: u32, answer: &[u32]| ([&question(n), answer].concat(), 19);
        let batch = assert_sound(&[
            answer(0, &[1, 2]),
            answer(0, &[3]),
            answer(1, &[1]),
            answer(1, &[2]),
            answer(1, &[4, 5, 6]),
        ]);
        // Ten shots, two questions, and the answers without their last tokens.
        assert_eq!(batch.tokens(), 10 + 9 + 1 + 9 + 2);
        assert_eq!(batch.segments.iter().filter(|s| s.prefix.is_none()).count(), 1);
    }

    #[test]
    fn sequences_without_a_common_beginning_are_roots() {
        let batch = assert_sound(&[(vec![1, 2, 3], 1), (vec![4, 5], 1), (vec![1, 9, 9], 2)]);
        // Sharing one token is not worth a segment.
        assert_eq!(batch.tokens(), 2 + 1 + 2);
        assert!(batch.segments.iter().all(|segment| segment.prefix.is_none()));
    }

    #[test]
    fn equal_sequences_and_beginnings_of_others_are_sound() {
        assert_sound(&[(after_shots(&[1]), 10), (after_shots(&[1]), 3), (after_shots(&[2]), 10)]);
        assert_sound(&[(after_shots(&[1]), 10), (after_shots(&[1, 2, 3]), 11)]);
        assert_sound(&[(vec![1, 2], 1), (vec![1, 2, 3], 1), (vec![1, 2, 3, 4], 2)]);
        assert_sound(&[(vec![1, 2], 1), (vec![1, 5, 3], 1), (vec![1, 5, 3, 4], 2)]);
        assert_sound(&[(SHOTS.to_vec(), 9), (after_shots(&[3, 4, 5, 6]), 1)]);
        assert_eq!(batch(&[]).tokens(), 0);
    }

    #[test]
    fn random_trees_are_sound() {
        let mut state = 7u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..200 {
            let sequences: Vec<(Vec<u32>, usize)> = (0..next(9))
                .map(|_| {
                    let mut ids = Vec::new();
                    while ids.len() < 2 || next(4) > 0 {
                        let block = next(2);
                        ids.extend(std::iter::repeat_n(block, 1 + next(10) as usize));
                    }
                    let first = 1 + next(ids.len() as u32 - 1) as usize;
                    (ids, first)
                })
                .collect();
            assert_sound(&sequences);
        }
    }
}
