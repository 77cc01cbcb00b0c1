//! MinHash signatures and locality-sensitive hashing: which earlier rows a text may be similar to, without comparing all.
//!
//! Broder 1997; used on corpora as in Lee et al. ([arXiv:2107.06499](https://arxiv.org/abs/2107.06499)).

use crate::{
    shuffle::{keyed, mix},
    words::{ngram, ngrams, words},
};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// How texts become signatures.
#[derive(Debug, Clone)]
pub(crate) struct MinHash {
    ngram: usize,
    /// Multipliers (odd) and summands.
    functions: Vec<(u64, u64)>,
}

impl MinHash {
    /// That many hash functions over runs of `ngram` words.
    pub(crate) fn new(ngram: usize, permutations: usize, seed: u64) -> Self {
        let function = |i: usize| (keyed(seed, 2 * i as u64) | 1, keyed(seed, 2 * i as u64 + 1));
        Self { ngram, functions: (0..permutations).map(function).collect() }
    }

    /// The smallest hash of the text's runs of words under each function; none when it has no word. A text shorter than a run
    /// is one run.
    pub(crate) fn signature(&self, text: &str) -> Option<Vec<u32>> {
        let words = words(text);
        if words.is_empty() {
            return None;
        }
        let mut least = vec![u32::MAX; self.functions.len()];
        let mut take = |run: u64| {
            for (least, (a, b)) in least.iter_mut().zip(&self.functions) {
                // Multiply-shift (Dietzfelbinger et al. 1997): the high half of a product is well mixed.
                let hash = (a.wrapping_mul(run).wrapping_add(*b) >> 32) as u32;
                *least = (*least).min(hash);
            }
        };
        if words.len() < self.ngram {
            take(ngram(&words));
        } else {
            ngrams(&words, self.ngram).for_each(take);
        }
        Some(least)
    }
}

/// How a signature is cut into bands: texts are compared when one band at least is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bands {
    pub(crate) bands: usize,
    pub(crate) rows: usize,
}

impl Bands {
    /// Of the ways to cut `permutations`, the one with the longest bands that still finds 95 in 100 pairs whose similarity is
    /// just the threshold: what is found is verified, so a pair too many costs time, and one too few is lost.
    pub(crate) fn for_threshold(permutations: usize, threshold: f64) -> Self {
        let cut = |rows: usize| Self { bands: permutations / rows, rows };
        (1..=permutations).map(cut).rfind(|cut| cut.finds(threshold) >= 0.95).unwrap_or_else(|| cut(1))
    }

    /// The probability that two texts of this similarity are compared.
    pub(crate) fn finds(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powf(self.rows as f64)).powf(self.bands as f64)
    }

    fn keys(self, signature: &[u32]) -> impl Iterator<Item = u32> + '_ {
        signature.chunks_exact(self.rows).take(self.bands).map(|band| {
            let hash = band.iter().fold(0, |hash: u64, least| mix(hash.rotate_left(23) ^ u64::from(*least)));
            (hash >> 32) as u32
        })
    }
}

/// For every band, which kept rows have it: a table from its hash to the newest row, and from each row to the one before.
pub(crate) struct BandIndex {
    cut: Bands,
    newest: Vec<HashMap<u32, u32, BuildHasherDefault<Spread>>>,
    before: Vec<Vec<u32>>,
}

/// No row.
const NONE: u32 = u32::MAX;

impl BandIndex {
    pub(crate) fn new(cut: Bands) -> Self {
        Self { cut, newest: vec![HashMap::default(); cut.bands], before: vec![Vec::new(); cut.bands] }
    }

    /// Kept rows that share a band with the signature, oldest first.
    pub(crate) fn candidates(&self, signature: &[u32]) -> Vec<u32> {
        let mut found = Vec::new();
        for (band, key) in self.cut.keys(signature).enumerate() {
            let mut row = self.newest[band].get(&key).copied().unwrap_or(NONE);
            while row != NONE {
                found.push(row);
                row = self.before[band][row as usize];
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Adds the next kept row: the first is 0.
    pub(crate) fn insert(&mut self, signature: &[u32]) {
        for (band, key) in self.cut.keys(signature).enumerate() {
            let row = u32::try_from(self.before[band].len()).expect("memory ends before 2^32 rows");
            let before = self.newest[band].insert(key, row);
            self.before[band].push(before.unwrap_or(NONE));
        }
    }

    /// A table holds up to 7 entries in 8 places, and a place takes 9 bytes; a step back takes 4.
    pub(crate) fn size_bytes(&self) -> usize {
        let tables: usize = self.newest.iter().map(HashMap::capacity).sum();
        let steps: usize = self.before.iter().map(Vec::capacity).sum();
        tables * 11 + steps * 4
    }
}

/// Band hashes are random already; the table wants them in the high bits too.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = mix(self.0 ^ u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = mix(u64::from(number));
    }
}

/// A signature as it is stored: the low half of each hash, which tells different ones apart 65535 times in 65536.
pub(crate) fn stored(signature: &[u32]) -> Vec<u8> {
    signature.iter().flat_map(|least| (*least as u16).to_le_bytes()).collect()
}

/// The share of equal hashes in two stored signatures: an estimate of the Jaccard similarity of the sets of runs.
pub(crate) fn similarity(a: &[u8], b: &[u8]) -> f64 {
    let (a, b) = (a.chunks_exact(2), b.chunks_exact(2));
    let all = a.len();
    a.zip(b).filter(|(a, b)| a == b).count() as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn jaccard(a: &str, b: &str, n: usize) -> f64 {
        let set = |text: &str| ngrams(&words(text), n).collect::<HashSet<u64>>();
        let (a, b) = (set(a), set(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn signatures_estimate_the_jaccard_similarity() {
        let text = |from: usize, to: usize| (from..to).map(|i| format!("w{i} ")).collect::<String>();
        let minhash = MinHash::new(3, 512, 7);
        for (a, b) in [((0, 400), (0, 400)), ((0, 400), (100, 500)), ((0, 400), (300, 700)), ((0, 400), (900, 1300))] {
            let (a, b) = (text(a.0, a.1), text(b.0, b.1));
            let estimate =
                similarity(&stored(&minhash.signature(&a).unwrap()), &stored(&minhash.signature(&b).unwrap()));
            // Four standard deviations of a mean of 512 draws are 0.09 at most.
            assert!((estimate - jaccard(&a, &b, 3)).abs() < 0.09, "{estimate} for {}", jaccard(&a, &b, 3));
        }
        assert_eq!(minhash.signature("...!"), None);
        assert_eq!(minhash.signature("One two"), minhash.signature("one, TWO!"));
        assert_ne!(minhash.signature("one two three four"), MinHash::new(2, 512, 7).signature("one two three four"));
        assert_ne!(minhash.signature("one two three four"), MinHash::new(3, 512, 8).signature("one two three four"));
    }

    #[test]
    fn bands_find_what_is_similar_enough() {
        for (permutations, threshold) in [(128, 0.8), (128, 0.5), (64, 0.9), (256, 0.7), (16, 0.3)] {
            let cut = Bands::for_threshold(permutations, threshold);
            assert!(cut.bands * cut.rows <= permutations);
            assert!(cut.finds(threshold) >= 0.95, "{cut:?}");
            let longer = Bands { rows: cut.rows + 1, bands: permutations / (cut.rows + 1) };
            assert!(longer.finds(threshold) < 0.95, "{longer:?}");
        }
    }

    #[test]
    fn rows_that_share_a_band_are_found_oldest_first() {
        let mut index = BandIndex::new(Bands { bands: 2, rows: 2 });
        for signature in [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 9, 9], [0, 0, 7, 8]] {
            index.insert(&signature);
        }
        assert_eq!(index.candidates(&[1, 2, 7, 8]), [0, 1, 2, 3]);
        assert_eq!(index.candidates(&[1, 2, 3, 9]), [0, 2]);
        assert_eq!(index.candidates(&[2, 1, 8, 7]), [0; 0]);
        assert!(index.size_bytes() > 0);
    }
}
