//! Running a pipeline: shards first, the manifest last.

use crate::{
    error::{DataError, Result},
    manifest::{InputFile, Manifest, Split, SplitInfo, TokenAccount, TokenizerInfo, tokenizer_folder},
    pipeline::{Output, Pipeline},
    plan::{Plan, Resources, Until, VALIDATION, lower},
    shard::ShardWriter,
    source::{self, hex},
    tokenize::signed,
    workshop::Workshop,
};
use datafusion::arrow::{
    array::{AsArray, RecordBatch},
    compute::{filter_record_batch, not},
};
use dlm_tokenizer::Tokenizer;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// How a pipeline is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrepareOptions {
    /// The output folder, in place of the pipeline's own; relative to the process, not to the pipeline file.
    pub output: Option<PathBuf>,
    /// Threads and memory.
    pub resources: Resources,
    /// What to do with an output folder that holds other prepared data.
    pub existing: Existing,
}

/// What to do with an output folder that holds other prepared data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and report an error.
    #[default]
    Refuse,
    /// Replace it.
    Overwrite,
}

/// How far a preparation has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows in the sources.
    pub source_rows: u64,
    /// Documents that were tokenized.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Packed rows that were written.
    pub packed_rows: u64,
}

/// What a preparation made.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareReport {
    /// The folder.
    pub output: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Whether it had been there already, made by the same pipeline from the same input.
    pub already_prepared: bool,
}

impl Pipeline {
    /// Runs the pipeline and writes prepared data. Blocks until it is done.
    ///
    /// The same pipeline over the same input gives the same bytes, whatever the number of threads. What stood in the folder
    /// stays until the new data is complete; killed at any moment, the next run does it over.
    ///
    /// # Errors
    /// Everything that can be wrong with a pipeline, its input and its output folder; see [`DataError`].
    pub fn prepare(&self, options: &PrepareOptions, progress: impl FnMut(&Progress) + Send) -> Result<PrepareReport> {
        runtime(&options.resources)?.block_on(prepare(self, options, progress))
    }

    /// The logical and the physical plan, as text. Blocks; see [`explain`](crate::explain).
    ///
    /// # Errors
    /// What [`prepare`](Self::prepare) would find wrong before it reads the first row.
    pub fn explain(&self, resources: &Resources) -> Result<String> {
        runtime(resources)?.block_on(crate::plan::explain(self, resources))
    }
}

/// Runs a pipeline and writes prepared data; see [`Pipeline::prepare`].
///
/// # Errors
/// Everything that can be wrong with a pipeline, its input and its output folder.
pub async fn prepare(
    pipeline: &Pipeline,
    options: &PrepareOptions,
    progress: impl FnMut(&Progress) + Send,
) -> Result<PrepareReport> {
    let folder = output_folder(pipeline, options)?;
    let plan = lower(pipeline, &options.resources, Until::Packed)?;
    let tokenizer = plan.tokenizer.clone().expect("a pipeline to packed rows has a tokenizer");
    let fingerprint = source::fingerprint(&plan.files)?;
    let text = pipeline.to_toml()?;
    let hash = pipeline_hash(pipeline, &tokenizer)?;

    let found = Manifest::find(&folder)?;
    if options.existing == Existing::Refuse
        && let Some(manifest) = &found
        && manifest.pipeline_hash == hash
        && manifest.input_fingerprint == fingerprint
    {
        crate::PreparedData::open(&folder, Split::Train)?;
        return Ok(PrepareReport { output: folder, manifest: manifest.clone(), already_prepared: true });
    }
    let workshop = Workshop::claim(&folder, found.is_some(), options.existing)?;

    let (train, validation) = write_shards(&plan, pipeline, workshop.path(), progress).await?;
    for (name, content) in tokenizer.files()? {
        dlm_files::write(&tokenizer_folder(workshop.path()).join(name), &content)?;
    }
    let tokens_written = train.tokens + validation.as_ref().map_or(0, |side| side.tokens);
    let inputs = plan.files.iter();
    let manifest = Manifest {
        format_version: Manifest::VERSION,
        pipeline: text,
        pipeline_hash: hash,
        input_fingerprint: fingerprint,
        inputs: inputs
            .map(|file| InputFile { path: file.name.clone(), rows: file.rows, size_bytes: file.size_bytes })
            .collect(),
        tokenizer: tokenizer_info(&tokenizer, &plan),
        sequence_len: pipeline.pack_step().map_or(0, |pack| pack.sequence_len),
        account: account(&plan, tokens_written),
        train,
        validation,
    };
    workshop.deliver(&manifest)?;
    Ok(PrepareReport { output: folder, manifest, already_prepared: false })
}

/// A runtime for the blocking calls.
pub(crate) fn runtime(resources: &Resources) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(resources.threads.clamp(1, 4))
        .enable_all()
        .build()
        .map_err(|error| DataError::Invalid(format!("cannot start threads: {error}")))
}

fn output_folder(pipeline: &Pipeline, options: &PrepareOptions) -> Result<PathBuf> {
    let own = pipeline.output.as_ref().map(|output| pipeline.resolve(&output.path));
    let folder = options.output.clone().or(own);
    folder.ok_or_else(|| DataError::pipeline("there is no `[output]`, and no output folder was named"))
}

/// A number for everything that decides about the bytes: the pipeline without its output folder, and the tokenizer.
fn pipeline_hash(pipeline: &Pipeline, tokenizer: &Tokenizer) -> Result<String> {
    let output = pipeline.output.clone().map(|output| Output { path: PathBuf::new(), ..output });
    let text = Pipeline { output, ..pipeline.clone() }.to_toml()?;
    let mut hash = Sha256::new();
    hash.update(text);
    for (name, content) in tokenizer.files()? {
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

/// Runs the plan and writes what comes out.
async fn write_shards(
    plan: &Plan,
    pipeline: &Pipeline,
    folder: &Path,
    mut progress: impl FnMut(&Progress) + Send,
) -> Result<(SplitInfo, Option<SplitInfo>)> {
    let sequence_len = pipeline.pack_step().map_or(1, |pack| pack.sequence_len);
    let shard_tokens = pipeline.output.as_ref().map_or(1 << 23, |output| output.shard_tokens);
    let writer = |split| ShardWriter::new(folder, split, sequence_len, shard_tokens);
    let (mut train, mut validation) = (writer(Split::Train), writer(Split::Validation));

    let running = |error| DataError::from_datafusion(error, "the pipeline failed");
    let mut batches = plan.frame.clone().execute_stream().await.map_err(running)?;
    let mut packed_rows = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(running)?;
        let is_validation = batch[VALIDATION].as_boolean();
        train.write(&filtered(&batch, &not(is_validation).map_err(|error| running(error.into()))?)?)?;
        validation.write(&filtered(&batch, is_validation)?)?;
        packed_rows += batch.num_rows() as u64;
        progress(&Progress {
            source_rows: plan.rows,
            documents: plan.account.documents.load(Ordering::Relaxed),
            tokens: plan.account.tokens.load(Ordering::Relaxed),
            packed_rows,
        });
    }
    let (train, validation) = (SplitInfo::of(train.finish()?), SplitInfo::of(validation.finish()?));
    if packed_rows == 0 {
        return Err(DataError::Empty { rows: plan.rows });
    }
    Ok((train, Some(validation).filter(|side| side.rows > 0)))
}

fn filtered(batch: &RecordBatch, side: &datafusion::arrow::array::BooleanArray) -> Result<RecordBatch> {
    filter_record_batch(batch, side).map_err(|error| DataError::from_datafusion(error.into(), "the pipeline failed"))
}

fn tokenizer_info(tokenizer: &Tokenizer, plan: &Plan) -> TokenizerInfo {
    let special = tokenizer.special();
    TokenizerInfo {
        hash: tokenizer.hash(),
        vocab_size: tokenizer.len(),
        pad_token_id: plan.pad_id.expect("a pipeline to packed rows has a padding token"),
        eos_token_id: special.eos.as_ref().map(|token| signed(token.id)),
        bos_token_id: special.bos.as_ref().map(|token| signed(token.id)),
    }
}

fn account(plan: &Plan, tokens_written: u64) -> TokenAccount {
    let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    let (tokens, overlong) = (count(&plan.account.tokens), count(&plan.account.overlong_tokens));
    TokenAccount {
        rows: plan.rows,
        documents: count(&plan.account.documents),
        tokens,
        dropped_empty_documents: count(&plan.account.empty_documents),
        dropped_overlong_documents: count(&plan.account.overlong_documents),
        dropped_overlong_tokens: overlong,
        dropped_filtered_tokens: tokens - overlong - tokens_written,
    }
}
