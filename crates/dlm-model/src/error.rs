//! What can go wrong between a folder and a denoiser: settings, files, tensors and inputs that do not fit.

use std::{fmt, io, path::PathBuf};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, ModelError>;

/// Why a model could not be made, used or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A JSON file is malformed; the source says at which line and column.
    #[error("`{}` is not valid: {source}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        #[source]
        source: serde_json::Error,
    },
    /// The architecture is none that is implemented.
    #[error("`{}` describes the architecture `{found}`, but the known ones are {known}: {differs}", path.display())]
    UnknownFamily {
        /// The config.json.
        path: PathBuf,
        /// Its `architectures` and `model_type`.
        found: String,
        /// What is implemented.
        known: String,
        /// How it differs from those, as far as its names and keys tell.
        differs: String,
    },
    /// A key that has no default is absent.
    #[error("`{}` has no `{key}`", path.display())]
    MissingKey {
        /// The config.json.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key has a value of the wrong type, out of range, or that asks for another computation.
    #[error("`{key}` is {found} in `{}`, but must be {accepted}", path.display())]
    Value {
        /// The config.json.
        path: PathBuf,
        /// The key, with a dot before those of inner objects.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// What is accepted, in words.
        accepted: String,
    },
    /// A key that may change what the model computes, in a way not known here.
    #[error("`{key}` in `{}` is not known to the {family} family and may change what the model computes", path.display())]
    UnknownKey {
        /// The config.json.
        path: PathBuf,
        /// The key, with a dot before those of inner objects.
        key: String,
        /// The family it was read as.
        family: &'static str,
    },
    /// No preset of that name.
    #[error("`{name}` is no preset, but {known} are")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// The presets.
        known: String,
    },
    /// The folder holds no weights.
    #[error("`{}` holds neither `model.safetensors` nor `model.safetensors.index.json`", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds only pickled weights, which can run code when they are opened.
    #[error("`{}` holds its weights as `{file}`, but only safetensors are read", folder.display())]
    PickledWeights {
        /// The folder.
        folder: PathBuf,
        /// The first such file.
        file: String,
    },
    /// A safetensors file is truncated or its header wrong.
    #[error("`{}` is no whole safetensors file: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file is truncated or contradicts itself.
    #[error("`{}` is no whole GGUF file: {reason}", path.display())]
    DamagedGguf {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file has what is not read.
    #[error("the {what} of `{}` is {found}, but read is {accepted}", path.display())]
    UnsupportedGguf {
        /// Which file.
        path: PathBuf,
        /// What of it.
        what: String,
        /// What it is.
        found: String,
        /// What is read.
        accepted: String,
    },
    /// Tensors and config.json do not fit each other.
    #[error("the tensors in `{}` do not fit its config.json: {difference}", folder.display())]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Which are missing, unexpected or misshapen.
        difference: TensorDifference,
    },
    /// A tensor is stored as a kind that weights do not have.
    #[error("`{name}` in `{}` is stored as {found}, but F32, BF16 or F16 is expected", path.display())]
    StoredKind {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// Its stored kind.
        found: String,
    },
    /// The config.json ties the head to the embedding, but the file holds different values for them.
    #[error("`{}` says `tie_word_embeddings`, but its `{head}` differs from its `{embedding}`", folder.display())]
    UntiedHead {
        /// The folder.
        folder: PathBuf,
        /// The head's tensor.
        head: String,
        /// The embedding's tensor.
        embedding: String,
    },
    /// A setting of an adapter is out of range, or names what the model does not have.
    #[error("`{name}` of the adapter is {value}, but must be {accepted}")]
    LoraSetting {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is accepted, in words.
        accepted: String,
    },
    /// An adapter is to be added to a model that has one.
    #[error("the model has an adapter already")]
    HasAdapter,
    /// The base model of an adapter was not found.
    #[error("the base model of the adapter `{}` was not found: it names {found}", folder.display())]
    NoBaseModel {
        /// The adapter's folder.
        folder: PathBuf,
        /// What it names.
        found: String,
    },
    /// A window does not fit the cache that it is read with.
    #[error("a window of {batch} rows at places {start} to {end} does not fit a cache of {rows} rows and {len} places")]
    CacheMismatch {
        /// Rows of the cache.
        rows: i64,
        /// Cached tokens of each row.
        len: i64,
        /// Rows of the window.
        batch: i64,
        /// Its first place.
        start: i64,
        /// The place after its last.
        end: i64,
    },
    /// Weights hold numbers that are none.
    #[error("weights are not finite: {}", not_finite(names))]
    NotFinite {
        /// The parameters and how many NaNs and infinities each holds.
        names: Vec<(String, i64)>,
    },
    /// A kind of number that the model cannot compute in.
    #[error("a model cannot compute in {found:?}, but in Float, BFloat16 or Half")]
    ComputeKind {
        /// The kind asked for.
        found: tch::Kind,
    },
    /// A kind of number that weights of another kind are not computed in.
    #[error(
        "a model whose weights are in {weights:?} cannot compute in {found:?}: convert it, or compute in the kind of its weights or, \
         where that is Float, in BFloat16"
    )]
    ComputeMix {
        /// The kind of the weights.
        weights: tch::Kind,
        /// The kind asked for.
        found: tch::Kind,
    },
    /// A row is longer than the model can read.
    #[error("a row of {seq_len} tokens is longer than the {max_seq_len} positions of the model")]
    SequenceTooLong {
        /// Tokens in the row.
        seq_len: i64,
        /// `max_position_embeddings`.
        max_seq_len: i64,
    },
    /// A position lies outside what the model was made for.
    #[error("position {position} is not one of the {max_seq_len} positions of the model")]
    PositionOutOfRange {
        /// The position.
        position: i64,
        /// `max_position_embeddings`.
        max_seq_len: i64,
    },
    /// The mask token has no row in the embedding.
    #[error("`mask_token_id` {mask_token_id} is not one of the {vocab_size} rows of the embedding")]
    MaskTokenOutOfRange {
        /// The id.
        mask_token_id: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] dlm_files::FileError),
    /// libtorch refused an operation, for example for lack of memory.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

impl ModelError {
    /// What the person who sees the error can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Read { path, source }
                if source.kind() == io::ErrorKind::NotFound && path.ends_with("config.json") =>
            {
                "name a model folder: one with config.json, model.safetensors and tokenizer.json".to_owned()
            }
            Self::PickledWeights { .. } => {
                "convert it with transformers: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)`"
                    .to_owned()
            }
            Self::NoWeights { .. } => "copy or download the folder's safetensors files too".to_owned(),
            Self::Damaged { .. } | Self::DamagedGguf { .. } => {
                "copy or download the file again, and compare its size and checksum".to_owned()
            }
            Self::UnsupportedGguf { what, .. } if what.starts_with("format") => {
                "take a file that was quantised in these, such as `Q4_K_M` or `Q8_0`".to_owned()
            }
            Self::UnknownKey { key, .. } => {
                format!("remove `{key}` from config.json only if you know that it changes nothing in this model")
            }
            Self::Tensors { difference, .. } if !difference.misshapen.is_empty() => {
                "the weights belong to another config.json; take both from the same model".to_owned()
            }
            Self::Tensors { .. } => "take config.json and all weight files from the same model".to_owned(),
            Self::UntiedHead { .. } => "set `tie_word_embeddings` to false to keep both".to_owned(),
            Self::HasAdapter => "merge it first".to_owned(),
            Self::NoBaseModel { .. } => {
                "name the base model's folder and the adapter's apart from each other".to_owned()
            }
            Self::NotFinite { .. } => {
                "the training that made them diverged, or the file is damaged: take an earlier checkpoint".to_owned()
            }
            Self::SequenceTooLong { max_seq_len, .. } => format!("cut rows to {max_seq_len} tokens"),
            Self::PositionOutOfRange { max_seq_len, .. } => format!("cut documents to {max_seq_len} tokens"),
            Self::MaskTokenOutOfRange { .. } => "grow the vocabulary first, or name a token that exists".to_owned(),
            _ => return None,
        })
    }
}

/// How the tensors of a folder differ from those that its config.json asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TensorDifference {
    /// Asked for, but not there.
    pub missing: Vec<String>,
    /// There, but not asked for.
    pub unexpected: Vec<String>,
    /// There with another shape: name, shape found, shape expected.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl TensorDifference {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect();
        let shapes = self.misshapen.iter();
        let shapes = shapes.map(|(name, found, expected)| format!("`{name}` is {found:?} instead of {expected:?}"));
        let kinds: [(&str, Vec<String>); 3] = [
            ("missing", quoted(&self.missing)),
            ("unexpected", quoted(&self.unexpected)),
            ("misshapen", shapes.collect()),
        ];
        let mut separator = "";
        for (kind, items) in kinds.iter().filter(|(_, items)| !items.is_empty()) {
            write!(f, "{separator}{} {kind}: {}", items.len(), shortened(items))?;
            separator = "; ";
        }
        Ok(())
    }
}

fn not_finite(names: &[(String, i64)]) -> String {
    let items: Vec<String> = names.iter().map(|(name, count)| format!("`{name}` holds {count}")).collect();
    shortened(&items)
}

/// The first few of a list that may be thousands long.
fn shortened(items: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text += ", ...";
    }
    text
}
