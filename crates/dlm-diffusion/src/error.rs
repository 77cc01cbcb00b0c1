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
    /// A schedule of the user's own masks less as time goes on.
    #[error("the noise schedule `{name}` falls: p_mask is {p_mask} at t = {t} and was {before} shortly before")]
    NotMonotone {
        /// Which schedule.
        name: String,
        /// Where it falls.
        t: f64,
        /// Its value there.
        p_mask: f64,
        /// Its value before.
        before: f64,
    },
    /// A parameter was set that the chosen schedule does not have.
    #[error("`{parameter}` is set, but the noise schedule `{schedule}` has no such parameter")]
    ForeignParameter {
        /// Which parameter.
        parameter: &'static str,
        /// The schedule.
        schedule: ScheduleName,
    },
    /// A document does not divide into whole blocks, as was asked.
    #[error(
        "the document of {len} tokens at row {row}, position {position} does not divide into blocks of {block_length} tokens"
    )]
    UnevenBlocks {
        /// Row of the batch.
        row: i64,
        /// Where it begins in the row.
        position: usize,
        /// Its tokens.
        len: usize,
        /// Tokens of a block.
        block_length: i64,
    },
    /// Block lengths over the steps of a run that cannot be read.
    #[error("`{found}` is no list of block lengths")]
    BlockLengths {
        /// What was given.
        found: String,
    },
    /// There is no token to score.
    #[error("there is nothing to score: {why}")]
    NothingToScore {
        /// Why not, in words.
        why: &'static str,
    },
    /// Two settings exclude each other.
    #[error("{what}")]
    Conflict {
        /// Which, and why.
        what: &'static str,
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
    /// A token id of a document lies outside the vocabulary.
    #[error(
        "token id {id} at position {position} of document {document} is not below the vocabulary size {vocab_size}"
    )]
    DocumentBeyondVocabulary {
        /// The id.
        id: i64,
        /// The document's id.
        document: i64,
        /// Position in what is scored of it at a time.
        position: usize,
        /// Tokens that are scored.
        vocab_size: i64,
    },
    /// The denoiser gave NaN or infinite values.
    #[error("the {what} of row {row}, document {document} in it, is not finite")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Row of the batch.
        row: i64,
        /// The document's number in its row, from 1 on: its segment.
        document: i64,
    },
    /// The denoiser gave NaN or infinite values for a document.
    #[error("the loss of document {document} is not finite")]
    NotFiniteDocument {
        /// The document's id.
        document: i64,
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
                let [names @ .., last] = ScheduleName::ALL.map(|name| format!("`{name}`"));
                Some(format!("the schedules are {} and {last}", names.join(", ")))
            }
            Self::ForeignParameter { parameter, .. } => {
                let schedules =
                    if *parameter == "schedule_power" { "`polynomial`" } else { "`linear_sigma` and `geometric`" };
                Some(format!("leave it out; {schedules} would use it"))
            }
            Self::UnevenBlocks { .. } => Some(
                "fill documents up to whole blocks with the data step `answer_tail`, or let the last block be shorter: \
                 `last_block = \"shorter\"`"
                    .to_owned(),
            ),
            Self::BlockLengths { .. } => Some(
                "write step:length pairs with rising steps that begin at 0, such as `0:1, 500:4, 1000:32`".to_owned(),
            ),
            Self::IdBeyondVocabulary { .. } | Self::DocumentBeyondVocabulary { .. } => {
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
