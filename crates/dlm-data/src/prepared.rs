//! Prepared data, opened: its manifest, and its rows by number.

use crate::{
    error::{DataError, Result},
    manifest::{Manifest, Split, tokenizer_folder},
    shard::{Row, Shard},
    shuffle::keyed,
};
use dlm_tokenizer::Tokenizer;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Row groups that are kept decompressed, about a megabyte each.
const CACHED_GROUPS: usize = 32;

/// One side of prepared data. Cheap to clone; clones share what was read.
#[derive(Debug, Clone)]
pub struct PreparedData {
    shared: Arc<Shared>,
    /// Which of the stored rows belong to it; all of them where unset.
    subset: Option<Arc<Vec<u64>>>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    manifest: Manifest,
    shards: Vec<LazyShard>,
    /// The first row of each shard, and the number of rows at the end.
    shard_starts: Vec<u64>,
    cache: Mutex<VecDeque<CachedGroup>>,
}

#[derive(Debug)]
struct LazyShard {
    shard: Shard,
    verified: OnceLock<()>,
}

#[derive(Debug, Clone)]
struct CachedGroup {
    shard: usize,
    group: usize,
    rows: Arc<Vec<Row>>,
}

/// How large a part that is split off should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// A share of the rows, between 0 and 1.
    Share(f64),
    /// A number of rows.
    Rows(u64),
}

impl PreparedData {
    /// Opens one side of a folder with prepared data.
    ///
    /// Sizes and footers of all shards are checked here; the checksum of a shard when its first row is read.
    ///
    /// # Errors
    /// [`DataError::NotPrepared`] when there is no manifest or the data has no such side; [`DataError::Shard`] with the shard
    /// that is missing, cut off or changed.
    pub fn open(folder: impl AsRef<Path>, split: Split) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let manifest = Manifest::read(&folder)?;
        let info = manifest.split(split).ok_or_else(|| DataError::NotPrepared {
            path: folder.clone(),
            message: format!("it has no `{}` side", split.folder()),
        })?;
        let (mut shards, mut shard_starts) = (Vec::new(), vec![0]);
        for shard in &info.shards {
            shard_starts.push(shard_starts.last().copied().unwrap_or(0) + shard.rows);
            shards.push(LazyShard { shard: Shard::open(&folder, shard)?, verified: OnceLock::new() });
        }
        let shared = Shared { folder, manifest, shards, shard_starts, cache: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), subset: None })
    }

    /// Whether the folder has that side.
    ///
    /// # Errors
    /// [`DataError::NotPrepared`] when there is no manifest.
    pub fn has(folder: impl AsRef<Path>, split: Split) -> Result<bool> {
        Ok(Manifest::read(folder.as_ref())?.split(split).is_some())
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// What the data says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// The tokenizer the data was made with.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when its files are not there.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::load(tokenizer_folder(&self.shared.folder))?)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        let all = self.shared.shard_starts.last().copied().unwrap_or(0);
        self.subset.as_ref().map_or(all, |rows| rows.len() as u64)
    }

    /// Tokens in a row.
    #[must_use]
    pub fn sequence_len(&self) -> usize {
        self.shared.manifest.sequence_len
    }

    /// Number of documents and pieces of documents.
    ///
    /// # Errors
    /// [`DataError::Shard`] when a footer is damaged.
    pub fn document_count(&self) -> Result<u64> {
        Ok(self.documents_per_row()?.iter().map(|count| u64::from(*count)).sum())
    }

    /// The number of documents and pieces in each row.
    pub(crate) fn documents_per_row(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for lazy in &self.shared.shards {
            all.extend(lazy.shard.segments_per_row()?);
        }
        Ok(match &self.subset {
            None => all,
            Some(rows) => rows.iter().map(|row| all[usize::try_from(*row).expect("rows fit in memory")]).collect(),
        })
    }

    /// Reads row `i`.
    ///
    /// # Errors
    /// [`DataError::Shard`] when the shard is damaged, [`DataError::Invalid`] when there is no such row.
    pub fn read_row(&self, i: u64) -> Result<Row> {
        if i >= self.rows() {
            return Err(DataError::Invalid(format!("row {i} was asked for, and there are {}", self.rows())));
        }
        let stored = match &self.subset {
            None => i,
            Some(rows) => rows[usize::try_from(i).expect("rows fit in memory")],
        };
        self.shared.read(stored)
    }

    /// Compares every shard with its checksum.
    ///
    /// # Errors
    /// [`DataError::Shard`] with the first that differs.
    pub fn verify(&self) -> Result<()> {
        self.shared.shards.iter().try_for_each(|lazy| lazy.shard.verify())
    }

    /// Splits rows off for validation, for data that was prepared without that side: `(the rest, the part)`.
    ///
    /// Rows are chosen by a hash of the seed and the first document in them, so the pieces of a long document that fill
    /// rows stay together. Documents that occur twice may fall on both sides; the pipeline step `split` keeps them together.
    ///
    /// # Errors
    /// [`DataError::Invalid`] when the part would be empty or everything; [`DataError::Shard`] when a shard is damaged.
    pub fn split_off(&self, part: Part, seed: u64) -> Result<(Self, Self)> {
        let rows = self.rows();
        let wanted = match part {
            Part::Rows(count) => count,
            Part::Share(share) if share > 0.0 && share < 1.0 => ((rows as f64 * share).round() as u64).max(1),
            Part::Share(share) => {
                return Err(DataError::Invalid(format!(
                    "a share of {share} cannot be split off: it has to lie between 0 and 1"
                )));
            }
        };
        if wanted == 0 || wanted >= rows {
            let message = format!("{wanted} rows cannot be split off from {rows}: both sides need some");
            return Err(DataError::Invalid(message));
        }
        let mut order = Vec::new();
        for row in 0..rows {
            let first = self.read_row(row)?.document_ids.first().copied().unwrap_or(0);
            order.push((keyed(seed, first.cast_unsigned()), row));
        }
        order.sort_unstable();
        let side = |chosen: &[(u64, u64)]| {
            let mut rows: Vec<u64> = chosen.iter().map(|(_, row)| self.stored(*row)).collect();
            rows.sort_unstable();
            Self { shared: Arc::clone(&self.shared), subset: Some(Arc::new(rows)) }
        };
        let (part, rest) = order.split_at(usize::try_from(wanted).expect("rows fit in memory"));
        Ok((side(rest), side(part)))
    }

    fn stored(&self, row: u64) -> u64 {
        self.subset.as_ref().map_or(row, |rows| rows[usize::try_from(row).expect("rows fit in memory")])
    }
}

impl Shared {
    fn read(&self, row: u64) -> Result<Row> {
        let shard = self.shard_starts.partition_point(|start| *start <= row) - 1;
        let lazy = &self.shards[shard];
        let (group, within) = lazy.shard.group_of(row - self.shard_starts[shard]);
        if let Some(rows) = self.cached(shard, group) {
            return Ok(rows[within].clone());
        }
        if lazy.verified.get().is_none() {
            lazy.shard.verify()?;
            let _ = lazy.verified.set(()); // another thread may have been faster
        }
        let vocab_size = self.manifest.tokenizer.vocab_size;
        let rows = Arc::new(lazy.shard.read_group(group, self.manifest.sequence_len, vocab_size)?);
        let row = rows[within].clone();
        self.keep(CachedGroup { shard, group, rows });
        Ok(row)
    }

    /// A group that was read lately, moved to the front.
    fn cached(&self, shard: usize, group: usize) -> Option<Arc<Vec<Row>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|cached| cached.shard == shard && cached.group == group)?;
        let found = cache.remove(at)?;
        cache.push_front(found.clone());
        Some(found.rows)
    }

    fn keep(&self, group: CachedGroup) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.push_front(group);
        cache.truncate(CACHED_GROUPS);
    }
}
