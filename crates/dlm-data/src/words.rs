//! Words and runs of words as numbers: what near deduplication and decontamination compare.

use crate::shuffle::mix;
use twox_hash::XxHash64;

/// The words of a text as hashes: runs of letters and digits in lower case; of scripts that do without spaces, each character.
///
/// Punctuation, case and white space do not count, so that a text that was only set anew has the same words.
pub(crate) fn words(text: &str) -> Vec<u64> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut end = |word: &mut String| {
        if !word.is_empty() {
            words.push(XxHash64::oneshot(0, word.as_bytes()));
            word.clear();
        }
    };
    for c in text.chars() {
        if !c.is_alphanumeric() {
            end(&mut word);
        } else if stands_alone(c) {
            end(&mut word);
            word.push(c);
            end(&mut word);
        } else {
            word.extend(c.to_lowercase());
        }
    }
    end(&mut word);
    words
}

/// Whether a character belongs to a script that is written without spaces: Han, Kana, Thai, Lao, Myanmar, Khmer.
fn stands_alone(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// A hash for every run of `n` words, in order.
pub(crate) fn ngrams(words: &[u64], n: usize) -> impl Iterator<Item = u64> + '_ {
    words.windows(n.max(1)).map(ngram)
}

/// A hash for a run of words; another order gives another hash.
pub(crate) fn ngram(words: &[u64]) -> u64 {
    words.iter().fold(words.len() as u64, |hash, word| mix(hash.rotate_left(23) ^ word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_white_space_do_not_count_and_order_does() {
        assert_eq!(words("The cat, the DOG."), words("the\n cat  (the) dog"));
        assert_ne!(words("the cat"), words("cat the"));
        assert_eq!(words("").len(), 0);
        assert_eq!(words("... — !").len(), 0);
        assert_eq!(words("GPT-3's 2 ideas").len(), 5);
        assert_eq!(words("東京は夜").len(), 4);
        let grams: Vec<u64> = ngrams(&words("a b a b a"), 2).collect();
        assert_eq!((grams.len(), grams[0] == grams[2], grams[0] == grams[1]), (4, true, false));
        assert_eq!(ngrams(&words("a b"), 3).count(), 0);
    }
}
