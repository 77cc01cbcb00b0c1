//! Numbers that judge generated texts without a second model.

use std::collections::{HashMap, HashSet};

/// Entropy of the tokens of a text in nats: low where few tokens make up all of it. BD3-LM rejects samples below 4.
#[must_use]
pub fn entropy(ids: &[i64]) -> f64 {
    let mut counts: HashMap<i64, f64> = HashMap::new();
    ids.iter().for_each(|id| *counts.entry(*id).or_default() += 1.0);
    let n = ids.len() as f64;
    -counts.values().map(|count| count / n * (count / n).ln()).sum::<f64>() + 0.0
}

/// Share of the `n`-grams of a text that occurred in it before; 0 for a text of fewer than `n` tokens.
#[must_use]
pub fn repetition(ids: &[i64], n: usize) -> f64 {
    if n == 0 || ids.len() < n {
        return 0.0;
    }
    let distinct: HashSet<&[i64]> = ids.windows(n).collect();
    let all = ids.len() - n + 1;
    (all - distinct.len()) as f64 / all as f64
}

/// Whether two texts are the same but for white space at their ends and its amount between words.
#[must_use]
pub fn exact_match(found: &str, expected: &str) -> bool {
    found.split_whitespace().eq(expected.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_and_repetition_of_short_texts_are_known_by_hand() {
        assert_eq!(entropy(&[7, 7, 7]), 0.0);
        assert!((entropy(&[1, 2, 1, 2]) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[]), 0.0);
        assert_eq!(repetition(&[1, 2, 1, 2, 3], 2), 0.25);
        assert_eq!(repetition(&[1, 2, 3], 4), 0.0);
        assert_eq!(repetition(&[1], 0), 0.0);
    }

    #[test]
    fn white_space_does_not_spoil_a_match() {
        assert!(exact_match(" 4  apples\n", "4 apples"));
        assert!(!exact_match("4 apples", "4apples"));
    }
}
