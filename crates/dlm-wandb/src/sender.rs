//! The thread that talks to the server: files on one lane, rows on the other, each with its own patience.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Url;
use serde::Deserialize;
use serde_json::json;

use crate::{
    handshake::Started,
    http::{Api, Failure, Retry, StreamAnswer},
    journal::{Delivery, End, Journal},
    settings::Pace,
};

const CREATE_FILES: &str =
    "mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
    runID uploadHeaders files { name uploadUrl }
  }
}";

/// What the run and its thread have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    journal: Mutex<Journal>,
    changed: Condvar,
    pub(crate) stop_requested: AtomicBool,
}

impl Shared {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal: Mutex::new(journal), changed: Condvar::new(), stop_requested: AtomicBool::new(false) }
    }

    /// The journal; a panic elsewhere leaves it usable, for each change of it is complete.
    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who waits for a change of the journal.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, but not longer than `patience`.
    pub(crate) fn wait<'a>(&self, journal: MutexGuard<'a, Journal>, patience: Duration) -> MutexGuard<'a, Journal> {
        self.changed.wait_timeout(journal, patience).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A sequence of requests of which one is under way at a time.
#[derive(Debug)]
struct Lane {
    name: &'static str,
    attempt: u32,
    not_before: Instant,
}

impl Lane {
    fn new(name: &'static str) -> Self {
        Self { name, attempt: 0, not_before: Instant::now() }
    }

    fn failed(&mut self, failure: &Failure, wait: Duration) {
        if self.attempt == 0 {
            tracing::warn!("W&B: {} failed and will be repeated: {}", self.name, failure.reason);
        }
        self.attempt += 1;
        self.not_before = Instant::now() + wait;
    }

    fn succeeded(&mut self, pause: Duration) {
        if self.attempt > 0 {
            tracing::info!("W&B: {} succeeded after {} repetitions", self.name, self.attempt);
        }
        self.attempt = 0;
        self.not_before = Instant::now() + pause;
    }
}

enum Job {
    Upload,
    Deliver,
    Heartbeat,
}

/// Where a file goes: address and headers.
type Ticket = (Url, Vec<(String, String)>);

pub(crate) struct Sender {
    api: Api,
    run: Started,
    pace: Pace,
    shared: Arc<Shared>,
    stream_url: Url,
    uploads: Lane,
    stream: Lane,
    /// The request that is not confirmed yet.
    under_way: Option<Delivery>,
    last_delivery: Option<Instant>,
    began: Instant,
    tickets: HashMap<String, Ticket>,
    /// Files whose last attempt was answered 403.
    refused: HashSet<String>,
}

impl Sender {
    pub(crate) fn new(api: Api, run: Started, pace: Pace, shared: Arc<Shared>) -> Self {
        let stream_url = api.address(&["files", &run.entity, &run.project, &run.id, "file_stream"]);
        Self {
            api,
            run,
            pace,
            shared,
            stream_url,
            uploads: Lane::new("the upload of a file"),
            stream: Lane::new("the delivery of rows"),
            under_way: None,
            last_delivery: None,
            began: Instant::now(),
            tickets: HashMap::new(),
            refused: HashSet::new(),
        }
    }

    /// Works until the run is over.
    pub(crate) fn work(mut self) {
        while let Some(job) = self.next_job() {
            match job {
                Job::Upload => self.upload(),
                Job::Deliver => self.deliver(),
                Job::Heartbeat => self.heartbeat(),
            }
        }
        self.shared.journal().over = true;
        self.shared.notify();
    }

    /// Waits for the next thing to do; none when the run is over, or its time.
    fn next_job(&mut self) -> Option<Job> {
        let shared = Arc::clone(&self.shared);
        let mut journal = shared.journal();
        loop {
            let now = Instant::now();
            if let Some(end) = journal.end {
                if now >= end.deadline {
                    return None;
                }
                if now.max(self.uploads.not_before) >= end.files_until {
                    journal.files_failed();
                }
            }
            if journal.has_files() && now >= self.uploads.not_before {
                return Some(Job::Upload);
            }
            let due = self.stream_due(&journal);
            if self.under_way.is_none() && due.is_some_and(|due| now >= due) {
                self.under_way = journal.take();
                if self.under_way.is_none() {
                    return Some(Job::Heartbeat);
                }
            }
            if self.under_way.is_some() && now >= self.stream.not_before {
                return Some(Job::Deliver);
            }
            let next = if self.under_way.is_some() { Some(self.stream.not_before) } else { due };
            if let Some(end) = journal.end
                && !journal.has_files()
                && next.is_none_or(|next| next >= end.deadline)
            {
                return None; // nothing is left, or the server asks for a longer wait than there is time
            }
            let upload = journal.has_files().then_some(self.uploads.not_before);
            let wake = [next, upload, journal.end.map(|end| end.deadline)].into_iter().flatten().min();
            let patience = wake.map_or(Duration::from_secs(3600), |wake| wake.saturating_duration_since(now));
            journal = shared.wait(journal, patience);
        }
    }

    /// When the next delivery or heartbeat is due; none if there will be none without news.
    fn stream_due(&self, journal: &Journal) -> Option<Instant> {
        if journal.is_closed() {
            return None;
        }
        let pause = match (journal.has_news(), journal.end.is_some()) {
            (true, true) => return Some(self.stream.not_before),
            (true, false) => self.pace.flush_interval,
            (false, true) => return None,
            (false, false) => self.pace.heartbeat_interval,
        };
        // The first news go at once.
        let last = self.last_delivery.map(|last| last + pause);
        let due = if journal.has_news() { last } else { last.or(Some(self.began + pause)) };
        Some(due.map_or(self.stream.not_before, |due| due.max(self.stream.not_before)))
    }

    fn deliver(&mut self) {
        let Some(delivery) = self.under_way.take() else { return };
        match self.post(&delivery.body) {
            Ok(answer) => {
                self.confirmed(answer.pause, answer.stopped);
                self.shared.journal().delivered(&delivery);
            }
            Err(failure) => {
                let mut journal = self.shared.journal();
                match failure.wait(&self.pace, self.stream.attempt) {
                    Some(wait) => {
                        self.stream.failed(&failure, wait);
                        journal.troubled(failure.reason);
                        self.under_way = Some(delivery);
                    }
                    None => close(&mut journal, failure.reason),
                }
            }
        }
    }

    fn heartbeat(&mut self) {
        match self.post("{}") {
            Ok(answer) => self.confirmed(answer.pause, answer.stopped),
            Err(failure) => match failure.wait(&self.pace, self.stream.attempt) {
                Some(wait) => self.stream.failed(&failure, wait),
                None => close(&mut self.shared.journal(), failure.reason),
            },
        }
    }

    fn post(&self, body: &str) -> Result<StreamAnswer, Failure> {
        let timeout = self.timeout(self.pace.stream_timeout, |end| end.deadline);
        self.api.file_stream(&self.stream_url, body, self.run.gzip, timeout)
    }

    fn confirmed(&mut self, pause: Duration, stopped: bool) {
        self.stream.succeeded(pause);
        self.last_delivery = Some(Instant::now());
        if stopped && !self.shared.stop_requested.swap(true, Ordering::Relaxed) {
            tracing::warn!("W&B: the run is to stop, says its page");
        }
    }

    fn upload(&mut self) {
        let Some((file, waiting)) = self.shared.journal().files() else { return };
        let result = self.ticket(&file.path, &waiting).and_then(|(url, headers)| {
            let timeout = self.timeout(self.pace.stream_timeout, |end| end.files_until);
            self.api.put(&url, &headers, file.content, timeout)
        });
        let mut journal = self.shared.journal();
        let Err(mut failure) = result else {
            self.tickets.remove(&file.path);
            self.uploads.succeeded(Duration::ZERO);
            journal.file_arrived();
            return;
        };
        // An address expires: the first refusal may mean that, and a new one is asked for.
        let forbidden = failure.status == Some(403) && self.tickets.remove(&file.path).is_some();
        if !forbidden {
            self.refused.remove(&file.path);
        } else if self.refused.insert(file.path.clone()) {
            failure.retry = Retry::Later;
        }
        match failure.wait(&self.pace, self.uploads.attempt) {
            Some(wait) => {
                self.uploads.failed(&failure, wait);
                journal.file_delayed(failure.reason);
            }
            None => {
                tracing::warn!("W&B: `{}` is not uploaded: {}", file.path, failure.reason);
                self.uploads = Lane::new(self.uploads.name);
                journal.file_failed(failure.reason);
            }
        }
    }

    /// Where to upload `path`; asks for the addresses of all that wait.
    fn ticket(&mut self, path: &str, waiting: &[String]) -> Result<Ticket, Failure> {
        if let Some(ticket) = self.tickets.get(path) {
            return Ok(ticket.clone());
        }
        let variables =
            json!({"entity": self.run.entity, "project": self.run.project, "run": self.run.id, "files": waiting});
        let timeout = self.timeout(self.pace.graphql_timeout, |end| end.files_until);
        let data: CreateData = self.api.graphql("CreateRunFiles", CREATE_FILES, &variables, timeout)?;
        let answer = data.create_run_files;
        let headers: Vec<_> = answer
            .upload_headers
            .iter()
            .filter_map(|header| header.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        for file in answer.files {
            // Some servers answer with an address relative to their own.
            let url = self.stream_url.join(&file.upload_url).map_err(|_| never("an upload address cannot be read"))?;
            self.tickets.insert(file.name, (url, headers.clone()));
        }
        self.tickets.get(path).cloned().ok_or_else(|| never("the server named no upload address"))
    }

    /// A request's time, less when `until` is near.
    fn timeout(&self, usual: Duration, until: impl Fn(End) -> Instant) -> Duration {
        let left = self.shared.journal().end.map(|end| until(end).saturating_duration_since(Instant::now()));
        left.map_or(usual, |left| usual.min(left)).max(Duration::from_millis(1))
    }
}

fn close(journal: &mut Journal, reason: String) {
    tracing::warn!("W&B: the server takes no more rows, training goes on without: {reason}");
    journal.close(reason);
}

fn never(reason: &str) -> Failure {
    Failure { status: None, retry: Retry::Never, reason: reason.to_owned() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateData {
    create_run_files: Created,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    #[serde(default)]
    upload_headers: Vec<String>,
    files: Vec<CreatedFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedFile {
    name: String,
    upload_url: String,
}
