//! The bar that a model has to pass: what token frequencies alone can predict.

use crate::{
    batch::IGNORE_INDEX,
    error::{DataError, Result},
    mixture::Mixture,
    prepared::PreparedData,
};
use std::ops::Range;

/// Tokens of the training side that are looked at: enough that more would not change the third digit.
const COUNTED_TOKENS: u64 = 1 << 24;
/// Tokens whose entropy is measured.
const MEASURED_TOKENS: u64 = 1 << 22;
/// Tokens that are read in a row where not all are: about what lies together in a shard.
const RUN_TOKENS: u64 = 1 << 14;

/// The entropy of the `held_out` targets under the token frequencies of the `train` targets, in nats per token.
///
/// A model that has learnt nothing but how frequent each token is reaches this negative log-likelihood; one whose NELBO lies below
/// it has learnt something of context. Every token of the vocabulary counts once more than it was seen (Laplace), so that
/// unseen ones have a probability. Of large data a part is looked at, always the same and spread over all of it: some 16 million tokens
/// to count, some 4 million to measure. Datasets count as they are mixed.
///
/// # Errors
/// [`DataError::Shard`] when a shard is damaged, and [`DataError::Invalid`] when nothing is held out.
///
/// ```no_run
/// use dlm_data::{PreparedData, Split, unigram_entropy};
///
/// let (train, held_out) = (PreparedData::open("data", Split::Train)?, PreparedData::open("data", Split::Validation)?);
/// println!("{:.3} nats per token", unigram_entropy(train, held_out)?);
/// # Ok::<(), dlm_data::DataError>(())
/// ```
pub fn unigram_entropy(train: impl Into<Mixture>, held_out: impl Into<Mixture>) -> Result<f64> {
    let train = train.into();
    let mut counts = Vec::new();
    for_each_target(&train, COUNTED_TOKENS, |id, times| {
        if counts.len() <= id {
            counts.resize(id + 1, 0.0);
        }
        counts[id] += times;
    })?;
    let vocab_size = train.datasets().map(|(data, _)| data.manifest().tokenizer.vocab_size).max().unwrap_or(0);
    let vocab_size = counts.len().max(vocab_size);
    let total = counts.iter().sum::<f64>() + vocab_size as f64;
    let (mut sum, mut targets) = (0.0, 0.0);
    for_each_target(&held_out.into(), MEASURED_TOKENS, |id, times| {
        let seen = counts.get(id).copied().unwrap_or(0.0);
        sum -= times * ((seen + 1.0) / total).ln();
        targets += times;
    })?;
    if targets == 0.0 {
        return Err(DataError::Invalid("there is no target to measure the entropy of".to_owned()));
    }
    Ok(sum / targets)
}

/// Visits targets of an epoch, each with how often it stands for its like, in `most` tokens or a few more.
///
/// Rows are read in the order in which they lie: a shuffled one would decompress a group of rows for each of them.
fn for_each_target(mixture: &Mixture, most: u64, mut visit: impl FnMut(usize, f64)) -> Result<()> {
    let row_tokens = mixture.sequence_len().max(1) as u64;
    let run = (RUN_TOKENS / row_tokens).max(1);
    let part = (most as f64 / (mixture.rows().max(1) * row_tokens) as f64).min(1.0);
    for ((data, _), share) in mixture.datasets().zip(mixture.rows_per_epoch()) {
        let wanted = ((share as f64 * part).ceil() as u64).min(data.rows());
        let rows = spread(data.rows(), wanted, run);
        let times = share as f64 / rows.iter().map(|run| run.end - run.start).sum::<u64>().max(1) as f64;
        for row in rows.into_iter().flatten() {
            targets(data, row)?.for_each(|id| visit(id, times));
        }
    }
    Ok(())
}

/// The targets of a row.
fn targets(data: &PreparedData, row: u64) -> Result<impl Iterator<Item = usize>> {
    let labels = data.read_row(row)?.labels.into_iter().filter(|label| *label != IGNORE_INDEX);
    // Ids were checked when the row was read.
    Ok(labels.map(|label| usize::try_from(label).unwrap_or(0)))
}

/// At least `wanted` of `rows` rows, in runs of `run` rows that lie evenly over them and do not overlap.
fn spread(rows: u64, wanted: u64, run: u64) -> Vec<Range<u64>> {
    let (all, some) = (rows.div_ceil(run), wanted.div_ceil(run));
    let place = |i: u64| (u128::from(i) * u128::from(all) / u128::from(some)) as u64 * run;
    (0..some).map(|i| place(i)..(place(i) + run).min(rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_lie_apart_within_the_rows_and_are_enough(rows in 1u64..5000, part in 0.0f64..=1.0, run in 1u64..40) {
            let wanted = (rows as f64 * part).ceil() as u64;
            let found = spread(rows, wanted, run);
            let sum: u64 = found.iter().map(|run| run.end - run.start).sum();
            // The last run may be a short one.
            prop_assert!(sum + run > wanted && sum < wanted + run);
            prop_assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(found.iter().all(|run| run.start < run.end && run.end <= rows));
            if wanted == rows {
                prop_assert_eq!(sum, rows);
            }
        }
    }
}
