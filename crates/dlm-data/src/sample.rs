//! The `sample` step: a share of the rows or so many of them, chosen by what is in them.

use crate::error::{DataError, Result};
use serde::{Deserialize, Serialize};

/// A random sample that depends on the rows' content and the seed alone, not on their order. Rows with equal content are
/// taken or left together where a share is asked for. The order of the rows that stay does not change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// The expected share of the rows, between 0 and 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The number of rows, or all where there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// The columns that decide; empty means all of them.
    pub on: Vec<String>,
    /// Chooses another sample.
    pub seed: u64,
}

impl Sample {
    /// That share of the rows.
    #[must_use]
    pub fn share(share: f64, seed: u64) -> Self {
        Self { share: Some(share), seed, ..Self::default() }
    }

    /// So many rows.
    #[must_use]
    pub fn count(count: usize, seed: u64) -> Self {
        Self { count: Some(count), seed, ..Self::default() }
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        match (self.share, self.count) {
            (Some(share), None) if !(share > 0.0 && share < 1.0) => {
                Err(DataError::pipeline(format!("`sample.share` is {share}, and has to be between 0 and 1")))
            }
            (None, Some(0)) => Err(DataError::pipeline("`sample.count` is 0, and has to be 1 or more")),
            (Some(_), Some(_)) | (None, None) => {
                Err(DataError::pipeline("the step `sample` takes either a `share` or a `count`"))
            }
            _ => Ok(()),
        }
    }
}
