//! A server that speaks the hub's paths and keeps count of what it was asked.

use crate::Server;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Entries on a page of a listing.
const PAGE: usize = 2;

/// What goes wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next so many answers have this status.
    Status(u16, usize),
    /// The next so many answers end in the middle.
    HalfWay(usize),
}

/// What the server was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The path.
    pub path: String,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
    /// The status of the answer.
    pub status: u16,
}

/// The hub: repositories with files, and other files.
#[derive(Debug)]
pub struct Hub {
    server: Server,
    state: Arc<Mutex<HubState>>,
}

#[derive(Debug, Default)]
struct HubState {
    /// By path: `datasets/OWNER/NAME/PATH`, `OWNER/NAME/PATH`, or anything else for the plain web.
    files: BTreeMap<String, Bytes>,
    faults: BTreeMap<String, Fault>,
    token: Option<String>,
    requests: Vec<Request>,
}

impl Hub {
    /// A hub without files.
    #[must_use]
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(HubState::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        Self { server: Server::start(router), state }
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Puts a file there: `datasets/OWNER/NAME/PATH` or `OWNER/NAME/PATH` for a repository, `web/PATH` for the plain web.
    pub fn put(&self, path: &str, content: impl Into<Bytes>) {
        lock(&self.state).files.insert(path.to_owned(), content.into());
    }

    /// Answers only those who know this token.
    pub fn require_token(&self, token: &str) {
        lock(&self.state).token = Some(token.to_owned());
    }

    /// Lets a path, as it is asked for, fail.
    pub fn fail(&self, path: &str, fault: Fault) {
        lock(&self.state).faults.insert(path.to_owned(), fault);
    }

    /// What was asked so far; it is forgotten by that.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).requests)
    }
}

fn lock(state: &Mutex<HubState>) -> MutexGuard<'_, HubState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(state): State<Arc<Mutex<HubState>>>, request: HttpRequest) -> Response {
    let mut state = lock(&state);
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_allowed =
        state.token.as_ref().is_none_or(|token| authorization.as_deref() == Some(&format!("Bearer {token}")));
    let answer = match state.fault(&path) {
        _ if !is_allowed => plain(StatusCode::UNAUTHORIZED),
        Some(Fault::Status(status, _)) => plain(StatusCode::from_u16(status).expect("a status")),
        fault => {
            let is_cut = matches!(fault, Some(Fault::HalfWay(_)));
            state.good(&path, &query, &host, request.headers(), is_cut)
        }
    };
    state.requests.push(Request { path, authorization, status: answer.status().as_u16() });
    answer
}

impl HubState {
    fn fault(&mut self, path: &str) -> Option<Fault> {
        let fault = self.faults.get_mut(path)?;
        let (Fault::Status(_, left) | Fault::HalfWay(left)) = fault;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }

    fn good(&self, path: &str, query: &str, host: &str, headers: &HeaderMap, is_cut: bool) -> Response {
        if let Some(api) = path.strip_prefix("api/") {
            return self.listing(api, path, query, host);
        }
        let file = match path.split_once("/resolve/") {
            Some((repo, rest)) => rest.split_once('/').map(|(_, file)| format!("{repo}/{file}")),
            None => Some(path.to_owned()),
        };
        match file.and_then(|file| self.files.get(&file)) {
            Some(content) => file_answer(content, headers, is_cut),
            None => plain(StatusCode::NOT_FOUND),
        }
    }

    /// `datasets/OWNER/NAME/tree/REVISION/FOLDER`, a page at a time.
    fn listing(&self, api: &str, path: &str, query: &str, host: &str) -> Response {
        let api = api.strip_prefix("models/").unwrap_or(api);
        let Some((repo, rest)) = api.split_once("/tree/") else { return plain(StatusCode::NOT_FOUND) };
        let folder = rest.split_once('/').map_or(String::new(), |(_, folder)| format!("{folder}/"));
        let start = format!("{repo}/");
        let all: Vec<&str> = self.files.keys().filter_map(|file| file.strip_prefix(&start)).collect();
        if all.is_empty() {
            return plain(StatusCode::NOT_FOUND);
        }
        let wanted = all.into_iter().filter(|file| file.starts_with(&folder));
        let first: usize = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
        let mut wanted = wanted.skip(first);
        let page: Vec<_> = wanted
            .by_ref()
            .take(PAGE)
            .map(|file| json!({ "type": "file", "path": file, "size": 1, "oid": "x" }))
            .collect();
        let mut answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
        if wanted.next().is_some() {
            let next = format!("<http://{host}/{path}?recursive=true&cursor={}>; rel=\"next\"", first + PAGE);
            answer = answer.header(header::LINK, next);
        }
        answer.body(Body::from(serde_json::Value::from(page).to_string())).expect("a valid answer")
    }
}

fn plain(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::from("no")).expect("a valid answer")
}

fn file_answer(content: &Bytes, headers: &HeaderMap, is_cut: bool) -> Response {
    let digest: String = Sha256::digest(content)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"{digest}\"");
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut answer = Response::builder().header(header::ETAG, &etag).header("x-repo-commit", "c0ffee");
    if text(header::IF_NONE_MATCH) == Some(&etag) {
        return answer.status(StatusCode::NOT_MODIFIED).body(Body::empty()).expect("a valid answer");
    }
    let mut part = content.clone();
    if let Some((start, end)) = text(header::RANGE).and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        let start: usize = start.parse().expect("a number");
        let end = end.parse::<usize>().map_or(content.len(), |end| (end + 1).min(content.len()));
        part = content.slice(start.min(end)..end);
        let range = format!("bytes {start}-{}/{}", end.saturating_sub(1), content.len());
        answer = answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    }
    answer = answer.header(header::CONTENT_LENGTH, part.len());
    let body = if is_cut {
        let pieces = [Ok(part.slice(..part.len() / 2)), Err(std::io::Error::other("cut"))];
        Body::from_stream(futures::stream::iter(pieces))
    } else {
        Body::from(part)
    };
    answer.body(body).expect("a valid answer")
}
