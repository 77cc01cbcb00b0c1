//! The ids of words that were met before: a table of fixed size, in which common words stay and rare ones are replaced.

/// The longest word that is remembered, in bytes.
const MAX_BYTES: usize = 15;
/// The most ids that a remembered word may have.
const MAX_IDS: usize = 11;
/// Places for words: 2 MiB in all.
const SETS: usize = 1 << 14;

/// A word as a number: its bytes, and their count in the last byte. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u128);

impl Key {
    /// The key of the word `start..end` of a text, if it is short enough to be remembered.
    #[inline]
    pub(super) fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        if length == 0 || length > MAX_BYTES {
            return None;
        }
        // Reading beyond the word and masking is several times faster than copying a few bytes.
        let bytes = if let Some(Ok(bytes)) = text.get(start..start + 16).map(<[u8; 16]>::try_from) {
            u128::from_le_bytes(bytes)
        } else {
            let mut bytes = [0; 16];
            bytes[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes)
        };
        Some(Self(bytes & ((1 << (8 * length)) - 1) | (length as u128) << 120))
    }

    #[inline]
    fn set(self) -> usize {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        let product = u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ 0xD1B5_4A32_D192_ED03);
        ((product >> 64) ^ product) as usize % SETS
    }
}

/// One word; as large as a line of the processor's cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Entry {
    key: u128,
    n_ids: u32,
    ids: [u32; MAX_IDS],
}

impl Entry {
    const EMPTY: Self = Self { key: 0, n_ids: 0, ids: [0; MAX_IDS] };
}

/// Remembers the ids of words. What it forgets is worked out anew, so that it never changes a result.
pub(super) struct WordCache {
    /// In each set the younger word first.
    sets: Box<[[Entry; 2]]>,
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self { sets: vec![[Entry::EMPTY; 2]; SETS].into_boxed_slice() }
    }

    /// The ids of a word, if it is remembered.
    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&[u32]> {
        let set = &self.sets[key.set()];
        let entry = set.iter().find(|entry| entry.key == key.0)?;
        Some(&entry.ids[..entry.n_ids as usize])
    }

    /// Remembers the ids of a word, unless they are too many.
    pub(super) fn insert(&mut self, key: Key, ids: &[u32]) {
        if ids.len() <= MAX_IDS {
            let mut entry = Entry { key: key.0, n_ids: ids.len() as u32, ..Entry::EMPTY };
            entry.ids[..ids.len()].copy_from_slice(ids);
            let set = &mut self.sets[key.set()];
            set[1] = set[0];
            set[0] = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn keys_are_equal_where_words_are(
            text in proptest::collection::vec(0u8..3, 0..40), a in 0usize..40, b in 0usize..40, x in 0usize..40, y in 0usize..40,
        ) {
            let (a, b, x, y) = (a.min(text.len()), b.min(text.len()), x.min(text.len()), y.min(text.len()));
            let (first, second) = (a.min(b)..a.max(b), x.min(y)..x.max(y));
            let key = |range: &std::ops::Range<usize>| Key::new(&text, range.start, range.end);
            for range in [&first, &second] {
                prop_assert_eq!(key(range).is_some(), (1..=MAX_BYTES).contains(&range.len()));
            }
            if let (Some(one), Some(other)) = (key(&first), key(&second)) {
                prop_assert_eq!(one == other, text[first] == text[second]);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_what_was_put_in_however_many_words_there_are() {
        let mut cache = WordCache::new();
        let mut truth = HashMap::new();
        for n in 0..200_000u32 {
            let word = format!("w{n}");
            let ids: Vec<u32> = (0..n % 13).collect();
            let key = Key::new(word.as_bytes(), 0, word.len()).unwrap();
            assert_eq!(cache.get(key), None);
            cache.insert(key, &ids);
            assert_eq!(cache.get(key), Some(&ids[..]).filter(|ids| ids.len() <= MAX_IDS));
            truth.insert(word, ids);
        }
        let remembered = truth.iter().filter(|(word, ids)| {
            let found = cache.get(Key::new(word.as_bytes(), 0, word.len()).unwrap());
            assert!(found.is_none_or(|found| found == &ids[..]));
            found.is_some()
        });
        assert!(remembered.count() > SETS);
    }
}
