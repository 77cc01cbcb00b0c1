//! The errors of this crate: what is wrong, in which file, row or step, and what to do about it.

mod help;

use crate::manifest::Split;
use datafusion::{
    arrow::error::ArrowError, common::SchemaError, error::DataFusionError, parquet::errors::ParquetError,
};
use std::{io, path::PathBuf};

/// The result of everything here that can fail.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Why data could not be prepared or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder that cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },

    /// A file or folder that cannot be written.
    #[error(transparent)]
    Write(#[from] dlm_files::FileError),

    /// A pipeline that is not what the format asks for.
    #[error("{}: {message}{}", place(path.as_ref(), *line), suggestion(nearest.as_deref()))]
    Pipeline {
        /// The file, unless the text came from elsewhere.
        path: Option<PathBuf>,
        /// The line, counted from 1, where one is known.
        line: Option<usize>,
        /// What is wrong.
        message: String,
        /// The known name nearest to an unknown one.
        nearest: Option<String>,
    },

    /// An override whose key names nothing in the pipeline.
    #[error("the override `{key}` names nothing in this pipeline, which has {}", quoted(candidates))]
    UnknownOverride {
        /// The key as given.
        key: String,
        /// What could be named.
        candidates: Vec<String>,
    },

    /// An override whose key names more than one thing.
    #[error("the override `{key}` is ambiguous: it could be {}", quoted(candidates))]
    AmbiguousOverride {
        /// The key as given.
        key: String,
        /// What it could mean.
        candidates: Vec<String>,
    },

    /// A source that names no file.
    #[error("the source `{pattern}` names no file under `{}`", base.display())]
    NoFiles {
        /// The path or pattern as written.
        pattern: String,
        /// The folder it is relative to.
        base: PathBuf,
    },

    /// A file whose format is not known.
    #[error("`{}` is of no known format: the names of data files end in {}", path.display(), quoted(known))]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
        /// The extensions that are read.
        known: Vec<String>,
    },

    /// A folder or pattern that mixes formats.
    #[error("the source `{pattern}` holds files of several formats: {}", formats.join(", "))]
    MixedFormats {
        /// The path or pattern as written.
        pattern: String,
        /// The formats found.
        formats: Vec<String>,
    },

    /// A source that names nothing but what the pipeline itself made.
    #[error("the source `{pattern}` names only files in the output folder `{}`", output.display())]
    Circular {
        /// The path or pattern as written.
        pattern: String,
        /// The output folder.
        output: PathBuf,
    },

    /// A file that is compressed as a whole and is of no format that is read so.
    #[error("`{}` is a {format} file compressed as a whole with {compression}, and such files are read only plain", path.display())]
    Packed {
        /// Which file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// How it is compressed.
        compression: &'static str,
    },

    /// A column with a name that steps use for themselves.
    #[error("`{}` has a column `{column}`, a name that dlm uses itself", path.display())]
    ReservedColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },

    /// A line of a JSON file that cannot be read.
    #[error("`{}` line {line}: {message}{}", path.display(), unless_line(*row, *line))]
    Json {
        /// Which file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The row, counted from 1: blank lines are none.
        row: u64,
        /// What is wrong with it.
        message: String,
    },

    /// A file that is cut off, or a row of it that cannot be read.
    #[error("`{}` row {row}: {message}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The first row that cannot be read, counted from 1.
        row: u64,
        /// What is wrong with it.
        message: String,
    },

    /// A file on another machine that cannot be brought here.
    #[error("cannot fetch `{address}`: {message}")]
    Remote {
        /// Where it is, without secrets.
        address: String,
        /// What the server answered, if it did.
        status: Option<u16>,
        /// What happened.
        message: String,
    },

    /// A Parquet file that cannot be read.
    #[error("`{}` is no readable Parquet file: {message}", path.display())]
    Parquet {
        /// Which file.
        path: PathBuf,
        /// What the reader says.
        message: String,
    },

    /// A column that has different types in different files.
    #[error("column `{column}` is {found} in `{}` and {expected} in `{}`", path.display(), other.display())]
    ColumnTypes {
        /// Which column.
        column: String,
        /// The file with the second type.
        path: PathBuf,
        /// The second type.
        found: String,
        /// The file with the first type.
        other: PathBuf,
        /// The first type.
        expected: String,
    },

    /// A column that is not there.
    #[error("{step}: there is no column `{column}`; the columns are {}", quoted(columns))]
    UnknownColumn {
        /// The step that asked for it.
        step: String,
        /// The column asked for.
        column: String,
        /// The columns there are.
        columns: Vec<String>,
    },

    /// A field of messages that an option names and none has.
    #[error(
        "chat: `{option}` names `{field}`, and no message in `{column}` has such a field; they have {}",
        quoted(fields)
    )]
    UnknownField {
        /// The option that names it.
        option: &'static str,
        /// The field asked for.
        field: String,
        /// The column of messages.
        column: String,
        /// The fields there are.
        fields: Vec<String>,
    },

    /// An expression that is no SQL, or does not fit the columns.
    #[error("{step}: {message}")]
    Sql {
        /// The step it stands in.
        step: String,
        /// What is wrong.
        message: String,
    },

    /// A row that cannot be used.
    #[error("`{}` row {row}: {message}", path.display())]
    Row {
        /// The file it came from.
        path: PathBuf,
        /// The row in that file, counted from 1.
        row: u64,
        /// What is wrong with it.
        message: String,
    },

    /// A row that a step made and that cannot be used.
    #[error("row {row} that `{step}` made: {message}")]
    MadeRow {
        /// The step, as overrides name it.
        step: String,
        /// The row among those it made, counted from 1.
        row: u64,
        /// What is wrong with it.
        message: String,
    },

    /// A tokenizer that cannot be loaded or used.
    #[error(transparent)]
    Tokenizer(#[from] dlm_tokenizer::TokenizerError),

    /// A tokenizer with neither padding nor end token.
    #[error("the tokenizer `{}` has neither a padding nor an end token, and packing needs one to fill rows", path.display())]
    NoPadding {
        /// The tokenizer.
        path: PathBuf,
    },

    /// A tokenizer without the end token that was asked for.
    #[error("the tokenizer `{}` has no end token, and `add_eos` asks for one", path.display())]
    NoEnd {
        /// The tokenizer.
        path: PathBuf,
    },

    /// A tokenizer without the chat template that messages need.
    #[error("the tokenizer `{}` has no chat template, and messages need one", path.display())]
    NoTemplate {
        /// The tokenizer.
        path: PathBuf,
    },

    /// More memory than allowed.
    #[error("{message}")]
    Memory {
        /// What asked for how much.
        message: String,
    },

    /// A preparation that yields nothing.
    #[error("nothing to write: {rows} rows were read and no document with tokens was left{why}")]
    Empty {
        /// The rows that were read.
        rows: u64,
        /// What became of them, as far as it was counted.
        why: String,
    },

    /// An output folder that holds something else.
    #[error("`{}` already holds {holds}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        holds: String,
        /// Whether something else than dlm made it.
        foreign: bool,
    },

    /// An output folder that another preparation is writing to.
    #[error("another preparation is writing to `{}`", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },

    /// A folder that holds no prepared data.
    #[error("`{}` holds no prepared data: {message}", path.display())]
    NotPrepared {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        message: String,
    },

    /// A shard that is not as the manifest says.
    #[error("the shard `{}` is damaged: {message}", path.display())]
    Shard {
        /// Which shard.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },

    /// An account of tokens that does not add up.
    #[error("the account of tokens does not add up: {message}")]
    Account {
        /// The numbers.
        message: String,
    },

    /// A side of prepared data that has no rows.
    #[error("the `{}` side of `{}` has no rows", split.folder(), path.display())]
    EmptySide {
        /// The folder of the data.
        path: PathBuf,
        /// Which side.
        split: Split,
    },

    /// Prepared datasets that cannot be one.
    #[error("`{}` and `{}` cannot be mixed: {why}", paths.0.display(), paths.1.display())]
    Unmixable {
        /// The folders of the two.
        paths: Box<(PathBuf, PathBuf)>,
        /// What is different.
        why: String,
    },

    /// A value that makes no sense, with the value.
    #[error("{0}")]
    Invalid(String),

    /// Anything else that DataFusion reports.
    #[error("{context}: {source}")]
    DataFusion {
        /// What was being done.
        context: String,
        /// What DataFusion says.
        #[source]
        source: Box<DataFusionError>,
    },
}

impl DataError {
    /// A pipeline error that no line can be named for.
    pub(crate) fn pipeline(message: impl Into<String>) -> Self {
        Self::Pipeline { path: None, line: None, message: message.into(), nearest: None }
    }

    /// Names the pipeline file in an error that does not name one yet.
    pub(crate) fn in_pipeline(self, file: &std::path::Path) -> Self {
        match self {
            Self::Pipeline { path: None, line, message, nearest } => {
                Self::Pipeline { path: Some(file.to_owned()), line, message, nearest }
            }
            other => other,
        }
    }

    /// Our own error out of one that travelled through DataFusion, or DataFusion's with what was being done.
    pub(crate) fn from_datafusion(error: DataFusionError, context: &str) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => {
                    Self::DataFusion { context: context.to_owned(), source: Box::new(DataFusionError::External(inner)) }
                }
            },
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
                Self::from_datafusion(*inner, context)
            }
            DataFusionError::ArrowError(inner, backtrace) => match *inner {
                ArrowError::ExternalError(inner) => Self::from_datafusion(DataFusionError::External(inner), context),
                other => Self::DataFusion {
                    context: context.to_owned(),
                    source: Box::new(DataFusionError::ArrowError(Box::new(other), backtrace)),
                },
            },
            DataFusionError::ResourcesExhausted(message) => Self::Memory { message },
            DataFusionError::SchemaError(inner, backtrace) => match *inner {
                SchemaError::FieldNotFound { field, valid_fields } => Self::UnknownColumn {
                    step: context.to_owned(),
                    column: field.name.clone(),
                    columns: visible(valid_fields.iter().map(|column| column.name.as_str())),
                },
                other => Self::DataFusion {
                    context: context.to_owned(),
                    source: Box::new(DataFusionError::SchemaError(Box::new(other), backtrace)),
                },
            },
            DataFusionError::SQL(inner, _) => Self::Sql { step: context.to_owned(), message: inner.to_string() },
            DataFusionError::Plan(message) => Self::Sql { step: context.to_owned(), message },
            other => Self::DataFusion { context: context.to_owned(), source: Box::new(other) },
        }
    }
}

impl From<DataError> for DataFusionError {
    fn from(error: DataError) -> Self {
        Self::External(Box::new(error))
    }
}

/// The columns that a user made, without ours.
pub(crate) fn visible<'a>(columns: impl Iterator<Item = &'a str>) -> Vec<String> {
    columns.filter(|name| !name.starts_with("__")).map(str::to_owned).collect()
}

/// Adds the path to an error of reading it.
pub(crate) fn reading(path: &std::path::Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |source| DataError::Read { path, source }
}

/// Adds the path to an error of reading a Parquet file.
pub(crate) fn parquet(path: &std::path::Path) -> impl FnOnce(ParquetError) -> DataError {
    let path = path.to_owned();
    move |error| DataError::Parquet { path, message: error.to_string() }
}

fn place(path: Option<&PathBuf>, line: Option<usize>) -> String {
    let path = path.map_or_else(|| "the pipeline".to_owned(), |path| format!("`{}`", path.display()));
    line.map_or_else(|| path.clone(), |line| format!("{path} line {line}"))
}

/// The row, where the line does not tell it.
fn unless_line(row: u64, line: u64) -> String {
    if row == line { String::new() } else { format!(" (row {row})") }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
