//! `torch.randperm` of a seeded CPU generator: the same permutations as torch 2 gives for fewer
//! than 2³² elements. The generator is the Mersenne Twister, seeded with the low 32 bits of a seed.

use super::mersenne_twister::MersenneTwister;

/// `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`.
pub fn torch_permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut words = MersenneTwister::of_seed(seed as u32);
    let mut order: Vec<usize> = (0..n).collect();
    for at in 0..n.saturating_sub(1) {
        let step = words.word() as usize % (n - at);
        order.swap(at, at + step);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with torch 2.15: `torch.randperm(n, generator=generator).tolist()`.
    #[test]
    fn permutations_are_those_of_torch() {
        assert_eq!(torch_permutation(10, 42), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(torch_permutation(7, 0), [4, 0, 5, 3, 2, 6, 1]);
        assert_eq!(torch_permutation(12, 1099511627779), [10, 9, 1, 6, 4, 11, 3, 7, 2, 0, 8, 5]);
        let long = torch_permutation(1500, 123);
        let weighted: usize = long.iter().enumerate().map(|(at, x)| (at + 1) * x).sum();
        assert_eq!((long[0], long[1499], weighted), (382, 1238, 853279430));
        assert!(torch_permutation(0, 1).is_empty());
        assert_eq!(torch_permutation(1, 1), [0]);
    }
}
