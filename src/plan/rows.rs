//! The rows of a run as token ids, for any objective.

use crate::data::{
    PreferencePair, RowReport, SftDocument, SftRow, Splits, TwoResponses, UnpairedRow,
};
use crate::train::task::Split;

/// Training and held-out rows as token ids.
pub enum Rows {
    Sft(Splits<SftRow>),
    Pairs(Splits<PreferencePair>),
    Unpaired(Splits<UnpairedRow>),
}

/// Evaluates an expression in which `$splits` are the splits of `$rows`, whatever their kind.
macro_rules! for_splits {
    ($rows:expr, $splits:ident => $result:expr) => {
        match $rows {
            Rows::Sft($splits) => $result,
            Rows::Pairs($splits) => $result,
            Rows::Unpaired($splits) => $result,
        }
    };
}

impl Rows {
    /// Rows to train on and rows held out.
    pub fn counts(&self) -> [usize; 2] {
        for_splits!(self, splits => [splits.train.len(), splits.test.len()])
    }

    /// How many rows were read and kept, and why others were left out, for training and held-out
    /// rows.
    pub fn reports(&self) -> [&RowReport; 2] {
        for_splits!(self, splits => [&splits.train_report, &splits.test_report])
    }

    /// A hash of all token ids, in their order.
    pub fn fingerprint(&self) -> [u8; 32] {
        for_splits!(self, splits => splits.fingerprint)
    }

    /// A hash of the token ids of the training rows, in their order.
    pub fn train_fingerprint(&self) -> [u8; 32] {
        for_splits!(self, splits => splits.train_fingerprint)
    }

    /// Tokens of the training rows: as the model computes them, and as they would be without shared
    /// prompts.
    pub fn train_tokens(&self) -> [usize; 2] {
        fn prompts(rows: &[impl TwoResponses]) -> usize {
            rows.iter().map(|row| row.prompt().len()).sum()
        }
        let shared = match self {
            Rows::Sft(_) => 0,
            Rows::Pairs(splits) => prompts(&splits.train),
            Rows::Unpaired(splits) => prompts(&splits.train),
        };
        let computed: usize = self.row_tokens(Split::Train).sum();
        [computed, computed + shared]
    }

    /// Tokens that the model computes for each row.
    pub fn row_tokens(&self, split: Split) -> Box<dyn Iterator<Item = usize> + '_> {
        fn rows<T>(splits: &Splits<T>, split: Split) -> std::slice::Iter<'_, T> {
            match split {
                Split::Train => splits.train.iter(),
                Split::Test => splits.test.iter(),
            }
        }
        match self {
            Rows::Sft(splits) => Box::new(rows(splits, split).map(SftRow::tokens)),
            Rows::Pairs(splits) => Box::new(rows(splits, split).map(TwoResponses::tokens)),
            Rows::Unpaired(splits) => Box::new(rows(splits, split).map(TwoResponses::tokens)),
        }
    }

    /// All token ids, of training and held-out rows.
    pub fn ids(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        fn ids<R: TwoResponses>(splits: &Splits<R>) -> Box<dyn Iterator<Item = u32> + '_> {
            Box::new(all(splits).flat_map(|row| {
                let [first, second] = row.responses();
                row.prompt().iter().chain(first).chain(second).copied()
            }))
        }
        match self {
            Rows::Sft(splits) => Box::new(documents(splits).flat_map(|d| d.ids.iter().copied())),
            Rows::Pairs(splits) => ids(splits),
            Rows::Unpaired(splits) => ids(splits),
        }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        fn longest(splits: &Splits<impl TwoResponses>) -> usize {
            let sequences = all(splits).flat_map(|row| {
                row.responses().map(|response| row.prompt().len() + response.len())
            });
            sequences.max().unwrap_or(0)
        }
        match self {
            Rows::Sft(splits) => documents(splits).map(|d| d.ids.len()).max().unwrap_or(0),
            Rows::Pairs(splits) => longest(splits),
            Rows::Unpaired(splits) => longest(splits),
        }
    }
}

/// Training rows, then held-out rows.
fn all<T>(splits: &Splits<T>) -> impl Iterator<Item = &T> {
    splits.train.iter().chain(&splits.test)
}

fn documents(splits: &Splits<SftRow>) -> impl Iterator<Item = &SftDocument> {
    all(splits).flat_map(|row| &row.documents)
}
