//! Which rows of a data set a preview is made from.

use crate::canvas::IGNORE_INDEX;

/// One row of a batch: padded, perhaps packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PreviewRow {
    /// The tokens, padding included.
    pub ids: Vec<i64>,
    /// The document of each token, 0 for padding; `None` where nothing is padded.
    pub segment_ids: Option<Vec<i64>>,
    /// What the model should say, -100 where nothing; `None` where there are no labels.
    pub labels: Option<Vec<i64>>,
}

/// How many rows are taken, and of what length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviewLimits {
    /// Rows to take.
    pub n_samples: usize,
    /// Shorter rows are passed over, counted in tokens without padding; Axolotl's is 10.
    pub min_len: usize,
    /// Longer rows are cut to this many tokens.
    pub max_len: usize,
}

impl PreviewLimits {
    /// Rows of at least 10 tokens.
    #[must_use]
    pub fn new(n_samples: usize, max_len: usize) -> Self {
        Self { n_samples, min_len: 10, max_len }
    }
}

/// Takes rows from batches until there are enough, as Axolotl does.
///
/// `order` gives, for a batch of so many rows, the order in which they are looked at. Rows with labels are taken only
/// if an answer fits within `max_len`, and end with it, counted as if it stood in one piece. Batches behind those
/// needed are not read.
///
/// Axolotl skips up to nine batches first, and so finds nothing in a small data set; here the caller leaves them out of
/// `batches`. A row's length is the number of its tokens that are no padding (Axolotl adds up segment ids, which fits
/// one document a row).
#[must_use]
pub fn choose_previews(
    batches: impl IntoIterator<Item = Vec<PreviewRow>>,
    limits: PreviewLimits,
    mut order: impl FnMut(usize) -> Vec<usize>,
) -> Vec<PreviewRow> {
    let mut chosen = Vec::new();
    let mut batches = batches.into_iter();
    while chosen.len() < limits.n_samples {
        let Some(rows) = batches.next() else { break };
        let wanted = limits.n_samples - chosen.len();
        let found = order(rows.len()).into_iter().filter_map(|index| rows.get(index)?.cut(limits)).take(wanted);
        chosen.extend(found);
    }
    chosen
}

/// Whether labels tell a prompt from an answer; a row without both has nothing to answer or nothing to answer to.
#[must_use]
pub fn has_prompt_and_answer(labels: &[i64]) -> bool {
    labels.contains(&IGNORE_INDEX) && labels.iter().any(|&label| label != IGNORE_INDEX)
}

impl PreviewRow {
    fn cut(&self, limits: PreviewLimits) -> Option<Self> {
        let real = |segment_ids: &Vec<i64>| segment_ids.iter().filter(|&&segment| segment != 0).count();
        let row_len = self.segment_ids.as_ref().map_or(self.ids.len(), real).min(self.ids.len());
        if row_len < limits.min_len {
            return None;
        }
        let most = row_len.min(limits.max_len);
        let len = match &self.labels {
            None => most,
            Some(labels) => {
                let labels = &labels[..row_len.min(labels.len())];
                let prompt_len = labels.iter().position(|&label| label != IGNORE_INDEX)?;
                let answer_len = labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
                if prompt_len >= most {
                    return None;
                }
                most.min(prompt_len + answer_len)
            }
        };
        let first = |values: &Vec<i64>| values.iter().copied().take(len).collect();
        Some(Self {
            ids: first(&self.ids),
            segment_ids: self.segment_ids.as_ref().map(first),
            labels: self.labels.as_ref().map(first),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: i64) -> PreviewRow {
        PreviewRow { ids: (0..len).collect(), ..PreviewRow::default() }
    }

    #[test]
    fn a_packed_row_is_as_long_as_its_tokens() {
        let segment_ids = Some([vec![1; 6], vec![2; 6], vec![0; 4]].concat());
        let packed = PreviewRow { segment_ids, ..row(16) };
        let chosen = choose_previews([vec![packed]], PreviewLimits::new(1, 100), |n| (0..n).collect());
        assert_eq!(chosen[0].ids.len(), 12);
    }

    #[test]
    fn batches_behind_those_needed_are_not_read() {
        let batches = (0..).map(|index| {
            assert!(index < 2, "batch {index} was read");
            vec![row(20), row(9)]
        });
        assert_eq!(choose_previews(batches, PreviewLimits::new(2, 12), |n| (0..n).collect()), [row(12), row(12)]);
    }

    #[test]
    fn a_prompt_that_fills_the_preview_is_passed_over() {
        let labels = Some([vec![-100; 8], vec![1; 4]].concat());
        let rows = vec![PreviewRow { labels, ..row(12) }];
        let len = |max_len| {
            let chosen = choose_previews([rows.clone()], PreviewLimits::new(1, max_len), |n| (0..n).collect());
            chosen.first().map(|row| row.ids.len())
        };
        assert_eq!([8, 9, 12].map(len), [None, Some(9), Some(12)]);
    }

    #[test]
    fn labels_of_one_kind_tell_no_answer_from_a_prompt() {
        assert!(has_prompt_and_answer(&[-100, 4]));
        assert!(!has_prompt_and_answer(&[3, 4]) && !has_prompt_and_answer(&[-100]) && !has_prompt_and_answer(&[]));
    }
}
