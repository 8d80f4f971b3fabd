//! The rows of a run as token ids, for any objective.

use std::borrow::Cow;

use crate::data::{PreferencePair, RowList, RowReport, SftRow, Splits, TwoResponses, UnpairedRow};
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

    /// Whether the training rows are in memory, and not in a file.
    pub fn are_in_memory(&self) -> bool {
        for_splits!(self, splits => splits.train.is_in_memory())
    }

    /// Whether the training rows are read while the run trains.
    pub fn are_streamed(&self) -> bool {
        for_splits!(self, splits => splits.train.is_streamed())
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

    /// Tokens of the training rows, 0 if they are streamed: as the model computes them, and as they
    /// would be without shared prompts.
    pub fn train_tokens(&self) -> [usize; 2] {
        fn tokens<R: TwoResponses>(rows: &RowList<R>) -> [usize; 2] {
            let add = |[shared, whole]: [usize; 2], row: Cow<R>| {
                [shared + row.tokens(), whole + row.unshared_tokens()]
            };
            read(rows).fold([0; 2], add)
        }
        match self {
            Rows::Sft(_) => [self.row_tokens(Split::Train).sum(); 2],
            Rows::Pairs(splits) => tokens(&splits.train),
            Rows::Unpaired(splits) => tokens(&splits.train),
        }
    }

    /// Tokens that the model computes for each row; nothing for streamed rows.
    pub fn row_tokens(&self, split: Split) -> Box<dyn Iterator<Item = usize> + '_> {
        fn rows<T: Clone>(splits: &Splits<T>, split: Split) -> impl Iterator<Item = Cow<'_, T>> {
            match split {
                Split::Train => read(&splits.train),
                Split::Test => read(&splits.test),
            }
        }
        match self {
            Rows::Sft(splits) => Box::new(rows(splits, split).map(|row| row.tokens())),
            Rows::Pairs(splits) => Box::new(rows(splits, split).map(|row| row.tokens())),
            Rows::Unpaired(splits) => Box::new(rows(splits, split).map(|row| row.tokens())),
        }
    }

    /// The first token id that `is_wanted`, of training and held-out rows.
    pub fn find_id(&self, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let find = |ids: &[u32]| ids.iter().copied().find(|id| is_wanted(*id));
        fn of_responses<R: TwoResponses>(
            splits: &Splits<R>,
            find: impl Fn(&[u32]) -> Option<u32>,
        ) -> Option<u32> {
            all(splits).find_map(|row| row.parts().into_iter().find_map(&find))
        }
        match self {
            Rows::Sft(splits) => {
                all(splits).find_map(|row| row.documents.iter().find_map(|d| find(&d.ids)))
            }
            Rows::Pairs(splits) => of_responses(splits, find),
            Rows::Unpaired(splits) => of_responses(splits, find),
        }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        fn longest(splits: &Splits<impl TwoResponses>) -> usize {
            all(splits).map(|row| longest_of_row(&*row)).max().unwrap_or(0)
        }
        fn longest_of_row(row: &impl TwoResponses) -> usize {
            let [prompt, responses @ ..] = row.parts().map(<[u32]>::len);
            prompt + responses.into_iter().max().unwrap_or(0)
        }
        match self {
            Rows::Sft(splits) => {
                let longest = |row: Cow<SftRow>| row.documents.iter().map(|d| d.ids.len()).max();
                all(splits).filter_map(longest).max().unwrap_or(0)
            }
            Rows::Pairs(splits) => longest(splits),
            Rows::Unpaired(splits) => longest(splits),
        }
    }
}

/// Rows that are read before training.
fn read<T: Clone>(rows: &RowList<T>) -> impl Iterator<Item = Cow<'_, T>> {
    let rows = (!rows.is_streamed()).then(|| rows.iter());
    rows.into_iter().flatten()
}

/// Training rows, then held-out rows, without streamed ones.
fn all<T: Clone>(splits: &Splits<T>) -> impl Iterator<Item = Cow<'_, T>> {
    read(&splits.train).chain(read(&splits.test))
}
