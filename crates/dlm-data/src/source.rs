//! What a pipeline reads: paths and patterns to files, what each file holds, and the columns and order of all rows together.

mod bytes;
mod caught;
mod csv;
mod expand;
mod format;
mod json_list;
mod json_shape;
mod mix;
mod options;
mod quarantine;
mod read;
mod records;
mod rows;
mod schema;
mod split_names;
mod survey;

pub(crate) use self::{
    expand::{MATCHING, compile, is_meant, is_pattern},
    rows::all as all_rows,
    split_names::of_split,
};
pub(crate) use self::{
    mix::Mixture,
    options::check,
    quarantine::{Entry, Quarantine},
};
pub use self::{
    options::{FileFormat, Mix, MixStop, OnError, Source, TextDocument},
    quarantine::QUARANTINE,
};

use self::{
    expand::{braces, expand},
    format::Compression,
    survey::{Bad, Layout, Subject},
};
use crate::{
    error::{DataError, Result, reading},
    pipeline::Pipeline,
    plan::{RESERVED, ROW},
    remote,
    sql::refuse_unfit,
};
use datafusion::{
    arrow::datatypes::{Field, Schema, SchemaRef},
    common::DFSchema,
    logical_expr::simplify::SimplifyContext,
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::{PhysicalExpr, utils::collect_columns},
    prelude::SessionContext,
};
use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// More rows than that no source has: a document's id keeps the bits above for the number of its dataset.
const MOST_ROWS: u64 = 1 << 48;

/// A file with rows, as looked at before the first row is read.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Where it lies on this machine.
    pub(crate) path: PathBuf,
    /// Its path as the pipeline sees it, or its address, for the manifest and the `path` column.
    pub(crate) name: String,
    is_remote: bool,
    pub(crate) format: FileFormat,
    compression: Compression,
    layout: Layout,
    pub(crate) schema: SchemaRef,
    /// Rows, those that cannot be read included.
    pub(crate) rows: u64,
    pub(crate) size_bytes: u64,
    /// About as much as its rows need in memory.
    pub(crate) data_bytes: u64,
    /// SHA-256, where it came with the survey.
    digest: Option<String>,
    /// The rows to skip, in order.
    bad: Arc<Vec<Bad>>,
}

impl SourceFile {
    /// Its name in messages.
    pub(crate) fn shown(&self) -> PathBuf {
        if self.is_remote { PathBuf::from(&self.name) } else { self.path.clone() }
    }
}

/// One `[[source]]`, looked at.
#[derive(Debug)]
pub(crate) struct OpenSource {
    /// Its number in the pipeline.
    pub(crate) number: usize,
    /// Its path as written, without secrets.
    pub(crate) path: String,
    pub(crate) weight: Option<f64>,
    pub(crate) on_error: OnError,
    pub(crate) files: Vec<SourceFile>,
    /// The columns of the files, in the types they are read with.
    input: SchemaRef,
    /// The columns made of those, where the source says how.
    columns: Option<Vec<(String, Arc<dyn PhysicalExpr>)>>,
    /// Rows that are read: all, or up to the limit.
    pub(crate) rows: u64,
}

/// All sources of a pipeline.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) list: Vec<OpenSource>,
    /// The draws, where sources have weights.
    pub(crate) mixture: Option<Mixture>,
    /// The columns of the rows.
    pub(crate) schema: SchemaRef,
    /// Rows that each source gives.
    pub(crate) given: Vec<u64>,
    pub(crate) quarantine: Arc<Quarantine>,
}

impl Sources {
    /// The files: sources as written, files of a source by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = &SourceFile> {
        self.list.iter().flat_map(|source| &source.files)
    }

    /// Rows that the sources give together.
    pub(crate) fn rows(&self) -> u64 {
        self.given.iter().sum()
    }
}

/// Looks at all files of all sources, on so many threads.
///
/// Text formats are read through once here. That finds every column and names what is malformed before any work is done.
pub(crate) fn open(pipeline: &Pipeline, context: &SessionContext, threads: usize) -> Result<Sources> {
    let quarantine = Arc::new(Quarantine::default());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    let pool = pool.map_err(|error| DataError::Invalid(format!("cannot start threads: {error}")))?;
    let mut list = Vec::with_capacity(pipeline.source.len());
    for (number, source) in pipeline.source.iter().enumerate() {
        let found = pool.install(|| survey_all(pipeline, source, number, &quarantine))?;
        list.push(open_one(source, number, pipeline, found, context)?);
    }
    // Columns of one name have one type, whichever source they come from.
    let outputs = list.iter().map(|(source, output)| (output, PathBuf::from(&source.path)));
    let schema = Arc::new(schema::settled(&schema::common_schema(outputs, false)?));
    let mut list: Vec<OpenSource> = list.into_iter().map(|(source, _)| source).collect();
    for source in list.iter_mut().filter(|source| source.columns.is_none()) {
        let fields = source.input.fields().iter();
        let fields = fields.map(|field| schema.field_with_name(field.name()).unwrap_or(field).clone());
        source.input = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    }
    let mixture = mixture(pipeline, &list)?;
    let given = match &mixture {
        Some(mixture) => mixture.counts(),
        None => list.iter().map(|source| source.rows).collect(),
    };
    Ok(Sources { list, mixture, schema, given, quarantine })
}

fn mixture(pipeline: &Pipeline, list: &[OpenSource]) -> Result<Option<Mixture>> {
    let weights: Vec<f64> = list.iter().filter_map(|source| source.weight).collect();
    if weights.is_empty() {
        return Ok(None);
    }
    if let Some(empty) = list.iter().find(|source| source.rows == 0) {
        return Err(DataError::Invalid(format!("the source `{}` has a weight and no row", empty.path)));
    }
    Ok(Some(Mixture::new(pipeline.mix, &weights, list.iter().map(|source| source.rows).collect())))
}

/// A file that a source names.
struct Found {
    path: PathBuf,
    name: String,
    is_remote: bool,
}

/// The files of a source by name. A path with braces stands for several.
fn find(pipeline: &Pipeline, source: &Source) -> Result<Vec<Found>> {
    let alternatives = match remote::is_remote(&source.path) {
        false if pipeline.base.join(&source.path).exists() => vec![source.path.clone()],
        _ => braces(&source.path),
    };
    let mut found = Vec::new();
    for path in &alternatives {
        found.extend(find_one(pipeline, &Source { path: path.clone(), ..source.clone() })?);
    }
    if alternatives.len() > 1 {
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
    }
    Ok(found)
}

fn find_one(pipeline: &Pipeline, source: &Source) -> Result<Vec<Found>> {
    let base = &pipeline.base;
    if remote::is_remote(&source.path) {
        let files = remote::fetch(source, &pipeline.remote)?;
        return Ok(files
            .into_iter()
            .map(|file| Found { path: file.path, name: file.address, is_remote: true })
            .collect());
    }
    let name = |path: &Path| path.strip_prefix(base).unwrap_or(path).to_string_lossy().replace('\\', "/");
    let path = source.path.as_str();
    let mut files = expand(path, base, source.format)?;
    // What an earlier run made is no source of the next one.
    let output = pipeline.output.as_ref().map(|output| pipeline.resolve(&output.path));
    if let Some((output, real)) = output.and_then(|output| Some((output.clone(), output.canonicalize().ok()?))) {
        files.retain(|file| file.canonicalize().map_or(true, |file| !file.starts_with(&real)));
        if files.is_empty() {
            return Err(DataError::Circular { pattern: path.to_owned(), output });
        }
    }
    if let Some(split) = &source.split {
        let pattern = base.join(path);
        files = of_split(files, &pattern.to_string_lossy(), split, PathBuf::clone)?;
    }
    Ok(files.into_iter().map(|path| Found { name: name(&path), path, is_remote: false }).collect())
}

/// Looks at the files of a source.
fn survey_all(pipeline: &Pipeline, source: &Source, number: usize, quarantine: &Quarantine) -> Result<Vec<SourceFile>> {
    let found = find(pipeline, source)?;
    let mut formats = BTreeSet::new();
    let mut files = Vec::with_capacity(found.len());
    for file in found {
        // A remote file keeps its name under another one.
        let named = PathBuf::from(if file.is_remote { remote::path_of(&file.name) } else { file.name.clone() });
        let shown = PathBuf::from(&file.name);
        let format = source.format.or_else(|| FileFormat::of(&named));
        let format = format.ok_or_else(|| DataError::UnknownFormat { path: shown.clone(), known: format::known() })?;
        let compression = Compression::of(&named);
        if compression != Compression::None && !format.is_text() {
            return Err(DataError::Packed { path: shown, format: format.name(), compression: compression.name() });
        }
        formats.insert(format.name());
        files.push((file, format, compression));
    }
    if formats.len() > 1 {
        let formats = formats.into_iter().map(str::to_owned).collect();
        return Err(DataError::MixedFormats { pattern: remote::redacted(&source.path), formats });
    }
    if source.document.is_some() && !formats.contains(FileFormat::Text.name()) {
        let path = remote::redacted(&source.path);
        return Err(DataError::pipeline(format!("the source `{path}`: `document` is for text files")));
    }
    let document = source.document.clone().unwrap_or_default();
    let on_error = source.on_error.unwrap_or(pipeline.on_error);
    let look = |(file, format, compression): (Found, FileFormat, Compression)| {
        survey_one(file, format, compression, &document, on_error, number)
    };
    // Of several errors that of the first file is reported, whichever thread was faster.
    let surveyed = files.into_par_iter().map(look).collect::<Vec<_>>();
    let (mut files, mut first_row) = (Vec::new(), 0_u64);
    for surveyed in surveyed {
        let (file, left_out) = surveyed?;
        // Nobody asks for what lies beyond the limit.
        let counts = |entry: &Entry| {
            let row = first_row.saturating_add(entry.row.map_or(0, |row| row - 1));
            source.limit.is_none_or(|limit| row < limit)
        };
        left_out.into_iter().filter(counts).for_each(|entry| quarantine.add(entry));
        first_row = first_row.saturating_add(file.rows);
        files.push(file);
    }
    Ok(files)
}

/// Looks at a file; what cannot be read of it comes beside it.
fn survey_one(
    file: Found,
    format: FileFormat,
    compression: Compression,
    document: &TextDocument,
    on_error: OnError,
    number: usize,
) -> Result<(SourceFile, Vec<Entry>)> {
    let Found { path, name, is_remote } = file;
    let shown = if is_remote { PathBuf::from(&name) } else { path.clone() };
    let size_bytes = std::fs::metadata(&path).map_err(reading(&shown))?.len();
    let subject = Subject { path: &path, shown, format, compression, document, on_error };
    let mut left_out = Vec::new();
    let surveyed = match subject.survey() {
        Err(error) if on_error == OnError::Skip => {
            let (file, reason) = (name.clone(), error.to_string());
            left_out.push(Entry { source: number, file, row: None, rows: None, line: None, reason });
            survey::Survey::nothing(format)
        }
        other => other?,
    };
    for bad in &surveyed.bad {
        let (row, line, reason) = (Some(bad.row + 1), bad.line, bad.message.clone());
        let rows = (bad.row < surveyed.rows).then_some(1);
        left_out.push(Entry { source: number, file: name.clone(), row, rows, line, reason });
    }
    let file = SourceFile {
        path,
        name,
        is_remote,
        format,
        compression,
        layout: surveyed.layout,
        schema: Arc::new(surveyed.schema),
        rows: surveyed.rows,
        size_bytes,
        data_bytes: surveyed.data_bytes.unwrap_or(size_bytes),
        digest: surveyed.digest,
        bad: Arc::new(surveyed.bad),
    };
    Ok((file, left_out))
}

/// The rows of a source's files together. A damaged footer can claim any number of them.
fn counted(path: &str, mut rows: impl Iterator<Item = u64>) -> Result<u64> {
    let total = rows.try_fold(0_u64, u64::checked_add).filter(|total| *total < MOST_ROWS);
    total.ok_or_else(|| {
        let path = remote::redacted(path);
        DataError::Invalid(format!(
            "the files of `{path}` claim {MOST_ROWS} rows or more: look for one that is damaged"
        ))
    })
}

/// A source and the columns that come out of it.
fn open_one(
    source: &Source,
    number: usize,
    pipeline: &Pipeline,
    files: Vec<SourceFile>,
    context: &SessionContext,
) -> Result<(OpenSource, Schema)> {
    // What the columns of a CSV file are is guessed from their values: where files differ, they are text.
    let is_guessed = files.iter().any(|file| matches!(file.layout, Layout::Csv { .. }));
    let all = schema::common_schema(files.iter().map(|file| (file.schema.as_ref(), file.shown())), is_guessed)?;
    let in_files = counted(&source.path, files.iter().map(|file| file.rows))?;
    let (mut input, mut output, mut columns) = (all.clone(), all, None);
    let taken = |name: &str| {
        let holder = files.iter().find(|file| file.schema.column_with_name(name).is_some());
        let path = holder.map_or_else(|| PathBuf::from(remote::redacted(&source.path)), SourceFile::shown);
        DataError::ReservedColumn { path, column: name.to_owned() }
    };
    if source.columns.is_empty() {
        if let Some(name) = RESERVED.into_iter().find(|name| input.column_with_name(name).is_some()) {
            return Err(taken(name));
        }
    } else {
        input = schema::settled(&input);
        let mapped = map_columns(source, &input, context)?;
        let needed = mapped.iter().flat_map(|(_, expression)| collect_columns(expression));
        if let Some(column) = needed.into_iter().find(|column| column.name() == ROW) {
            return Err(taken(column.name()));
        }
        let fields = mapped.iter().map(|(name, expression)| {
            Ok(Field::new(name, expression.data_type(&input).map_err(planning(source))?, true))
        });
        output = Schema::new(fields.collect::<Result<Vec<_>>>()?);
        columns = Some(mapped);
    }
    let opened = OpenSource {
        number,
        path: remote::redacted(&source.path),
        weight: source.weight,
        on_error: source.on_error.unwrap_or(pipeline.on_error),
        files,
        input: Arc::new(input),
        columns,
        rows: source.limit.map_or(in_files, |limit| limit.min(in_files)),
    };
    Ok((opened, output))
}

/// The expressions of a source's `columns`.
fn map_columns(
    source: &Source,
    input: &Schema,
    context: &SessionContext,
) -> Result<Vec<(String, Arc<dyn PhysicalExpr>)>> {
    let known = DFSchema::try_from(input.clone()).map_err(planning(source))?;
    let expression = |(name, text): (&String, &String)| {
        // A column of that name is meant, whatever its name would say as SQL.
        let expression = match input.field_with_name(text) {
            Ok(_) => datafusion::logical_expr::Expr::Column(datafusion::common::Column::from_name(text)),
            Err(_) => context.parse_sql_expr(text, &known).map_err(planning(source))?,
        };
        refuse_unfit(&step_of(source), &expression)?;
        // Some functions are there only to be rewritten into others.
        let state = context.state();
        let simplify = SimplifyContext::builder()
            .with_schema(Arc::new(known.clone()))
            .with_config_options(Arc::clone(state.config_options()))
            .build();
        let simplifier = ExprSimplifier::new(simplify);
        let simple = simplifier.coerce(expression, &known).and_then(|expression| simplifier.simplify(expression));
        let physical = simple.and_then(|expression| context.create_physical_expr(expression, &known));
        Ok((name.clone(), physical.map_err(planning(source))?))
    };
    source.columns.iter().map(expression).collect()
}

fn step_of(source: &Source) -> String {
    format!("`columns` of the source `{}`", remote::redacted(&source.path))
}

fn planning(source: &Source) -> impl FnOnce(datafusion::error::DataFusionError) -> DataError + use<> {
    let step = step_of(source);
    move |error| DataError::from_datafusion(error, &step)
}

/// A number for the content of all files: the same files give the same, wherever they lie.
///
/// Files whose checksum did not come with the survey are read here, several at a time.
pub(crate) fn fingerprint(files: &[SourceFile]) -> Result<String> {
    let digests = files.par_iter().map(|file| match &file.digest {
        Some(digest) => Ok(digest.clone()),
        None => survey::digest(&file.path).map_err(reading(&file.shown())),
    });
    let digests: Vec<String> = digests.collect::<Result<_>>()?;
    let mut hash = Sha256::new();
    for (file, digest) in files.iter().zip(digests) {
        hash.update(format!("{}\0{}\0{digest}\0", file.name, file.size_bytes));
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_than_can_be_numbered_are_refused() {
        assert_eq!(counted("a", [3, 4].into_iter()).unwrap(), 7);
        for claimed in [[u64::MAX, 1], [MOST_ROWS - 1, 1]] {
            assert!(matches!(counted("a", claimed.into_iter()), Err(DataError::Invalid(_))));
        }
    }
}
