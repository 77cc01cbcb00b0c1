//! Running a pipeline: shards first, the manifest last.

use crate::{
    checkpoint::number_of,
    error::{DataError, Result, reading},
    journal::{Journal, Origin},
    limits::Limits,
    manifest::{InputFile, Manifest, SourceInfo, Split, SplitInfo, TokenAccount, TokenizerInfo, tokenizer_folder},
    pipeline::{Output, Pipeline, default_shard_tokens},
    plan::{Plan, Resources, Until, lower},
    source::{self, QUARANTINE, Sources, hex},
    step::Step,
    tokenize::signed,
    warnings,
    workshop::Workshop,
    writer::{Writer, WriterThread},
};
use dlm_tokenizer::Tokenizer;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::{
    path::PathBuf,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(200);

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
    /// Bytes in the sources.
    pub source_bytes: u64,
    /// Rows that were read.
    pub rows_read: u64,
    /// Documents that were tokenized.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Packed rows that were written.
    pub packed_rows: u64,
    /// Shards that a killed preparation had finished and that were not made again.
    pub resumed_shards: usize,
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
    /// Shards that a killed preparation had finished and that were not made again.
    pub resumed_shards: usize,
    /// What is no error and probably not meant, such as answers without a token to stop at.
    pub warnings: Vec<String>,
}

impl Pipeline {
    /// Runs the pipeline and writes prepared data. Blocks until it is done.
    ///
    /// The same pipeline over the same input gives the same bytes, whatever the number of threads. What stood in the folder
    /// stays until the new data is complete. Killed at any moment, the next run goes on behind the shards that were finished,
    /// and the bytes are those of an unbroken run. Rows are read again, and steps that have to see all of them (`dedup`,
    /// `shuffle`) run again; what was finished is not tokenized, packed and written again.
    ///
    /// # Errors
    /// Everything that can be wrong with a pipeline, its input and its output folder; see [`DataError`].
    pub fn prepare(&self, options: &PrepareOptions, progress: impl FnMut(&Progress) + Send) -> Result<PrepareReport> {
        runtime(&options.resources)?.block_on(prepare(self, options, progress))
    }

    /// The steps in plain words, then the logical and the physical plan, as text. Blocks; see [`explain`](crate::explain).
    ///
    /// # Errors
    /// What [`prepare`](Self::prepare) would find wrong before it reads the first row.
    pub fn explain(&self, resources: &Resources) -> Result<String> {
        runtime(resources)?.block_on(crate::explain::explain(self, resources))
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
    // Where it goes to is no place to read from, whether the pipeline says so or the caller.
    let path = std::path::absolute(&folder).map_err(reading(&folder))?;
    let shard_tokens = pipeline.output.as_ref().map_or_else(default_shard_tokens, |output| output.shard_tokens);
    let reads = Pipeline { output: Some(Output { path, shard_tokens }), ..pipeline.clone() };
    let plan = lower(&reads, &options.resources, Until::Packed)?;
    let tokenizer = plan.tokenizer.clone().expect("a pipeline to packed rows has a tokenizer");
    let fingerprint = source::fingerprint(&[plan.files.as_slice(), &plan.reference_files].concat())?;
    // What the machine may use decides nothing about the bytes.
    let lasting = Pipeline { resources: Limits::default(), ..pipeline.without_secrets() };
    let (text, hash) = (lasting.to_toml()?, pipeline_hash(&lasting, &tokenizer, &plan.templates)?);

    let warnings = |manifest: &Manifest| [plan.warnings.clone(), warnings::of(manifest, pipeline)].concat();
    let found = Manifest::find(&folder)?;
    let origin = Origin::new(&hash, &fingerprint);
    if options.existing == Existing::Refuse
        && let Some(manifest) = found.as_ref().filter(|manifest| origin.is_of(manifest))
    {
        crate::PreparedData::open(&folder, Split::Train)?;
        Workshop::sweep(&folder);
        let (manifest, warnings) = (manifest.clone(), warnings(manifest));
        return Ok(PrepareReport { output: folder, manifest, already_prepared: true, resumed_shards: 0, warnings });
    }
    let workshop = Workshop::claim(&folder, found.is_some(), options.existing)?;
    if let Some(manifest) = workshop.undelivered(&origin) {
        workshop.deliver(&manifest)?;
        let (resumed_shards, warnings) = (manifest.shards().count(), warnings(&manifest));
        return Ok(PrepareReport { output: folder, manifest, already_prepared: false, resumed_shards, warnings });
    }

    let journal = workshop.journal(&origin)?;
    let resumed_shards = journal.as_ref().map_or(0, |journal| journal.train.len() + journal.validation.len());
    let made = make(pipeline, &plan, &workshop, origin, journal, progress).await;
    let (account, train, validation) = match made {
        Ok(made) => made,
        // Where there was no room for more, what is finished stays, and the next run goes on from there.
        Err(error @ DataError::Write(_)) if workshop.has_journal() => return Err(error),
        Err(error) => {
            workshop.discard();
            return Err(error);
        }
    };
    for (name, content) in tokenizer.files()? {
        dlm_files::write(&tokenizer_folder(workshop.path()).join(name), &content)?;
    }
    if let Some(list) = plan.sources.quarantine.to_jsonl() {
        dlm_files::write(&workshop.path().join(QUARANTINE), &list)?;
    }
    let inputs = plan.files.iter();
    let manifest = Manifest {
        format_version: Manifest::VERSION,
        pipeline: text,
        pipeline_hash: hash,
        input_fingerprint: fingerprint,
        inputs: inputs
            .map(|file| InputFile { path: file.name.clone(), rows: file.rows, size_bytes: file.size_bytes })
            .collect(),
        sources: source_info(&plan.sources),
        tokenizer: tokenizer_info(&tokenizer, &plan),
        sequence_len: pipeline.pack_step().map_or(0, |pack| pack.sequence_len),
        answer_tail: pipeline.answer_tail_of().cloned(),
        account,
        train,
        validation,
    };
    workshop.deliver(&manifest)?;
    let warnings = warnings(&manifest);
    Ok(PrepareReport { output: folder, manifest, already_prepared: false, resumed_shards, warnings })
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

/// A number for everything that decides about the bytes: the pipeline without its output folder, the tokenizer, and the chat
/// templates, which may stand in files.
fn pipeline_hash(pipeline: &Pipeline, tokenizer: &Tokenizer, templates: &[Option<String>]) -> Result<String> {
    let output = pipeline.output.clone().map(|output| Output { path: PathBuf::new(), ..output });
    let text = Pipeline { output, ..pipeline.without_secrets() }.to_toml()?;
    let mut hash = Sha256::new();
    hash.update(text);
    for (name, content) in tokenizer.files()? {
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    for (number, template) in
        templates.iter().enumerate().filter_map(|(number, template)| Some((number, template.as_ref()?)))
    {
        hash.update(format!("template {number}\0{}\0{template}", template.len()));
    }
    Ok(hex(&hash.finalize()))
}

/// Runs the plan, writes what comes out, and accounts for it.
async fn make(
    pipeline: &Pipeline,
    plan: &Plan,
    workshop: &Workshop,
    origin: Origin,
    journal: Option<Journal>,
    mut progress: impl FnMut(&Progress) + Send,
) -> Result<(TokenAccount, SplitInfo, Option<SplitInfo>)> {
    let resumed_shards = journal.as_ref().map_or(0, |journal| journal.train.len() + journal.validation.len());
    if let Some(journal) = &journal {
        let checkpoint = journal.checkpoint.clone();
        plan.account.resume(checkpoint.totals.clone(), number_of(checkpoint.next_key));
        plan.resume.from(checkpoint);
    }
    let writer = WriterThread::start(Writer::new(workshop.path(), pipeline, origin, journal));
    let (source_bytes, packed_rows) = (plan.files.iter().map(|file| file.size_bytes).sum(), writer.rows());
    let mut report = || {
        let (documents, tokens) = plan.account.so_far();
        progress(&Progress {
            source_rows: plan.rows,
            source_bytes,
            rows_read: plan.rows_read.load(Ordering::Relaxed),
            documents,
            tokens,
            packed_rows: packed_rows.load(Ordering::Relaxed),
            resumed_shards,
        });
    };
    let (train, validation) = match run(plan, &writer, &mut report).await {
        Ok(()) => writer.finish().await?,
        Err(error) => {
            let _ = writer.stop().await; // the first error is the one to report
            return Err(error);
        }
    };
    report();
    plan.account.rows_left_out().into_iter().for_each(|entry| plan.sources.quarantine.add(entry));
    if train.rows + validation.rows == 0 {
        return Err(DataError::Empty { rows: plan.rows, why: losses(plan) });
    }
    let account = account(pipeline, plan, train.tokens + validation.tokens)?;
    Ok((account, train, Some(validation).filter(|side| side.rows > 0)))
}

/// What became of the rows, for an error.
fn losses(plan: &Plan) -> String {
    let mut losses = Vec::new();
    let unread: u64 = plan.sources.list.iter().map(|source| plan.sources.quarantine.count(source.number)).sum();
    if unread > 0 {
        losses.push(format!("{unread} rows and files could not be read or used"));
    }
    losses.extend(
        plan.ledger.accounts().iter().map(|step| format!("{} rows were left behind `{}`", step.rows, step.step)),
    );
    let packed = plan.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let documents = [
        (plan.account.so_far().0, "documents came to packing"),
        (packed.overlong_documents, "were longer than a row"),
        (packed.targetless_documents, "had no target"),
    ];
    losses.extend(documents.into_iter().map(|(count, what)| format!("{count} {what}")));
    format!(": {}", losses.join(", "))
}

/// Runs the plan and hands what comes out to the writer.
async fn run(plan: &Plan, writer: &WriterThread, mut report: impl FnMut()) -> Result<()> {
    let running = |error| DataError::from_datafusion(error, "the pipeline failed");
    let mut batches = plan.frame.clone().execute_stream().await.map_err(running)?;
    let mut clock = tokio::time::interval(REPORT_EVERY);
    loop {
        tokio::select! {
            batch = batches.next() => {
                let Some(batch) = batch.transpose().map_err(running)? else { return Ok(()) };
                let note = plan.notes.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let note = note.expect("packing leaves a note for every batch");
                if !writer.send(batch, note).await {
                    return Ok(()); // it has failed, and says why when it is asked to finish
                }
            }
            _ = clock.tick() => report(),
        }
    }
}

/// The account of a plan that has run, checked.
fn account(pipeline: &Pipeline, plan: &Plan, written: u64) -> Result<TokenAccount> {
    let packed = *plan.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut account = plan.account.close(plan.rows);
    account.steps = plan.ledger.accounts();
    account.dropped_overlong_documents = packed.overlong_documents;
    account.dropped_overlong_tokens = packed.overlong_tokens;
    account.dropped_targetless_documents = packed.targetless_documents;
    account.dropped_targetless_tokens = packed.targetless_tokens;

    // What neither a step nor packing counted was removed by a condition.
    let came = account.tokens_in() - account.dropped_tokens.values().map(|tokens| u128::from(*tokens)).sum::<u128>();
    let missing = came.checked_sub(u128::from(packed.tokens)).and_then(|missing| u64::try_from(missing).ok());
    let behind = pipeline.step.iter().skip_while(|step| !matches!(step, Step::Tokenize(_)));
    let may_miss = behind.into_iter().any(|step| !step.keeps_documents());
    match missing.filter(|missing| may_miss || *missing == 0) {
        Some(missing) => account.dropped_filtered_tokens = missing,
        None => {
            let message = format!("{came} tokens were made, and {} came to be packed", packed.tokens);
            return Err(DataError::Account { message });
        }
    }
    account.check(written).map_err(|message| DataError::Account { message })?;
    Ok(account)
}

/// What each source gave.
fn source_info(sources: &Sources) -> Vec<SourceInfo> {
    let all = sources.rows().max(1) as f64;
    let each = sources.list.iter().zip(&sources.given).enumerate();
    each.map(|(number, (source, given))| SourceInfo {
        path: source.path.clone(),
        weight: source.weight,
        rows: *given,
        share: *given as f64 / all,
        quarantined: sources.quarantine.count(number),
    })
    .collect()
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
