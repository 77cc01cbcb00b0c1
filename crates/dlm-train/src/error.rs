//! What can go wrong while training: settings, numbers, files, and what the crates below refuse.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, TrainError>;

/// Why a run could not begin, go on or be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting lies outside its range.
    #[error("`{name}` is {value}, but must be {expected}")]
    Setting {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The range, in words.
        expected: &'static str,
    },
    /// A name of a learning rate schedule that is none.
    #[error("`lr_scheduler` is `{found}`, but must be one of {}", list(known))]
    UnknownScheduler {
        /// The name.
        found: String,
        /// The names there are.
        known: [&'static str; 4],
    },
    /// The loss or the gradient of a step is not finite. The weights are those before the step.
    #[error("the {what} of step {step} is not finite (trained on documents {})", list(documents))]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// The step, counted from 1.
        step: u64,
        /// The documents that were trained on.
        documents: Vec<i64>,
    },
    /// The data hold no row to train on.
    #[error("the prepared data hold no rows")]
    NoRows,
    /// A token of the data has no row in the model's embedding.
    #[error("document {document} holds token id {id}, but the model knows only ids below {vocab_size}")]
    IdBeyondVocabulary {
        /// The document.
        document: i64,
        /// The id.
        id: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// Rows are longer than the model's context.
    #[error("the rows hold {seq_len} tokens, but the model reads at most {max_seq_len}")]
    RowsTooLong {
        /// Tokens in a row.
        seq_len: usize,
        /// The model's context.
        max_seq_len: usize,
    },
    /// The folder of a run holds another run already.
    #[error("`{}` holds a run already ({found})", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// There is nothing to resume from.
    #[error("`{}` holds no complete checkpoint", path.display())]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// A checkpoint that was made with other data or settings.
    #[error("`{}` was trained otherwise: {}", path.display(), differences.join("; "))]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs: name, value then and value now.
        differences: Vec<String>,
    },
    /// A file of a checkpoint that this program did not write.
    #[error("`{}` is no checkpoint: {reason}", path.display())]
    BadCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The optimiser's state could not be read or written.
    #[error("the optimizer state `{}` does not fit: {reason}", path.display())]
    OptimizerState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that could not be read or appended to.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file that is not the JSON it should be.
    #[error("cannot read `{}`: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file that could not be written whole.
    #[error(transparent)]
    File(#[from] dlm_files::FileError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] dlm_data::DataError),
    /// The mathematics refused an input.
    #[error(transparent)]
    Diffusion(#[from] dlm_diffusion::DiffusionError),
    /// The model could not be loaded, run or saved.
    #[error(transparent)]
    Model(#[from] dlm_model::ModelError),
    /// A sample could not be generated.
    #[error(transparent)]
    Sample(#[from] dlm_sample::SampleError),
    /// An addition to libtorch failed.
    #[error(transparent)]
    Addition(#[from] dlm_torch::TorchError),
    /// libtorch refused an operation, for example for lack of memory.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A sink of the caller's failed.
    #[error("cannot pass on the metrics: {0}")]
    Sink(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl TrainError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let advice = match self {
            Self::NotFinite { .. } => {
                "lower `learning_rate`, lengthen the warmup, or look at these documents; the newest checkpoint is from before this step"
            }
            Self::NoRows => "prepare data with at least one row, see `dlm data inspect`",
            Self::IdBeyondVocabulary { .. } => "prepare the data with the tokenizer of the model",
            Self::RowsTooLong { .. } => {
                "prepare the data with a shorter `sequence_len`, or train a model with a longer context"
            }
            Self::RunExists { .. } => "continue it with `--resume`, or choose another `output_dir`",
            Self::NoCheckpoint { .. } => "start the run without `--resume`",
            Self::OtherRun { .. } => {
                "resume with the data and settings of the checkpoint, or start anew in another `output_dir`"
            }
            Self::BadCheckpoint { .. } | Self::OptimizerState { .. } => {
                "remove this checkpoint; the run then resumes from the one before it"
            }
            // A transparent error is passed over when someone walks the chain, so its advice is given here.
            Self::Data(error) => return error.help(),
            Self::Diffusion(error) => return error.help(),
            Self::Model(error) => return error.help(),
            Self::Sample(error) => return error.help(),
            _ => return None,
        };
        Some(advice.to_owned())
    }

    /// Wraps what a [`MetricSink`](crate::MetricSink) of one's own fails with.
    pub fn sink(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Sink(error.into())
    }

    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        move |source| Self::Json { path: path.to_owned(), source }
    }
}

/// A list in words, cut when it is long.
fn list<T: ToString>(items: &[T]) -> String {
    const SHOWN: usize = 16;
    let shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &rest
}
