//! The alphabet of byte-level tokenizers: a printable character for each byte.

use std::collections::HashMap;

/// From the characters in which a byte-level vocabulary is written to the bytes they stand for (GPT-2's table).
pub(super) struct Alphabet {
    bytes: HashMap<char, u8>,
}

impl Alphabet {
    pub(super) fn new() -> Self {
        let is_itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let plain = (0..=u8::MAX).filter(is_itself).map(|byte| (char::from(byte), byte));
        let others = (0..=u8::MAX).filter(|byte| !is_itself(byte));
        let shifted = ('\u{100}'..).zip(others);
        Self { bytes: plain.chain(shifted).collect() }
    }

    /// The bytes of a token; `None` where it is not written in this alphabet.
    pub(super) fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|character| self.bytes.get(&character).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn the_alphabet_is_that_of_the_library_and_has_a_character_for_each_byte() {
        let alphabet = Alphabet::new();
        let ours: HashSet<char> = alphabet.bytes.keys().copied().collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!(alphabet.bytes.values().collect::<HashSet<_>>().len(), 256);
        assert_eq!(alphabet.bytes("Ġa\u{100}Ċ"), Some(b" a\0\n".to_vec()));
        assert_eq!(alphabet.bytes("▁a"), None);
    }
}
