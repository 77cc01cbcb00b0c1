//! What can go wrong while decoding.

use dlm_diffusion::DiffusionError;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, SampleError>;

/// Why a canvas could not be made or not be filled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A canvas without a single token.
    #[error("there is nothing to start from: the prompt is empty and no tokens are to be generated")]
    EmptyCanvas,
    /// A canvas longer than any model reads.
    #[error("a canvas of {len} tokens is longer than {limit}")]
    CanvasTooLong {
        /// Tokens asked for.
        len: usize,
        /// The longest canvas.
        limit: usize,
    },
    /// A position to be masked lies outside the sequence.
    #[error("position {position} cannot be masked in a sequence of {len} tokens")]
    PositionBeyondCanvas {
        /// The position, counted from 0.
        position: usize,
        /// Tokens of the sequence.
        len: usize,
    },
    /// Something given per token does not have one value for each.
    #[error("`{name}` holds {found} values for {expected} tokens")]
    LengthMismatch {
        /// What was given.
        name: &'static str,
        /// Its length.
        found: usize,
        /// Tokens of the sequence.
        expected: usize,
    },
    /// A mask ratio that is no share of a sequence.
    #[error("`mask ratio` is {ratio}, but must be above 0 and at most 1")]
    RatioOutOfRange {
        /// The ratio.
        ratio: f64,
    },
    /// Random masks were asked for where every token is to be kept.
    #[error("none of the {len} tokens may be masked: all of them are to be kept")]
    NothingToMask {
        /// Tokens of the sequence.
        len: usize,
    },
    /// The labels name no token that the model should produce.
    #[error("the labels hold no answer among their {len} values")]
    NoAnswer {
        /// Values of the labels.
        len: usize,
    },
    /// A setting of the sampler lies outside its range.
    #[error("`{name}` is {value}, but must be {expected}")]
    OutOfRange {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The range, in words.
        expected: &'static str,
    },
    /// A token id lies outside the vocabulary.
    #[error("{what} id {id} is outside the vocabulary of {vocab_size} tokens")]
    IdOutsideVocabulary {
        /// Whose id: a canvas token's, the mask token's, a forbidden one.
        what: &'static str,
        /// The id.
        id: i64,
        /// Tokens of the vocabulary.
        vocab_size: i64,
    },
    /// A canvas was made with another mask token than the sampler fills.
    #[error("canvas {row} holds id {found} at masked position {position}, but `mask_token_id` is {mask_token_id}")]
    MaskMismatch {
        /// Index of the canvas.
        row: usize,
        /// The position, counted from 0.
        position: usize,
        /// The id found there.
        found: i64,
        /// The sampler's mask token.
        mask_token_id: i64,
    },
    /// No token is left that may be predicted.
    #[error("all {vocab_size} tokens of the vocabulary are forbidden")]
    EverythingForbidden {
        /// Tokens of the vocabulary.
        vocab_size: i64,
    },
    /// Draws of another shape than asked for.
    #[error("the draws of step {step} are shaped {found:?}, but {expected:?} was asked for")]
    DrawsMismatch {
        /// The step, counted from 0.
        step: usize,
        /// Their shape.
        found: Vec<i64>,
        /// The shape asked for.
        expected: [i64; 2],
    },
    /// The model's scores are NaN or infinite, so that nothing can be chosen.
    #[error("the scores of canvas {row} are not finite at position {position} in step {step}")]
    NotFinite {
        /// Index of the canvas.
        row: usize,
        /// The position, counted from 0.
        position: usize,
        /// The step, counted from 0.
        step: usize,
    },
    /// A command before a prompt was given a value that makes no sense.
    #[error("`:{command} {value}` makes no sense: {expected}")]
    BadCommand {
        /// The command, without its colon.
        command: &'static str,
        /// What was given.
        value: String,
        /// What it takes, in words.
        expected: &'static str,
    },
    /// The denoiser failed.
    #[error(transparent)]
    Denoiser(#[from] DiffusionError),
    /// libtorch refused an operation, for example for lack of memory.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

impl SampleError {
    /// What to do about it, where that is not plain from the message.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::EmptyCanvas => "give a prompt, or a number of tokens to generate".to_owned(),
            Self::CanvasTooLong { .. } => "generate fewer tokens at once".to_owned(),
            Self::PositionBeyondCanvas { len, .. } => {
                format!("positions are counted from 0, so the last one is {}", len.saturating_sub(1))
            }
            Self::RatioOutOfRange { .. } => "0.3 masks three tokens in ten, 1 masks all of them".to_owned(),
            Self::NothingToMask { .. } => "give a longer text, or keep fewer tokens".to_owned(),
            Self::NoAnswer { .. } => "mask at random, or append masks to complete the text".to_owned(),
            Self::IdOutsideVocabulary { .. } => {
                "the ids come from another tokenizer than the model's; give the one that was saved beside it".to_owned()
            }
            Self::MaskMismatch { .. } => "make the canvas with the same mask token as the sampler".to_owned(),
            Self::EverythingForbidden { .. } => "forbid fewer tokens".to_owned(),
            Self::NotFinite { .. } => {
                "the weights are damaged or a training run diverged; try float32 if they are loaded as bfloat16"
                    .to_owned()
            }
            Self::BadCommand { command: "complete", .. } => {
                "write for example `:complete 64` and then the prompt".to_owned()
            }
            Self::BadCommand { .. } => "write for example `:mask 0.4` and then the text".to_owned(),
            _ => return None,
        })
    }
}
