//! Numbers that tell prose from debris, after Gopher ([arXiv:2112.11446](https://arxiv.org/abs/2112.11446), appendix A.1)
//! and C4 ([arXiv:1910.10683](https://arxiv.org/abs/1910.10683), section 2.2).
//!
//! Words are what white space parts. A ratio over nothing is 0.

use crate::shuffle::mix;
use std::collections::HashSet;
use twox_hash::XxHash64;

/// The words of which an English text has some: Gopher's.
pub(crate) const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];
/// A line of C4 has at least so many words.
pub(crate) const MIN_WORDS_PER_LINE: usize = 3;
/// A line of C4 has no longer word, in characters.
const MAX_WORD_LENGTH: usize = 1000;

/// `part / whole`, 0 when there is no whole.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// The lines that are not blank, without the white space around them.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// What stands between blank lines.
fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = Vec::new();
    let mut is_open = false;
    for line in text.lines().map(str::trim) {
        match (line.is_empty(), is_open) {
            (true, _) => is_open = false,
            (false, false) => {
                paragraphs.push(line.to_owned());
                is_open = true;
            }
            (false, true) => {
                let open: &mut String = paragraphs.last_mut().expect("a paragraph is open");
                open.push('\n');
                open.push_str(line);
            }
        }
    }
    paragraphs
}

pub(crate) fn word_count(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Characters in a word, on average.
pub(crate) fn mean_word_length(text: &str) -> f64 {
    ratio(text.split_whitespace().map(chars).sum(), word_count(text))
}

/// `#` or ellipses, whichever there are more of, per word.
pub(crate) fn symbol_ratio(text: &str) -> f64 {
    let ellipses = text.matches("...").count() + text.matches('…').count();
    ratio(text.matches('#').count().max(ellipses), word_count(text))
}

/// The share of the characters that are digits, white space not counted.
pub(crate) fn digit_ratio(text: &str) -> f64 {
    share_of_chars(text, char::is_numeric, |c| !c.is_whitespace())
}

/// The share of the letters that are capitals.
pub(crate) fn uppercase_ratio(text: &str) -> f64 {
    share_of_chars(text, char::is_uppercase, char::is_alphabetic)
}

fn share_of_chars(text: &str, part: fn(char) -> bool, whole: fn(char) -> bool) -> f64 {
    let (mut parts, mut wholes) = (0, 0);
    for c in text.chars().filter(|c| whole(*c)) {
        wholes += 1;
        parts += usize::from(part(c));
    }
    ratio(parts, wholes)
}

/// The share of the words with a letter in them.
pub(crate) fn alpha_word_ratio(text: &str) -> f64 {
    let with_letter = text.split_whitespace().filter(|word| word.contains(char::is_alphabetic));
    ratio(with_letter.count(), word_count(text))
}

/// The share of the lines that begin with a bullet.
pub(crate) fn bullet_line_ratio(text: &str) -> f64 {
    const BULLETS: [char; 12] = ['•', '‣', '▶', '◀', '◦', '■', '□', '▪', '●', '–', '-', '*'];
    share_of_lines(text, |line| line.starts_with(BULLETS))
}

/// The share of the lines that end with an ellipsis.
pub(crate) fn ellipsis_line_ratio(text: &str) -> f64 {
    share_of_lines(text, |line| line.ends_with("...") || line.ends_with('…'))
}

/// The share of the lines that end as a sentence does.
pub(crate) fn terminal_line_ratio(text: &str) -> f64 {
    share_of_lines(text, ends_a_sentence)
}

fn share_of_lines(text: &str, is: impl Fn(&str) -> bool) -> f64 {
    let (mut those, mut all) = (0, 0);
    for line in lines(text) {
        all += 1;
        those += usize::from(is(line));
    }
    ratio(those, all)
}

fn ends_a_sentence(line: &str) -> bool {
    line.ends_with(['.', '!', '?', '"', '”']) && !line.ends_with("...")
}

/// How many of these words (in lower case) occur.
pub(crate) fn stop_word_count<T: AsRef<str>>(text: &str, stop_words: &[T]) -> usize {
    let word = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let words: HashSet<String> = text.split_whitespace().map(word).collect();
    stop_words.iter().filter(|word| words.contains(word.as_ref())).count()
}

/// The share of the lines that came before.
pub(crate) fn duplicate_line_ratio(text: &str) -> f64 {
    duplicates(lines(text)).0
}

/// The share of the lines' characters that stand in lines that came before.
pub(crate) fn duplicate_line_char_ratio(text: &str) -> f64 {
    duplicates(lines(text)).1
}

/// The share of the paragraphs that came before.
pub(crate) fn duplicate_paragraph_ratio(text: &str) -> f64 {
    duplicates(paragraphs(text).iter().map(String::as_str)).0
}

/// The share of the paragraphs' characters that stand in paragraphs that came before.
pub(crate) fn duplicate_paragraph_char_ratio(text: &str) -> f64 {
    duplicates(paragraphs(text).iter().map(String::as_str)).1
}

/// The share of the pieces that came before, by number and by characters.
fn duplicates<'a>(pieces: impl Iterator<Item = &'a str>) -> (f64, f64) {
    let mut seen = HashSet::new();
    let (mut all, mut again, mut all_chars, mut again_chars) = (0, 0, 0, 0);
    for piece in pieces {
        let length = chars(piece);
        all += 1;
        all_chars += length;
        if !seen.insert(piece) {
            again += 1;
            again_chars += length;
        }
    }
    (ratio(again, all), ratio(again_chars, all_chars))
}

/// The words of a text as hashes with their lengths.
pub(crate) struct WordRuns {
    hashes: Vec<u64>,
    chars: Vec<usize>,
}

impl WordRuns {
    pub(crate) fn of(text: &str) -> Self {
        let (hashes, chars) =
            text.split_whitespace().map(|word| (XxHash64::oneshot(0, word.as_bytes()), chars(word))).unzip();
        Self { hashes, chars }
    }

    /// The share of the words' characters that the most frequent run of `n` words covers; 0 when none comes twice. Of equally
    /// frequent runs the one that covers most.
    pub(crate) fn top_ngram_char_ratio(&self, n: usize) -> f64 {
        let runs = self.repeated(n);
        let most = runs.iter().map(Vec::len).max().unwrap_or(0);
        let covered = runs.iter().filter(|run| run.len() == most).map(|run| self.covered(run.iter().copied(), n));
        ratio(covered.max().unwrap_or(0), self.chars.iter().sum())
    }

    /// The share of the words' characters in runs of `n` words that come more than once, each counted once.
    pub(crate) fn duplicate_ngram_char_ratio(&self, n: usize) -> f64 {
        let mut starts: Vec<usize> = self.repeated(n).into_iter().flatten().collect();
        starts.sort_unstable();
        ratio(self.covered(starts.into_iter(), n), self.chars.iter().sum())
    }

    /// Where the runs of `n` words that come more than once begin, run by run, in order.
    fn repeated(&self, n: usize) -> Vec<Vec<usize>> {
        let hash = |run: &[u64]| run.iter().fold(0, |hash: u64, word| mix(hash.rotate_left(23) ^ word));
        let runs = self.hashes.windows(n.max(1)).enumerate().map(|(start, run)| (hash(run), start));
        let mut runs: Vec<(u64, usize)> = runs.collect();
        runs.sort_unstable();
        let groups = runs.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1);
        groups.map(|group| group.iter().map(|(_, start)| *start).collect()).collect()
    }

    /// Characters of the words that runs of `n` cover; `starts` ascend.
    fn covered(&self, starts: impl Iterator<Item = usize>, n: usize) -> usize {
        let mut end = 0;
        let mut covered = 0;
        for start in starts {
            covered += self.chars[start.max(end)..start + n].iter().sum::<usize>();
            end = start + n;
        }
        covered
    }
}

/// Sentences: words that end with `.`, `!` or `?`, quotes and brackets behind it allowed.
pub(crate) fn sentence_count(text: &str) -> usize {
    let ends = |word: &&str| word.trim_end_matches(['"', '\'', '”', '’', ')', ']']).ends_with(['.', '!', '?']);
    text.split_whitespace().filter(ends).count()
}

pub(crate) fn has_curly_bracket(text: &str) -> bool {
    text.contains(['{', '}'])
}

pub(crate) fn has_lorem_ipsum(text: &str) -> bool {
    text.to_lowercase().contains("lorem ipsum")
}

/// The lines that C4 keeps: those that end as a sentence does, with at least three words, none of them over a thousand
/// characters, and that speak neither of JavaScript nor of cookies and terms of use.
pub(crate) fn c4_lines(text: &str, min_words_per_line: usize) -> String {
    const NOTICES: [&str; 7] = [
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    ];
    let keeps = |line: &&str| {
        let lower = line.to_lowercase();
        ends_a_sentence(line)
            && word_count(line) >= min_words_per_line
            && line.split_whitespace().all(|word| chars(word) <= MAX_WORD_LENGTH)
            && !NOTICES.iter().any(|notice| lower.contains(notice))
    };
    lines(text).filter(keeps).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn counts_and_ratios_by_hand() {
        let text = "The 3 big cats # ran...\n- 42 of them";
        assert_eq!(word_count(text), 10);
        near(mean_word_length(text), (3 + 1 + 3 + 4 + 1 + 6 + 1 + 2 + 2 + 4) as f64 / 10.0);
        near(symbol_ratio(text), 0.1);
        near(symbol_ratio("# # one … ... .."), 2.0 / 6.0);
        near(digit_ratio(text), 3.0 / 27.0);
        near(uppercase_ratio(text), 1.0 / 19.0);
        near(alpha_word_ratio(text), 0.6);
        near(bullet_line_ratio(text), 0.5);
        near(ellipsis_line_ratio(text), 0.5);
        assert_eq!(stop_word_count("The end, of THE day: (to)", &STOP_WORDS), 3);
    }

    #[test]
    fn nothing_has_no_ratio_and_divides_by_nothing() {
        for text in ["", " \n\t\n "] {
            for ratio in [mean_word_length, symbol_ratio, digit_ratio, uppercase_ratio, alpha_word_ratio] {
                near(ratio(text), 0.0);
            }
            for ratio in [bullet_line_ratio, ellipsis_line_ratio, duplicate_line_ratio, duplicate_paragraph_char_ratio]
            {
                near(ratio(text), 0.0);
            }
            near(WordRuns::of(text).top_ngram_char_ratio(2), 0.0);
            near(WordRuns::of(text).duplicate_ngram_char_ratio(5), 0.0);
        }
    }

    #[test]
    fn lines_and_paragraphs_that_come_again() {
        let text = "one\ntwo\n\none\ntwo\n \nlonger\none\n";
        near(duplicate_line_ratio(text), 3.0 / 6.0);
        near(duplicate_line_char_ratio(text), 9.0 / 21.0);
        near(duplicate_paragraph_ratio(text), 1.0 / 3.0);
        near(duplicate_paragraph_char_ratio(text), 7.0 / 24.0);
    }

    #[test]
    fn repeated_runs_of_words_are_counted_once() {
        // "ab cd" stands three times, "cd x" twice: 18 characters in all.
        let runs = WordRuns::of("ab cd x ab cd x ab cd y yyy");
        near(runs.top_ngram_char_ratio(2), 12.0 / 18.0);
        near(runs.duplicate_ngram_char_ratio(2), 14.0 / 18.0);
        near(runs.duplicate_ngram_char_ratio(5), 14.0 / 18.0);
        near(runs.duplicate_ngram_char_ratio(6), 0.0);
        near(WordRuns::of("a a a a").top_ngram_char_ratio(2), 1.0);
        near(WordRuns::of("a b c d").top_ngram_char_ratio(2), 0.0);
    }

    #[test]
    fn c4_keeps_sentences_and_throws_menus_away() {
        let text = "Home\nIt was a dark night.\nPlease enable JavaScript to see this.\nWe use cookies here.\nToo short.\nAnd so on...\n\"And then,\" she said, \"it rained.\"\n";
        assert_eq!(c4_lines(text, 3), "It was a dark night.\n\"And then,\" she said, \"it rained.\"");
        assert!(c4_lines(text, 2).contains("Too short."));
        near(terminal_line_ratio(text), 5.0 / 7.0);
        assert_eq!(sentence_count("One. Two! (Three?) v1.2 four \"five.\""), 4);
        assert!(has_curly_bracket("a } b") && !has_curly_bracket("a ) b"));
        assert!(has_lorem_ipsum("Lorem  no, LOREM IPSUM") && !has_lorem_ipsum("lorem"));
        assert_eq!(c4_lines(&format!("It is {}.", "x".repeat(1001)), 3), "");
    }
}
