//! What can go wrong with a tokenizer: its files, its special tokens, its chat template, a text.

use dlm_files::FileError;
use std::{io, path::PathBuf};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, TokenizerError>;

/// What the `tokenizers` library reports.
pub(crate) type LibraryError = Box<dyn std::error::Error + Send + Sync>;

/// Why a tokenizer could not be loaded, used, trained or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no tokenizer in it.
    #[error("there is no `tokenizer.json` at `{}`", path.display())]
    Missing {
        /// The folder or file that was named.
        path: PathBuf,
    },
    /// A file is there and cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON.
    #[error("`{}` is not valid JSON at line {line}, column {column}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A file is JSON, but no tokenizer.
    #[error("`{}` does not describe a tokenizer: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LibraryError,
    },
    /// A key of a file holds something else than it must.
    #[error("`{key}` in `{}` is {found}, but must be {expected}", path.display())]
    WrongValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What it must hold.
        expected: &'static str,
    },
    /// The tokenizer leaves out merges at random, so that a text would have other ids each time.
    #[error("`{}` drops {dropout} of all merges at random, and the same text must always have the same ids: set `model.dropout` to null", path.display())]
    Dropout {
        /// The file.
        path: PathBuf,
        /// The share of merges.
        dropout: f64,
    },
    /// The files of a tokenizer cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// The tokenizer refused a text.
    #[error("cannot encode the text: {source}")]
    Encode {
        /// Why.
        #[source]
        source: LibraryError,
    },
    /// The tokenizer refused ids.
    #[error("cannot decode the ids: {source}")]
    Decode {
        /// Why.
        #[source]
        source: LibraryError,
    },
    /// A text holds a special token of one character, which cannot be told from the character.
    #[error("the text holds `{token}`, which this tokenizer reads as a special token whatever stands around it")]
    OneCharacterSpecial {
        /// The special token.
        token: String,
    },
    /// A text uses up the characters that Unicode reserves for programs, which are needed as marks.
    #[error("the text holds every character between U+FDD0 and U+FDEF, of which some are needed as marks")]
    NoMarkLeft,
    /// No token has this id.
    #[error("no token has the id {id}: the tokenizer has {len} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// Tokens of the tokenizer, added ones included.
        len: usize,
    },
    /// No token is spelled like this.
    #[error("the tokenizer has no token `{text}`")]
    UnknownToken {
        /// The text.
        text: String,
    },
    /// A special token was to get a role that there is not.
    #[error("there is no special token `{key}`: there are `bos_token`, `eos_token`, `pad_token` and `unk_token`")]
    UnknownRole {
        /// What was asked for.
        key: String,
    },
    /// The mask token would be one that ends, begins or fills texts.
    #[error("token {id} (`{text}`) is the tokenizer's {role} token and cannot be the mask token as well")]
    MaskIsTaken {
        /// The id.
        id: u32,
        /// The token's text.
        text: String,
        /// `bos`, `eos` or `pad`.
        role: &'static str,
    },
    /// The mask token does not exist and must not be added.
    #[error("the tokenizer has no token `{text}` to use as the mask token")]
    MaskMissing {
        /// The text that was looked for.
        text: String,
    },
    /// A mask token without text.
    #[error("the text of the mask token is empty")]
    EmptyMask,
    /// A conversation was to be rendered and there is no template.
    #[error("the tokenizer has no chat template{}", .name.as_ref().map(|name| format!(" named `{name}`")).unwrap_or_default())]
    NoChatTemplate {
        /// The name that was asked for, if one was.
        name: Option<String>,
    },
    /// A chat template cannot be compiled, or refused a conversation.
    #[error("chat template `{template}`{}: {message}", .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Template {
        /// The template's name or path.
        template: String,
        /// Line in it, from 1.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// There was nothing to train on.
    #[error("there is no text to train a tokenizer on")]
    NoText,
    /// The vocabulary has no room for what every byte-level tokenizer holds.
    #[error(
        "a vocabulary of {vocab_size} tokens is too small: 256 bytes and {n_specials} special tokens need {smallest}"
    )]
    VocabularyTooSmall {
        /// The size that was asked for.
        vocab_size: usize,
        /// Special tokens among them.
        n_specials: usize,
        /// The smallest size that works.
        smallest: usize,
    },
    /// Two special tokens are spelled alike, or one is empty.
    #[error("the special token `{text}` is empty or named twice")]
    BadSpecial {
        /// Its text.
        text: String,
    },
    /// A special token is spelled like an ordinary word of the text.
    #[error("the special token `{text}` is spelled like a word of the training text, which would be read as it")]
    SpecialIsText {
        /// Its text.
        text: String,
    },
    /// The trainer failed.
    #[error("cannot train the tokenizer: {source}")]
    Train {
        /// Why.
        #[source]
        source: LibraryError,
    },
}

impl TokenizerError {
    /// What to do about it, for people.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Missing { .. } => {
                "name a model folder that holds one, or train one with `dlm tokenizer train`; an older folder without it \
                 gets one from transformers' `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
                    .to_owned()
            }
            Self::Json { .. } | Self::Invalid { .. } => {
                "the file may be cut off or a Git LFS pointer: fetch it again".to_owned()
            }
            Self::UnknownId { .. } => {
                "ids above the tokenizer's length are padding rows of the embedding: the ids belong to another tokenizer, \
                 or the sampler was allowed to choose such rows"
                    .to_owned()
            }
            Self::MaskIsTaken { .. } => {
                "choose another `diffusion.mask_token_id` or `diffusion.mask_token_str`; leave both unset to add \
                 `<|diffusion_mask|>`"
                    .to_owned()
            }
            Self::MaskMissing { .. } => {
                "name the model folder that training saved, whose tokenizer has the mask token, or set \
                 `diffusion.mask_token_id` or `diffusion.mask_token_str` to a token that the tokenizer has"
                    .to_owned()
            }
            Self::NoChatTemplate { .. } => {
                "put a `chat_template.jinja` into the model folder, or name a template in the pipeline".to_owned()
            }
            Self::VocabularyTooSmall { smallest, .. } => format!("ask for at least {smallest} tokens"),
            Self::NoText => "check the pipeline's sources and filters: they gave no text".to_owned(),
            Self::SpecialIsText { .. } | Self::BadSpecial { .. } => {
                "spell special tokens unlike any text, each its own way, for example `<|name|>`".to_owned()
            }
            _ => return None,
        })
    }
}
