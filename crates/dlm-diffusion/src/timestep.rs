//! Drawing `t`: each document by itself, or all documents of an epoch evenly spread.

use crate::noise::NoiseKey;
use serde::{Deserialize, Serialize};

/// How the timesteps of the documents of an epoch relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Timesteps {
    /// Every document draws its own: plain Monte Carlo, as Axolotl and LLaDA do.
    Independent,
    /// Evenly spread over documents that follow each other, see [`stratified_t`]: the same mean, a smaller variance.
    #[default]
    Stratified,
}

impl Timesteps {
    /// The draw of one document in `[0, 1)`, uniform over seeds; [`MaskRange::t_of`](crate::MaskRange::t_of) makes a timestep of it.
    ///
    /// `key` is the document's key of [`Purpose::Timestep`](crate::Purpose::Timestep), `ordinal` its place in the epoch's order.
    ///
    /// ```
    /// use dlm_diffusion::{NoiseKey, Purpose, Timesteps};
    ///
    /// let key = |document| NoiseKey::new(42, Purpose::Timestep, 0).of_document(document, 0);
    /// // Stratified draws depend on the place alone, independent ones on the document alone.
    /// assert_eq!(Timesteps::Stratified.draw(&key(7), 3), Timesteps::Stratified.draw(&key(8), 3));
    /// assert_eq!(Timesteps::Independent.draw(&key(7), 3), Timesteps::Independent.draw(&key(7), 4));
    /// ```
    #[must_use]
    pub fn draw(self, key: &NoiseKey, ordinal: u64) -> f32 {
        match self {
            Self::Independent => key.uniform(0),
            Self::Stratified => stratified_t(key.of_document(0, 0).uniform(0), ordinal),
        }
    }
}

impl Timesteps {
    /// The draw of one block of a document, uniform over seeds; that of block 0 is the document's own [`draw`](Self::draw).
    ///
    /// Stratified draws are spread evenly over the blocks of a document too, by another irrational step.
    #[must_use]
    pub fn draw_block(self, key: &NoiseKey, ordinal: u64, block: u64) -> f32 {
        match self {
            Self::Independent => key.uniform(block),
            Self::Stratified => {
                let u0 = key.of_document(0, 0).uniform(0);
                recur(
                    u0,
                    u128::from(ordinal)
                        .wrapping_mul(GOLDEN_RATIO)
                        .wrapping_add(u128::from(block).wrapping_mul(ROOT_OF_TWO)),
                )
            }
        }
    }
}

/// `(u + slot) / slots mod 1`: one draw in each of so many equal slots, as MDLM has it over the rows of a batch and BD3-LM over
/// its blocks. [`stratified_t`] does without the size of a batch.
#[must_use]
pub fn slot_t(u: f32, slot: u64, slots: u64) -> f32 {
    (u / slots as f32 + slot as f32 / slots as f32) % 1.0
}

/// The fractional part of the root of two in units of `2^-128`.
const ROOT_OF_TWO: u128 = 0x6A09_E667_F3BC_C908_B2FB_1366_EA95_7D3E;

/// The fractional part of the golden ratio in units of `2^-128`.
const GOLDEN_RATIO: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C834;

/// `frac(u0 + k * golden_ratio)`: any run of successive `k` is spread evenly over `[0, 1)`, at most three different gaps between neighbours.
///
/// No batch size enters, so the property holds over micro-batches, processes and restarts. `u0` in `[0, 1)` shifts the whole
/// sequence: a uniform one makes every draw uniform. Reckoned in 128-bit fixed point and cut to 24 bits, it is as exact for
/// the last `k` as for the first, where float64 would have lost a bit with every doubling.
#[must_use]
pub fn stratified_t(u0: f32, k: u64) -> f32 {
    recur(u0, u128::from(k).wrapping_mul(GOLDEN_RATIO))
}

/// `frac(u0 + way)`, `way` in units of `2^-128`.
fn recur(u0: f32, way: u128) -> f32 {
    // Times 2^64, a float32 in [0, 1) is below 2^64.
    let start = u128::from((f64::from(u0) * 2f64.powi(64)) as u64) << 64;
    (start.wrapping_add(way) >> 104) as f32 * f32::powi(2.0, -24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;
    use proptest::prelude::*;

    /// `frac(k * golden_ratio)` without a large product: `k` is a sum of Fibonacci numbers, and `F_n` times the golden ratio is a whole
    /// number less `(-1 / golden_ratio)^n`.
    fn exact(mut k: u64) -> f64 {
        let ratio = (1.0 + 5f64.sqrt()) / 2.0;
        let mut fibonacci = vec![1u64, 2]; // F_2, F_3, ...
        while let Some(next) = fibonacci[fibonacci.len() - 1].checked_add(fibonacci[fibonacci.len() - 2]) {
            fibonacci.push(next);
        }
        let mut sum = 0.0;
        for (i, &number) in fibonacci.iter().enumerate().rev() {
            if number <= k {
                k -= number;
                sum -= (-1.0 / ratio).powi(i as i32 + 2);
            }
        }
        sum.rem_euclid(1.0)
    }

    proptest! {
        #[test]
        fn the_recurrence_is_exact_to_24_bits_for_every_ordinal(bits in 0u32..1 << 24, k: u64) {
            let u0 = bits as f32 / 16_777_216.0;
            let behind = ((f64::from(u0) + exact(k)).rem_euclid(1.0) - f64::from(stratified_t(u0, k))).rem_euclid(1.0);
            prop_assert!(behind < 2f64.powi(-24) + 1e-14 || behind > 1.0 - 1e-14, "{behind}");
        }

        #[test]
        fn a_draw_lies_in_the_half_open_unit_interval(u0 in 0.0f32..1.0, k: u64) {
            prop_assert!((0.0..1.0).contains(&stratified_t(u0, k)));
        }

        #[test]
        fn no_gap_of_a_run_is_twice_as_wide_as_the_average(u0 in 0.0f32..1.0, first in 0u64..1 << 40, len in 2usize..200) {
            let mut draws: Vec<f64> = (0..len as u64).map(|k| f64::from(stratified_t(u0, first + k))).collect();
            draws.sort_by(f64::total_cmp);
            draws.push(draws[0] + 1.0);
            let largest = draws.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
            prop_assert!(largest * (len as f64) < 2.0, "{largest}");
        }
    }

    #[test]
    fn the_blocks_of_documents_are_spread_and_the_first_has_the_draw_of_its_document() {
        let key = |document| NoiseKey::new(3, Purpose::Timestep, 0).of_document(document, 0);
        for timesteps in [Timesteps::Independent, Timesteps::Stratified] {
            for k in 0..20 {
                assert_eq!(timesteps.draw_block(&key(k), k, 0), timesteps.draw(&key(k), k));
            }
        }
        let mut draws: Vec<f32> = (0..64).map(|block| Timesteps::Stratified.draw_block(&key(5), 5, block)).collect();
        draws.sort_by(f32::total_cmp);
        draws.push(draws[0] + 1.0);
        let largest = draws.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
        assert!(largest < 3.0 / 64.0, "{largest}");
        // frac(sqrt(2)) = 0.414213...
        let step = Timesteps::Stratified.draw_block(&key(0), 0, 1) - Timesteps::Stratified.draw_block(&key(0), 0, 0);
        assert!((step.rem_euclid(1.0) - 0.414_213_5).abs() < 1e-6, "{step}");
    }

    #[test]
    fn every_slot_holds_one_draw() {
        for (slot, u) in [0.0f32, 0.5, 0.999].into_iter().enumerate() {
            let t = slot_t(u, slot as u64, 3);
            assert!((slot as f32 / 3.0 - 1e-6..(slot as f32 + 1.0) / 3.0).contains(&t), "{t}");
        }
    }

    #[test]
    fn the_first_draws_are_multiples_of_the_golden_ratio() {
        let expected = [0.25, 0.868_034, 0.486_068, 0.104_102];
        for (k, expected) in expected.into_iter().enumerate() {
            assert!((stratified_t(0.25, k as u64) - expected).abs() < 1e-6, "{k}");
        }
    }

    #[test]
    fn stratified_draws_estimate_a_mean_better_than_independent_ones() {
        let error = |timesteps: Timesteps, seed| {
            let draw = |k| timesteps.draw(&NoiseKey::new(seed, Purpose::Timestep, 0).of_document(k, 0), k);
            let mean = (0..64).map(|k| f64::from(draw(k)).powi(2)).sum::<f64>() / 64.0;
            (mean - 1.0 / 3.0).powi(2)
        };
        let total = |timesteps| (0..40).map(|seed| error(timesteps, seed)).sum::<f64>();
        assert!(total(Timesteps::Stratified) * 8.0 < total(Timesteps::Independent));
    }
}
