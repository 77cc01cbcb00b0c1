//! The builder's methods for the steps on rows and texts.

use crate::{
    Pipeline,
    step::{Chunk, Decontaminate, Dedup, NearDedup, Normalize, Quality, Sample, Step, Truncate},
};
use std::collections::BTreeMap;

fn map_of<A: Into<String>, B: Into<String>>(pairs: impl IntoIterator<Item = (A, B)>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

impl Pipeline {
    /// Renames columns: pairs of the old name and the new one.
    #[must_use]
    pub fn rename<A: Into<String>, B: Into<String>>(self, names: impl IntoIterator<Item = (A, B)>) -> Self {
        self.step(Step::Rename(map_of(names)))
    }

    /// Adds or replaces columns: pairs of a name and an SQL expression over the columns as they were.
    #[must_use]
    pub fn map<A: Into<String>, B: Into<String>>(self, columns: impl IntoIterator<Item = (A, B)>) -> Self {
        self.step(Step::Map(map_of(columns)))
    }

    /// Makes the rows that an SQL query finds in the rows so far, which it calls `rows`.
    #[must_use]
    pub fn sql(self, query: impl Into<String>) -> Self {
        self.step(Step::Sql(query.into()))
    }

    /// Keeps the first rows and reads no further.
    #[must_use]
    pub fn limit(self, rows: usize) -> Self {
        self.step(Step::Limit(rows))
    }

    /// Keeps a random share or number of rows.
    #[must_use]
    pub fn sample(self, sample: Sample) -> Self {
        self.step(Step::Sample(sample))
    }

    /// Gives texts one spelling.
    #[must_use]
    pub fn normalize(self, normalize: Normalize) -> Self {
        self.step(Step::Normalize(normalize))
    }

    /// Leaves out rows that published rules take for debris.
    #[must_use]
    pub fn quality(self, quality: Quality) -> Self {
        self.step(Step::Quality(quality))
    }

    /// Keeps the first of texts that are nearly the same.
    #[must_use]
    pub fn near_dedup(self, near: NearDedup) -> Self {
        self.step(Step::Dedup(Dedup { on: Vec::new(), near: Some(near) }))
    }

    /// Leaves out or reports rows that hold pieces of evaluation sets.
    #[must_use]
    pub fn decontaminate(self, decontaminate: Decontaminate) -> Self {
        self.step(Step::Decontaminate(decontaminate))
    }

    /// Cuts the rest of long documents off, after `tokenize`.
    #[must_use]
    pub fn truncate(self, truncate: Truncate) -> Self {
        self.step(Step::Truncate(truncate))
    }

    /// Cuts long documents into pieces, after `tokenize`.
    #[must_use]
    pub fn chunk(self, chunk: Chunk) -> Self {
        self.step(Step::Chunk(chunk))
    }
}
