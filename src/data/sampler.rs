//! The order of training rows. It depends only on the seed, the epoch and, if rows are grouped by
//! length, on their lengths.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::torch_random::torch_permutation;

/// The order of `rows` training rows in `epoch` (from 0): a permutation seeded by `seed + epoch`,
/// or file order if `sequential`.
///
/// The generator is ChaCha8, whose stream will not change. It is not torch's generator, so TRL has
/// another order with the same seed.
pub fn epoch_order(rows: usize, seed: u64, epoch: u64, sequential: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if !sequential {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed.wrapping_add(epoch)));
    }
    order
}

/// The most batches of a group of rows that is sorted by length.
const MOST_BATCHES: usize = 50;

/// An order in which each `batch` consecutive rows have similar lengths: transformers'
/// `get_length_grouped_indices` with a generator of torch that is seeded with `seed`.
///
/// A permutation is divided into groups of up to 50 batches (at least four groups, if the rows are
/// enough), each group is sorted by length, the longest first, and the longest row of all is
/// exchanged with the first one, so that a batch that needs too much memory fails at once.
///
/// # Panics
/// If `batch` is 0.
pub fn grouped_by_length(lengths: &[usize], batch: usize, seed: u64) -> Vec<usize> {
    let batches = (lengths.len() / (4 * batch)).clamp(1, MOST_BATCHES);
    let mut order = torch_permutation(lengths.len(), seed);
    for group in order.chunks_mut(batches * batch) {
        // A stable sort, like Python's.
        group.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    }
    let firsts = (0..order.len()).step_by(batches * batch);
    let longest = firsts.rev().max_by_key(|at| lengths[order[*at]]);
    if let Some(longest) = longest {
        order.swap(0, longest);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_a_permutation_that_depends_on_seed_and_epoch() {
        let order = epoch_order(100, 42, 0, false);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(100, 42, 0, false));
        assert_eq!(epoch_order(100, 43, 0, false), epoch_order(100, 42, 1, false));
        assert_ne!(order, sorted);
        assert_eq!(epoch_order(5, 42, 3, true), [0, 1, 2, 3, 4]);
    }

    /// Compares with transformers 5.24: `get_length_grouped_indices(lengths, batch, generator=…)`.
    /// Many rows have the same length.
    #[test]
    fn groups_of_similar_length_are_those_of_transformers() {
        let lengths: Vec<usize> = (0..30).map(|i| (i * 37) % 11 + 1).collect();
        let expected = [
            8, 15, 12, 6, 25, 0, 16, 10, 18, 26, 23, 28, 13, 21, 7, 29, 20, 22, 2, 4, 1, 9, 14, 11,
            19, 27, 5, 24, 17, 3,
        ];
        assert_eq!(grouped_by_length(&lengths, 2, 42), expected);
        let expected = [
            19, 17, 14, 0, 27, 7, 29, 23, 26, 12, 28, 25, 13, 10, 20, 11, 16, 2, 21, 3, 15, 8, 9,
            6, 24, 18, 1, 22, 5, 4,
        ];
        assert_eq!(grouped_by_length(&lengths, 4, 7), expected);
        let expected = [
            19, 8, 16, 27, 5, 24, 2, 13, 10, 21, 7, 29, 18, 4, 26, 15, 1, 23, 12, 9, 20, 6, 17, 28,
            3, 14, 25, 0, 11, 22,
        ];
        assert_eq!(grouped_by_length(&lengths, 30, 3), expected);
        assert!(grouped_by_length(&[], 4, 1).is_empty());
    }
}
