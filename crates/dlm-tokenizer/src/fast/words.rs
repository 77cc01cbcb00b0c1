//! Cutting text into words, as the patterns of well-known tokenizers do, in one pass and without a regular expression.

use super::class::{Class, classes};
use std::ops::Range;

/// What separates digits before the pattern sees the text (the `Digits` pre-tokenizer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// They are left to the pattern.
    Untouched,
    /// Each stands alone.
    Individual,
    /// A run of them stands alone.
    Contiguous,
}

/// A pattern whose matches are the words. Each of them matches at every position, so that no text falls between words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// GPT-2's, which the `ByteLevel` pre-tokenizer has built in.
    Gpt2,
    /// GPT-4's (cl100k), with at most so many digits in a word: 3 in Llama 3, 1 in Qwen 2.
    Gpt4 {
        /// How many.
        max_digits: usize,
    },
}

impl Pattern {
    /// Those that are known by their regular expression, as `tokenizer.json` spells it.
    pub(super) const SPELLED: [(&'static str, Self); 3] = [
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Self::Gpt2),
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            Self::Gpt4 { max_digits: 3 },
        ),
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            Self::Gpt4 { max_digits: 1 },
        ),
    ];
}

/// Cuts text into words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Splitter {
    digits: Digits,
    pattern: Pattern,
    classes: &'static [Class],
}

impl Splitter {
    pub(super) fn new(digits: Digits, pattern: Pattern) -> Self {
        Self { digits, pattern, classes: classes() }
    }

    /// Gives the words of a text in order, as ranges of bytes that cover it.
    pub(super) fn split(&self, text: &str, mut word: impl FnMut(Range<usize>)) {
        if self.digits == Digits::Untouched {
            return self.split_stretch(text, 0, &mut word);
        }
        let mut start = 0;
        while start < text.len() {
            let (digits, digits_end) = self.digits(text, start);
            if start < digits {
                self.split_stretch(&text[start..digits], start, &mut word);
            }
            if digits < digits_end {
                self.split_stretch(&text[digits..digits_end], digits, &mut word);
            }
            start = digits_end;
        }
    }

    /// Where the next digits that stand alone begin and end.
    fn digits(&self, text: &str, start: usize) -> (usize, usize) {
        let numeric = |(_, character): &(usize, char)| character.is_numeric();
        let Some((first, digit)) = text[start..].char_indices().find(numeric) else {
            return (text.len(), text.len());
        };
        let first = start + first;
        if self.digits == Digits::Individual {
            return (first, first + digit.len_utf8());
        }
        let rest = text[first..].char_indices().find(|found| !numeric(found));
        (first, rest.map_or(text.len(), |(length, _)| first + length))
    }

    fn split_stretch(&self, text: &str, offset: usize, word: &mut impl FnMut(Range<usize>)) {
        let stretch = Stretch { text, bytes: text.as_bytes(), classes: self.classes };
        let mut start = 0;
        while start < text.len() {
            let end = match self.pattern {
                Pattern::Gpt2 => stretch.gpt2_word(start),
                Pattern::Gpt4 { max_digits } => stretch.gpt4_word(start, max_digits),
            };
            word(offset + start..offset + end);
            start = end;
        }
    }
}

/// A stretch of text that is matched by itself: what lies beyond its ends does not count.
struct Stretch<'a> {
    text: &'a str,
    bytes: &'a [u8],
    classes: &'static [Class],
}

impl Stretch<'_> {
    /// The end of the word that starts at `start`, by
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    fn gpt2_word(&self, start: usize) -> usize {
        let (class, length) = self.at(start).expect("a word starts inside the text");
        if self.bytes[start] == b'\''
            && let Some(end) = self.contraction(start)
        {
            return end;
        }
        if self.bytes[start] == b' '
            && let Some((class, length)) = self.at(start + 1)
            && class != Class::Space
        {
            return self.run(start + 1 + length, class);
        }
        let end = self.run(start + length, class);
        if class == Class::Space { self.spaces(start, end) } else { end }
    }

    /// The end of the word that starts at `start`, by
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
    fn gpt4_word(&self, start: usize, max_digits: usize) -> usize {
        let (class, length) = self.at(start).expect("a word starts inside the text");
        let second = start + length;
        match class {
            Class::Letter => self.run(second, Class::Letter),
            Class::Number => {
                let mut end = second;
                for _ in 1..max_digits {
                    let Some((Class::Number, length)) = self.at(end) else { break };
                    end += length;
                }
                end
            }
            Class::Other => {
                if self.bytes[start] == b'\''
                    && let Some(end) = self.contraction_in_any_case(start)
                {
                    return end;
                }
                match self.at(second) {
                    Some((Class::Letter, length)) => self.run(second + length, Class::Letter),
                    _ => self.line_ends(self.run(second, Class::Other)),
                }
            }
            Class::Space => {
                if !is_line_end(self.bytes[start]) {
                    match self.at(second) {
                        Some((Class::Letter, length)) => return self.run(second + length, Class::Letter),
                        Some((Class::Other, length)) if self.bytes[start] == b' ' => {
                            return self.line_ends(self.run(second + length, Class::Other));
                        }
                        _ => {}
                    }
                }
                let end = self.run(second, Class::Space);
                match self.bytes[start..end].iter().rposition(|&byte| is_line_end(byte)) {
                    Some(last) => start + last + 1,
                    None => self.spaces(start, end),
                }
            }
        }
    }

    /// The class and the length in bytes of the character at a position; `None` at the end.
    #[inline]
    fn at(&self, position: usize) -> Option<(Class, usize)> {
        let byte = *self.bytes.get(position)?;
        if byte < 0x80 {
            return Some((self.classes[usize::from(byte)], 1));
        }
        let character = self.text[position..].chars().next()?;
        Some((self.classes[character as usize], character.len_utf8()))
    }

    /// The end of the run of a class that goes on at a position.
    #[inline]
    fn run(&self, mut position: usize, class: Class) -> usize {
        while let Some((next, length)) = self.at(position) {
            if next != class {
                break;
            }
            position += length;
        }
        position
    }

    /// `\s+(?!\S)|\s+` for a run of white space: all of it at the end of the text, otherwise all but the last character, which
    /// may belong to the word that follows.
    fn spaces(&self, start: usize, end: usize) -> usize {
        if end == self.text.len() {
            return end;
        }
        let last = self.text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if start + last == end { end } else { end - last }
    }

    /// The end of the `[\r\n]*` at a position.
    fn line_ends(&self, position: usize) -> usize {
        position + self.bytes[position..].iter().take_while(|&&byte| is_line_end(byte)).count()
    }

    /// The end of `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe, if it is there.
    fn contraction(&self, start: usize) -> Option<usize> {
        match self.bytes[start + 1..] {
            [b's' | b't' | b'm' | b'd', ..] => Some(start + 2),
            [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => Some(start + 3),
            _ => None,
        }
    }

    /// The end of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at an apostrophe, if it is there. The long s is a small form of S.
    fn contraction_in_any_case(&self, start: usize) -> Option<usize> {
        const LONG_S: [u8; 2] = [0xC5, 0xBF];
        match self.bytes[start + 1..] {
            [b's' | b'S' | b't' | b'T' | b'm' | b'M' | b'd' | b'D', ..] => Some(start + 2),
            [b'r' | b'R' | b'v' | b'V', b'e' | b'E', ..] | [b'l' | b'L', b'l' | b'L', ..] => Some(start + 3),
            [first, second, ..] if [first, second] == LONG_S => Some(start + 3),
            _ => None,
        }
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static REGEXES: LazyLock<Vec<(Regex, Pattern)>> =
        LazyLock::new(|| Pattern::SPELLED.map(|(spelled, pattern)| (Regex::new(spelled).unwrap(), pattern)).into());

    fn words(splitter: Splitter, text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        splitter.split(text, |range| words.push(&text[range]));
        words
    }

    fn matches<'t>(pattern: &Regex, text: &'t str) -> Vec<&'t str> {
        pattern.find_iter(text).map(|found| found.unwrap().as_str()).collect()
    }

    /// Text by a regular expression, which is read once; a `&str` as strategy is read for every text.
    fn pattern(regex: &str) -> proptest::string::RegexGeneratorStrategy<String> {
        proptest::string::string_regex(regex).expect("a regular expression")
    }

    /// Text in which the patterns have something to decide.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            pattern(r"[a-z]{1,4}"),
            pattern(r"'(?i:s|t|re|ve|m|ll|d|x)"),
            Just("'ſ".to_owned()),
            pattern(r"[0-9]{1,5}"),
            pattern(r"[ ]{1,3}"),
            pattern(r"[\t\r\n ]{1,4}"),
            pattern(r"\s{1,3}"),
            pattern(r"[!-/:-@]{1,3}"),
            pattern(r"\p{N}{1,2}"),
            pattern(r"\p{L}{1,2}"),
            pattern(r"\p{M}"),
            pattern(r"\p{C}"),
            any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_words_are_the_matches_of_the_pattern(text in texts()) {
            for (expected, pattern) in REGEXES.iter() {
                let pattern = *pattern;
                prop_assert_eq!(words(Splitter::new(Digits::Untouched, pattern), &text), matches(expected, &text));
            }
        }
    }

    #[test]
    fn contractions_are_those_of_the_pattern_whatever_character_follows() {
        for (expected, pattern) in REGEXES.iter() {
            let splitter = Splitter::new(Digits::Untouched, *pattern);
            // Every character alone behind an apostrophe, and in the contractions of two letters.
            let all: Vec<char> = ('\0'..='\u{2FFF}').chain(['\u{FB05}', '\u{FB06}', '\u{FF33}']).collect();
            for text in
                all.iter().flat_map(|c| [format!("'{c}x"), format!("'{c}eb"), format!("'r{c}"), format!("'L{c}")])
            {
                assert_eq!(words(splitter, &text), matches(expected, &text), "{text:?}");
            }
        }
    }

    #[test]
    fn digits_stand_alone_where_they_are_asked_to() {
        let individual = Splitter::new(Digits::Individual, Pattern::Gpt2);
        assert_eq!(words(individual, "in 1999, ½"), ["in", " ", "1", "9", "9", "9", ",", " ", "½"]);
        let contiguous = Splitter::new(Digits::Contiguous, Pattern::Gpt2);
        assert_eq!(words(contiguous, "in 1999, ½"), ["in", " ", "1999", ",", " ", "½"]);
        assert_eq!(words(Splitter::new(Digits::Untouched, Pattern::Gpt2), "in 1999"), ["in", " 1999"]);
        for splitter in [individual, contiguous] {
            assert_eq!(words(splitter, ""), [""; 0]);
            assert_eq!(words(splitter, "7").len(), 1);
        }
    }
}
