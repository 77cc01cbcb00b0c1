//! Byte-pair encoding of one word: the pair with the smallest rank is merged, of equal ones the first, until none is left.

use std::collections::HashMap;

/// Stands for no rank and for a byte without a token.
const NONE: u32 = u32::MAX;
/// Longer words are worked on window by window, in bytes; see [`Bpe::encode`].
const WINDOW: usize = 256;

/// What two tokens merge into, in the order of ranks.
pub(super) struct Merge {
    /// The left and the right token.
    pub(super) pair: (u32, u32),
    /// The token that they make.
    pub(super) product: u32,
}

/// The tokens and merges of a byte-level vocabulary.
pub(super) struct Bpe {
    /// The token of each byte, or [`NONE`].
    byte_ids: [u32; 256],
    has_all_bytes: bool,
    ranks: RankTable,
    /// What a merge makes, by its rank.
    products: Vec<u32>,
    /// Length in bytes of each token.
    lengths: Vec<u32>,
    /// Words that are tokens as they are, where merges do not count for them (`ignore_merges`).
    whole: HashMap<Box<[u8]>, u32>,
    window: usize,
}

/// Memory that is used again for the next word.
#[derive(Default)]
pub(super) struct Buffers {
    symbols: Vec<u32>,
    ranks: Vec<u32>,
    pair: Vec<u32>,
    spelled: Vec<u8>,
}

impl Bpe {
    /// From tokens as bytes with their ids, and merges in the order of ranks; with `whole_words`, words that are tokens are not
    /// merged. `None` where an id is out of proportion.
    pub(super) fn new(tokens: Vec<(Vec<u8>, u32)>, merges: &[Merge], whole_words: bool) -> Option<Self> {
        let n_ids = tokens.iter().map(|(_, id)| *id as usize + 1).max()?;
        if n_ids > 2 * tokens.len() + 1024 {
            return None;
        }
        let mut byte_ids = [NONE; 256];
        let mut lengths = vec![0; n_ids];
        for (bytes, id) in &tokens {
            lengths[*id as usize] = u32::try_from(bytes.len()).ok()?;
            if let [byte] = bytes[..] {
                byte_ids[usize::from(byte)] = *id;
            }
        }
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        let whole = if whole_words {
            tokens.into_iter().map(|(bytes, id)| (bytes.into(), id)).collect()
        } else {
            HashMap::new()
        };
        Some(Self {
            byte_ids,
            has_all_bytes: !byte_ids.contains(&NONE),
            ranks: RankTable::new(merges),
            products: merges.iter().map(|merge| merge.product).collect(),
            lengths,
            whole,
            window: WINDOW.max(4 * longest),
        })
    }

    /// Whether every byte of a text has a token. Without one it is left out, as the library does where there is no `unk` token.
    pub(super) fn spells(&self, bytes: &[u8]) -> bool {
        self.has_all_bytes || bytes.iter().all(|&byte| self.byte_ids[usize::from(byte)] != NONE)
    }

    /// Length in bytes of a token.
    pub(super) fn length(&self, id: u32) -> usize {
        self.lengths[id as usize] as usize
    }

    /// Appends the tokens of a word.
    ///
    /// Work grows with the square of a short word's length, and linearly with that of a long one: its windows are encoded one
    /// after the other. That this is exact rests on a property of the method. A sequence of tokens is the encoding of its
    /// bytes if and only if each two neighbours are the encoding of theirs: the first merge across a border would happen
    /// between these two alone as well, since until then each token comes about by itself. So only the pair where two windows
    /// meet has to be tried; where it does not hold, the windows before give tokens back.
    pub(super) fn encode(&self, word: &[u8], buffers: &mut Buffers, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(word) {
            ids.push(id);
        } else if word.len() <= self.window {
            let Buffers { symbols, ranks, .. } = buffers;
            self.spell(word, symbols);
            self.merge(symbols, ranks);
            ids.extend_from_slice(symbols);
        } else if self.has_all_bytes {
            self.encode_long(word, buffers, ids);
        } else {
            let mut spelled = std::mem::take(&mut buffers.spelled);
            spelled.clear();
            spelled.extend(word.iter().filter(|&&byte| self.byte_ids[usize::from(byte)] != NONE));
            self.encode_long(&spelled, buffers, ids);
            buffers.spelled = spelled;
        }
    }

    /// Returns how many windows it took.
    fn encode_long(&self, word: &[u8], buffers: &mut Buffers, ids: &mut Vec<u32>) -> usize {
        let Buffers { symbols, ranks, pair, .. } = buffers;
        let first = ids.len();
        let (mut start, mut furthest, mut window) = (0, 0, self.window);
        let mut n_windows = 0;
        while start < word.len() {
            n_windows += 1;
            let end = word.len().min(start.saturating_add(window));
            self.spell(&word[start..end], symbols);
            self.merge(symbols, ranks);

            // 1. Does the window begin where the token before it ends?
            if ids.len() > first {
                let before = ids[ids.len() - 1];
                let length = self.length(before);
                self.spell(&word[start - length..start + self.length(symbols[0])], pair);
                self.merge(pair, ranks);
                if pair[..] != [before, symbols[0]] {
                    ids.pop();
                    start -= length;
                    window *= 2;
                    continue;
                }
            }
            // 2. Tokens near an end that is not the word's may look different when more is seen: the next window decides.
            if end == word.len() {
                ids.extend_from_slice(symbols);
                break;
            }
            let mut kept = 0;
            for &id in symbols.iter() {
                if kept + self.length(id) > window / 2 {
                    break;
                }
                kept += self.length(id);
                ids.push(id);
            }
            start += kept;
            if kept == 0 {
                window *= 2;
            } else if start > furthest {
                (furthest, window) = (start, self.window);
            }
        }
        n_windows
    }

    /// The tokens of the single bytes.
    fn spell(&self, word: &[u8], symbols: &mut Vec<u32>) {
        symbols.clear();
        symbols.extend(word.iter().map(|&byte| self.byte_ids[usize::from(byte)]).filter(|&id| id != NONE));
    }

    fn merge(&self, symbols: &mut Vec<u32>, ranks: &mut Vec<u32>) {
        ranks.clear();
        ranks.extend(symbols.windows(2).map(|pair| self.ranks.get(pair[0], pair[1])));
        while let Some(&smallest) = ranks.iter().min()
            && smallest != NONE
        {
            let at = ranks.iter().position(|&rank| rank == smallest).expect("the smallest rank is one of them");
            symbols[at] = self.products[smallest as usize];
            symbols.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.ranks.get(symbols[at - 1], symbols[at]);
            }
            if at < ranks.len() {
                ranks[at] = self.ranks.get(symbols[at], symbols[at + 1]);
            }
        }
    }
}

/// From pairs of tokens to the rank of their merge: open addressing, at most half full.
struct RankTable {
    slots: Box<[(u64, u32)]>,
    shift: u32,
}

impl RankTable {
    /// No pair: both tokens would have the number of [`NONE`].
    const EMPTY: u64 = u64::MAX;

    fn new(merges: &[Merge]) -> Self {
        let n_slots = (2 * merges.len()).next_power_of_two().max(2);
        let mut table =
            Self { slots: vec![(Self::EMPTY, NONE); n_slots].into_boxed_slice(), shift: 64 - n_slots.trailing_zeros() };
        for (rank, merge) in (0..).zip(merges) {
            let key = key(merge.pair);
            let slot = table.slot(key);
            table.slots[slot] = (key, rank); // of a pair that comes twice the later one counts
        }
        table
    }

    /// Where a pair stands, or would stand.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.slots[slot].0 != key && self.slots[slot].0 != Self::EMPTY {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> u32 {
        self.slots[self.slot(key((left, right)))].1
    }
}

fn key((left, right): (u32, u32)) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::{
        Model,
        models::bpe::{BPE, Vocab},
    };

    /// A vocabulary over a few letters whose merges come in any order, as no training would give them.
    fn vocabularies() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..24).prop_flat_map(
            |picks| {
                let mut tokens: Vec<Vec<u8>> = b"abc".iter().map(|&byte| vec![byte]).collect();
                let mut merges = Vec::new();
                for (left, right) in picks {
                    let pair = (left.get(&tokens).clone(), right.get(&tokens).clone());
                    let product = [&pair.0[..], &pair.1].concat();
                    if product.len() <= 8 && !merges.contains(&pair) {
                        merges.push(pair);
                        if !tokens.contains(&product) {
                            tokens.push(product);
                        }
                    }
                }
                Just(merges).prop_shuffle()
            },
        )
    }

    /// Ours and the library's, from the same merges.
    fn models(merges: &[(Vec<u8>, Vec<u8>)], window: usize) -> (Bpe, BPE) {
        let mut tokens: Vec<Vec<u8>> = b"abc".iter().map(|&byte| vec![byte]).collect();
        for (left, right) in merges {
            for token in [left.clone(), right.clone(), [&left[..], right].concat()] {
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
            }
        }
        let id = |token: &[u8]| tokens.iter().position(|other| other == token).unwrap() as u32;
        let ours: Vec<Merge> = merges
            .iter()
            .map(|(left, right)| Merge { pair: (id(left), id(right)), product: id(&[&left[..], right].concat()) })
            .collect();
        let text = |token: &[u8]| String::from_utf8(token.to_vec()).unwrap();
        let vocab: Vocab = tokens.iter().map(|token| (text(token), id(token))).collect();
        let pairs = merges.iter().map(|(left, right)| (text(left), text(right))).collect();
        let library = BPE::builder().vocab_and_merges(vocab, pairs).build().unwrap();
        let with_ids = tokens.iter().map(|token| (token.clone(), id(token))).collect();
        let mut ours = Bpe::new(with_ids, &ours, false).unwrap();
        ours.window = window;
        (ours, library)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn any_order_of_merges_and_any_window_give_the_tokens_of_the_library(
            merges in vocabularies(), word in "[abc]{1,120}", window in 1usize..40,
        ) {
            for window in [window, WINDOW] {
                let (ours, library) = models(&merges, window);
                let mut ids = Vec::new();
                ours.encode(word.as_bytes(), &mut Buffers::default(), &mut ids);
                let expected: Vec<u32> = library.tokenize(&word).unwrap().iter().map(|token| token.id).collect();
                prop_assert_eq!(ids, expected);
            }
        }
    }

    #[test]
    fn bytes_without_a_token_are_left_out_of_short_and_long_words() {
        let (ours, library) = models(&[(b"a".to_vec(), b"b".to_vec())], 8);
        for word in ["a!b", "!", "!a!b!a!b!a!b!a!b!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!ab"] {
            let mut ids = Vec::new();
            ours.encode(word.as_bytes(), &mut Buffers::default(), &mut ids);
            let expected: Vec<u32> = library.tokenize(word).unwrap().iter().map(|token| token.id).collect();
            assert_eq!(ids, expected, "{word}");
        }
    }

    #[test]
    fn a_long_word_takes_no_more_windows_than_its_length_asks_for() {
        let merges = [("a", "b"), ("ab", "a"), ("aba", "b"), ("c", "c"), ("cc", "cc")];
        let merges: Vec<_> = merges.iter().map(|(a, b)| (a.as_bytes().to_vec(), b.as_bytes().to_vec())).collect();
        let (ours, library) = models(&merges, 64);
        let letter = |n: u32| b"abcc"[(n.wrapping_mul(n) >> 7) as usize % 4];
        for word in [(0..300_000).map(letter).collect::<Vec<u8>>(), b"c".repeat(300_000), b"ab".repeat(150_000)] {
            let mut ids = Vec::new();
            let n_windows = ours.encode_long(&word, &mut Buffers::default(), &mut ids);
            assert!(n_windows <= word.len() / 24, "{n_windows}");
            let text = String::from_utf8(word).unwrap();
            assert!(library.tokenize(&text).unwrap().iter().map(|token| token.id).eq(ids));
        }
    }
}
