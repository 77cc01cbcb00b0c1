//! Which source gives the next row, where sources have weights.

use super::options::{Mix, MixStop};
use std::hash::Hasher;
use twox_hash::XxHash64;

/// The draws of a mix. The same seed, weights and lengths give the same draws.
#[derive(Debug, Clone)]
pub(crate) struct Mixture {
    mix: Mix,
    /// Up to where in [0, 1) each source is drawn.
    bounds: Vec<f64>,
    lengths: Vec<u64>,
}

impl Mixture {
    /// The mix of sources with these weights and numbers of rows, none of which is 0.
    pub(crate) fn new(mix: Mix, weights: &[f64], lengths: Vec<u64>) -> Self {
        let sum: f64 = weights.iter().sum();
        let mut bounds: Vec<f64> = weights
            .iter()
            .scan(0.0, |bound, weight| {
                *bound += weight / sum;
                Some(*bound)
            })
            .collect();
        if let Some(last) = bounds.last_mut() {
            *last = 1.0; // whatever rounding made of it
        }
        Self { mix, bounds, lengths }
    }

    /// The source that a draw gives, from 0: it depends on the draw's number alone.
    pub(crate) fn source_of(&self, draw: u64) -> usize {
        let mut hash = XxHash64::with_seed(self.mix.seed);
        hash.write(&draw.to_le_bytes());
        let uniform = (hash.finish() >> 11) as f64 / (1_u64 << 53) as f64;
        self.bounds.partition_point(|bound| *bound <= uniform)
    }

    /// The sources drawn, in order.
    pub(crate) fn draws(&self) -> Draws {
        let sources = self.lengths.len();
        Draws {
            mixture: self.clone(),
            drawn: 0,
            taken: vec![0; sources],
            is_exhausted: vec![false; sources],
            is_complete: false,
        }
    }

    /// How many rows each source gives.
    pub(crate) fn counts(&self) -> Vec<u64> {
        let mut draws = self.draws();
        draws.by_ref().for_each(drop);
        draws.taken
    }
}

/// A source and the number of its row, one after the other.
#[derive(Debug)]
pub(crate) struct Draws {
    mixture: Mixture,
    drawn: u64,
    taken: Vec<u64>,
    is_exhausted: Vec<bool>,
    is_complete: bool,
}

impl Iterator for Draws {
    type Item = (usize, u64);

    fn next(&mut self) -> Option<(usize, u64)> {
        if self.is_complete {
            return None;
        }
        let source = self.mixture.source_of(self.drawn);
        let length = self.mixture.lengths[source];
        let row = self.taken[source] % length;
        self.drawn += 1;
        self.taken[source] += 1;
        self.is_exhausted[source] |= row + 1 == length;
        self.is_complete = match self.mixture.mix.stop {
            MixStop::FirstExhausted => self.is_exhausted[source],
            MixStop::AllExhausted => self.is_exhausted.iter().all(|is_exhausted| *is_exhausted),
        };
        Some((source, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mix_ends_with_the_first_or_the_last_source_and_takes_rows_in_turn(
            sources in prop::collection::vec((0.1..10.0, 1u64..40), 1..5),
            seed: u64,
        ) {
            let (weights, lengths): (Vec<f64>, Vec<u64>) = sources.into_iter().unzip();
            for stop in [MixStop::FirstExhausted, MixStop::AllExhausted] {
                let mixture = Mixture::new(Mix { seed, stop }, &weights, lengths.clone());
                let mut next = vec![0; lengths.len()];
                for (source, row) in mixture.draws() {
                    prop_assert_eq!(row, next[source] % lengths[source]);
                    next[source] += 1;
                }
                prop_assert_eq!(&next, &mixture.counts());
                let exhausted = next.iter().zip(&lengths).filter(|(taken, length)| taken >= length).count();
                match stop {
                    MixStop::FirstExhausted => {
                        prop_assert_eq!(exhausted, 1);
                        prop_assert!(next.iter().zip(&lengths).all(|(taken, length)| taken <= length));
                    }
                    MixStop::AllExhausted => prop_assert_eq!(exhausted, lengths.len()),
                }
            }
        }
    }

    #[test]
    fn the_source_of_a_draw_is_known_without_those_before_it() {
        let mixture = Mixture::new(Mix { seed: 3, stop: MixStop::AllExhausted }, &[3.0, 1.0, 0.2], vec![20, 50, 9]);
        let drawn: Vec<usize> = mixture.draws().map(|(source, _)| source).collect();
        let known: Vec<usize> = (0..drawn.len() as u64).map(|draw| mixture.source_of(draw)).collect();
        assert_eq!(known, drawn);
        assert!((0..3).all(|source| drawn.contains(&source)));
        // So far out that whoever goes through those before it never comes back.
        assert!(mixture.source_of(1 << 47) < 3);
    }

    #[test]
    fn shares_are_those_of_the_weights() {
        let mixture = Mixture::new(Mix::default(), &[3.0, 1.0], vec![1 << 40, 10_000]);
        let counts = mixture.counts();
        let share = counts[0] as f64 / (counts[0] + counts[1]) as f64;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }

    #[test]
    fn another_seed_gives_another_order() {
        let order = |seed| {
            let mix = Mix { seed, stop: MixStop::FirstExhausted };
            Mixture::new(mix, &[1.0, 1.0], vec![50, 50]).draws().map(|(source, _)| source).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1)[..40], order(2)[..40]);
    }
}
