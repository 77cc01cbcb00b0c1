//! Encoding where some of a text may hold special tokens and some may not: a conversation in its template.
//!
//! A special token that must stay text gets a mark behind its first character, so that nothing recognises it; the marks
//! are taken out again before the text is cut into words. What comes out is what the tokenizer makes of the plain text.

use crate::{
    chat_template::Rendered,
    error::{Result, TokenizerError},
    fast::Output,
    tokenizer::Tokenizer,
};
use aho_corasick::AhoCorasick;
use std::{ops::Range, sync::Arc};
use tokenizers::{Encoding, Model, OffsetType, PreTokenizer};

/// How special tokens that are spelled in a text are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// As the text they are: what users and documents say.
    AsText,
    /// As special tokens: what templates and people who know them write.
    Parse,
}

/// A piece of text, and how its special tokens are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The text.
    pub text: String,
    /// How special tokens in it are read.
    pub specials: Specials,
}

/// Ids with the bytes of the text that each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each id its range of bytes in the text. The tokens of one character that was split share its range.
    pub spans: Vec<Range<usize>>,
}

impl Encoded {
    /// For each token whether it shares bytes with one of `ranges`: which tokens the assistant says, for example.
    ///
    /// `ranges` are ascending and do not overlap.
    #[must_use]
    pub fn within(&self, ranges: &[Range<usize>]) -> Vec<bool> {
        let overlap = |span: &Range<usize>| {
            let first = ranges.partition_point(|range| range.end <= span.start);
            ranges.get(first).is_some_and(|range| range.start < span.end)
        };
        self.spans.iter().map(overlap).collect()
    }
}

/// How special tokens are spelled, ready to be found in what people say. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spellings {
    texts: Arc<[String]>,
    finder: Option<AhoCorasick>,
}

impl Spellings {
    /// From the texts of the tokens; empty ones and repetitions do not count.
    #[must_use]
    pub fn new(mut texts: Vec<String>) -> Self {
        texts.retain(|text| !text.is_empty());
        texts.sort_unstable();
        texts.dedup();
        // Only gigabytes of patterns cannot be built, and they would not have fitted into a tokenizer either.
        let finder = (!texts.is_empty()).then(|| AhoCorasick::new(&texts).expect("special tokens are few and short"));
        Self { texts: texts.into(), finder }
    }

    /// The texts, in order.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Every place where one of them is spelled, also those that overlap.
    pub(crate) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        // Most texts hold none, which is found out several times faster than all that overlap.
        let finder = self.finder.iter().filter(move |finder| finder.is_match(text));
        finder.flat_map(move |finder| finder.find_overlapping_iter(text)).map(|found| found.range())
    }
}

/// A text with marks behind the first characters of what must stay text.
pub(crate) struct Marked {
    pub(crate) text: String,
    /// Where the marks stand in it, in bytes, ascending.
    marks: Vec<usize>,
}

impl Marked {
    /// Puts `mark` behind the first character of each place.
    pub(crate) fn new(text: &str, places: impl Iterator<Item = Range<usize>>, mark: char) -> Result<Self> {
        let mut positions = Vec::new();
        for place in places {
            let first = text[place.clone()].chars().next().map_or(0, char::len_utf8);
            if first == place.len() {
                return Err(TokenizerError::OneCharacterSpecial { token: text[place].to_owned() });
            }
            positions.push(place.start + first);
        }
        positions.sort_unstable();
        positions.dedup();
        let mut marked = String::with_capacity(text.len() + positions.len() * mark.len_utf8());
        let mut marks = Vec::with_capacity(positions.len());
        let mut start = 0;
        for position in positions {
            marked.push_str(&text[start..position]);
            marks.push(marked.len());
            marked.push(mark);
            start = position;
        }
        marked.push_str(&text[start..]);
        Ok(Self { text: marked, marks })
    }

    /// From bytes of the marked text to bytes of the plain one.
    fn plain(&self, offset: usize, mark: char) -> usize {
        offset - self.marks.partition_point(|&position| position < offset) * mark.len_utf8()
    }
}

/// A text ready to be encoded.
pub(crate) enum Guarded<'a> {
    /// As it is: nothing in it must be kept from being read as a special token.
    Plain(&'a str),
    /// With this mark in what must stay text.
    Marked(Marked, char),
}

impl Guarded<'_> {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Marked(marked, _) => &marked.text,
        }
    }

    pub(crate) fn mark(&self) -> Option<char> {
        match self {
            Self::Plain(_) => None,
            Self::Marked(_, mark) => Some(*mark),
        }
    }

    /// From bytes of [`text`](Self::text) to bytes of the plain one.
    fn plain(&self, offset: usize) -> usize {
        match self {
            Self::Plain(_) => offset,
            Self::Marked(marked, mark) => marked.plain(offset, *mark),
        }
    }
}

/// A character that no text should hold, since Unicode keeps it for programs, and that none of `texts` does hold.
pub(crate) fn free_mark(texts: &[&str], taken: &[char]) -> Result<char> {
    let free = |mark: &char| !taken.contains(mark) && !texts.iter().any(|text| text.contains(*mark));
    ('\u{FDD0}'..='\u{FDEF}').find(free).ok_or(TokenizerError::NoMarkLeft)
}

impl Tokenizer {
    /// Encodes parts that stand side by side, each with its own reading of special tokens.
    ///
    /// As one text: words and merges run across the borders. A special token counts where it is spelled wholly inside
    /// parts that are to be parsed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_parts(&self, parts: &[Part]) -> Result<Encoded> {
        let (text, as_text) = joined(parts);
        self.encode_guarded(&text, |place| as_text.iter().any(|range| overlap(range, place)))
    }

    /// Encodes a rendered conversation: the template's special tokens are read as such, those that people spelled stay text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Encoded> {
        let said = |place: &Range<usize>| rendered.said.iter().any(|said| overlap(said, place));
        self.encode_guarded(&rendered.text, said)
    }

    /// Encodes `text`, with spans; special tokens at places that `stays_text` names are read as text.
    fn encode_guarded(&self, text: &str, stays_text: impl Fn(&Range<usize>) -> bool) -> Result<Encoded> {
        let guarded = self.guard(text, stays_text)?;
        if let Some(fast) = self.fast() {
            let mut encoded = Encoded::default();
            let mut memory = fast.memory();
            let output = &mut Output { ids: &mut encoded.ids, spans: Some(&mut encoded.spans) };
            let done = fast.encode(guarded.text(), guarded.mark(), &mut memory, output);
            fast.give_back(memory);
            if done.is_ok() {
                return Ok(encoded);
            }
        }
        let encoding = self.tokenize(guarded.text(), guarded.mark(), OffsetType::Byte)?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| guarded.plain(start)..guarded.plain(end));
        Ok(Encoded { ids: encoding.get_ids().to_vec(), spans: spans.collect() })
    }

    pub(crate) fn encoding_of_parts(&self, parts: &[Part]) -> Result<Encoding> {
        let (text, as_text) = joined(parts);
        let guarded = self.guard(&text, |place| as_text.iter().any(|range| overlap(range, place)))?;
        self.tokenize(guarded.text(), guarded.mark(), OffsetType::Byte)
    }

    /// Marks special tokens at places that `stays_text` names, so that they are read as text.
    pub(crate) fn guard<'a>(&self, text: &'a str, stays_text: impl Fn(&Range<usize>) -> bool) -> Result<Guarded<'a>> {
        let mut places = self.spellings.find(text).filter(stays_text).peekable();
        if places.peek().is_none() {
            return Ok(Guarded::Plain(text));
        }
        let mark = free_mark(&[text], &[])?;
        Ok(Guarded::Marked(Marked::new(text, places, mark)?, mark))
    }

    /// The library's own steps, with the marks taken out between finding special tokens and cutting the rest into words.
    pub(crate) fn tokenize(&self, text: &str, mark: Option<char>, offsets: OffsetType) -> Result<Encoding> {
        let tokenize = || {
            let added = self.inner.get_added_vocabulary();
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(mark) = mark {
                pieces.normalize(|piece| {
                    piece.filter(|character| character != mark);
                    Ok(())
                })?;
            }
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            self.inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
            pieces.into_encoding(None, 0, offsets)
        };
        tokenize().map_err(|source| TokenizerError::Encode { source })
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The parts as one text, and which bytes of it are to be read as text.
fn joined(parts: &[Part]) -> (String, Vec<Range<usize>>) {
    let text: String = parts.iter().map(|part| part.text.as_str()).collect();
    let mut as_text = Vec::new();
    let mut start = 0;
    for part in parts {
        let end = start + part.text.len();
        if part.specials == Specials::AsText && end > start {
            as_text.push(start..end);
        }
        start = end;
    }
    (text, as_text)
}
