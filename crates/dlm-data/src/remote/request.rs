//! Requests that are repeated while there is hope, and what is said when there is none.

use super::Retry;
use crate::error::{DataError, Result};
use std::{error::Error, io, time::Duration};

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The answer's status, if there was an answer.
    status: Option<u16>,
    /// How long the server wants us to wait.
    wait: Option<Duration>,
    /// Whether another attempt could go better.
    may_pass: bool,
    message: String,
}

impl Failure {
    /// The server refused.
    pub(crate) fn status(status: u16, wait: Option<Duration>) -> Self {
        let name = match status {
            401 => " (not authorized)",
            403 => " (forbidden)",
            404 => " (not found)",
            429 => " (too many requests)",
            500..600 => " (an error of the server)",
            _ => "",
        };
        let may_pass = matches!(status, 408 | 425 | 429) || (status >= 500 && status != 501);
        Self { status: Some(status), wait, may_pass, message: format!("the server answered {status}{name}") }
    }

    /// No answer, or half of one.
    pub(crate) fn broken(error: &(dyn Error + 'static)) -> Self {
        Self { status: None, wait: None, may_pass: true, message: format!("the connection failed: {}", cause(error)) }
    }

    /// Something that stays as it is.
    pub(crate) fn lasting(message: impl Into<String>) -> Self {
        Self { status: None, wait: None, may_pass: false, message: message.into() }
    }

    /// A file here that cannot be written.
    pub(crate) fn local(path: &std::path::Path, error: &io::Error) -> Self {
        Self::lasting(format!("cannot write `{}`: {error}", path.display()))
    }

    /// The error to report for an address that may be shown.
    pub(crate) fn error(self, address: &str) -> DataError {
        DataError::Remote { address: address.to_owned(), status: self.status, message: self.message }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }
}

/// The innermost cause, in words that hold no address: those could be signed.
fn cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    if text.contains("://") || text.contains('?') { "it broke off".to_owned() } else { text }
}

/// Repeats an attempt until it succeeds, fails for good, or patience is at its end.
pub(crate) async fn retrying<T>(
    retry: Retry,
    mut attempt: impl AsyncFnMut() -> std::result::Result<T, Failure>,
) -> std::result::Result<T, Failure> {
    let mut wait = retry.first_wait;
    let mut attempts = 1;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(failure) if !failure.may_pass => return Err(failure),
            Err(mut failure) if attempts >= retry.attempts => {
                failure.message = format!("{}, at the last of {attempts} attempts", failure.message);
                return Err(failure);
            }
            Err(failure) => {
                tokio::time::sleep(failure.wait.unwrap_or(wait).min(retry.longest_wait)).await;
                wait = (wait * 2).min(retry.longest_wait);
                attempts += 1;
            }
        }
    }
}

/// The same, with the error for an address that may be shown.
pub(crate) async fn retrying_at<T>(
    address: &str,
    retry: Retry,
    attempt: impl AsyncFnMut() -> std::result::Result<T, Failure>,
) -> Result<T> {
    retrying(retry, attempt).await.map_err(|failure| failure.error(address))
}

/// The client for the web and the hub's listings.
pub(crate) fn client() -> std::result::Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        .user_agent(concat!("dlm/", env!("CARGO_PKG_VERSION")))
        .no_gzip() // a file that is compressed stays so
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(|error| Failure::lasting(format!("no connection can be made: {}", cause(&error))))
}

/// Sends a request; any answer but a good one is a failure.
pub(crate) async fn send(request: reqwest::RequestBuilder) -> std::result::Result<reqwest::Response, Failure> {
    let answer = request.send().await.map_err(|error| Failure::broken(&error.without_url()))?;
    let status = answer.status();
    if status.is_success() || status.as_u16() == 304 {
        return Ok(answer);
    }
    let wait = answer.headers().get("retry-after").and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
    Err(Failure::status(status.as_u16(), wait.map(Duration::from_secs)))
}
