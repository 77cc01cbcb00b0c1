//! The bar that a model has to pass: what token frequencies alone can predict.

use crate::{
    batch::IGNORE_INDEX,
    cursor::Cursor,
    error::{DataError, Result},
    mixture::Mixture,
    reader::{Reader, ReaderConfig},
};

/// Targets of the training side that are counted: enough that more would not change the third digit.
const COUNTED_TARGETS: u64 = 1 << 24;
/// Places whose entropy is measured, unless the caller wants fewer.
const MEASURED_TARGETS: u64 = 1 << 22;

/// The entropy of the `held_out` targets under the token frequencies of the `train` targets, in nats per token.
///
/// A model that has learnt nothing but how frequent each token is reaches this negative log-likelihood; one whose NELBO lies below
/// it has learnt something of context. Every token of the vocabulary counts once more than it was seen (Laplace), so that
/// unseen ones have a probability. Of large data a part is looked at, always the same: some 16 million targets to count, some 4
/// million to measure.
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
    for_each_target(&train, COUNTED_TARGETS, |id| {
        if counts.len() <= id {
            counts.resize(id + 1, 0u64);
        }
        counts[id] += 1;
    })?;
    let vocab_size = train.datasets().map(|(data, _)| data.manifest().tokenizer.vocab_size).max().unwrap_or(0);
    let vocab_size = counts.len().max(vocab_size);
    let total = (counts.iter().sum::<u64>() + vocab_size as u64) as f64;
    let (mut sum, mut targets) = (0.0, 0u64);
    for_each_target(&held_out.into(), MEASURED_TARGETS, |id| {
        let seen = counts.get(id).copied().unwrap_or(0);
        sum -= ((seen + 1) as f64 / total).ln();
        targets += 1;
    })?;
    if targets == 0 {
        return Err(DataError::Invalid("there is no target to measure the entropy of".to_owned()));
    }
    Ok(sum / targets as f64)
}

/// Visits the targets of the rows of an epoch, mixed as they are, until there were `enough`.
fn for_each_target(data: &Mixture, enough: u64, mut visit: impl FnMut(usize)) -> Result<()> {
    let mut reader = Reader::new(data, ReaderConfig::default(), Cursor::default())?;
    let mut visited = 0;
    for _ in 0..reader.windows_per_epoch() {
        for label in reader.next_window()?.micro_batches.iter().flat_map(|batch| &batch.labels) {
            if *label != IGNORE_INDEX {
                // Ids were checked when the row was read.
                visit(usize::try_from(*label).unwrap_or(0));
                visited += 1;
            }
        }
        if visited >= enough {
            break;
        }
    }
    Ok(())
}
