//! What can go wrong with a run, and what to do about it.

use std::{io, path::PathBuf};

/// A run that could not be started, a value that cannot be logged, or data that did not arrive.
///
/// No message holds the API key, a header or a signed address.
#[derive(Debug, thiserror::Error)]
pub enum WandbError {
    /// A setting has a value that cannot be used.
    #[error("`{name}` is `{value}`; expected {expected}")]
    Setting {
        /// The setting, or the environment variable it came from.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// No API key was given, and none was found.
    #[error("no API key for `{host}`")]
    NoKey {
        /// The server, as a netrc file names it.
        host: String,
    },
    /// The API key does not look like one; it is not repeated here.
    #[error("the API key from {origin} has {length} characters, or others than letters, digits, `_` and `-`")]
    MalformedKey {
        /// Where the key came from.
        origin: String,
        /// How long it is.
        length: usize,
    },
    /// The netrc file is there but cannot be read.
    #[error("cannot read `{}`", path.display())]
    Netrc {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server does not know the API key.
    #[error("`{host}` refused the API key")]
    KeyRefused {
        /// The server.
        host: String,
    },
    /// A new run was wanted, but the id is taken.
    #[error("run `{id}` already exists in project `{project}`")]
    RunExists {
        /// The run's id.
        id: String,
        /// Its project.
        project: String,
    },
    /// A run was to be resumed, but it is not there.
    #[error("there is no run `{id}` in project `{project}` to resume")]
    NoSuchRun {
        /// The run's id.
        id: String,
        /// Its project.
        project: String,
    },
    /// The configuration has no names.
    #[error("the run's config is {found}, not an object")]
    ConfigNotAnObject {
        /// What it is instead.
        found: &'static str,
    },
    /// The HTTP client or its thread could not be made.
    #[error("cannot set up the connection: {reason}")]
    SetUp {
        /// Why.
        reason: String,
    },
    /// The server did not answer in time when the run started.
    #[error("`{host}` could not be reached within {waited_s:.0} s: {reason}")]
    Unreachable {
        /// The server.
        host: String,
        /// How long it was tried, seconds.
        waited_s: f64,
        /// What the last attempt met.
        reason: String,
    },
    /// The server answered, but not with what was asked for.
    #[error("`{operation}` failed: {reason}")]
    Server {
        /// The operation, by its name in the protocol.
        operation: &'static str,
        /// What the server said.
        reason: String,
    },
    /// Steps must not go back.
    #[error("step {step} was logged after step {current}")]
    StepWentBack {
        /// The step of the refused row.
        step: u64,
        /// The step before it.
        current: u64,
    },
    /// A name that the protocol keeps for itself.
    #[error("the name `{key}` is reserved")]
    ReservedName {
        /// The name.
        key: String,
    },
    /// A row or summary is longer than the server takes.
    #[error("{what} is {size_bytes} bytes long; the server takes {limit_bytes}")]
    TooLong {
        /// The row or the summary.
        what: String,
        /// Its length as JSON.
        size_bytes: usize,
        /// The longest that is accepted.
        limit_bytes: usize,
    },
    /// A table's row has not one cell for each column.
    #[error("row {row_idx} of table `{key}` has {cells} cells for {columns} columns")]
    UnevenTable {
        /// The table's name.
        key: String,
        /// The first such row, counted from 0.
        row_idx: usize,
        /// Its cells.
        cells: usize,
        /// The table's columns.
        columns: usize,
    },
    /// The run is over, and the server has not confirmed everything, be it only the end.
    #[error("run `{id}` is incomplete on the server, {rows} rows and {files} files are missing: {reason}")]
    Undelivered {
        /// The run's id.
        id: String,
        /// Rows without the server's confirmation.
        rows: u64,
        /// Files (tables, summary, config) without it.
        files: u64,
        /// What stood in the way.
        reason: String,
    },
}

/// What this crate's functions return.
pub type Result<T, E = WandbError> = std::result::Result<T, E>;

impl WandbError {
    /// What the reader can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Setting { .. } | Self::Server { .. } | Self::ConfigNotAnObject { .. } => return None,
            Self::NoKey { host } => format!(
                "set `WANDB_API_KEY`, or add `machine {host} login user password KEY` to your netrc file; \
                 `WANDB_MODE=disabled` trains without W&B"
            ),
            Self::MalformedKey { .. } => "copy the whole key, at least 40 characters".to_owned(),
            Self::Netrc { .. } => "make the file readable, or set `WANDB_API_KEY`".to_owned(),
            Self::KeyRefused { .. } => {
                "check `WANDB_API_KEY`, and that `WANDB_BASE_URL` names the server that the key is for".to_owned()
            }
            Self::RunExists { .. } => {
                "set `WANDB_RESUME=allow` to continue that run, or choose another id (none: a fresh one)".to_owned()
            }
            Self::NoSuchRun { .. } => {
                "check id, project and entity, or set `WANDB_RESUME=allow` to start it if it is missing".to_owned()
            }
            Self::SetUp { .. } => {
                "encrypted connections need the system's CA certificates (package `ca-certificates`)".to_owned()
            }
            Self::Unreachable { .. } => {
                "check the network and `WANDB_BASE_URL`; `WANDB_MODE=disabled` trains without W&B".to_owned()
            }
            Self::StepWentBack { .. } => {
                "log steps in rising order; one step may be logged in several calls".to_owned()
            }
            Self::ReservedName { .. } => {
                "`_step`, `_runtime`, `_timestamp` and `_wandb` are written for you".to_owned()
            }
            Self::TooLong { .. } => "log long texts as a table, which is uploaded as a file".to_owned(),
            Self::UnevenTable { .. } => {
                "give each row one cell per column; use null where there is no value".to_owned()
            }
            Self::Undelivered { .. } => {
                "the run can be resumed under its id; a longer `finish_timeout` waits out longer outages".to_owned()
            }
        };
        Some(text)
    }
}
