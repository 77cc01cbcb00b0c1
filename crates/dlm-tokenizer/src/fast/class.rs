//! Which characters are letters, numbers and white space, exactly as the regular expressions of `tokenizers` have it.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::LazyLock;

/// What a character is to a pattern that cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// None of the others: punctuation, marks, symbols, controls.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
}

/// The class of every character, by its number.
pub(super) fn classes() -> &'static [Class] {
    static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| {
        let mut classes = vec![Class::Other; char::MAX as usize + 1].into_boxed_slice();
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
            // From the tables of the library's own engine: Rust's `char` methods know another version of Unicode.
            let hir = regex_syntax::parse(pattern).expect("the pattern is a class");
            let HirKind::Class(HirClass::Unicode(ranges)) = hir.kind() else {
                unreachable!("`{pattern}` is a class of Unicode characters")
            };
            for range in ranges.ranges() {
                classes[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        classes
    });
    &CLASSES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_that_the_engine_of_the_library_gives_it() {
        let all: String = ('\0'..=char::MAX).collect();
        let mut expected = vec![Class::Other; char::MAX as usize + 1];
        for (pattern, class) in [(r"\p{L}+", Class::Letter), (r"\p{N}+", Class::Number), (r"\s+", Class::Space)] {
            for found in fancy_regex::Regex::new(pattern).unwrap().find_iter(&all) {
                for character in found.unwrap().as_str().chars() {
                    assert_eq!(expected[character as usize], Class::Other, "{character:?} has two classes");
                    expected[character as usize] = class;
                }
            }
        }
        assert!(classes() == expected);
    }
}
