//! Prepared data, opened: its manifest, and its rows by number.

use crate::{
    error::{DataError, Result},
    group_cache::GroupCache,
    manifest::{Manifest, Split, tokenizer_folder},
    shard::{Row, Shard},
};
use dlm_tokenizer::Tokenizer;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

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
    split: Split,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// The first row of each shard, and the number of rows at the end.
    shard_starts: Vec<u64>,
    cache: Mutex<GroupCache>,
}

impl PreparedData {
    /// Opens one side of a folder with prepared data.
    ///
    /// No row is read here: the size of every shard is checked now, its checksum when its first row is asked for, and again
    /// when the file was written to since.
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
            shards.push(Shard::open(&folder, shard)?);
        }
        let shared = Shared { folder, split, manifest, shards, shard_starts, cache: Mutex::default() };
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

    /// Which side it is, or is a part of.
    #[must_use]
    pub fn split(&self) -> Split {
        self.shared.split
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
        (0..self.rows()).map(|row| self.documents_in(row).map(u64::from)).sum()
    }

    /// The number of documents and pieces in a row, which its shard's footer knows.
    pub(crate) fn documents_in(&self, row: u64) -> Result<u32> {
        let (shard, within) = self.shared.place_of(self.stored(row));
        Ok(self.shared.shards[shard].segments_per_row()?[memory(within)])
    }

    /// A hash of the content of each row.
    pub(crate) fn content_hashes(&self) -> Result<Vec<u64>> {
        let (sequence_len, vocab_size) = (self.sequence_len(), self.shared.manifest.tokenizer.vocab_size);
        self.of_all_rows(|shard| shard.content_hashes(sequence_len, vocab_size))
    }

    /// The documents in each row, with the offset of the piece of each.
    pub(crate) fn documents_of_rows(&self) -> Result<Vec<Vec<(i64, i64)>>> {
        self.of_all_rows(Shard::documents_of_rows)
    }

    fn of_all_rows<T: Clone>(&self, of_shard: impl Fn(&Shard) -> Result<Vec<T>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for shard in &self.shared.shards {
            all.extend(of_shard(shard)?);
        }
        Ok(match &self.subset {
            None => all,
            Some(rows) => rows.iter().map(|row| all[memory(*row)].clone()).collect(),
        })
    }

    /// The rows with these numbers, in their order.
    pub(crate) fn part(&self, mut rows: Vec<u64>) -> Self {
        rows.sort_unstable();
        let stored = rows.into_iter().map(|row| self.stored(row)).collect();
        Self { shared: Arc::clone(&self.shared), subset: Some(Arc::new(stored)) }
    }

    /// Reads row `i`.
    ///
    /// # Errors
    /// [`DataError::Shard`] when the shard is damaged, [`DataError::Invalid`] when there is no such row.
    pub fn read_row(&self, i: u64) -> Result<Row> {
        if i >= self.rows() {
            return Err(DataError::Invalid(format!("row {i} was asked for, and there are {}", self.rows())));
        }
        self.shared.read(self.stored(i))
    }

    /// Compares every shard with its checksum.
    ///
    /// # Errors
    /// [`DataError::Shard`] with the first that differs.
    pub fn verify(&self) -> Result<()> {
        self.shared.shards.iter().try_for_each(Shard::verify)
    }

    fn stored(&self, row: u64) -> u64 {
        self.subset.as_ref().map_or(row, |rows| rows[memory(row)])
    }
}

impl Shared {
    /// The shard that holds a row, and the row's number in it.
    fn place_of(&self, row: u64) -> (usize, u64) {
        let shard = self.shard_starts.partition_point(|start| *start <= row) - 1;
        (shard, row - self.shard_starts[shard])
    }

    fn read(&self, row: u64) -> Result<Row> {
        let (number, within) = self.place_of(row);
        let shard = &self.shards[number];
        let (group, within) = shard.group_of(within)?;
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = cache().get(number, group) {
            return Ok(rows[within].clone());
        }
        let rows = shard.read_group(group, self.manifest.sequence_len, self.manifest.tokenizer.vocab_size)?;
        let row = rows[within].clone();
        cache().keep(number, group, rows);
        Ok(row)
    }
}

fn memory(row: u64) -> usize {
    usize::try_from(row).expect("rows fit in memory")
}
