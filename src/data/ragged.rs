//! The ragged batch: all token rows of a micro-batch laid end to end, without padding.
//!
//! Legend: `t` = tokens of the batch, `n` = scored tokens (tokens whose log-prob is computed).
//!
//! A preference pair is three segments: the prompt, the chosen response and the rejected response.
//! Both responses attend to the prompt, and their positions start at its end. So a prompt is
//! computed once, and the log-probs are those of the two full sequences.

mod prefix_tree;

pub use prefix_tree::{ScoredSequence, common_length};

use super::{PreferencePair, SftRow, TwoResponses, UnpairedRow};
use crate::kernels::attention::{Segment, Segments};

/// A micro-batch: `t` tokens in segments, and `n` scored tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RaggedBatch {
    /// Token ids, `[t]`.
    pub ids: Vec<u32>,
    /// The segments, with the prefix that each attends to.
    pub segments: Segments,
    /// For each scored token, the token whose hidden state predicts it, `[n]`.
    pub scored: Vec<usize>,
    /// The scored token ids, `[n]`.
    pub targets: Vec<u32>,
    /// For each scored token, its sequence, `[n]`.
    pub sequence: Vec<usize>,
    /// Number of sequences: two per pair (chosen, rejected); if prompts are scored, one more per
    /// prompt, after all responses; one per SFT row.
    pub sequences: usize,
    /// Whether the last hidden state of every token is read, scored or not.
    pub reads_everywhere: bool,
}

/// The tokens whose output of the last layer is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadRows {
    /// These tokens in ascending order, each once; `None` for all tokens.
    pub rows: Option<Vec<usize>>,
    /// The positions among `rows` of the tokens that predict the scored tokens, `[n]`.
    pub scored: Vec<usize>,
}

impl ReadRows {
    /// Reads the output of every token.
    pub fn all(batch: &RaggedBatch) -> Self {
        Self { rows: None, scored: batch.scored.clone() }
    }
}

impl RaggedBatch {
    /// Pairs with shared prompts. Sequence `2 i` is the chosen side of pair `i`, `2 i + 1` the
    /// rejected side. All response tokens are scored.
    pub fn preferences<'a>(pairs: impl IntoIterator<Item = &'a PreferencePair>) -> Self {
        Self::responses(pairs)
    }

    /// Rows of KTO with their prompts shared. Sequence `2 i` is the completion of row `i`, `2 i +
    /// 1` the mismatched one; all tokens of both are scored.
    pub fn unpaired<'a>(rows: impl IntoIterator<Item = &'a UnpairedRow>) -> Self {
        Self::responses(rows)
    }

    /// Rows of two responses with their prompts shared. Sequences `2 i` and `2 i + 1` are those of
    /// row
    /// `i`; all tokens of the responses are scored.
    pub fn responses<'a, R: TwoResponses + 'a>(rows: impl IntoIterator<Item = &'a R>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            let prompt = batch.append(row.prompt(), None);
            for response in row.responses() {
                batch.append_response(prompt, response, batch.sequences);
                batch.sequences += 1;
            }
        }
        batch
    }

    /// Like [`RaggedBatch::preferences`], with the prompt tokens scored too: sequence `2 p + i` of
    /// `p` pairs is the prompt of pair `i`.
    pub fn preferences_with_prompts<'a>(
        pairs: impl IntoIterator<Item = &'a PreferencePair> + Clone,
    ) -> Self {
        let mut batch = Self::preferences(pairs.clone());
        let roots: Vec<Segment> = batch.segments.groups().iter().map(|group| group[0]).collect();
        for (pair, prompt) in pairs.into_iter().zip(roots) {
            for (offset, token) in pair.prompt.iter().enumerate().skip(1) {
                batch.score(prompt.start + offset - 1, *token, batch.sequences);
            }
            batch.sequences += 1;
        }
        batch
    }

    /// Pairs with a gold response, with shared prompts: sequence `2 p + i` of `p` pairs is the gold
    /// response of pair `i`; all response tokens are scored. A pair without gold response has no
    /// token in that sequence.
    pub fn triples<'a>(pairs: impl IntoIterator<Item = &'a PreferencePair> + Clone) -> Self {
        let mut batch = Self::default();
        let count = pairs.clone().into_iter().count();
        for (row, pair) in pairs.into_iter().enumerate() {
            let prompt = batch.append(&pair.prompt, None);
            batch.append_response(prompt, &pair.chosen, 2 * row);
            batch.append_response(prompt, &pair.rejected, 2 * row + 1);
            batch.append_response(prompt, &pair.gold, 2 * count + row);
        }
        batch.sequences = 3 * count;
        batch
    }

    /// The same pairs with each side as a whole sequence. Only for checking that sharing a prompt
    /// changes nothing.
    pub fn preferences_unshared<'a>(pairs: impl IntoIterator<Item = &'a PreferencePair>) -> Self {
        let mut batch = Self::default();
        for pair in pairs {
            for response in [&pair.chosen, &pair.rejected] {
                let prompt = batch.append(&pair.prompt, None);
                batch.append_response(prompt, response, batch.sequences);
                batch.sequences += 1;
            }
        }
        batch
    }

    /// SFT rows: each document is a segment; labelled tokens are scored.
    pub fn sft<'a>(rows: impl IntoIterator<Item = &'a SftRow>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            for document in &row.documents {
                let start = batch.ids.len();
                batch.append(&document.ids, None);
                for (offset, labelled) in document.labels.iter().enumerate().skip(1) {
                    if *labelled {
                        let target = document.ids[offset];
                        batch.score(start + offset - 1, target, batch.sequences);
                    }
                }
            }
            batch.sequences += 1;
        }
        batch
    }

    /// One sequence; every token but the first is scored.
    pub fn whole(ids: &[u32]) -> Self {
        let document =
            crate::data::SftDocument { ids: ids.to_vec(), labels: vec![true; ids.len()] };
        Self::sft([&SftRow { documents: vec![document] }])
    }

    /// Number of tokens, `t`.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Sums `values` (`[n]`) over the scored tokens of each sequence, in float64.
    pub fn sum_by_sequence(&self, values: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.sequences];
        for (sequence, value) in self.sequence.iter().zip(values) {
            sums[*sequence] += f64::from(*value);
        }
        sums
    }

    /// The number of scored tokens of each sequence.
    pub fn scored_by_sequence(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sequences];
        for sequence in &self.sequence {
            counts[*sequence] += 1;
        }
        counts
    }

    /// The tokens whose output of the last layer is needed: the others only serve as keys and
    /// values.
    pub fn read_rows(&self) -> ReadRows {
        let mut rows = self.scored.clone();
        rows.sort_unstable();
        rows.dedup();
        // Selecting nearly all rows costs more than it saves, and a selection without rows has no
        // tensor.
        if self.reads_everywhere || rows.is_empty() || rows.len() * 8 > self.tokens() * 7 {
            return ReadRows::all(self);
        }
        let place = |row| rows.binary_search(row).expect("every scored row is in the list");
        let scored = self.scored.iter().map(place).collect();
        ReadRows { rows: Some(rows), scored }
    }

    fn append(&mut self, ids: &[u32], prefix: Option<usize>) -> usize {
        self.ids.extend_from_slice(ids);
        self.segments.push(ids.len(), prefix)
    }

    /// The last token of the prompt predicts the first token of a response. An empty response is a
    /// sequence without segment.
    fn append_response(&mut self, prompt: usize, response: &[u32], sequence: usize) {
        if response.is_empty() {
            return;
        }
        let Segment { start: prompt_start, len: prompt_len, .. } = *self.segments.get(prompt);
        let start = self.ids.len();
        self.append(response, Some(prompt));
        for (offset, token) in response.iter().enumerate() {
            let predictor = match offset {
                0 if prompt_len == 0 => continue, // nothing predicts the first token of a sequence
                0 => prompt_start + prompt_len - 1,
                _ => start + offset - 1,
            };
            self.score(predictor, *token, sequence);
        }
    }

    fn score(&mut self, predictor: usize, target: u32, sequence: usize) {
        self.scored.push(predictor);
        self.targets.push(target);
        self.sequence.push(sequence);
    }
}

/// Splits `items` in order into parts of at most `most` tokens each; an item with more tokens is a
/// part of its own.
pub fn within_budget<T>(items: &[T], most: usize, tokens: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut rest = items;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let mut sum = 0;
        let fits = |item: &&T| {
            sum += tokens(item);
            sum <= most
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, left) = rest.split_at(count);
        parts.push(part);
        rest = left;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SftDocument;

    fn pair() -> PreferencePair {
        let [prompt, chosen, rejected] = [vec![1, 2, 3], vec![4, 5], vec![6]];
        PreferencePair { prompt, chosen, rejected, gold: vec![] }
    }

    #[test]
    fn a_pair_is_three_segments_with_one_prompt() {
        let batch = RaggedBatch::preferences([&pair()]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6]);
        assert_eq!(batch.segments.positions(), [0, 1, 2, 3, 4, 3]);
        assert_eq!(batch.scored, [2, 3, 2]);
        assert_eq!(batch.targets, [4, 5, 6]);
        assert_eq!(batch.sequence, [0, 0, 1]);
        assert_eq!(batch.sequences, 2);
        assert_eq!(batch.segments.groups().len(), 1);
    }

    #[test]
    fn prompts_are_scored_behind_the_responses() {
        let [prompt, chosen, rejected] = [vec![7, 8], vec![9], vec![9]];
        let other = PreferencePair { prompt, chosen, rejected, gold: vec![] };
        let batch = RaggedBatch::preferences_with_prompts([&pair(), &other]);
        assert_eq!(batch.sequences, 6);
        assert_eq!(batch.scored[..3], [2, 3, 2]);
        assert_eq!(batch.scored[5..], [0, 1, 6]);
        assert_eq!(batch.targets[5..], [2, 3, 8]);
        assert_eq!(batch.sequence[5..], [4, 4, 5]);
    }

    #[test]
    fn gold_responses_are_sequences_behind_those_of_the_pairs() {
        let with_gold = PreferencePair { gold: vec![7, 8], ..pair() };
        let batch = RaggedBatch::triples([&with_gold, &pair()]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6]);
        assert_eq!(batch.segments.positions()[..8], [0, 1, 2, 3, 4, 3, 3, 4]);
        assert_eq!(batch.scored, [2, 3, 2, 2, 6, 10, 11, 10]);
        assert_eq!(batch.targets, [4, 5, 6, 7, 8, 4, 5, 6]);
        assert_eq!(batch.sequence, [0, 0, 1, 4, 4, 2, 2, 3]);
        assert_eq!((batch.sequences, batch.segments.groups().len()), (6, 2));
        assert_eq!(batch.scored_by_sequence(), [2, 1, 2, 1, 2, 0]);
    }

    #[test]
    fn unshared_pairs_repeat_the_prompt() {
        let batch = RaggedBatch::preferences_unshared([&pair()]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 1, 2, 3, 6]);
        assert_eq!(batch.scored, [2, 3, 7]);
        assert_eq!(batch.segments.groups().len(), 2);
    }

    #[test]
    fn documents_of_a_packed_row_restart_their_positions() {
        let document =
            |ids: &[u32]| SftDocument { ids: ids.to_vec(), labels: vec![true; ids.len()] };
        let row = SftRow { documents: vec![document(&[7, 8, 9]), document(&[5, 6])] };
        let batch = RaggedBatch::sft([&row]);
        assert_eq!(batch.segments.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(batch.scored, [0, 1, 3]);
        assert_eq!(batch.targets, [8, 9, 6]);
        assert_eq!(batch.sequences, 1);
    }

    #[test]
    fn the_rows_read_are_those_of_the_responses_and_the_prompts_last() {
        let pair = PreferencePair { rejected: vec![], ..pair() };
        let batch = RaggedBatch::preferences([&pair, &pair]);
        let read = ReadRows { rows: Some(vec![2, 3, 7, 8]), scored: vec![0, 1, 2, 3] };
        assert_eq!(batch.read_rows(), read);
        let twice = RaggedBatch::preferences([&self::pair()]);
        let read = ReadRows { rows: Some(vec![2, 3]), scored: vec![0, 1, 0] };
        assert_eq!(twice.read_rows(), read);
        let everywhere = RaggedBatch { reads_everywhere: true, ..batch };
        assert_eq!(everywhere.read_rows().rows, None);
        assert_eq!(everywhere.read_rows().scored, everywhere.scored);
        let row = RaggedBatch::whole(&[1; 9]);
        assert_eq!(row.read_rows().rows, None, "selecting 8 of 9 rows saves nothing");
    }

    #[test]
    fn sums_go_to_their_sequences() {
        let batch = RaggedBatch::preferences([&pair()]);
        assert_eq!(batch.sum_by_sequence(&[1.0, 2.0, 4.0]), [3.0, 4.0]);
        assert_eq!(batch.scored_by_sequence(), [2, 1]);
    }
}
