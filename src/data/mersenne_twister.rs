//! The Mersenne Twister MT19937 (Matsumoto and Nishimura, "Mersenne Twister: a 623-dimensionally
//! equidistributed uniform pseudo-random number generator", 1998). torch and Python draw from it.

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// A generator in some state.
#[derive(Debug, Clone)]
pub(crate) struct MersenneTwister {
    state: Box<[u32; WORDS]>,
    /// The next word of the state; [`WORDS`] if all are used.
    next: usize,
}

impl MersenneTwister {
    /// The reference implementation's `init_genrand`.
    pub fn of_seed(seed: u32) -> Self {
        let mut state = Box::new([seed; WORDS]);
        for at in 1..WORDS {
            let last = state[at - 1] ^ (state[at - 1] >> 30);
            state[at] = last.wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        Self { state, next: WORDS }
    }

    /// The reference implementation's `init_by_array`.
    pub fn of_key(key: &[u32]) -> Self {
        let Self { mut state, .. } = Self::of_seed(19_650_218);
        let mixed = |state: &[u32; WORDS], at: usize, factor: u32| {
            let last = state[at - 1] ^ (state[at - 1] >> 30);
            state[at] ^ last.wrapping_mul(factor)
        };
        let mut at = 1;
        for step in 0..WORDS.max(key.len()) {
            let place = step % key.len();
            state[at] =
                mixed(&state, at, 1_664_525).wrapping_add(key[place]).wrapping_add(place as u32);
            at = Self::following(&mut state, at);
        }
        for _ in 1..WORDS {
            state[at] = mixed(&state, at, 1_566_083_941).wrapping_sub(at as u32);
            at = Self::following(&mut state, at);
        }
        state[0] = 0x8000_0000;
        Self { state, next: WORDS }
    }

    fn following(state: &mut [u32; WORDS], at: usize) -> usize {
        if at + 1 < WORDS {
            return at + 1;
        }
        state[0] = state[WORDS - 1];
        1
    }

    /// The next 32 random bits.
    pub fn word(&mut self) -> u32 {
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
            let bits =
                (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % WORDS] & 0x7fff_ffff);
            let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + MIDDLE) % WORDS] ^ (bits >> 1) ^ odd;
        }
        self.next = 0;
    }
}
