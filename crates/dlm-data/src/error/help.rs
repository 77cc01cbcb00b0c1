//! What to do about an error.

use super::DataError;
use datafusion::{arrow::error::ArrowError, error::DataFusionError};

impl DataError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Pipeline { path, .. } => return pipeline_help(path.as_deref()),
            Self::UnknownOverride { .. } => "name a value as in `pack.sequence_len`, `source.0.path` or `output.path`",
            Self::AmbiguousOverride { .. } => "use one of the longer names",
            Self::NoFiles { .. } => "paths are relative to the pipeline file; `~` and variables are not expanded",
            Self::Circular { .. } => "what a preparation made is none of its sources: choose another output folder",
            Self::Packed { .. } => "unpack the file first: Parquet and Arrow compress their columns themselves",
            Self::ReservedColumn { .. } => {
                "rename the column in the file, or name the columns that are wanted in `columns` of the source"
            }
            Self::MixedFormats { .. } => "name one format, as in `data/*.parquet`, or give each its own source",
            Self::Json { .. } => {
                "a `.jsonl` file has one JSON object a line; a `.json` file may hold one list of objects; \
                 `on_error = \"skip\"` leaves out what cannot be read"
            }
            Self::Damaged { .. } => {
                "correct or copy the file again, or leave out what cannot be read: `on_error = \"skip\"`"
            }
            Self::Remote { status: Some(401 | 403), .. } => {
                "credentials come from the environment: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, \
                 `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY`, `HF_TOKEN`; \
                 a gated repository of the hub also asks for its terms to be accepted"
            }
            Self::Remote { status: Some(404), .. } => {
                "check the address: bucket or repository, revision, path, and its case"
            }
            Self::Remote { status: None, .. } => {
                "check the address and the connection; what was brought here whole stays"
            }
            Self::Remote { .. } => "try again later: what was brought here whole stays",
            Self::Parquet { .. } | Self::Shard { .. } => "the file was cut off or changed: make or copy it again",
            Self::ColumnTypes { .. } => {
                "give the files different sources and bring the column to one type with `select`"
            }
            Self::UnknownColumn { .. } => {
                "column names are case-sensitive; `select` can rename: `\"Answer\" as output`"
            }
            Self::UnknownField { .. } => "correct the name, or leave the option out where the data has no such field",
            Self::Sql { .. } => {
                "expressions are DataFusion SQL: text in single quotes, odd column names in double quotes"
            }
            Self::MadeRow { .. } => "leave such rows out with `where` in the query, or with a `filter` step behind it",
            Self::Row { .. } => "leave such rows out with a `filter` step, or correct the file",
            Self::NoPadding { .. } | Self::NoEnd { .. } => {
                "name one in the tokenizer's `tokenizer_config.json`: `pad_token`, `eos_token`"
            }
            Self::NoTemplate { .. } => "put a `chat_template.jinja` beside the tokenizer, or use `format = \"alpaca\"`",
            Self::Memory { .. } => "raise the memory limit, or lower `pack.window` or `dedup.near.bands`",
            Self::Empty { .. } => "look at the steps that leave rows out, and at the column that is tokenized",
            Self::Occupied { foreign: true, .. } => {
                "choose another output folder: what dlm did not make is not overwritten"
            }
            Self::Occupied { .. } => "choose another output folder, or ask for it to be overwritten",
            Self::Busy { .. } => "wait for it to end, or choose another output folder",
            Self::EmptySide { .. } => "prepare it from more documents, or set fewer aside with `split.validation`",
            Self::Unmixable { .. } => "prepare both with one tokenizer and one `pack.sequence_len`",
            Self::NotPrepared { .. } => "prepare the data first: `dlm data prepare PIPELINE`",
            Self::Tokenizer(error) => return error.help(),
            Self::Account { .. } => "this is a mistake in dlm, and the data was not written: please report it",
            Self::Read { .. } | Self::Write(_) | Self::UnknownFormat { .. } => return None,
            Self::DataFusion { source, .. } if is_of_a_value(source) => {
                "an expression of a step (`filter`, `select`, `map`, `sql`) or of a source's `columns` met a value that it cannot work on: \
                 `try_cast` gives null in place of an error, and so does `nullif(x, 0)` under a division"
            }
            Self::Invalid(_) | Self::DataFusion { .. } => return None,
        };
        Some(help.to_owned())
    }
}

/// Whether a value made an expression fail while rows went through it.
fn is_of_a_value(error: &DataFusionError) -> bool {
    let DataFusionError::ArrowError(error, _) = error else { return false };
    use ArrowError::{ArithmeticOverflow, CastError, ComputeError, DivideByZero, InvalidArgumentError, ParseError};
    matches!(
        **error,
        ArithmeticOverflow(_) | CastError(_) | ComputeError(_) | DivideByZero | InvalidArgumentError(_) | ParseError(_)
    )
}

/// What a pipeline is made of; nothing for a file that is none.
fn pipeline_help(path: Option<&std::path::Path>) -> Option<String> {
    let is_yaml = path.and_then(std::path::Path::extension).is_some_and(|end| end == "yaml" || end == "yml");
    let steps = crate::step::STEPS.join(", ");
    (!is_yaml).then(|| {
        format!(
            "a pipeline has the keys source, step, output, mix, on_error and resources; each [[step]] is one of {steps}; docs/pipelines.md \
             and docs/chat_formats.md of dlm's repository describe their options"
        )
    })
}
