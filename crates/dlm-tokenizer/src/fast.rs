//! Byte-level BPE, several times faster than the `tokenizers` library, for the kinds of tokenizer for which it is proven equal.

mod alphabet;
mod bpe;
mod cache;
mod class;
mod recognize;
#[cfg(test)]
mod tests;
mod words;

use self::{
    bpe::{Bpe, Buffers},
    cache::{Key, WordCache},
    words::Splitter,
};
use aho_corasick::AhoCorasick;
use std::{borrow::Cow, ops::Range, sync::Mutex};
use tokenizers::AddedToken;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// A tokenizer of a kind that is known: added tokens, Unicode normalization, a pattern for words, merges of bytes.
pub(crate) struct Fast {
    normalizer: Normalizer,
    splitter: Splitter,
    bpe: Bpe,
    /// Added tokens that are found in the text as it is.
    plain: Option<Added>,
    /// Added tokens that are found in the normalized text.
    normalized: Option<Added>,
    /// Memory of threads that encode nothing at the moment.
    idle: Mutex<Vec<Memory>>,
}

/// What is done to a text before it is cut into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Normalizer {
    None,
    Nfc,
}

/// Added tokens that are found by their spelling: the leftmost, of several there the longest.
struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

/// What one thread needs to encode: words that it has met, and buffers.
pub(crate) struct Memory {
    cache: WordCache,
    buffers: Buffers,
}

/// Where tokens go.
pub(crate) struct Output<'a> {
    pub(crate) ids: &'a mut Vec<u32>,
    /// For each token the bytes of the text that it came from, if somebody wants to know.
    pub(crate) spans: Option<&'a mut Vec<Range<usize>>>,
}

impl Output<'_> {
    fn added_token(&mut self, id: u32, span: Range<usize>) {
        self.ids.push(id);
        if let Some(spans) = &mut self.spans {
            spans.push(span);
        }
    }
}

/// The fast path cannot say which bytes of this text its tokens came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoSpans;

impl Fast {
    /// The fast path for a `tokenizer.json` with these added tokens; `None` where it is not proven to give the same ids.
    pub(crate) fn recognize(json: &str, added: &[(u32, AddedToken)]) -> Option<Self> {
        recognize::recognize(json, added)
    }

    /// Memory to encode with: such as was used before, with the words it has met.
    pub(crate) fn memory(&self) -> Memory {
        let idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Memory { cache: WordCache::new(), buffers: Buffers::default() })
    }

    /// Takes memory back. It must come from [`memory`](Self::memory) of this tokenizer: it remembers ids.
    pub(crate) fn give_back(&self, memory: Memory) {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(memory);
    }

    /// Appends the tokens of a text. `mark` is a character that was put into it against the finding of special tokens, and is no
    /// part of it; spans do not count it.
    ///
    /// # Errors
    /// [`NoSpans`], only when spans are asked for; some tokens may then have been appended.
    pub(crate) fn encode(
        &self,
        text: &str,
        mark: Option<char>,
        memory: &mut Memory,
        output: &mut Output<'_>,
    ) -> Result<(), NoSpans> {
        let mut offset = 0; // of the piece, in the text without marks
        pieces(self.plain.as_ref(), text, |piece, id| {
            if let Some(id) = id {
                output.added_token(id, offset..offset + piece.len());
                offset += piece.len();
                return Ok(());
            }
            let normal = self.normalize(piece);
            if output.spans.is_some() && matches!(normal, Cow::Owned(_)) {
                return Err(NoSpans);
            }
            pieces(self.normalized.as_ref(), &normal, |piece, id| {
                let unmarked = match mark.filter(|mark| id.is_none() && piece.contains(*mark)) {
                    Some(mark) => Cow::Owned(piece.replace(mark, "")),
                    None => Cow::Borrowed(piece),
                };
                match id {
                    Some(id) => output.added_token(id, offset..offset + piece.len()),
                    None => self.encode_piece(&unmarked, offset, memory, output)?,
                }
                offset += unmarked.len();
                Ok(())
            })
        })
    }

    fn normalize<'a>(&self, text: &'a str) -> Cow<'a, str> {
        // What lies before U+0300, the first combining mark, is normal; its bytes are below that mark's first.
        if self.normalizer == Normalizer::None || text.bytes().all(|byte| byte < 0xCC) {
            return Cow::Borrowed(text);
        }
        // By the tables of the library: newer ones of Unicode know more characters that can be composed.
        if is_nfc_quick(text.chars()) == IsNormalized::Yes {
            return Cow::Borrowed(text);
        }
        let normal: String = text.nfc().map(|(character, _)| character).collect();
        if normal == text { Cow::Borrowed(text) } else { Cow::Owned(normal) }
    }

    /// Encodes text without added tokens, which stands at `offset`.
    fn encode_piece(
        &self,
        text: &str,
        offset: usize,
        memory: &mut Memory,
        output: &mut Output<'_>,
    ) -> Result<(), NoSpans> {
        if output.spans.is_some() && !self.bpe.spells(text.as_bytes()) {
            return Err(NoSpans); // the library shifts the spans of what follows a byte that it leaves out
        }
        let Memory { cache, buffers } = memory;
        let bytes = text.as_bytes();
        self.splitter.split(text, |word| {
            let first = output.ids.len();
            match Key::new(bytes, word.start, word.end) {
                None => self.bpe.encode(&bytes[word.clone()], buffers, output.ids),
                Some(key) => {
                    if let Some(ids) = cache.get(key) {
                        output.ids.extend_from_slice(ids);
                    } else {
                        self.bpe.encode(&bytes[word.clone()], buffers, output.ids);
                        cache.insert(key, &output.ids[first..]);
                    }
                }
            }
            if let Some(spans) = &mut output.spans {
                let mut start = word.start;
                spans.extend(output.ids[first..].iter().map(|&id| {
                    let end = start + self.bpe.length(id);
                    let span = text.floor_char_boundary(start)..text.ceil_char_boundary(end);
                    start = end;
                    offset + span.start..offset + span.end
                }));
            }
        });
        Ok(())
    }
}

/// Cuts a text at added tokens: gives each piece with the id of the token that it is, if it is one. Empty pieces are left out.
fn pieces(
    added: Option<&Added>,
    text: &str,
    mut piece: impl FnMut(&str, Option<u32>) -> Result<(), NoSpans>,
) -> Result<(), NoSpans> {
    let mut start = 0;
    if let Some(added) = added {
        for found in added.finder.find_iter(text) {
            if start < found.start() {
                piece(&text[start..found.start()], None)?;
            }
            piece(&text[found.range()], Some(added.ids[found.pattern().as_usize()]))?;
            start = found.end();
        }
    }
    if start < text.len() { piece(&text[start..], None) } else { Ok(()) }
}
