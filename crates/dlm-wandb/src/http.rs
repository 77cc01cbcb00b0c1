//! One request to the server: its answer, or whether and when to try again.

use std::{
    error::Error as _,
    io::Write as _,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use reqwest::{
    Url,
    blocking::{Client, RequestBuilder, Response},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER},
    redirect::Policy,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    credentials::ApiKey,
    error::{Result, WandbError},
    settings::{Pace, host},
};

/// A request that did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The answer's status, if there was an answer.
    pub(crate) status: Option<u16>,
    /// Whether to try again.
    pub(crate) retry: Retry,
    /// What happened; without key, headers and addresses.
    pub(crate) reason: String,
}

/// Whether a request may be repeated.
#[derive(Debug, PartialEq)]
pub(crate) enum Retry {
    /// It would fail again.
    Never,
    /// After the wait of [`backoff`].
    Later,
    /// After the wait that the server asked for.
    After(Duration),
}

/// What a delivery of rows was answered.
#[derive(Debug, Default)]
pub(crate) struct StreamAnswer {
    /// The user pressed Stop on the run's page.
    pub(crate) stopped: bool,
    /// How long the server wants us to wait before the next request.
    pub(crate) pause: Duration,
}

/// The server, with the key to it.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    base: Url,
    key: ApiKey,
}

/// The longest `Retry-After` that is believed.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

impl Api {
    /// Builds the client; not from inside an asynchronous runtime.
    pub(crate) fn new(base: Url, key: ApiKey) -> Result<Self> {
        // The first installed provider stays: if another crate was faster, its choice serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A redirect would carry the key to another place, or turn a POST into a GET: it is an error instead.
        let mut client =
            Client::builder().user_agent(concat!("dlm/", env!("CARGO_PKG_VERSION"))).redirect(Policy::none());
        if matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            client = client.no_proxy(); // no proxy reaches this machine's own server
        }
        let client = client.build().map_err(|error| WandbError::SetUp { reason: describe(error) })?;
        Ok(Self { client, base, key })
    }

    /// The server's name for messages.
    pub(crate) fn host(&self) -> String {
        host(&self.base)
    }

    /// The address below the base, its segments percent-encoded.
    pub(crate) fn address(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(segments);
        url
    }

    /// Runs a GraphQL operation and reads the `data` of its answer.
    pub(crate) fn graphql<T: DeserializeOwned>(
        &self,
        operation: &str,
        query: &str,
        variables: &serde_json::Value,
        timeout: Duration,
    ) -> Result<T, Failure> {
        let body = json!({"query": query, "variables": variables, "operationName": operation}).to_string();
        let request = self.authorized(self.client.post(self.address(&["graphql"])));
        let answer = self.send(request.header(CONTENT_TYPE, "application/json").body(body), timeout, |status| {
            status == 409 || retryable(status)
        })?;
        let text = answer.text().map_err(lost)?;
        let unreadable = |retry, error: serde_json::Error| Failure {
            status: None,
            retry,
            reason: format!("the answer cannot be read: {error}"),
        };
        // Something that is no GraphQL answer comes from a proxy in trouble, which may pass; an answer of another shape stays.
        let answer: GraphQlAnswer = serde_json::from_str(&text).map_err(|error| unreadable(Retry::Later, error))?;
        if let Some(error) = answer.errors.unwrap_or_default().first() {
            let reason = format!("the server says: {}", self.excerpt(&error.message));
            return Err(Failure { status: None, retry: Retry::Never, reason });
        }
        serde_json::from_value(answer.data).map_err(|error| unreadable(Retry::Never, error))
    }

    /// Delivers a `file_stream` request; `gzip` only if the server announced it.
    pub(crate) fn file_stream(
        &self,
        url: &Url,
        body: &str,
        gzip: bool,
        timeout: Duration,
    ) -> Result<StreamAnswer, Failure> {
        let request = self.authorized(self.client.post(url.clone())).header(CONTENT_TYPE, "application/json");
        let request = if gzip {
            request.header(CONTENT_ENCODING, "gzip").body(packed(body))
        } else {
            request.body(body.to_owned())
        };
        let answer = self.send(request, timeout, retryable)?;
        let pause = rate_limit(answer.headers());
        // Half an answer is no proof of delivery, but one that is not JSON is.
        let text = answer.bytes().map_err(lost)?;
        let fields: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        Ok(StreamAnswer { stopped: fields["stopped"] == json!(true), pause })
    }

    /// Uploads a file to a signed address, which carries its own permission: the key stays here.
    pub(crate) fn put(
        &self,
        url: &Url,
        headers: &[(String, String)],
        content: Vec<u8>,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let request =
            headers.iter().fold(self.client.put(url.clone()), |request, (name, value)| request.header(name, value));
        // Such a server's text may repeat the signed address, so it is not shown.
        let answer = self.send(request.body(content), timeout, |status| {
            matches!(status, 408 | 425 | 429) || status >= 500 && status != 501
        });
        answer.map(|_| ()).map_err(|failure| match failure.status {
            Some(status) => Failure { reason: format!("the upload was answered {status}"), ..failure },
            None => failure,
        })
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.basic_auth("api", Some(self.key.secret()))
    }

    fn send(
        &self,
        request: RequestBuilder,
        timeout: Duration,
        retryable: impl Fn(u16) -> bool,
    ) -> Result<Response, Failure> {
        let answer = request.timeout(timeout).send().map_err(lost)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let retry = match retry_after(answer.headers(), SystemTime::now()) {
            _ if !retryable(status.as_u16()) => Retry::Never,
            Some(wait) => Retry::After(wait),
            None => Retry::Later,
        };
        let text = answer.text().unwrap_or_default(); // the status is known, its text is decoration
        let reason = format!("the server answered {status}: {}", self.excerpt(&text));
        Err(Failure { status: Some(status.as_u16()), retry, reason })
    }

    /// The beginning of a server's text on one line, without the key.
    fn excerpt(&self, text: &str) -> String {
        let text = self.key.redact(text);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
    }
}

#[derive(Deserialize)]
struct GraphQlAnswer {
    #[serde(default)]
    data: serde_json::Value,
    errors: Option<Vec<GraphQlError>>,
}

#[derive(Deserialize)]
struct GraphQlError {
    #[serde(default)]
    message: String,
}

fn packed(body: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body.as_bytes()).expect("a Vec takes every write");
    encoder.finish().expect("a Vec takes every write")
}

fn lost(error: reqwest::Error) -> Failure {
    Failure { status: None, retry: Retry::Later, reason: describe(error) }
}

/// An error and its causes; without the address, which may be signed.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn retryable(status: u16) -> bool {
    status >= 400 && !matches!(status, 400 | 401 | 403 | 404 | 409 | 410 | 413 | 422 | 501)
}

/// `Retry-After`: seconds, perhaps with a fraction, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(A_DAY))
}

/// The pause that spreads the remaining requests over the time until they are renewed; 10 s at most.
fn rate_limit(headers: &HeaderMap) -> Duration {
    let number = |name| headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let (Some(remaining), Some(reset_s)) = (number("RateLimit-Remaining"), number("RateLimit-Reset")) else {
        return Duration::ZERO;
    };
    let pause_s = if remaining > 0.0 { (reset_s / remaining).clamp(0.0, 10.0) } else { 10.0 };
    Duration::try_from_secs_f64(pause_s).unwrap_or_default()
}

/// The wait before attempt `attempt + 1`: doubling, with chance, so that many clients do not return at once.
pub(crate) fn backoff(pace: &Pace, attempt: u32) -> Duration {
    let doubled = pace.first_retry.saturating_mul(2_u32.saturating_pow(attempt.min(30)));
    doubled.min(pace.longest_retry).mul_f64(rand::random_range(1.0..1.25)).min(pace.longest_retry)
}

impl Failure {
    /// How long to wait before the next attempt; none if there should be none.
    pub(crate) fn wait(&self, pace: &Pace, attempt: u32) -> Option<Duration> {
        match self.retry {
            Retry::Never => None,
            Retry::Later => Some(backoff(pace, attempt)),
            Retry::After(wait) => Some(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_seconds_with_a_fraction_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("2", Some(2.0)),
            ("0.25", Some(0.25)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10.0)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0.0)),
            ("1e12", Some(86400.0)),
            ("-1", None),
            ("soon", None),
        ] {
            let wait = retry_after(&headers(&[("retry-after", text)]), now);
            assert_eq!(wait.map(|wait| wait.as_secs_f64()), seconds, "{text}");
        }
    }

    #[test]
    fn a_rate_limit_is_spread_and_never_below_one_request_in_ten_seconds() {
        let pause = |remaining, reset| {
            rate_limit(&headers(&[("RateLimit-Remaining", remaining), ("RateLimit-Reset", reset)])).as_secs_f64()
        };
        assert_eq!((pause("50", "10"), pause("0", "5"), pause("1", "1000")), (0.2, 10.0, 10.0));
        assert_eq!(rate_limit(&headers(&[])), Duration::ZERO);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let pace = Pace::default();
        for (attempt, from, to) in [(0, 2.0, 2.5), (1, 4.0, 5.0), (4, 32.0, 40.0), (5, 60.0, 60.0), (100, 60.0, 60.0)] {
            let wait_s = backoff(&pace, attempt).as_secs_f64();
            assert!((from..=to).contains(&wait_s), "attempt {attempt}: {wait_s}");
        }
    }

    #[test]
    fn only_failures_that_may_pass_are_repeated() {
        for status in [408, 425, 429, 500, 502, 503, 504, 418] {
            assert!(retryable(status), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 409, 410, 413, 422, 501] {
            assert!(!retryable(status), "{status}");
        }
    }

    #[test]
    fn names_are_percent_encoded_in_addresses() {
        let key = ApiKey::new(&"k".repeat(40), "a test").unwrap();
        let api = Api::new(Url::parse("http://127.0.0.1:1/below/").unwrap(), key).unwrap();
        let url = api.address(&["files", "a team", "p/q", "r%"]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/below/files/a%20team/p%2Fq/r%25");
    }
}
