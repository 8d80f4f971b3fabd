//! The order in which rows are seen: it depends on the seed and the epoch, and on nothing else.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Order of `rows` training rows in `epoch` (counted from 0): a permutation seeded by
/// `seed + epoch`, or the rows as they stand where `sequential`.
///
/// The generator is ChaCha8, whose stream is fixed for good; it is not torch's, so a shuffled run
/// sees another order than TRL does with the same seed.
pub fn epoch_order(rows: usize, seed: u64, epoch: u64, sequential: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if !sequential {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed.wrapping_add(epoch)));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_in_an_order_that_only_seed_and_epoch_decide() {
        let order = epoch_order(100, 42, 0, false);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(100, 42, 0, false));
        assert_eq!(epoch_order(100, 43, 0, false), epoch_order(100, 42, 1, false));
        assert_ne!(order, sorted);
        assert_eq!(epoch_order(5, 42, 3, true), [0, 1, 2, 3, 4]);
    }
}
