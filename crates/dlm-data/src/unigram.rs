//! The bar that a model has to pass: what token frequencies alone can predict.

use crate::{
    batch::IGNORE_INDEX,
    error::{DataError, Result},
    prepared::PreparedData,
};

/// The entropy of the `held_out` targets under the token frequencies of the `train` targets, in nats per token.
///
/// A model that has learnt nothing but how frequent each token is reaches this negative log-likelihood; one whose NELBO lies below
/// it has learnt something of context. Every token of the vocabulary counts once more than it was seen (Laplace), so that
/// unseen ones have a probability.
///
/// # Errors
/// [`DataError::Shard`] when a shard is damaged, and [`DataError::Invalid`] when nothing is held out.
///
/// ```no_run
/// use dlm_data::{PreparedData, Split, unigram_entropy};
///
/// let (train, held_out) = (PreparedData::open("data", Split::Train)?, PreparedData::open("data", Split::Validation)?);
/// println!("{:.3} nats per token", unigram_entropy(&train, &held_out)?);
/// # Ok::<(), dlm_data::DataError>(())
/// ```
pub fn unigram_entropy(train: &PreparedData, held_out: &PreparedData) -> Result<f64> {
    let mut counts = Vec::new();
    for_each_target(train, |id| {
        if counts.len() <= id {
            counts.resize(id + 1, 0u64);
        }
        counts[id] += 1;
    })?;
    let vocab_size = counts.len().max(train.manifest().tokenizer.vocab_size);
    let total = (counts.iter().sum::<u64>() + vocab_size as u64) as f64;
    let (mut sum, mut targets) = (0.0, 0u64);
    for_each_target(held_out, |id| {
        let seen = counts.get(id).copied().unwrap_or(0);
        sum -= ((seen + 1) as f64 / total).ln();
        targets += 1;
    })?;
    if targets == 0 {
        return Err(DataError::Invalid("there is no target to measure the entropy of".to_owned()));
    }
    Ok(sum / targets as f64)
}

fn for_each_target(data: &PreparedData, mut visit: impl FnMut(usize)) -> Result<()> {
    for i in 0..data.rows() {
        for label in data.read_row(i)?.labels {
            if label != IGNORE_INDEX {
                // Ids were checked when the row was read.
                visit(usize::try_from(label).unwrap_or(0));
            }
        }
    }
    Ok(())
}
