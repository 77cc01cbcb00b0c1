//! Near deduplication: of texts that are nearly the same the first stays.

use crate::{
    error::{DataError, Result, reading},
    ledger::StepCounter,
    memory::Memory,
    minhash::{BandIndex, Bands, MinHash, similarity, stored},
    picked::picked,
    scan::RowMap,
    stage::Stage,
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch},
        datatypes::{DataType, Field, SchemaRef},
    },
    error::DataFusionError,
    execution::{SendableRecordBatchStream, SpillFile, TaskContext},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
};

/// Near deduplication by MinHash ([arXiv:2107.06499](https://arxiv.org/abs/2107.06499)).
///
/// A row is left out if an earlier row that *stays* has a text whose estimated Jaccard similarity reaches the threshold. So no
/// two rows that stay were found similar, and each that goes is similar to one that stays. Texts are compared as sets of
/// runs of `ngram` words (case and punctuation do not count); a text without a word always stays.
///
/// A row that stays costs about `18 * bands` bytes of memory and `2 * permutations` bytes in a temporary file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NearDedup {
    /// The column of text.
    pub column: String,
    /// Words in a run.
    pub ngram: usize,
    /// Hash functions. More make the estimate sharper (its standard error is `1 / (2 * sqrt(permutations))` at most).
    pub permutations: usize,
    /// How many bands the hashes are cut into; unset: so that 95 in 100 pairs at the threshold are found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bands: Option<usize>,
    /// The similarity from which on texts count as the same, between 0 and 1.
    pub threshold: f64,
    /// Chooses other hash functions.
    pub seed: u64,
}

impl Default for NearDedup {
    fn default() -> Self {
        Self { column: "text".to_owned(), ngram: 5, permutations: 128, bands: None, threshold: 0.8, seed: 0 }
    }
}

impl NearDedup {
    fn cut(&self) -> Bands {
        match self.bands {
            Some(bands) => Bands { bands, rows: self.permutations / bands },
            None => Bands::for_threshold(self.permutations, self.threshold),
        }
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: &str, value: String, range: String| {
            Err(DataError::pipeline(format!("`dedup.near.{what}` is {value}, and has to be {range}")))
        };
        let Self { ngram, permutations, threshold, .. } = *self;
        if ngram == 0 {
            return wrong("ngram", ngram.to_string(), "1 or more".to_owned());
        }
        if !(1..=4096).contains(&permutations) {
            return wrong("permutations", permutations.to_string(), "between 1 and 4096".to_owned());
        }
        if !(threshold > 0.0 && threshold <= 1.0) {
            return wrong("threshold", threshold.to_string(), "above 0 and at most 1".to_owned());
        }
        match self.bands {
            Some(bands) if !(1..=permutations).contains(&bands) => {
                wrong("bands", bands.to_string(), format!("between 1 and `permutations`, {permutations}"))
            }
            _ => Ok(()),
        }
    }
}

/// The column of signatures between the threads and the index.
const SIGNATURE: &str = "__signature";

/// Near deduplication in a plan.
#[derive(Debug)]
pub(crate) struct NearDedupStage {
    pub(crate) step: NearDedup,
    pub(crate) input: SchemaRef,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) counter: Arc<StepCounter>,
    pub(crate) threads: usize,
}

impl Stage for NearDedupStage {
    fn name(&self) -> &'static str {
        "NearDedup"
    }

    fn options(&self) -> String {
        let NearDedup { column, ngram, permutations, threshold, seed, .. } = &self.step;
        let Bands { bands, rows } = self.step.cut();
        format!(
            "{column}, ngram={ngram}, permutations={permutations} in {bands} bands of {rows}, threshold={threshold}, seed={seed}"
        )
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let memory = Memory::reserve("near dedup", context)?;
        let file = context.runtime_env().disk_manager.create_tmp_file("near dedup")?;
        let mut kept = Kept::new(self.step.cut(), self.step.permutations, file)?;
        let minhash = MinHash::new(self.step.ngram, self.step.permutations, self.step.seed);
        let (stage, threads) = (Arc::clone(&self), self.threads);
        let stays = move |signatures: &ArrayRef| {
            let signatures = signatures.as_binary::<i32>();
            let mut stays = Vec::with_capacity(signatures.len());
            for signature in signatures {
                let signature: Option<Vec<u32>> = signature.map(|bytes| {
                    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
                });
                stays.push(match signature {
                    None => true,
                    Some(signature) => kept.take(&signature, self.step.threshold)?,
                });
            }
            memory.fit(kept.index.size_bytes())?;
            self.counter.because("similar to an earlier row", stays.iter().filter(|stays| !**stays).count());
            Ok(BooleanArray::from(stays))
        };
        let about = Field::new(SIGNATURE, DataType::Binary, true);
        let minhash = Arc::new(minhash);
        Ok(picked(input, threads, about, move |batch| stage.sign(batch, &minhash), stays))
    }
}

impl NearDedupStage {
    fn sign(&self, batch: &RecordBatch, minhash: &MinHash) -> Result<ArrayRef> {
        let texts = self.rows.texts(batch, &self.step.column)?;
        let bytes = |signature: Vec<u32>| signature.iter().flat_map(|least| least.to_le_bytes()).collect::<Vec<u8>>();
        let signatures = texts.iter().map(|text| text.and_then(|text| minhash.signature(text)).map(bytes));
        Ok(Arc::new(signatures.collect::<BinaryArray>()))
    }
}

/// The rows that stay: their bands in memory, their signatures in a file.
struct Kept {
    index: BandIndex,
    /// Bytes of a stored signature.
    width: usize,
    /// Removed when this is dropped.
    _spill: Arc<dyn SpillFile>,
    file: File,
    path: PathBuf,
    rows_in_file: usize,
    /// Signatures that are not in the file yet.
    tail: Vec<u8>,
}

impl Kept {
    /// Bytes that are written at a time.
    const TAIL: usize = 1 << 20;

    fn new(cut: Bands, permutations: usize, spill: Arc<dyn SpillFile>) -> Result<Self, DataFusionError> {
        let path = spill.path().map(PathBuf::from);
        let path = path.ok_or_else(|| DataFusionError::Internal("a temporary file without a path".to_owned()))?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(reading(&path))?;
        let (index, width) = (BandIndex::new(cut), permutations * 2);
        Ok(Self { index, width, _spill: spill, file, path, rows_in_file: 0, tail: Vec::new() })
    }

    /// Takes a row in unless it is similar to one that is there.
    fn take(&mut self, signature: &[u32], threshold: f64) -> Result<bool> {
        let own = stored(signature);
        let mut other = vec![0; self.width];
        for row in self.index.candidates(signature) {
            self.read(row as usize, &mut other)?;
            if similarity(&own, &other) >= threshold {
                return Ok(false);
            }
        }
        self.index.insert(signature);
        self.tail.extend(own);
        if self.tail.len() >= Self::TAIL {
            self.rows_in_file += self.tail.len() / self.width;
            let written = self.file.seek(SeekFrom::End(0)).and_then(|_| self.file.write_all(&self.tail));
            let action = "write";
            written.map_err(|source| dlm_files::FileError { action, path: self.path.clone(), source })?;
            self.tail.clear();
        }
        Ok(true)
    }

    fn read(&mut self, row: usize, signature: &mut [u8]) -> Result<()> {
        if let Some(in_tail) = row.checked_sub(self.rows_in_file) {
            signature.copy_from_slice(&self.tail[in_tail * self.width..][..self.width]);
            return Ok(());
        }
        let at = SeekFrom::Start((row * self.width) as u64);
        self.file.seek(at).and_then(|_| self.file.read_exact(signature)).map_err(reading(&self.path))
    }
}
