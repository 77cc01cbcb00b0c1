//! What can be wrong with how `dlm` is called, beyond what the parser of arguments sees.

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// A command was given nothing to work with.
    #[error("{what} is missing")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// How to give it.
        help: &'static str,
    },
    /// An argument has a value that cannot be.
    #[error("{what} is {found}, but must be {expected}")]
    Invalid {
        /// Which argument.
        what: String,
        /// Its value.
        found: String,
        /// What it has to be.
        expected: String,
    },
}

impl UsageError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Missing { help, .. } => Some((*help).to_owned()),
            Self::Invalid { .. } => None,
        }
    }
}
