//! What numbers weights are: in memory for inference, and in the files of a saved folder.

use dlm_model::Model;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Kind;

/// What weights can be stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Four bytes a number
    Float32,
    /// Two bytes a number, with the range of float32
    Bfloat16,
    /// Two bytes a number, finer and of smaller range
    Float16,
}

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float,
            Dtype::Bfloat16 => Self::BFloat16,
            Dtype::Float16 => Self::Half,
        }
    }
}

/// What weights can be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LoadDtype {
    /// As they are stored
    Auto,
    /// Four bytes a number
    Float32,
    /// Two bytes a number, with the range of float32
    Bfloat16,
    /// Two bytes a number, finer and of smaller range
    Float16,
}

impl LoadDtype {
    /// The kind that the weights of a model folder are read as.
    pub(crate) fn kind(self, folder: &Path) -> dlm_model::Result<Kind> {
        match self {
            Self::Auto => Model::stored_kind(folder),
            Self::Float32 => Ok(Kind::Float),
            Self::Bfloat16 => Ok(Kind::BFloat16),
            Self::Float16 => Ok(Kind::Half),
        }
    }
}
