//! Exact deduplication: of rows with equal content the first stays.

use crate::{
    error::{DataError, Result},
    functions::content_hashes,
    memory::Memory,
    picked::picked,
    stage::Stage,
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, RecordBatch},
        datatypes::{DataType, Field, SchemaRef},
    },
    execution::{SendableRecordBatchStream, TaskContext},
};
use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

/// The column of hashes between the threads and the set.
const HASH: &str = "__hash";

/// Exact deduplication in a plan. Rows stream through; what is kept of each is a hash of 128 bits.
#[derive(Debug)]
pub(crate) struct ExactDedupStage {
    /// The columns that are compared.
    pub(crate) on: Vec<String>,
    pub(crate) input: SchemaRef,
    pub(crate) threads: usize,
}

impl Stage for ExactDedupStage {
    fn name(&self) -> &'static str {
        "Dedup"
    }

    fn options(&self) -> String {
        self.on.join(", ")
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let memory = Memory::reserve("dedup", context)?;
        let mut seen = Seen::new();
        let stays = move |hashes: &ArrayRef| {
            let hashes = hashes.as_fixed_size_binary();
            let is_first: BooleanArray = (0..hashes.len())
                .map(|i| Some(seen.insert(u128::from_le_bytes(hashes.value(i).try_into().expect("16 bytes")))))
                .collect();
            memory.fit(seen.size_bytes())?;
            Ok(is_first)
        };
        let about = Field::new(HASH, DataType::FixedSizeBinary(16), false);
        Ok(picked(input, self.threads, about, move |batch| self.hash(batch), stays))
    }
}

impl ExactDedupStage {
    fn hash(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let columns: Vec<ArrayRef> = self.on.iter().map(|name| Arc::clone(&batch[name.as_str()])).collect();
        let hashes = content_hashes(&columns).and_then(|hashes| {
            let bytes = hashes.into_iter().map(|hash| Some(hash.to_le_bytes()));
            Ok(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16)?)
        });
        Ok(Arc::new(hashes.map_err(|error| DataError::from_datafusion(error, "dedup"))?))
    }
}

/// A set of hashes. Many small tables grow one after the other, so that growing never doubles the whole.
struct Seen {
    tables: Vec<HashSet<u128, BuildHasherDefault<LowBits>>>,
}

impl Seen {
    const TABLES_BITS: u32 = 6;

    fn new() -> Self {
        Self { tables: (0..1 << Self::TABLES_BITS).map(|_| HashSet::default()).collect() }
    }

    /// Whether the hash is new.
    fn insert(&mut self, hash: u128) -> bool {
        let table = usize::try_from(hash >> (u128::BITS - Self::TABLES_BITS)).expect("a few bits");
        self.tables[table].insert(hash)
    }

    /// A table holds up to 7 hashes in 8 places, and a place takes 17 bytes: 20 to 40 bytes a hash.
    fn size_bytes(&self) -> usize {
        self.tables.iter().map(HashSet::capacity).sum::<usize>() * 20
    }
}

/// The numbers are hashes already.
#[derive(Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64; // the low half
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn a_hash_is_new_once_and_a_million_take_less_than_forty_bytes_each() {
        let mut seen = Seen::new();
        let hash = |i: u128| i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        assert!((0..1_000_000).all(|i| seen.insert(hash(i))));
        assert!((0..1_000_000).step_by(997).all(|i| !seen.insert(hash(i))));
        assert!((16_000_000..40_000_000).contains(&seen.size_bytes()), "{}", seen.size_bytes());
    }
}
