//! The order of training rows. It depends only on the seed and the epoch.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

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
}
