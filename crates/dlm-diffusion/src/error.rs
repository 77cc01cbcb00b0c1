//! What can go wrong in the mathematics: shapes, ranges and numbers that do not fit.

use crate::schedule::ScheduleName;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, DiffusionError>;

/// Why a step of masked diffusion could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// A tensor is not shaped as its place asks.
    #[error("`{name}` is shaped {found:?}, but {expected} was expected")]
    ShapeMismatch {
        /// Which tensor.
        name: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The shape it must have, in words or as numbers.
        expected: String,
    },
    /// A tensor holds another kind of number than its place asks.
    #[error("`{name}` holds {found:?}, but {expected} was expected")]
    KindMismatch {
        /// Which tensor.
        name: &'static str,
        /// Its kind.
        found: tch::Kind,
        /// The kind it must have, in words.
        expected: &'static str,
    },
    /// A setting lies outside its range.
    #[error("`{name}` is {value}, but must be {expected}")]
    OutOfRange {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// The bounds of the mask ratio are in the wrong order.
    #[error("`min_mask_ratio` {min} is larger than `max_mask_ratio` {max}")]
    EmptyMaskRange {
        /// Smallest ratio.
        min: f64,
        /// Largest ratio.
        max: f64,
    },
    /// No schedule has that name.
    #[error("`{found}` is no noise schedule")]
    UnknownSchedule {
        /// What was asked for.
        found: String,
    },
    /// A token id lies outside the vocabulary.
    #[error("token id {id} at row {row}, position {position} is not below the vocabulary size {vocab_size}")]
    IdBeyondVocabulary {
        /// The id.
        id: i64,
        /// Row of the batch.
        row: i64,
        /// Position in the row.
        position: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// The denoiser gave NaN or infinite values.
    #[error("the {what} of row {row} is not finite")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Row of the batch.
        row: i64,
    },
    /// The denoiser failed: a reason of its own, such as a sequence longer than it can read.
    #[error("the denoiser failed: {0}")]
    Denoiser(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// libtorch refused an operation, for example for lack of memory.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

impl DiffusionError {
    /// Wraps an error of a [`Denoiser`](crate::Denoiser)'s own.
    pub fn denoiser(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Denoiser(Box::new(error))
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::OutOfRange { name: "eps", .. } => Some("0.001 is usual".to_owned()),
            Self::EmptyMaskRange { .. } => {
                Some("swap the two, or leave both out to train on every mask ratio".to_owned())
            }
            Self::UnknownSchedule { .. } => {
                let names = ScheduleName::ALL.map(|name| format!("`{name}`"));
                Some(format!("the schedules are {}", names.join(" and ")))
            }
            Self::IdBeyondVocabulary { .. } => {
                Some("prepare the data with the tokenizer that belongs to this model".to_owned())
            }
            Self::NotFinite { .. } => {
                Some("lower the learning rate, or train in float32 if this happens in the first steps".to_owned())
            }
            Self::Torch(_) => Some("if memory ran out, lower `micro_batch_size` or `sequence_len`".to_owned()),
            _ => None,
        }
    }
}
