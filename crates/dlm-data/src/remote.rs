//! Files on other machines, brought here whole before they are read.
//!
//! An object is streamed to a file of the cache under its address and entity tag, whole or not at all; from there on it is a local
//! file, with every format and checksum that those have, and a second run asks only whether the tag is still the same. The hub has
//! the cache that its other clients share. Credentials come from the environment and go nowhere but into requests.

mod address;
mod cache;
mod hub;
mod object;
mod request;
mod web;

pub(crate) use self::address::{is_remote, path_of, redacted};

use crate::{
    error::{DataError, Result},
    source::Source,
};
use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

/// How other machines are reached: credentials, endpoints, the cache, patience.
#[derive(Clone, Default, PartialEq)]
pub struct Remote {
    /// Stands for the environment of the process: `AWS_*`, `GOOGLE_*`, `AZURE_*`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, ...
    pub variables: Option<BTreeMap<String, String>>,
    /// Where objects are kept, in place of `$XDG_CACHE_HOME/dlm/remote`.
    pub cache: Option<PathBuf>,
    /// How often and after which waits a request is repeated.
    pub retry: Retry,
}

/// How often and after which waits a request is repeated that failed for a reason that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Requests in all.
    pub attempts: u32,
    /// The wait after the first one; it doubles each time.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
}

impl Default for Retry {
    /// Six requests within about half a minute.
    fn default() -> Self {
        Self { attempts: 6, first_wait: Duration::from_secs(1), longest_wait: Duration::from_secs(20) }
    }
}

impl fmt::Debug for Remote {
    /// Without the values of variables, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let variables = self.variables.as_ref().map(|variables| variables.keys().collect::<Vec<_>>());
        f.debug_struct("Remote")
            .field("variables", &variables)
            .field("cache", &self.cache)
            .field("retry", &self.retry)
            .finish()
    }
}

impl Remote {
    /// The variables that are set to something.
    fn variables(&self) -> BTreeMap<String, String> {
        let all = self.variables.clone().unwrap_or_else(|| {
            let unicode = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            };
            std::env::vars_os().filter_map(unicode).collect()
        });
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    fn cache_folder(&self) -> Result<PathBuf> {
        if let Some(cache) = &self.cache {
            return Ok(cache.clone());
        }
        let variables = self.variables();
        let cache = variables.get("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = cache.or_else(|| Some(PathBuf::from(variables.get("HOME")?).join(".cache")));
        let cache = cache.ok_or_else(|| DataError::Invalid("neither `XDG_CACHE_HOME` nor `HOME` is set".to_owned()))?;
        Ok(cache.join("dlm").join("remote"))
    }
}

/// A file that was brought here.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    /// Where it lies now.
    pub(crate) path: PathBuf,
    /// Where it came from, without secrets.
    pub(crate) address: String,
}

/// Brings the files here that an address or a pattern of addresses names, by name.
pub(crate) fn fetch(source: &Source, remote: &Remote) -> Result<Vec<RemoteFile>> {
    let pattern = source.path.as_str();
    let url = address::parse(pattern)?;
    let files = block_on(|| async {
        match url.scheme() {
            "http" | "https" => web::fetch(&url, source, remote).await,
            "hf" => hub::fetch(source, remote).await,
            _ => object::fetch(&url, source, remote).await,
        }
    })?;
    if files.is_empty() {
        return Err(DataError::Remote {
            address: redacted(pattern),
            status: None,
            message: "nothing there is a data file of this name".to_owned(),
        });
    }
    Ok(files)
}

/// The folder with the tokenizer of `hf://OWNER/NAME[@REVISION]`, brought here.
pub(crate) fn tokenizer(address: &str, remote: &Remote) -> Result<PathBuf> {
    address::parse(address)?;
    block_on(|| hub::tokenizer(address, remote))
}

/// Waits for something asynchronous on a thread of its own: the caller may be at work on a runtime already.
fn block_on<T: Send, F: Future<Output = Result<T>>>(work: impl FnOnce() -> F + Send) -> Result<T> {
    // The first installed provider stays: if another crate was faster, its choice serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| DataError::Invalid(format!("cannot start a thread: {error}")))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || runtime.block_on(work()));
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
