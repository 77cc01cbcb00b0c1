//! Rows held out for validation, for data that was prepared without such a side.

use crate::{
    error::{DataError, Result},
    mixture::Mixture,
    prepared::PreparedData,
    shuffle::keyed,
};
use std::collections::HashMap;

/// How large a part that is held out should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// A share of the rows, between 0 and 1.
    Share(f64),
    /// A number of rows.
    Rows(u64),
}

/// Rows in two parts, see [`Mixture::hold_out`].
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// What is left to train on, mixed as before.
    pub rest: Mixture,
    /// What is held out, each row once.
    pub part: Mixture,
    /// Whether pieces of one document stand on both sides. That is so only where documents were cut and the rows with their
    /// pieces hang together in groups too large to hold out.
    pub cuts_documents: bool,
}

impl Mixture {
    /// Holds rows out for validation.
    ///
    /// Rows are chosen by a hash of the seed and their content, so that equal rows, also of different datasets, never stand
    /// on both sides. Rows that hold pieces of the same document stay together, as far as that leaves a part at all. The part is
    /// never larger than asked, and smaller where no group of rows fits what is left. Every dataset keeps a row to train on. Of the rows
    /// only which documents are in them is read: content hashes are in the footers of the shards (those of an earlier version are
    /// made of the rows).
    ///
    /// # Errors
    /// [`DataError::Invalid`] when the part or the rest would be empty; [`DataError::Shard`] when a shard is damaged.
    pub fn hold_out(&self, part: Part, seed: u64) -> Result<HeldOut> {
        let rows: u64 = self.datasets().map(|(data, _)| data.rows()).sum();
        let wanted = match part {
            Part::Rows(count) => count,
            Part::Share(share) if share > 0.0 && share < 1.0 => ((rows as f64 * share).round() as u64).max(1),
            Part::Share(share) => {
                let message = format!("a share of {share} cannot be held out: it has to lie between 0 and 1");
                return Err(DataError::Invalid(message));
            }
        };
        if wanted == 0 || wanted >= rows {
            let message = format!("{wanted} rows cannot be held out from {rows}: both sides need some");
            return Err(DataError::Invalid(message));
        }
        let mut hashes = Vec::new();
        let mut dataset_of = Vec::new();
        let mut pieces = Vec::new();
        for (dataset, (data, _)) in self.datasets().enumerate() {
            pieces.extend(rows_with_pieces(data, hashes.len())?);
            hashes.extend(data.content_hashes()?);
            dataset_of.resize(hashes.len(), dataset);
        }
        let mut groups = Groups::new(hashes.len());
        let mut rows_of = HashMap::new();
        for (row, hash) in hashes.iter().enumerate() {
            groups.join(row, *rows_of.entry(*hash).or_insert(row));
        }
        let equal_rows = groups.clone();
        for rows in pieces {
            rows.windows(2).for_each(|pair| groups.join(pair[0], pair[1]));
        }
        let chosen = choose(&mut groups, &hashes, &dataset_of, wanted, seed);
        let (chosen, cuts_documents) = match chosen.contains(&true) {
            true => (chosen, false),
            false => (choose(&mut { equal_rows }, &hashes, &dataset_of, wanted, seed), true),
        };
        Ok(HeldOut { rest: self.side(&chosen, false)?, part: self.side(&chosen, true)?, cuts_documents })
    }

    /// The rows for which `chosen` says `wanted`.
    fn side(&self, chosen: &[bool], wanted: bool) -> Result<Self> {
        let mut start = 0;
        let mut sides: Vec<(PreparedData, Option<f64>)> = Vec::new();
        for (data, weight) in self.datasets() {
            let count = usize::try_from(data.rows()).expect("rows fit in memory");
            let here = &chosen[start..start + count];
            let rows: Vec<u64> =
                (0..data.rows()).zip(here).filter(|(_, is)| **is == wanted).map(|(row, _)| row).collect();
            start += count;
            // Held-out rows are measured, not mixed; none may come from a small dataset.
            if wanted && rows.is_empty() {
                continue;
            }
            sides.push((data.part(rows), weight.filter(|_| !wanted)));
        }
        if sides.is_empty() {
            let message =
                "no row can be held out: more rows are equal than are wanted, or none would be left of a dataset"
                    .to_owned();
            return Err(DataError::Invalid(message));
        }
        Self::build(sides)
    }
}

/// For each document that was cut, the rows with its pieces; rows are counted from `first`.
fn rows_with_pieces(data: &PreparedData, first: usize) -> Result<Vec<Vec<usize>>> {
    let documents = data.documents_of_rows()?;
    let later_pieces = documents.iter().flatten().filter(|(_, offset)| *offset > 0);
    let mut rows: HashMap<i64, Vec<usize>> = later_pieces.map(|(id, _)| (*id, Vec::new())).collect();
    for (row, documents) in (first..).zip(&documents) {
        for (id, _) in documents {
            rows.entry(*id).and_modify(|rows| rows.push(row));
        }
    }
    Ok(rows.into_values().collect())
}

/// Takes whole groups, in an order given by seed and content, as long as they fit and leave a row of each dataset.
fn choose(groups: &mut Groups, hashes: &[u64], dataset_of: &[usize], wanted: u64, seed: u64) -> Vec<bool> {
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for row in 0..hashes.len() {
        members.entry(groups.root(row)).or_default().push(row);
    }
    let key = |rows: &[usize]| rows.iter().map(|row| keyed(seed, hashes[*row])).min();
    let mut order: Vec<Vec<usize>> = members.into_values().collect();
    order.sort_by_cached_key(|rows| key(rows));
    let mut chosen = vec![false; hashes.len()];
    let mut left = wanted;
    let mut rest = vec![0_usize; dataset_of.iter().max().map_or(0, |last| last + 1)];
    dataset_of.iter().for_each(|dataset| rest[*dataset] += 1);
    for rows in order {
        let Some(after) = left.checked_sub(rows.len() as u64) else { continue };
        rows.iter().for_each(|row| rest[dataset_of[*row]] -= 1);
        if rows.iter().any(|row| rest[dataset_of[*row]] == 0) {
            rows.iter().for_each(|row| rest[dataset_of[*row]] += 1);
            continue;
        }
        left = after;
        rows.into_iter().for_each(|row| chosen[row] = true);
    }
    chosen
}

/// Rows that have to stay together (a forest of disjoint sets).
#[derive(Debug, Clone)]
struct Groups {
    parents: Vec<usize>,
}

impl Groups {
    fn new(rows: usize) -> Self {
        Self { parents: (0..rows).collect() }
    }

    fn root(&mut self, mut row: usize) -> usize {
        while self.parents[row] != row {
            self.parents[row] = self.parents[self.parents[row]];
            row = self.parents[row];
        }
        row
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The smaller number stays, so that the outcome does not depend on the order of joining.
        self.parents[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_too_large_is_left_out_and_smaller_ones_fill_the_part() {
        let mut groups = Groups::new(6);
        groups.join(0, 3);
        groups.join(3, 5);
        let chosen = choose(&mut groups, &[1, 2, 3, 4, 5, 6], &[0; 6], 2, 9);
        assert_eq!(chosen.iter().filter(|is| **is).count(), 2);
        assert!(!(chosen[0] || chosen[3] || chosen[5]));
        let chosen = choose(&mut groups, &[1, 2, 3, 4, 5, 6], &[0; 6], 3, 9);
        assert_eq!((chosen[0], chosen[0]), (chosen[3], chosen[5]));
    }
}
