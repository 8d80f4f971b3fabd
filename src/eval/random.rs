//! Python's `random.Random` for integer seeds: the same numbers, shuffles and samples as Python
//! 3.9 to 3.13.
//!
//! The generator is the Mersenne Twister. The few-shot examples of both task definitions are drawn
//! with it. NumPy's generator is not needed: no task draws from it.

use crate::data::MersenneTwister;

/// A generator in some state.
#[derive(Debug, Clone)]
pub struct Random(MersenneTwister);

impl Random {
    /// `random.Random(seed)`. The sign of the seed does not matter, as in Python.
    pub fn new(seed: i64) -> Self {
        let seed = seed.unsigned_abs();
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        match high {
            0 => Self(MersenneTwister::of_key(&[low])),
            _ => Self(MersenneTwister::of_key(&[low, high])),
        }
    }

    /// `random()`: uniform in [0, 1) with 53 bits.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.0.word() >> 5, self.0.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `getrandbits(bits)` for 1 to 64 bits.
    pub fn bits(&mut self, bits: u32) -> u64 {
        if bits <= 32 {
            return u64::from(self.0.word() >> (32 - bits));
        }
        let low = u64::from(self.0.word());
        low | u64::from(self.0.word() >> (64 - bits)) << 32
    }

    /// Uniform in 0..`end`, as Python's methods draw it: bits are drawn again until they are below
    /// `end`.
    pub fn below(&mut self, end: usize) -> usize {
        let width = usize::BITS - end.leading_zeros();
        if width == 0 {
            return 0;
        }
        loop {
            let drawn = self.bits(width) as usize;
            if drawn < end {
                return drawn;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = self.below(at + 1);
            items.swap(at, other);
        }
    }

    /// The places that `sample(population, count)` takes from a population of `size`, in its
    /// order. `None` if `count` is larger than `size`; Python raises an error then.
    pub fn sample(&mut self, size: usize, count: usize) -> Option<Vec<usize>> {
        if count > size {
            return None;
        }
        // Python chooses between two algorithms by the memory that they need.
        let mut set_size = 21.0;
        if count > 5 {
            set_size += 4f64.powf(((count * 3) as f64).log(4.0).ceil());
        }
        let mut taken = Vec::with_capacity(count);
        if size as f64 <= set_size {
            let mut pool: Vec<usize> = (0..size).collect();
            for drawn in 0..count {
                let place = self.below(size - drawn);
                taken.push(pool[place]);
                pool[place] = pool[size - drawn - 1];
            }
            return Some(taken);
        }
        let mut seen = std::collections::HashSet::new();
        while taken.len() < count {
            let place = self.below(size);
            if seen.insert(place) {
                taken.push(place);
            }
        }
        Some(taken)
    }

    /// `choice(range(size))`; `size` is at least 1.
    pub fn choice(&mut self, size: usize) -> usize {
        self.below(size)
    }

    /// The places that `choices(population, k=count)` takes, with replacement.
    pub fn choices(&mut self, size: usize, count: usize) -> Vec<usize> {
        (0..count).map(|_| (self.random() * size as f64).floor() as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of `random`, `getrandbits` and `_randbelow`, shuffled items, and samples.
    type Draws = (Vec<f64>, Vec<u64>, Vec<usize>, Vec<usize>, Vec<Vec<usize>>);

    /// The calls below, in their order, on `random.Random(seed)` of Python 3.11.
    fn draws(seed: i64) -> Draws {
        let mut rnd = Random::new(seed);
        let reals = (0..3).map(|_| rnd.random()).collect();
        let bits = [1, 5, 32, 33, 64].map(|bits| rnd.bits(bits)).to_vec();
        let ends = [1, 2, 3, 10, 1000, 1_000_000_000, 1 << 32, (1 << 40) + 7];
        let below = ends.map(|end| rnd.below(end)).to_vec();
        let mut items: Vec<usize> = (0..12).collect();
        rnd.shuffle(&mut items);
        let mut samples: Vec<Vec<usize>> = [(20, 5), (1119, 25), (90, 25), (7473, 5), (21, 3)]
            .map(|(size, count)| rnd.sample(size, count).unwrap())
            .to_vec();
        samples.push(vec![rnd.choice(77)]);
        samples.push(rnd.choices(77, 6));
        (reals, bits, below, items, samples)
    }

    #[test]
    fn numbers_are_pythons_for_the_leaderboards_seed() {
        let (reals, bits, below, items, samples) = draws(42);
        assert_eq!(reals, [0.6394267984578837, 0.025010755222666936, 0.27502931836911926]);
        assert_eq!(bits, [0, 4, 3163119785, 4735180711, 16457808150190122675]);
        assert_eq!(below, [0, 1, 0, 0, 95, 234760738, 2585650756, 436202226086]);
        assert_eq!(items, [5, 1, 9, 0, 2, 4, 7, 3, 6, 8, 10, 11]);
        assert_eq!(samples[0], [10, 8, 4, 6, 19]);
        let of_many = [
            209, 189, 778, 198, 735, 704, 541, 88, 940, 1098, 255, 775, 161, 600, 740, 393, 142,
            93, 466, 592, 163, 476, 206, 569, 928,
        ];
        assert_eq!(samples[1], of_many);
        let of_few = [
            81, 46, 20, 47, 45, 26, 34, 82, 9, 77, 21, 68, 31, 87, 59, 48, 83, 71, 28, 41, 7, 29,
            4, 40, 51,
        ];
        assert_eq!(samples[2], of_few);
        assert_eq!(samples[3], [2193, 542, 1728, 4646, 7179]);
        assert_eq!(samples[4..], [vec![10, 6, 15], vec![50], vec![68, 49, 11, 10, 57, 41]]);
    }

    #[test]
    fn numbers_are_pythons_for_large_and_negative_seeds() {
        let (reals, bits, below, items, samples) = draws((1 << 40) + 3);
        assert_eq!(reals, [0.21978710637116716, 0.5494687768352203, 0.09461190973523603]);
        assert_eq!(bits, [1, 9, 3878334283, 7290388514, 4319938529746052184]);
        assert_eq!(below, [0, 1, 1, 9, 318, 955326791, 2036975587, 207749466714]);
        assert_eq!(items, [4, 3, 10, 5, 2, 6, 11, 9, 1, 7, 8, 0]);
        assert_eq!(samples[0], [17, 7, 9, 13, 5]);
        assert_eq!(samples[3], [6230, 1835, 4751, 4791, 2555]);
        assert_eq!(samples[6], [48, 61, 9, 20, 72, 70]);
        let (reals, _, _, items, samples) = draws(-7);
        assert_eq!(reals, [0.32383276483316237, 0.15084917392450192, 0.6509344730398537]);
        assert_eq!(items, [10, 2, 5, 7, 8, 6, 4, 11, 3, 1, 9, 0]);
        assert_eq!(samples[3], [3883, 5710, 5440, 532, 497]);
        assert_eq!(Random::new(1234).random(), 0.9664535356921388);
        assert_eq!(Random::new(0).random(), 0.8444218515250481);
    }

    #[test]
    fn a_shuffle_of_many_items_is_pythons() {
        let mut items: Vec<usize> = (0..2000).collect();
        let mut rnd = Random::new(42);
        rnd.shuffle(&mut items);
        assert_eq!(items[..6], [795, 1468, 478, 807, 1505, 1279]);
        assert_eq!(items[1996..], [1518, 51, 228, 1309]);
        assert_eq!(rnd.random(), 0.23843950345982268);
    }

    #[test]
    fn a_sample_larger_than_its_population_is_refused() {
        assert_eq!(Random::new(1).sample(4, 5), None);
    }
}
