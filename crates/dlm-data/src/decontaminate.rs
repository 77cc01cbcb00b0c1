//! The `decontaminate` step: finds rows that hold pieces of an evaluation set.

use crate::{
    error::{DataError, Result},
    ledger::StepCounter,
    memory::Memory,
    remote::redacted,
    row::strings,
    scan::RowMap,
    stage::{Stage, map_in_order},
    words::{ngram, words},
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch},
        compute::filter_record_batch,
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    dataframe::DataFrame,
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// The column that [`Found::Report`] adds.
pub(crate) const CONTAMINATION: &str = "contamination";

/// Decontamination by runs of words, as for GPT-3 ([arXiv:2005.14165](https://arxiv.org/abs/2005.14165), appendix C).
///
/// Every text of the evaluation sets gives its runs of `ngram` words; one that is shorter gives itself, if it has `min_ngram`
/// words. Case and punctuation do not count. A row is contaminated when enough of its own runs are among them.
/// The evaluation sets are read when the pipeline runs; each of their runs costs about 16 bytes of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decontaminate {
    /// Files, folders or patterns of the evaluation sets, in any format that a source can have.
    pub against: Vec<String>,
    /// The columns of the evaluation sets; empty means all that hold text, in lists and structs too.
    #[serde(default)]
    pub fields: Vec<String>,
    /// The columns of the rows.
    #[serde(default = "text_columns")]
    pub columns: Vec<String>,
    /// Words in a run.
    #[serde(default = "default_ngram")]
    pub ngram: usize,
    /// Evaluation texts with fewer words are not looked for.
    #[serde(default = "default_min_ngram")]
    pub min_ngram: usize,
    /// Places in a row where such a run begins, for the row to be contaminated.
    #[serde(default = "one")]
    pub min_matches: usize,
    /// The share of a row's words that such runs cover, for the row to be contaminated (Llama 2's way).
    #[serde(default)]
    pub min_share: f64,
    /// What happens to contaminated rows.
    #[serde(default)]
    pub action: Found,
}

/// What happens to contaminated rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// They are left out, and counted in the manifest.
    #[default]
    Drop,
    /// They are counted in the manifest. Every row gets a column `contamination`: the share of its words that such runs cover.
    Report,
}

fn text_columns() -> Vec<String> {
    vec!["text".to_owned()]
}

fn default_ngram() -> usize {
    13
}

fn default_min_ngram() -> usize {
    8
}

fn one() -> usize {
    1
}

impl Decontaminate {
    /// Decontamination of the column `text` against these files, everything else as by default.
    #[must_use]
    pub fn new<T: Into<String>>(against: impl IntoIterator<Item = T>) -> Self {
        Self {
            against: against.into_iter().map(Into::into).collect(),
            fields: Vec::new(),
            columns: text_columns(),
            ngram: default_ngram(),
            min_ngram: default_min_ngram(),
            min_matches: one(),
            min_share: 0.0,
            action: Found::default(),
        }
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: &str, value: String, range: &str| {
            Err(DataError::pipeline(format!("`decontaminate.{what}` is {value}, and has to be {range}")))
        };
        if self.against.is_empty() {
            return wrong("against", "empty".to_owned(), "a list of files");
        }
        if self.columns.is_empty() {
            return wrong("columns", "empty".to_owned(), "a list of columns");
        }
        if self.ngram == 0 {
            return wrong("ngram", self.ngram.to_string(), "1 or more");
        }
        if !(1..=self.ngram).contains(&self.min_ngram) {
            return wrong("min_ngram", self.min_ngram.to_string(), "between 1 and `ngram`");
        }
        if self.min_matches == 0 {
            return wrong("min_matches", "0".to_owned(), "1 or more");
        }
        if !(0.0..=1.0).contains(&self.min_share) {
            return wrong("min_share", self.min_share.to_string(), "between 0 and 1");
        }
        Ok(())
    }
}

/// The runs of words of evaluation sets, by their length.
#[derive(Debug, Default)]
struct Runs {
    by_length: BTreeMap<usize, HashSet<u64>>,
}

/// How much of a text is found in evaluation sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Overlap {
    matches: usize,
    covered: usize,
    words: usize,
}

impl Runs {
    fn add(&mut self, text: &str, options: &Decontaminate) {
        let words = words(text);
        let length = options.ngram.min(words.len());
        if length >= options.min_ngram {
            let runs = self.by_length.entry(length).or_default();
            runs.extend(words.windows(length).map(ngram));
        }
    }

    fn size_bytes(&self) -> usize {
        self.by_length.values().map(|runs| runs.capacity() * 11).sum()
    }

    fn overlap(&self, text: &str) -> Overlap {
        let words = words(text);
        let mut is_covered = vec![false; words.len()];
        let mut begins = vec![false; words.len()];
        for (length, runs) in &self.by_length {
            for (start, run) in words.windows(*length).enumerate() {
                if runs.contains(&ngram(run)) {
                    begins[start] = true;
                    is_covered[start..start + length].fill(true);
                }
            }
        }
        let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count();
        Overlap { matches: count(&begins), covered: count(&is_covered), words: words.len() }
    }
}

/// The decontaminate step in a plan.
pub(crate) struct DecontaminateStage {
    pub(crate) step: Decontaminate,
    /// The rows of the evaluation sets, with the columns that are looked at.
    pub(crate) against: DataFrame,
    pub(crate) input: SchemaRef,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) counter: Arc<StepCounter>,
    pub(crate) threads: usize,
}

impl std::fmt::Debug for DecontaminateStage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "DecontaminateStage({})", self.options())
    }
}

impl Stage for DecontaminateStage {
    fn name(&self) -> &'static str {
        "Decontaminate"
    }

    fn options(&self) -> String {
        let Decontaminate { against, fields, columns, ngram, min_ngram, min_matches, min_share, action } = &self.step;
        format!(
            "{} against {}{}, ngram={ngram}, min_ngram={min_ngram}, min_matches={min_matches}, min_share={min_share}: {action:?}",
            columns.join(", "),
            against.iter().map(|path| redacted(path)).collect::<Vec<_>>().join(", "),
            if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) },
        )
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = self.input.fields().to_vec();
        if self.step.action == Found::Report {
            fields.push(Arc::new(Field::new(CONTAMINATION, DataType::Float64, false)));
        }
        Arc::new(Schema::new(fields))
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let memory = Memory::reserve("decontaminate", context)?;
        let (schema, threads) = (self.schema(), self.threads);
        let output = Arc::clone(&schema);
        // The evaluation sets are read first, whole; then rows stream through.
        let decontaminated = stream::once(async move {
            let mut runs = Runs::default();
            let mut batches = self.against.clone().execute_stream().await?;
            while let Some(batch) = batches.next().await.transpose()? {
                for column in batch.columns() {
                    for_each_text(column, &mut |text| runs.add(text, &self.step))?;
                }
                memory.fit(runs.size_bytes())?;
            }
            // What is reserved stays so until the last row has been looked at.
            let shared = Arc::new((runs, memory));
            let rows = map_in_order(input, output, threads, move |batch| self.map(batch, &shared.0));
            Ok::<_, DataFusionError>(rows)
        })
        .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, decontaminated)))
    }
}

impl DecontaminateStage {
    fn map(&self, batch: &RecordBatch, runs: &Runs) -> Result<RecordBatch> {
        let mut overlaps = vec![Overlap::default(); batch.num_rows()];
        for column in &self.step.columns {
            let texts = self.rows.texts(batch, column)?;
            for (i, overlap) in overlaps.iter_mut().enumerate() {
                let more = runs.overlap(texts.value(i));
                overlap.matches += more.matches;
                overlap.covered += more.covered;
                overlap.words += more.words;
            }
        }
        let share = |overlap: &Overlap| overlap.covered as f64 / overlap.words.max(1) as f64;
        let Decontaminate { min_matches, min_share, action, .. } = self.step;
        let is_clean = |overlap: &Overlap| overlap.matches < min_matches || share(overlap) < min_share;
        let clean: Vec<bool> = overlaps.iter().map(is_clean).collect();
        let contaminated = clean.iter().filter(|clean| !**clean).count();
        match action {
            Found::Drop => {
                self.counter.because("contaminated", contaminated);
                let clean = filter_record_batch(batch, &BooleanArray::from(clean));
                clean.map_err(|error| DataError::from_datafusion(error.into(), "decontaminate"))
            }
            Found::Report => {
                self.counter.because("contaminated, kept", contaminated);
                let shares: ArrayRef = Arc::new(Float64Array::from_iter_values(overlaps.iter().map(share)));
                let columns = batch.columns().iter().cloned().chain([shares]).collect();
                Ok(RecordBatch::try_new(self.schema(), columns).expect("the columns are those of the schema"))
            }
        }
    }
}

/// Whether a column has text in it somewhere.
pub(crate) fn holds_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::List(item) | DataType::LargeList(item) => holds_text(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| holds_text(field.data_type())),
        _ => false,
    }
}

/// Visits the texts of a column, those in lists and structs too.
fn for_each_text(column: &ArrayRef, visit: &mut impl FnMut(&str)) -> Result<()> {
    match column.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            strings(column).map_err(DataError::Invalid)?.iter().flatten().for_each(visit);
            Ok(())
        }
        DataType::List(_) => for_each_text(column.as_list::<i32>().values(), visit),
        DataType::LargeList(_) => for_each_text(column.as_list::<i64>().values(), visit),
        DataType::Struct(_) => column.as_struct().columns().iter().try_for_each(|column| for_each_text(column, visit)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_wherever_they_stand_and_counted_once() {
        let options = Decontaminate { ngram: 4, min_ngram: 2, ..Decontaminate::new(["x"]) };
        let mut runs = Runs::default();
        for text in ["a b c d e", "Two words!", "short"] {
            runs.add(text, &options);
        }
        assert_eq!(runs.by_length.keys().copied().collect::<Vec<_>>(), [2, 4]);
        let overlap = |matches, covered, words| Overlap { matches, covered, words };
        assert_eq!(runs.overlap("x A, b. c d e f"), overlap(2, 5, 7));
        assert_eq!(runs.overlap("a b c x d e two words"), overlap(1, 2, 8));
        assert_eq!(runs.overlap("short"), overlap(0, 0, 1));
        assert_eq!(runs.overlap(""), overlap(0, 0, 0));
    }
}
