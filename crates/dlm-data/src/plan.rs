//! A pipeline as one DataFusion plan.
//!
//! Everything SQL can say is DataFusion's own; chat, tokenize and pack are nodes of ours. The plan has one partition, so the
//! order of rows is that of the sources and the same for any number of threads: those work inside the nodes.

use crate::{
    account::Account,
    chat_options::Chat,
    chat_stage::CHAT_FORMAT,
    checkpoint::{Notes, Packed, Resume},
    cut::{Cut, END_CUT, OFFSET},
    error::{DataError, Result},
    ledger::Ledger,
    lower_rows::ORDER,
    number::NUMBER,
    packing::require,
    pipeline::Pipeline,
    scan::{RowMap, SourcesTable},
    source::{self, SourceFile, Sources},
    sql::refuse_unfit,
    stage::{Stage, StageNode, StageQueryPlanner},
    step::{Split, Step},
    text_functions::text_functions,
};
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::TableProvider,
    common::Column,
    dataframe::DataFrame,
    datasource::provider_as_source,
    execution::{SessionStateBuilder, memory_pool::FairSpillPool, runtime_env::RuntimeEnvBuilder},
    logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder},
    prelude::{SessionConfig, SessionContext},
};
use dlm_tokenizer::Tokenizer;
use std::{
    num::NonZero,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

/// The number of a row over all sources: the document's id.
pub(crate) const ROW: &str = "__row";
/// True for documents of the validation side.
pub(crate) const VALIDATION: &str = "__validation";
/// The names of columns that steps add for themselves.
pub(crate) const RESERVED: [&str; 7] = [ROW, VALIDATION, NUMBER, OFFSET, END_CUT, CHAT_FORMAT, ORDER];
/// Rows in a batch of short rows.
const BATCH_ROWS: u64 = 1024;
/// Bytes in a batch of long rows, roughly.
const BATCH_BYTES: u64 = 1 << 20;

/// What a merge reserves for a file that it reads: two batches, twice.
const MERGE_STREAM_BYTES: usize = 4 << 20;

/// How much of the machine a pipeline may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Threads that tokenize and render.
    pub threads: usize,
    /// Bytes of memory; where unset what the pipeline says, or 1 GiB. Sorts and packing get a part of it, and sorts beyond that spill
    /// to the system's folder for temporary files (`TMPDIR`).
    pub memory_limit: Option<usize>,
}

impl Default for Resources {
    /// All cores, and what the pipeline says of memory.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { threads, memory_limit: None }
    }
}

/// The memory of a pipeline that says nothing about it.
const MEMORY_LIMIT: usize = 1 << 30;
/// What DataFusion counts and keeps within its pool is less than half of what a process needs: beside it stand the program, the
/// tokenizer, batches on their way between steps, and the shard that is being written. So the pool is this part of the limit.
const POOL_SHARE: (usize, usize) = (3, 8);

impl Resources {
    /// Bytes for sorts and packing.
    fn pool(&self, pipeline: &Pipeline) -> usize {
        let limit = self.memory_limit.or(pipeline.resources.memory_limit).unwrap_or(MEMORY_LIMIT);
        limit / POOL_SHARE.1 * POOL_SHARE.0
    }
}

/// A pipeline ready to run.
pub(crate) struct Plan {
    pub(crate) frame: DataFrame,
    pub(crate) files: Vec<SourceFile>,
    pub(crate) sources: Arc<Sources>,
    /// Files that decide about the rows and are no source of them.
    pub(crate) reference_files: Vec<SourceFile>,
    /// The chat template of each format of conversations that has one.
    pub(crate) templates: Vec<Option<String>>,
    /// What is no error and probably not meant.
    pub(crate) warnings: Vec<String>,
    /// What the steps left of the rows.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) rows: u64,
    pub(crate) account: Arc<Account>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) pad_id: Option<i32>,
    /// To be set before the plan runs.
    pub(crate) resume: Arc<Resume>,
    /// One for each batch that comes out.
    pub(crate) notes: Notes,
    /// What packing has done so far.
    pub(crate) packed: Arc<Mutex<Packed>>,
    /// Rows that were read so far.
    pub(crate) rows_read: Arc<AtomicU64>,
    /// The columns of the sources, then those after each step.
    pub(crate) columns: Vec<SchemaRef>,
}

/// How far a pipeline is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// To packed rows.
    Packed,
    /// To the column of text, before it is tokenized.
    Text,
}

/// Lowers a pipeline to a plan.
pub(crate) fn lower(pipeline: &Pipeline, resources: &Resources, until: Until) -> Result<Plan> {
    pipeline.check()?;
    // The expressions of a source's `columns` are those of steps.
    let expressions = session(resources.pool(pipeline), 1, 0)?;
    let sources = Arc::new(source::open(pipeline, &expressions, resources.threads)?);
    if sources.schema.fields().is_empty() {
        let paths: Vec<&str> = sources.list.iter().map(|source| source.path.as_str()).collect();
        let reason =
            sources.quarantine.first_reason().map(|reason| format!("; left out: {reason}")).unwrap_or_default();
        return Err(DataError::Invalid(format!("there is no row to read in `{}`{reason}", paths.join("`, `"))));
    }
    let rows_read = Arc::default();
    let mut lowering = Lowering::begin(pipeline, resources, &sources, &rows_read)?;
    let mut columns = vec![lowering.schema()];
    let mut steps = pipeline.step.iter().enumerate();
    match until {
        Until::Packed => {
            if pipeline.tokenize_step().is_none() || pipeline.pack_step().is_none() {
                return Err(DataError::pipeline("prepared data needs the steps `tokenize` and `pack`"));
            }
            let numbered = numbered_before(&pipeline.step);
            for (i, step) in steps {
                if i == numbered {
                    lowering.number(step)?;
                }
                lowering.step(i, step)?;
                columns.push(lowering.schema());
            }
        }
        Until::Text => {
            let before =
                |(_, step): &(usize, &Step)| !matches!(step, Step::Chat(_) | Step::Tokenize(_) | Step::Pack(_));
            steps.by_ref().take_while(before).try_for_each(|(at, step)| lowering.step(at, step))?;
            let column = pipeline.tokenize_step().map_or("text", |step| step.column.as_str());
            require("texts", &lowering.schema(), column)?;
            lowering.frame = lowering.frame.select(vec![name(column)]).map_err(planning("texts"))?;
        }
    }
    Ok(Plan {
        frame: lowering.frame,
        files: sources.files().cloned().collect(),
        rows: sources.rows(),
        sources,
        reference_files: lowering.reference_files,
        templates: lowering.templates,
        warnings: lowering.warnings,
        ledger: lowering.ledger,
        account: lowering.account,
        tokenizer: lowering.tokenizer,
        pad_id: lowering.pad_id,
        resume: lowering.resume,
        notes: lowering.notes,
        packed: lowering.packed,
        rows_read,
        columns,
    })
}

/// A plan under construction.
pub(crate) struct Lowering<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) resources: &'a Resources,
    pub(crate) frame: DataFrame,
    /// The number of the step at work.
    pub(crate) at: usize,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) reference_files: Vec<SourceFile>,
    pub(crate) templates: Vec<Option<String>>,
    /// What is no error and probably not meant.
    pub(crate) warnings: Vec<String>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) pad_id: Option<i32>,
    /// The formats of conversations, once there are any.
    pub(crate) chats: Vec<Chat>,
    /// The split, until it is done.
    pub(crate) split: Option<Split>,
    pub(crate) resume: Arc<Resume>,
    pub(crate) notes: Notes,
    pub(crate) packed: Arc<Mutex<Packed>>,
}

impl<'a> Lowering<'a> {
    fn begin(
        pipeline: &'a Pipeline,
        resources: &'a Resources,
        sources: &Arc<Sources>,
        rows_read: &Arc<AtomicU64>,
    ) -> Result<Self> {
        let context = session(resources.pool(pipeline), batch_rows(sources.files()), pipeline.sorts())?;
        let table = SourcesTable::new(Arc::clone(sources), Arc::clone(rows_read));
        let rows = Arc::new(table.row_map());
        let source = provider_as_source(Arc::new(table) as Arc<dyn TableProvider>);
        let scan = LogicalPlanBuilder::scan("sources", source, None).and_then(LogicalPlanBuilder::build);
        let frame = DataFrame::new(context.state(), scan.map_err(planning("the sources"))?);
        Ok(Self {
            pipeline,
            resources,
            frame,
            at: 0,
            rows,
            account: Arc::default(),
            ledger: Arc::default(),
            reference_files: Vec::new(),
            templates: Vec::new(),
            warnings: Vec::new(),
            tokenizer: None,
            pad_id: None,
            chats: Vec::new(),
            split: pipeline.split_step().cloned(),
            resume: Arc::default(),
            notes: Arc::default(),
            packed: Arc::default(),
        })
    }

    fn step(&mut self, at: usize, step: &Step) -> Result<()> {
        self.at = at;
        match step {
            Step::Filter(expression) => self.filter(expression),
            Step::Select(expressions) => self.select(expressions),
            Step::Rename(names) => self.rename(names),
            Step::Map(columns) => self.map(columns),
            Step::Sql(query) => self.sql(query),
            Step::Limit(rows) => self.limit(*rows),
            Step::Sample(sample) => self.sample(sample),
            Step::Normalize(normalize) => self.normalize(normalize),
            Step::Quality(quality) => self.quality(quality),
            Step::Dedup(dedup) => self.dedup(dedup),
            Step::Decontaminate(decontaminate) => self.decontaminate(decontaminate),
            Step::Shuffle(shuffle) => self.shuffle(shuffle),
            Step::Split(_) => Ok(()), // wherever it is written, it is done once there are tokens to decide by
            Step::Chat(chat) => self.chat(Some(chat)),
            Step::Tokenize(tokenize) => self.tokenize(tokenize),
            Step::AnswerTail(tail) => self.answer_tail(tail),
            Step::Truncate(truncate) => self.cut(Cut::Truncate(truncate.clone())),
            Step::Chunk(chunk) => self.cut(Cut::Chunk(chunk.clone())),
            Step::Pack(pack) => self.pack(pack),
        }?;
        if crate::order::decides_split(&self.pipeline.step) == Some(at) { self.mark_validation() } else { Ok(()) }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(self.frame.schema().inner())
    }

    pub(crate) fn parse(&self, step: &str, expression: &str) -> Result<Expr> {
        let step = format!("{step} `{expression}`");
        let parsed = self.frame.parse_sql_expr(expression).map_err(planning(&step))?;
        refuse_unfit(&step, &parsed)?;
        // DataFusion looks at types only when it optimises the whole plan, and then no longer knows the step.
        parsed.get_type(self.frame.schema()).map_err(planning(&step))?;
        Ok(parsed)
    }

    /// Puts the frame that `change` makes in place of the frame.
    pub(crate) fn change(
        &mut self,
        step: &str,
        change: impl FnOnce(DataFrame) -> datafusion::error::Result<DataFrame>,
    ) -> Result<()> {
        self.frame = change(self.frame.clone()).map_err(planning(step))?;
        Ok(())
    }

    fn filter(&mut self, expression: &str) -> Result<()> {
        let condition = self.parse("filter", expression)?;
        self.change(&format!("filter `{expression}`"), |frame| frame.filter(condition))?;
        self.tally("filter")
    }

    fn select(&mut self, expressions: &[String]) -> Result<()> {
        let parsed = expressions.iter().map(|expression| self.parse("select", expression));
        let mut columns = parsed.collect::<Result<Vec<_>>>()?;
        for column in &columns {
            // A column that came with the rows keeps its name, as the index of pandas.
            let (name, is_taken) = match column {
                Expr::Column(Column { name, .. }) => (name.clone(), RESERVED.contains(&name.as_str())),
                other => {
                    let name = other.schema_name().to_string();
                    let is_taken = name.starts_with("__");
                    (name, is_taken)
                }
            };
            if is_taken {
                return Err(DataError::pipeline(crate::order::taken("select", &name)));
            }
        }
        let ours = [ROW, NUMBER, VALIDATION].into_iter().filter(|ours| self.schema().column_with_name(ours).is_some());
        columns.splice(0..0, ours.map(name));
        self.change("select", |frame| frame.select(columns))
    }

    /// Puts a node of ours on top.
    pub(crate) fn add(&mut self, stage: impl Stage + 'static) -> Result<()> {
        let step = stage.name();
        let (state, input) = self.frame.clone().into_parts();
        let node = StageNode::new(Arc::new(stage), input).map_err(planning(step))?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        self.frame = DataFrame::new(state, plan);
        Ok(())
    }
}

/// The step before which documents are numbered: where the first costly step begins (`chat`, `tokenize`), or else behind the last
/// step that has to see all rows again when a killed preparation goes on.
fn numbered_before(steps: &[Step]) -> usize {
    let costly = steps.iter().position(|step| matches!(step, Step::Chat(_) | Step::Tokenize(_)));
    let blocking = steps.iter().rposition(|step| !step.is_row_wise());
    costly.unwrap_or(0).max(blocking.map_or(0, |blocking| blocking + 1))
}

/// Rows in a batch, fewer where rows are long: sorts and threads hold whole batches.
fn batch_rows<'a>(files: impl Iterator<Item = &'a SourceFile>) -> usize {
    let longest = files.map(|file| file.data_bytes / file.rows.max(1)).max().unwrap_or(0);
    let rows = (BATCH_BYTES / longest.max(1)).clamp(1, BATCH_ROWS);
    usize::try_from(rows).expect("1024 fits")
}

/// A DataFusion session within these resources.
///
/// Sorts that follow each other are at work at once: the one merges what it spilled while the next one collects. A merge takes all
/// memory there is for its streams, so their number is bounded, and half of the memory stays for the others.
fn session(pool: usize, batch_rows: usize, sorts: usize) -> Result<SessionContext> {
    let streams = (pool / 2 / sorts.max(1) / MERGE_STREAM_BYTES).max(2);
    let mut config = SessionConfig::new()
        .with_target_partitions(1)
        .with_batch_size(batch_rows)
        .with_sort_spill_reservation_bytes((10 << 20).min(pool / 8));
    // Column names are what the files say: `Answer` is not `answer`.
    config.options_mut().sql_parser.enable_ident_normalization = false;
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(pool)));
    let runtime = runtime.with_max_spill_merge_fan_in(streams);
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime.build_arc().map_err(planning("the session"))?)
        .with_default_features()
        .with_query_planner(Arc::new(StageQueryPlanner))
        .build();
    let context = SessionContext::new_with_state(state);
    text_functions().into_iter().for_each(|function| context.register_udf(function));
    Ok(context)
}

/// A column by its exact name.
pub(crate) fn name(column: &str) -> Expr {
    Expr::Column(Column::from_name(column))
}

pub(crate) fn planning(step: &str) -> impl FnOnce(datafusion::error::DataFusionError) -> DataError + use<> {
    let step = step.to_owned();
    move |error| DataError::from_datafusion(error, &step)
}
