//! Packs documents into rows of at most `length` tokens, as TRL does.
//!
//! TRL packs through `datasets.map(batched=True)`, which passes windows of 1000 documents: no row
//! holds documents of two windows, and the last row of each window may be short. The same windows
//! are used here, so that the rows are TRL's.

use std::collections::{BTreeMap, VecDeque};

use super::{SftDocument, SftRow};
use crate::recipe::Packing;

/// The number of documents in a window.
pub const WINDOW: usize = 1000;

/// Packs `documents` into rows of at most `length` tokens.
///
/// `Bfd` truncates documents longer than `length`. `BfdSplit` packs the rest as further documents.
/// `Wrapped` concatenates all documents and cuts the result into blocks; each block is one
/// document.
///
/// # Panics
/// If `length` is 0.
pub fn pack(documents: &[SftDocument], length: usize, strategy: Packing) -> Vec<SftRow> {
    assert!(length > 0, "a row has at least one token");
    documents
        .chunks(WINDOW)
        .flat_map(|window| match strategy {
            Packing::Bfd => best_fit_decreasing(cut(window, length), length),
            Packing::BfdSplit => best_fit_decreasing(split(window, length), length),
            Packing::Wrapped => wrapped(window, length),
        })
        .collect()
}

/// The first `length` tokens of each document that is not empty.
fn cut(window: &[SftDocument], length: usize) -> Vec<SftDocument> {
    window.iter().filter_map(|document| pieces(document, length).next()).collect()
}

/// Each document in pieces of `length` tokens; the last piece may be shorter.
fn split(window: &[SftDocument], length: usize) -> Vec<SftDocument> {
    window.iter().flat_map(|document| pieces(document, length)).collect()
}

fn pieces(document: &SftDocument, length: usize) -> impl Iterator<Item = SftDocument> {
    document
        .ids
        .chunks(length)
        .zip(document.labels.chunks(length))
        .map(|(ids, labels)| SftDocument { ids: ids.to_vec(), labels: labels.to_vec() })
}

/// Best fit decreasing: places the longest document first (of equal ones the earlier), into the row
/// with the least room that can hold it (of equal ones the oldest), or into a new row.
fn best_fit_decreasing(documents: Vec<SftDocument>, length: usize) -> Vec<SftRow> {
    let mut documents: Vec<_> = documents.into_iter().collect();
    documents.sort_by_key(|document| std::cmp::Reverse(document.ids.len()));
    let mut rows: Vec<SftRow> = Vec::new();
    let mut rows_with_room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for document in documents {
        let needed = document.ids.len();
        let (room, row) = match rows_with_room.range_mut(needed..).next() {
            Some((&room, waiting)) => {
                let row = waiting.pop_front().expect("a room without rows is removed");
                if waiting.is_empty() {
                    rows_with_room.remove(&room);
                }
                (room, row)
            }
            None => {
                rows.push(SftRow { documents: Vec::new() });
                (length, rows.len() - 1)
            }
        };
        rows[row].documents.push(document);
        if room > needed {
            rows_with_room.entry(room - needed).or_default().push_back(row);
        }
    }
    rows
}

fn wrapped(window: &[SftDocument], length: usize) -> Vec<SftRow> {
    let joined = SftDocument {
        ids: window.iter().flat_map(|document| document.ids.iter().copied()).collect(),
        labels: window.iter().flat_map(|document| document.labels.iter().copied()).collect(),
    };
    pieces(&joined, length).map(|block| SftRow { documents: vec![block] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(lengths: &[&[u32]]) -> Vec<SftDocument> {
        lengths
            .iter()
            .map(|ids| SftDocument { ids: ids.to_vec(), labels: vec![true; ids.len()] })
            .collect()
    }

    fn ids(rows: &[SftRow]) -> Vec<Vec<Vec<u32>>> {
        rows.iter()
            .map(|row| row.documents.iter().map(|document| document.ids.clone()).collect())
            .collect()
    }

    #[test]
    fn best_fit_fills_the_row_with_the_least_room() {
        let rows = pack(&documents(&[&[1, 2, 3], &[4, 5, 6, 7], &[8]]), 4, Packing::Bfd);
        assert_eq!(ids(&rows), [vec![vec![4, 5, 6, 7]], vec![vec![1, 2, 3], vec![8]]]);
    }

    #[test]
    fn an_overlong_document_is_cut() {
        let long = documents(&[&[1, 2, 3, 4, 5], &[6, 7], &[8, 9, 10, 11], &[12]]);
        assert_eq!(
            ids(&pack(&long, 4, Packing::Bfd)),
            [vec![vec![1, 2, 3, 4]], vec![vec![8, 9, 10, 11]], vec![vec![6, 7], vec![12]]]
        );
    }

    #[test]
    fn an_overlong_document_is_split() {
        let long = documents(&[&[1, 2, 3, 4, 5], &[6, 7], &[8, 9, 10, 11], &[12]]);
        assert_eq!(
            ids(&pack(&long, 4, Packing::BfdSplit)),
            [vec![vec![1, 2, 3, 4]], vec![vec![8, 9, 10, 11]], vec![vec![6, 7], vec![5], vec![12]]]
        );
    }

    #[test]
    fn wrapping_joins_and_cuts() {
        let rows = pack(&documents(&[&[1, 2, 3, 4], &[5, 6], &[7, 8]]), 3, Packing::Wrapped);
        assert_eq!(ids(&rows), [vec![vec![1, 2, 3]], vec![vec![4, 5, 6]], vec![vec![7, 8]]]);
    }

    #[test]
    fn no_row_holds_documents_of_two_windows() {
        let many: Vec<SftDocument> =
            (0..1001).map(|id| SftDocument { ids: vec![id], labels: vec![true] }).collect();
        for strategy in [Packing::Bfd, Packing::Wrapped] {
            let rows = pack(&many, 600, strategy);
            assert_eq!(rows.iter().map(SftRow::tokens).collect::<Vec<_>>(), [600, 400, 1]);
        }
    }

    #[test]
    fn labels_go_with_their_tokens_and_empty_documents_vanish() {
        let window = [
            SftDocument { ids: vec![1, 2, 3], labels: vec![false, true, false] },
            SftDocument { ids: vec![], labels: vec![] },
        ];
        let rows = pack(&window, 2, Packing::BfdSplit);
        assert_eq!(rows[0].documents[0].labels, [false, true]);
        assert_eq!(rows[1].documents[0].labels, [false]);
        assert_eq!(rows.len(), 2);
    }
}
