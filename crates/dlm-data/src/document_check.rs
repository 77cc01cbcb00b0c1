//! Whether the rows and documents that the account of prepared data names are those that its shards hold.

use crate::{cut::NO_TARGET_LEFT, manifest::Manifest, pipeline::Pipeline, step::Step};
use std::collections::HashMap;

/// The documents that shards hold: a bit for each, by its number. Numbers are those of rows, so most of a word's bits are used.
#[derive(Debug, Default)]
pub(crate) struct Documents(HashMap<i64, u64>);

impl Documents {
    /// Counts a document; the same one twice is once.
    pub(crate) fn add(&mut self, document: i64) {
        *self.0.entry(document >> 6).or_default() |= 1 << (document & 63);
    }

    pub(crate) fn join(&mut self, other: Self) {
        if self.0.len() < other.0.len() {
            let smaller = std::mem::replace(self, other);
            return self.join(smaller);
        }
        for (word, bits) in other.0 {
            *self.0.entry(word).or_default() |= bits;
        }
    }

    fn count(&self) -> u64 {
        self.0.values().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// The largest number.
    fn last(&self) -> Option<i64> {
        let (word, bits) = self.0.iter().max_by_key(|(word, _)| **word)?;
        Some((word << 6) + i64::from(63 - bits.leading_zeros()))
    }
}

/// What a pipeline may do to the numbers of rows and documents.
struct Changes {
    /// Rows are made that no source gave, and numbered anew.
    makes_rows: bool,
    /// One row becomes several documents with its number.
    multiplies: bool,
}

impl Changes {
    /// What the pipeline of a manifest may do; everything, where it cannot be read.
    fn of(manifest: &Manifest) -> Self {
        let Ok(pipeline) = Pipeline::from_toml(&manifest.pipeline, "") else {
            return Self { makes_rows: true, multiplies: true };
        };
        let unnests = |text: &String| text.to_ascii_lowercase().contains("unnest");
        Self {
            makes_rows: pipeline.step.iter().any(|step| matches!(step, Step::Sql(_))),
            multiplies: pipeline.step.iter().any(|step| match step {
                Step::Chunk(_) => true,
                Step::Sql(query) => unnests(query),
                Step::Select(columns) => columns.iter().any(unnests),
                Step::Map(columns) => columns.values().any(unnests),
                _ => false,
            }),
        }
    }
}

/// Says how the account contradicts the documents that the shards hold.
pub(crate) fn contradiction(manifest: &Manifest, found: &Documents) -> Option<String> {
    let account = &manifest.account;
    let sources = manifest.sources.iter().map(|source| u128::from(source.rows)).sum::<u128>();
    if !manifest.sources.is_empty() && sources != u128::from(account.rows) {
        return Some(format!("its sources gave {sources} rows, and `account.rows` is {}", account.rows));
    }
    let changes = Changes::of(manifest);
    let last = found.last().filter(|_| !changes.makes_rows && !changes.multiplies);
    if let Some(last) = last.filter(|last| u64::try_from(*last).is_ok_and(|last| last >= account.rows)) {
        return Some(format!("document {last} is of a row that does not exist: `account.rows` is {}", account.rows));
    }
    let whole =
        [account.dropped_empty_documents, account.dropped_overlong_documents, account.dropped_targetless_documents];
    let dropped = whole.iter().map(|count| u128::from(*count)).sum::<u128>();
    let (held, made) = (u128::from(found.count()), u128::from(account.documents));
    // What a filter behind `tokenize` or a `truncate` takes out is counted by its tokens, not by its documents.
    let is_exact = account.dropped_filtered_tokens == 0
        && !account.dropped_tokens.contains_key(NO_TARGET_LEFT)
        && !changes.multiplies;
    let fits = if is_exact { held + dropped == made } else { held <= made };
    (!fits).then(|| {
        format!("its shards hold {held} documents and {dropped} were dropped, and `account.documents` is {made}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_counts_once_however_many_pieces_it_has() {
        let (mut some, mut others) = (Documents::default(), Documents::default());
        [0, 63, 64, 64, 1_000_000].into_iter().for_each(|document| some.add(document));
        [63, 65].into_iter().for_each(|document| others.add(document));
        some.join(others);
        assert_eq!((some.count(), some.last()), (5, Some(1_000_000)));
        assert_eq!((Documents::default().count(), Documents::default().last()), (0, None));
    }
}
