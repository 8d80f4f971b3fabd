//! The rows of a run as token ids, of whichever objective.

use crate::data::{LabelledPairs, PreferencePair, RowReport, SftRow, Splits};
use crate::train::task::Split;

/// Training and held-out rows as token ids.
pub enum Rows {
    Sft(Splits<SftRow>),
    Pairs(Splits<PreferencePair>),
    Labelled(LabelledPairs),
}

/// The rows as what they are made of: SFT rows or pairs (of a labelled response and a mismatched one,
/// for KTO).
enum Made<'a> {
    Sft(&'a Splits<SftRow>),
    Pairs(&'a Splits<PreferencePair>),
}

impl Rows {
    fn made(&self) -> Made<'_> {
        match self {
            Rows::Sft(rows) => Made::Sft(rows),
            Rows::Pairs(pairs) => Made::Pairs(pairs),
            Rows::Labelled(rows) => Made::Pairs(&rows.pairs),
        }
    }

    /// Rows to train on and rows held out.
    pub fn counts(&self) -> [usize; 2] {
        match self.made() {
            Made::Sft(rows) => [rows.train.len(), rows.test.len()],
            Made::Pairs(pairs) => [pairs.train.len(), pairs.test.len()],
        }
    }

    /// What became of the rows that were read, training and held-out.
    pub fn reports(&self) -> [&RowReport; 2] {
        match self.made() {
            Made::Sft(rows) => [&rows.train_report, &rows.test_report],
            Made::Pairs(pairs) => [&pairs.train_report, &pairs.test_report],
        }
    }

    /// A hash of all token ids, in their order.
    pub fn fingerprint(&self) -> [u8; 32] {
        match self.made() {
            Made::Sft(rows) => rows.fingerprint,
            Made::Pairs(pairs) => pairs.fingerprint,
        }
    }

    /// Tokens that the model computes, and tokens of the same rows without shared prompts, in training.
    pub fn train_tokens(&self) -> [usize; 2] {
        match self.made() {
            Made::Sft(_) => [self.row_tokens(Split::Train).sum(); 2],
            Made::Pairs(pairs) => {
                let prompts: usize = pairs.train.iter().map(|p| p.prompt.len()).sum();
                let computed: usize = self.row_tokens(Split::Train).sum();
                [computed, computed + prompts]
            }
        }
    }

    /// Tokens that the model computes of each row.
    pub fn row_tokens(&self, split: Split) -> Box<dyn Iterator<Item = usize> + '_> {
        fn rows<T>(splits: &Splits<T>, split: Split) -> &[T] {
            match split {
                Split::Train => &splits.train,
                Split::Test => &splits.test,
            }
        }
        match self.made() {
            Made::Sft(splits) => Box::new(rows(splits, split).iter().map(SftRow::tokens)),
            Made::Pairs(splits) => Box::new(rows(splits, split).iter().map(PreferencePair::tokens)),
        }
    }

    /// All token ids.
    pub fn ids(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self.made() {
            Made::Sft(rows) => {
                let all = rows.train.iter().chain(&rows.test).flat_map(|row| &row.documents);
                Box::new(all.flat_map(|document| document.ids.iter().copied()))
            }
            Made::Pairs(pairs) => {
                let all = pairs.train.iter().chain(&pairs.test);
                Box::new(
                    all.flat_map(|p| p.prompt.iter().chain(&p.chosen).chain(&p.rejected).copied()),
                )
            }
        }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        match self.made() {
            Made::Sft(rows) => {
                let all = rows.train.iter().chain(&rows.test).flat_map(|row| &row.documents);
                all.map(|document| document.ids.len()).max().unwrap_or(0)
            }
            Made::Pairs(pairs) => {
                let all = pairs.train.iter().chain(&pairs.test);
                all.map(|p| p.prompt.len() + p.chosen.len().max(p.rejected.len()))
                    .max()
                    .unwrap_or(0)
            }
        }
    }
}
