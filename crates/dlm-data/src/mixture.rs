//! Several prepared datasets as one: how many rows of each an epoch has, and which row stands at which place of it.

use crate::{
    error::{DataError, Result},
    prepared::PreparedData,
    shard::Row,
    shuffle::{Permutation, keyed},
};
use dlm_tokenizer::Tokenizer;
use std::{fmt, sync::Arc};

/// Documents of the dataset `n` of a mixture have their ids in the range that begins at `n << ID_BITS`.
const ID_BITS: u32 = 48;

/// One side of one or several prepared datasets. Cheap to clone.
///
/// Without weights an epoch has every row of every dataset once. With weights an epoch has as many rows as all datasets
/// together, and the share of each dataset in them is its weight over the sum of the weights, exact to a row (largest
/// remainders). A dataset whose share is smaller than itself goes on in the next epoch where it stopped; one whose share is
/// larger comes again from its beginning, in another order, and its documents then have higher
/// [occurrences](crate::Document::occurrence). Rows are of equal length, so shares of rows are shares of places for tokens.
///
/// Document ids stay what they are in the first dataset; in the others the number of the dataset stands above bit 48.
///
/// ```no_run
/// use dlm_data::{Mixture, PreparedData, Split};
///
/// let open = |folder| PreparedData::open(folder, Split::Train);
/// let all = Mixture::new([open("web")?, open("books")?])?;
/// let mixed = Mixture::weighted([(open("web")?, 0.9), (open("books")?, 0.1)])?;
/// assert_eq!(all.rows(), mixed.rows());
/// # Ok::<(), dlm_data::DataError>(())
/// ```
#[derive(Clone)]
pub struct Mixture {
    parts: Arc<[Component]>,
    rows: u64,
}

/// A dataset of a mixture.
#[derive(Debug, Clone)]
struct Component {
    data: PreparedData,
    weight: Option<f64>,
    /// Its rows in an epoch.
    share: u64,
    /// Slots of an epoch that belong to the datasets before it.
    start: u64,
}

/// A row of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The dataset.
    pub(crate) part: usize,
    /// The row in it.
    pub(crate) row: u64,
    /// How often the row came at earlier places of this epoch.
    pub(crate) occurrence: u64,
}

impl Mixture {
    /// All rows of all datasets.
    ///
    /// # Errors
    /// [`DataError::EmptySide`] for one without rows, [`DataError::Unmixable`] for two that differ in the length of their rows or in
    /// their tokenizer, or are the same; [`DataError::Invalid`] when there is none.
    pub fn new(datasets: impl IntoIterator<Item = PreparedData>) -> Result<Self> {
        Self::build(datasets.into_iter().map(|data| (data, None)).collect())
    }

    /// Datasets mixed by weight.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`DataError::Invalid`] for a weight that is no number above 0, or so small that it gives no row
    /// of an epoch.
    pub fn weighted(datasets: impl IntoIterator<Item = (PreparedData, f64)>) -> Result<Self> {
        Self::build(datasets.into_iter().map(|(data, weight)| (data, Some(weight))).collect())
    }

    pub(crate) fn build(datasets: Vec<(PreparedData, Option<f64>)>) -> Result<Self> {
        let Some((first, _)) = datasets.first() else {
            return Err(DataError::Invalid("a mixture needs at least one dataset".to_owned()));
        };
        for (number, (data, _)) in datasets.iter().enumerate() {
            if data.rows() == 0 {
                return Err(DataError::EmptySide { path: data.folder().to_owned(), split: data.split() });
            }
            expect_alike(first, data)?;
            if datasets[..number].iter().any(|(other, _)| same_folder(other, data)) {
                let why = "they are the same: name it once, with a larger weight".to_owned();
                return Err(unmixable(data, data, why));
            }
        }
        let shares = shares(&datasets)?;
        let mut start = 0;
        let parts = datasets.into_iter().zip(shares).map(|((data, weight), share)| {
            let component = Component { data, weight, share, start };
            start += share;
            component
        });
        let parts: Arc<[Component]> = parts.collect();
        Ok(Self { rows: start, parts })
    }

    /// The datasets, each with its weight.
    pub fn datasets(&self) -> impl ExactSizeIterator<Item = (&PreparedData, Option<f64>)> {
        self.parts.iter().map(|part| (&part.data, part.weight))
    }

    /// Rows in an epoch: those of all datasets together.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows of each dataset in an epoch.
    #[must_use]
    pub fn rows_per_epoch(&self) -> Vec<u64> {
        self.parts.iter().map(|part| part.share).collect()
    }

    /// Tokens in a row.
    #[must_use]
    pub fn sequence_len(&self) -> usize {
        self.parts[0].data.sequence_len()
    }

    /// The tokenizer that all datasets were made with.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when its files are not there.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.parts[0].data.tokenizer()
    }

    /// Reads row `i`, counted through the datasets one after the other.
    ///
    /// # Errors
    /// [`DataError::Shard`] when the shard is damaged, [`DataError::Invalid`] when there is no such row.
    pub fn read_row(&self, mut i: u64) -> Result<Row> {
        for (number, part) in self.parts.iter().enumerate() {
            match i.checked_sub(part.data.rows()) {
                None => return self.read(Slot { part: number, row: i, occurrence: 0 }),
                Some(further) => i = further,
            }
        }
        Err(DataError::Invalid(format!("a row was asked for that lies {i} behind the last")))
    }

    /// Reads the row of a slot, its documents numbered for the mixture.
    pub(crate) fn read(&self, slot: Slot) -> Result<Row> {
        let mut row = self.parts[slot.part].data.read_row(slot.row)?;
        for id in &mut row.document_ids {
            *id ^= (slot.part as i64) << ID_BITS;
        }
        Ok(row)
    }

    /// Documents and pieces in the row of a slot.
    pub(crate) fn documents_in(&self, slot: Slot) -> Result<u32> {
        self.parts[slot.part].data.documents_in(slot.row)
    }
}

impl From<PreparedData> for Mixture {
    /// One dataset by itself. It may be empty; a reader says so.
    fn from(data: PreparedData) -> Self {
        let share = data.rows();
        Self { rows: share, parts: Arc::new([Component { data, weight: None, share, start: 0 }]) }
    }
}

impl From<&PreparedData> for Mixture {
    fn from(data: &PreparedData) -> Self {
        data.clone().into()
    }
}

impl From<&Mixture> for Mixture {
    fn from(mixture: &Mixture) -> Self {
        mixture.clone()
    }
}

impl fmt::Debug for Mixture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folders = self.parts.iter().map(|part| (part.data.folder(), part.share));
        formatter.debug_map().entries(folders).finish()
    }
}

/// Refuses data whose ids or rows mean something else.
fn expect_alike(first: &PreparedData, other: &PreparedData) -> Result<()> {
    let (ours, theirs) = (first.manifest(), other.manifest());
    if ours.sequence_len != theirs.sequence_len {
        let why = format!("their rows have {} and {} tokens", ours.sequence_len, theirs.sequence_len);
        return Err(unmixable(first, other, why));
    }
    if ours.tokenizer.hash != theirs.tokenizer.hash {
        return Err(unmixable(first, other, "they were made with different tokenizers".to_owned()));
    }
    Ok(())
}

fn unmixable(first: &PreparedData, other: &PreparedData, why: String) -> DataError {
    DataError::Unmixable { paths: Box::new((first.folder().to_owned(), other.folder().to_owned())), why }
}

fn same_folder(a: &PreparedData, b: &PreparedData) -> bool {
    let real = |data: &PreparedData| data.folder().canonicalize().unwrap_or_else(|_| data.folder().to_owned());
    real(a) == real(b)
}

/// How many rows of each dataset an epoch has.
fn shares(datasets: &[(PreparedData, Option<f64>)]) -> Result<Vec<u64>> {
    let rows: Vec<u64> = datasets.iter().map(|(data, _)| data.rows()).collect();
    let weights: Vec<f64> = datasets.iter().filter_map(|(_, weight)| *weight).collect();
    if weights.is_empty() {
        return Ok(rows);
    }
    if weights.len() < datasets.len() {
        return Err(DataError::Invalid("either every dataset has a weight or none has".to_owned()));
    }
    if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
        return Err(DataError::Invalid(format!("the weight {weight} is no number above 0")));
    }
    let shares = apportion(rows.iter().sum(), &weights);
    if let Some(nothing) = shares.iter().position(|share| *share == 0) {
        let (weight, path) = (weights[nothing], datasets[nothing].0.folder().display());
        return Err(DataError::Invalid(format!("the weight {weight} gives `{path}` no row of an epoch: raise it")));
    }
    Ok(shares)
}

/// Divides `total` by weight: whole parts first, then one more for the largest remainders.
pub(crate) fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| total as f64 * (weight / sum)).collect();
    let mut shares: Vec<u64> = exact.iter().map(|share| share.floor() as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let rest = total.saturating_sub(shares.iter().sum());
    for &number in order.iter().cycle().take(usize::try_from(rest).unwrap_or(usize::MAX)) {
        shares[number] += 1;
    }
    shares
}

/// Which row stands at which place of one epoch. Each place costs the same, whichever it is.
#[derive(Debug, Clone)]
pub(crate) struct EpochOrder {
    mixture: Mixture,
    seed: u64,
    epoch: u64,
    /// The order of the epoch's slots; as they are where rows are not shuffled.
    slots: Option<Permutation>,
}

impl EpochOrder {
    pub(crate) fn new(mixture: &Mixture, seed: u64, epoch: u64, shuffle: bool) -> Self {
        let slots = shuffle.then(|| Permutation::new(mixture.rows, seed, epoch));
        Self { mixture: mixture.clone(), seed, epoch, slots }
    }

    /// The row at a place.
    pub(crate) fn at(&self, place: u64) -> Slot {
        let slot = self.slots.as_ref().map_or(place, |slots| slots.at(place));
        let parts = &self.mixture.parts;
        let part = parts.partition_point(|part| part.start <= slot) - 1;
        let Component { data, share, start, .. } = &parts[part];
        if *share == data.rows() {
            return Slot { part, row: slot - start, occurrence: 0 };
        }
        // Epoch after epoch the dataset is gone through, pass after pass without end, each in an order of its own.
        let rows = data.rows();
        let turn = self.epoch * share + (slot - start);
        let row = self.pass(part, turn / rows).at(turn % rows);
        let turns = self.epoch * share..(self.epoch + 1) * share;
        let earlier = (turns.start / rows..=(turns.end - 1) / rows).filter(|pass| {
            let turn = pass * rows + self.pass(part, *pass).place_of(row);
            turns.contains(&turn) && self.place_of(start + (turn - turns.start)) < place
        });
        Slot { part, row, occurrence: earlier.count() as u64 }
    }

    fn place_of(&self, slot: u64) -> u64 {
        self.slots.as_ref().map_or(slot, |slots| slots.place_of(slot))
    }

    /// The order of a dataset's rows in one pass over it.
    fn pass(&self, part: usize, pass: u64) -> Permutation {
        // One more than the part, so that no pass has the order of the slots.
        Permutation::new(self.mixture.parts[part].data.rows(), keyed(self.seed, part as u64 + 1), pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up_and_are_exact_to_a_row(total in 0u64..100_000, weights in proptest::collection::vec(0.001f64..100.0, 1..6)) {
            let shares = apportion(total, &weights);
            prop_assert_eq!(shares.iter().sum::<u64>(), total);
            let sum: f64 = weights.iter().sum();
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!((*share as f64 - total as f64 * weight / sum).abs() < 1.0);
            }
        }
    }
}
