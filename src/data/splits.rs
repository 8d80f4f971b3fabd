//! Both splits of a data set as token ids.

use blake3::Hasher;

use super::report::RowReport;
use super::row_list::RowList;
use super::stored::Stored;

/// Both splits of a data set as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Splits<T: Clone> {
    pub train: RowList<T>,
    pub test: RowList<T>,
    pub train_report: RowReport,
    pub test_report: RowReport,
    /// A hash of the token ids of both splits: their content and their order.
    pub fingerprint: [u8; 32],
    /// The same hash of the training rows alone.
    pub train_fingerprint: [u8; 32],
}

/// Rows that are made one after the other.
pub(super) type Rows<T> = Box<dyn Iterator<Item = T>>;

/// The rows of a split, and the report about them.
pub(super) struct Made<T> {
    pub rows: Rows<T>,
    pub report: RowReport,
}

/// Splits whose rows are in memory.
pub(super) fn in_memory<T: Stored + Clone>(train: Made<T>, test: Made<T>) -> Splits<T> {
    let rows = |rows: Rows<T>| rows.collect::<RowList<T>>();
    let (train_report, test_report) = (train.report, test.report);
    let (train, test) = (rows(train.rows), rows(test.rows));
    Splits {
        fingerprint: fingerprint(&train, &test),
        train_fingerprint: fingerprint(&train, &RowList::default()),
        train,
        test,
        train_report,
        test_report,
    }
}

/// A hash of the content and the order of the token ids of both splits.
fn fingerprint<T: Stored + Clone>(train: &RowList<T>, test: &RowList<T>) -> [u8; 32] {
    let mut hasher = Hasher::new();
    let mut numbers = Vec::new();
    for rows in [train, test] {
        hasher.update(&(rows.len() as u64).to_le_bytes());
        for row in rows.iter() {
            numbers.clear();
            row.write(&mut numbers);
            numbers.iter().for_each(|number| {
                hasher.update(&number.to_le_bytes());
            });
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferencePair;

    #[test]
    fn the_fingerprint_depends_on_content_and_order() {
        let pair = |id| PreferencePair {
            prompt: vec![id],
            chosen: vec![2, 3],
            ..PreferencePair::default()
        };
        let hash = |train: &[u32], test: &[u32]| {
            let rows = |ids: &[u32]| ids.iter().copied().map(pair).collect();
            fingerprint(&rows(train), &rows(test))
        };
        let base = hash(&[1, 2], &[3]);
        assert_eq!(base, hash(&[1, 2], &[3]));
        for (train, test) in [(&[2, 1][..], &[3][..]), (&[1], &[3]), (&[1], &[2, 3])] {
            assert_ne!(base, hash(train, test));
        }
    }
}
