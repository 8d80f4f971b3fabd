//! `torch.randperm` of a seeded CPU generator: the same permutations as torch 2 gives for fewer
//! than 2³² elements.
//!
//! The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura, "Mersenne Twister: a
//! 623-dimensionally equidistributed uniform pseudo-random number generator", 1998).

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`.
pub fn torch_permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut words = MersenneTwister::new(seed as u32);
    let mut order: Vec<usize> = (0..n).collect();
    for at in 0..n.saturating_sub(1) {
        let step = words.next() as usize % (n - at);
        order.swap(at, at + step);
    }
    order
}

struct MersenneTwister {
    state: [u32; WORDS],
    /// The next word of the state; [`WORDS`] if all are used.
    next: usize,
}

impl MersenneTwister {
    /// The reference implementation's `init_genrand`. torch uses the low 32 bits of a seed.
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for at in 1..WORDS {
            let last = state[at - 1] ^ (state[at - 1] >> 30);
            state[at] = last.wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        Self { state, next: WORDS }
    }

    fn next(&mut self) -> u32 {
        if self.next == WORDS {
            self.renew();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for at in 0..WORDS {
            let joined =
                (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + MIDDLE) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
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
