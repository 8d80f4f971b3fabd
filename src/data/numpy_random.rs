//! `Generator.permutation` of NumPy, with which `datasets` shuffles: the same permutations for
//! fewer than 2³² elements.
//!
//! The generator is PCG64 (O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically
//! Good Algorithms for Random Number Generation", 2014), seeded through NumPy's `SeedSequence`.
//! A bounded number is the lowest bits of half a word, drawn again while it is too large.

/// `numpy.random.default_rng(seed).permutation(n)`.
pub fn numpy_permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut words = Pcg64::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for at in (1..n).rev() {
        order.swap(at, words.at_most(at as u32) as usize);
    }
    order
}

/// Words of the pool of a `SeedSequence`.
const POOL: usize = 4;
const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of the last word, if it is not used yet.
    half: Option<u32>,
}

impl Pcg64 {
    fn new(seed: u64) -> Self {
        let words = seed_words(seed);
        let pair = |at: usize| (u128::from(words[at]) << 64) | u128::from(words[at + 1]);
        let mut generator = Self { state: 0, increment: (pair(2) << 1) | 1, half: None };
        generator.step();
        generator.state = generator.state.wrapping_add(pair(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let word = self.next_u64();
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// A number from 0 to `most`.
    fn at_most(&mut self, most: u32) -> u32 {
        let mask = u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= most {
                return value;
            }
        }
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u64) -> [u64; 4] {
    let pool = mixed_pool([seed as u32, (seed >> 32) as u32, 0, 0]);
    let mut factor = 0x8b51_f9dd_u32;
    let mut word = |at: usize| {
        let value = pool[at % POOL] ^ factor;
        factor = factor.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(factor);
        u64::from(value ^ (value >> 16))
    };
    std::array::from_fn(|at| {
        let low = word(2 * at);
        low | (word(2 * at + 1) << 32)
    })
}

fn mixed_pool(entropy: [u32; POOL]) -> [u32; POOL] {
    let mut factor = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ factor;
        factor = factor.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(factor);
        value ^ (value >> 16)
    };
    let mut pool = entropy.map(&mut hash);
    for source in 0..POOL {
        for target in (0..POOL).filter(|target| *target != source) {
            let [left, right] = [0xca01_f9dd_u32, 0x4973_f715];
            let hashed = hash(pool[source]);
            let mixed = left.wrapping_mul(pool[target]).wrapping_sub(right.wrapping_mul(hashed));
            pool[target] = mixed ^ (mixed >> 16);
        }
    }
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with NumPy 2: `numpy.random.default_rng(seed).permutation(n)`.
    #[test]
    fn permutations_are_those_of_numpy() {
        assert_eq!(numpy_permutation(10, 42), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        assert_eq!(numpy_permutation(7, 0), [2, 4, 3, 6, 5, 0, 1]);
        assert_eq!(numpy_permutation(12, 1099511627779), [2, 4, 10, 9, 6, 5, 3, 7, 11, 0, 8, 1]);
        let long = numpy_permutation(1500, 123);
        let weighted: usize = long.iter().enumerate().map(|(at, x)| (at + 1) * x).sum();
        assert_eq!((long[0], long[1499], weighted), (1266, 461, 852427127));
        assert!(numpy_permutation(0, 1).is_empty());
        assert_eq!(numpy_permutation(1, 1), [0]);
    }
}
