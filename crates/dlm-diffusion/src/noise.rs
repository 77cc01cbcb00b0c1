//! Noise as a function: every uniform follows from what it is for, never from what was drawn before it.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What a draw is for; draws for different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Purpose {
    /// The timestep of a document.
    Timestep = 1,
    /// Which tokens are masked.
    Mask = 2,
    /// Dropping of prompts.
    Drop = 3,
    /// Random lengths.
    Length = 4,
    /// Dropout in adapters.
    Dropout = 5,
    /// Samples shown while training.
    Preview = 6,
    /// Evaluation.
    Evaluation = 7,
    /// Decoding: temperature and random orders.
    Sampling = 8,
    /// Which later tokens are seen while attention turns from causal to bidirectional.
    Annealing = 9,
}

/// The key of a stream of uniforms.
///
/// Masks made from it depend neither on packing, nor on the size of a micro-batch, nor on the number of processes, nor on a
/// restart. `ChaCha8` is the generator: counter-based, the same on every platform and in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// The run's seed.
    pub seed: u64,
    /// What the draw is for.
    pub purpose: Purpose,
    /// Pass over the data, or the step for what happens once a step.
    pub epoch: u64,
    /// The document; any stable number.
    pub document: u64,
    /// 0 at a document's first appearance in an epoch, 1 at its second, ...
    pub occurrence: u64,
}

impl NoiseKey {
    /// A key for draws that belong to no document.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, epoch: u64) -> Self {
        Self { seed, purpose, epoch, document: 0, occurrence: 0 }
    }

    /// The same key for one appearance of a document.
    #[must_use]
    pub fn of_document(mut self, document: u64, occurrence: u64) -> Self {
        self.document = document;
        self.occurrence = occurrence;
        self
    }

    /// The draws at positions `first`, `first + 1`, ... inside the document: uniform on `[0, 1)`, multiples of `2^-24`.
    #[must_use]
    pub fn uniforms(&self, first: u64, len: usize) -> Vec<f32> {
        let mut generator = self.generator(u128::from(first));
        (0..len).map(|_| unit(generator.next_u32())).collect()
    }

    /// The draw at one position, see [`uniforms`](Self::uniforms).
    #[must_use]
    pub fn uniform(&self, position: u64) -> f32 {
        unit(self.generator(u128::from(position)).next_u32())
    }

    /// Draws of 53 bits for uses where 24 are too coarse, such as Gumbel noise; two words of the stream each.
    #[must_use]
    pub fn uniforms_f64(&self, first: u64, len: usize) -> Vec<f64> {
        let mut generator = self.generator(2 * u128::from(first));
        (0..len).map(|_| (generator.next_u64() >> 11) as f64 * f64::powi(2.0, -53)).collect()
    }

    /// A random order of `0..len`.
    #[must_use]
    pub fn permutation(&self, len: usize) -> Vec<usize> {
        let draws = self.uniforms_f64(0, len);
        let mut order: Vec<usize> = (0..len).collect();
        order.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]).then(a.cmp(&b)));
        order
    }

    fn generator(&self, word: u128) -> ChaCha8Rng {
        // The cipher's 256-bit key takes the four numbers as they are, so that no two keys share a stream by a hash collision.
        let mut key = [0u8; 32];
        let words = [self.seed, self.epoch, self.document, self.occurrence];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(self.purpose as u64);
        generator.set_word_pos(word);
        generator
    }
}

/// Whether a text is cut, and to how many tokens: with this probability to a length drawn evenly from `1..=len`.
///
/// LLaDA pretrains on random lengths once in a hundred times ([arXiv:2502.09992](https://arxiv.org/abs/2502.09992), appendix B.1), so
/// that short texts are no surprise. `key` is the text's of [`Purpose::Length`].
#[must_use]
pub fn random_length(key: &NoiseKey, len: usize, probability: f64) -> Option<usize> {
    let draws = key.uniforms_f64(0, 2);
    (draws[0] < probability && len > 0).then(|| 1 + ((draws[1] * len as f64) as usize).min(len - 1))
}

/// Whether the prompt of a text is dropped, see [`CleanBatch::with_dropped`](crate::CleanBatch::with_dropped).
///
/// `key` is the text's of [`Purpose::Drop`].
#[must_use]
pub fn drops_prompt(key: &NoiseKey, probability: f64) -> bool {
    key.uniforms_f64(0, 1)[0] < probability
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * f32::powi(2.0, -24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_draw_does_not_depend_on_where_a_row_begins(seed: u64, document: u64, first in 0u64..5000, len in 1usize..64) {
            let key = NoiseKey::new(seed, Purpose::Mask, 3).of_document(document, 1);
            let whole = key.uniforms(0, first as usize + len);
            prop_assert_eq!(&whole[first as usize..], &key.uniforms(first, len)[..]);
            prop_assert_eq!(whole[first as usize], key.uniform(first));
        }

        #[test]
        fn every_part_of_the_key_matters(seed: u64, epoch: u64, document: u64) {
            let key = NoiseKey { seed, purpose: Purpose::Mask, epoch, document, occurrence: 0 };
            let others = [
                NoiseKey { seed: seed ^ 1, ..key },
                NoiseKey { purpose: Purpose::Timestep, ..key },
                NoiseKey { epoch: epoch ^ 1, ..key },
                NoiseKey { document: document ^ 1, ..key },
                NoiseKey { occurrence: 1, ..key },
            ];
            for other in others {
                prop_assert_ne!(key.uniforms(0, 8), other.uniforms(0, 8));
            }
        }

        #[test]
        fn a_permutation_holds_every_index_once(seed: u64, len in 0usize..200) {
            let mut order = NoiseKey::new(seed, Purpose::Sampling, 0).permutation(len);
            order.sort_unstable();
            prop_assert_eq!(order, (0..len).collect::<Vec<_>>());
        }
    }

    /// Reckoned apart from this code: the first words of ChaCha8 with the key 42, 0, 7, 0 and the stream 2, each cut to 24 bits.
    #[test]
    fn the_stream_is_the_same_on_every_platform_and_in_every_version() {
        let draws = NoiseKey::new(42, Purpose::Mask, 0).of_document(7, 0).uniforms(0, 3);
        assert_eq!(draws, [2_501_546, 9_488_139, 6_277_074].map(|word: u32| word as f32 / 16_777_216.0));
    }

    #[test]
    fn lengths_are_even_and_prompts_are_dropped_as_often_as_asked() {
        let key = |document| NoiseKey::new(9, Purpose::Length, 0).of_document(document, 0);
        let lengths: Vec<usize> = (0..4000).filter_map(|document| random_length(&key(document), 10, 0.5)).collect();
        assert!((lengths.len() as f64 - 2000.0).abs() < 4.0 * 1000f64.sqrt(), "{}", lengths.len());
        for len in 1..=10 {
            let count = lengths.iter().filter(|found| **found == len).count() as f64;
            assert!((count - 200.0).abs() < 70.0, "{len}: {count}");
        }
        assert!((0..100).all(|document| random_length(&key(document), 10, 0.0).is_none()
            && random_length(&key(document), 0, 1.0).is_none()));
        let dropped = (0..4000).filter(|&document| drops_prompt(&key(document), 0.1)).count() as f64;
        assert!((dropped - 400.0).abs() < 4.0 * 360f64.sqrt(), "{dropped}");
    }

    #[test]
    fn draws_are_uniform_on_the_unit_interval() {
        let draws = NoiseKey::new(1, Purpose::Timestep, 0).uniforms(0, 40_000);
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f32>() / 40_000.0;
        assert!((mean - 0.5).abs() < 4.0 / (12f32 * 40_000.0).sqrt(), "{mean}");
    }
}
