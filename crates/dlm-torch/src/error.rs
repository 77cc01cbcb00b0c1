//! What libtorch refuses, in its own words.

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, TorchError>;

/// Why libtorch could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// libtorch refused: shapes or kinds that do not fit, or no memory.
    #[error("libtorch failed in `{operation}`: {message}")]
    Libtorch {
        /// Which operation.
        operation: &'static str,
        /// libtorch's message.
        message: String,
    },
    /// Lists that must be equally long are not.
    #[error("`{name}` holds {found} tensors for {expected} parameters")]
    UnequalLists {
        /// Which list.
        name: &'static str,
        /// Its length.
        found: usize,
        /// The number of parameters.
        expected: usize,
    },
}
