//! Seeded orders that need no memory: a mixing function for keys, and a permutation looked up one place at a time.

/// Mixes the bits of a key; every key gives another result (SplitMix64's finaliser).
pub(crate) fn mix(mut key: u64) -> u64 {
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// A key for a seed and a number; for one seed every number gives another key.
pub(crate) fn keyed(seed: u64, number: u64) -> u64 {
    mix(number ^ mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// A permutation of `0..len`, chosen by a seed and an epoch.
///
/// A Feistel network over the next even power of two, walked until it lands inside: one place costs the same whichever it
/// is and whatever came before, so that skipping costs nothing.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; Self::ROUNDS],
}

impl Permutation {
    const ROUNDS: usize = 6;

    /// The permutation of `0..len` for this seed and epoch.
    #[must_use]
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let key = keyed(seed, epoch);
        let keys = std::array::from_fn(|round| keyed(key, round as u64));
        Self { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// What stands at `place`.
    ///
    /// # Panics
    /// When `place` is not below the length.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        assert!(place < self.len, "place {place} of a permutation of {}", self.len);
        let mut value = self.scramble(place);
        while value >= self.len {
            value = self.scramble(value);
        }
        value
    }

    /// Where `value` stands: the inverse of [`at`](Self::at), at the same price.
    ///
    /// # Panics
    /// When `value` is not below the length.
    #[must_use]
    pub fn place_of(&self, value: u64) -> u64 {
        assert!(value < self.len, "value {value} of a permutation of {}", self.len);
        let mut place = self.unscramble(value);
        while place >= self.len {
            place = self.unscramble(place);
        }
        place
    }

    fn unscramble(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys.into_iter().rev() {
            (left, right) = (right ^ (mix(left ^ key) & mask), left);
        }
        left << self.half_bits | right
    }

    fn scramble(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_stands_at_exactly_one_place(len in 1u64..700, seed: u64, epoch in 0u64..3) {
            let permutation = Permutation::new(len, seed, epoch);
            let mut seen: Vec<u64> = (0..len).map(|place| permutation.at(place)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn a_number_is_found_at_its_place(len in 1u64..u64::MAX >> 8, seed: u64, at: u64) {
            let permutation = Permutation::new(len, seed, 1);
            prop_assert_eq!(permutation.place_of(permutation.at(at % len)), at % len);
        }

        #[test]
        fn different_numbers_have_different_keys(seed: u64, a: u64, b: u64) {
            prop_assume!(a != b);
            prop_assert_ne!(keyed(seed, a), keyed(seed, b));
        }
    }

    #[test]
    fn epochs_and_seeds_give_other_orders() {
        let order = |seed, epoch| (0..50).map(|i| Permutation::new(50, seed, epoch).at(i)).collect::<Vec<_>>();
        assert_ne!(order(0, 0), order(0, 1));
        assert_ne!(order(0, 0), order(1, 0));
        assert_ne!(order(0, 0), (0..50).collect::<Vec<_>>());
        assert_eq!(order(7, 3), order(7, 3));
    }

    #[test]
    fn neighbours_are_scattered_evenly() {
        // The mean distance between two random places of n is n / 3.
        let n = 10_000;
        let permutation = Permutation::new(n, 1, 0);
        let sum: u64 = (1..n).map(|i| permutation.at(i).abs_diff(permutation.at(i - 1))).sum();
        let mean = sum as f64 / (n - 1) as f64;
        assert!((mean / (n as f64 / 3.0) - 1.0).abs() < 0.05, "{mean}");
    }
}
