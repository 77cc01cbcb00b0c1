//! Encoding many texts, one after the other, without making memory for each.

use crate::{
    encode::{Guarded, Specials},
    error::Result,
    fast::{Fast, Memory, Output},
    tokenizer::Tokenizer,
};
use std::{fmt, sync::Arc};
use tokenizers::OffsetType;

/// A thread's way to encode many texts, from [`Tokenizer::session`]: it keeps the words that it has met, and takes them over
/// from sessions that have ended.
pub struct Session<'a> {
    tokenizer: &'a Tokenizer,
    fast: Option<(&'a Arc<Fast>, Option<Memory>)>,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Begins to encode many texts on this thread.
    #[must_use]
    pub fn session(&self) -> Session<'_> {
        Session { tokenizer: self, fast: self.fast().map(|fast| (fast, Some(fast.memory()))) }
    }
}

impl Session<'_> {
    /// Appends the tokens of a text to `ids`; as [`Tokenizer::encode`] otherwise.
    ///
    /// # Errors
    /// As there; `ids` is then left as it was.
    pub fn encode_into(&mut self, text: &str, specials: Specials, ids: &mut Vec<u32>) -> Result<()> {
        let guarded = match specials {
            Specials::Parse => Guarded::Plain(text),
            Specials::AsText => self.tokenizer.guard(text, |_| true)?,
        };
        if let Some((fast, Some(memory))) = &mut self.fast {
            let done = fast.encode(guarded.text(), guarded.mark(), memory, &mut Output { ids, spans: None });
            done.expect("only spans can be missing");
        } else {
            let encoding = self.tokenizer.tokenize(guarded.text(), guarded.mark(), OffsetType::None)?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some((fast, Some(memory))) = self.fast.as_mut().map(|(fast, memory)| (fast, memory.take())) {
            fast.give_back(memory);
        }
    }
}
