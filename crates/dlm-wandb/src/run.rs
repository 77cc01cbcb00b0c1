//! The life of a run: start, log, finish.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use reqwest::Url;

use crate::{
    error::{Result, WandbError},
    handshake,
    http::Api,
    journal::{self, Counts, End, File, Journal},
    sender::{Sender, Shared},
    settings::Settings,
    table::Table,
    value::{Object, Value},
};

/// A run that is recorded on the server.
///
/// Logging only writes to memory; a thread of the run's own delivers, and repeats what failed until it is confirmed.
/// What is not delivered is kept in memory, without a bound: a row of twenty numbers takes about half a kilobyte, so
/// that an outage of a day at one row a second is some 40 MB.
///
/// A run that is dropped without [`finish`](Self::finish), by an early return or a panic, delivers what it has, for ten
/// seconds at most, and is then silent: the server calls it crashed. So it does with the run of a killed process, whose
/// last row may be lost. Both can be resumed under their id.
#[derive(Debug)]
pub struct Run {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    identity: Identity,
    finish_timeout: Duration,
    ended: bool,
}

/// What a finished run has delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The run's page.
    pub url: String,
    /// History rows that the server confirmed.
    pub rows_sent: u64,
    /// Rows that were not sent because the resumed run had their steps.
    pub rows_known: u64,
    /// Files that the server confirmed: tables, summary, config.
    pub files_sent: u64,
}

/// What the server calls the run.
#[derive(Clone, Debug)]
struct Identity {
    id: String,
    name: String,
    url: String,
    next_step: u64,
    resumed: bool,
}

/// How long a dropped run delivers, at most.
const LAST_BREATH: Duration = Duration::from_secs(10);

impl Run {
    /// Starts a run, or resumes one as `settings.resume` says, and waits until the server knows it.
    ///
    /// `config` is an object of what the run was made with; a resumed run keeps the names that it does not mention.
    /// [`Settings::mode`] is for the caller to look at before.
    ///
    /// # Errors
    /// At once for settings that cannot be used, no key or one that the server refuses, and for a run that exists (or
    /// does not) against `settings.resume`; [`WandbError::Unreachable`] after `settings.start_timeout`.
    pub fn start(settings: Settings, config: serde_json::Value) -> Result<Self> {
        settings.check()?;
        let base = settings.url()?;
        let key = settings.find_key()?;
        let config = config_object(config)?;
        let finish_timeout = settings.finish_timeout;
        let (sender, receiver) = mpsc::channel();
        // The blocking client must not be made on a thread of an asynchronous runtime: its own thread makes it.
        let work = move || {
            let begun = begin(&settings, base, key, config);
            let (result, work) = match begun {
                Ok((shared, identity, work)) => (Ok((shared, identity)), Some(work)),
                Err(error) => (Err(error), None),
            };
            if sender.send(result).is_ok()
                && let Some(work) = work
            {
                work.work();
            }
        };
        let thread = thread::Builder::new()
            .name("wandb".to_owned())
            .spawn(work)
            .map_err(|error| WandbError::SetUp { reason: error.to_string() })?;
        let lost = |_| WandbError::SetUp { reason: "the sending thread ended early".to_owned() };
        let (shared, identity) = receiver.recv().map_err(lost)??;
        Ok(Self { shared, thread, identity, finish_timeout, ended: false })
    }

    /// Adds values to the history row of `step`, and to the summary as the last ones of their names.
    ///
    /// Several calls for one step make one row. Steps never go back; those that a resumed run already has are counted
    /// and not sent again, for the history can only grow.
    ///
    /// # Errors
    /// [`WandbError::StepWentBack`], [`WandbError::ReservedName`] and [`WandbError::TooLong`]; nothing was logged then.
    pub fn log(&self, step: u64, values: impl Into<Object>) -> Result<()> {
        self.shared.journal().log(step, values.into())?;
        self.shared.notify();
        Ok(())
    }

    /// Sets values of the summary alone, such as a best loss; a later [`log`](Self::log) of that name replaces it.
    ///
    /// # Errors
    /// [`WandbError::ReservedName`] and [`WandbError::TooLong`].
    pub fn summary(&self, values: impl Into<Object>) -> Result<()> {
        self.shared.journal().summarize(values.into())?;
        self.shared.notify();
        Ok(())
    }

    /// Uploads a table and refers to it in the history row of `step` under `key`.
    ///
    /// # Errors
    /// [`WandbError::UnevenTable`], and those of [`log`](Self::log).
    pub fn log_table(&self, step: u64, key: &str, table: &Table) -> Result<()> {
        let file = table.file(key, step)?;
        let mut journal = self.shared.journal();
        if journal.log(step, Object::new().with(key, file.reference))? {
            journal.add_file(File { path: file.path, content: file.content });
        }
        drop(journal);
        self.shared.notify();
        Ok(())
    }

    /// Whether someone pressed Stop on the run's page; learnt with the next delivery, then true for good.
    ///
    /// Training should end in order and finish the run.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.shared.stop_requested.load(Ordering::Relaxed)
    }

    /// The run's id, to resume it by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// The run's display name, given or invented by the server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// The run's page.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.identity.url
    }

    /// Whether an existing run was continued.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.identity.resumed
    }

    /// The first step that the run's history lacked when it started; 0 for a new run.
    #[must_use]
    pub fn next_step(&self) -> u64 {
        self.identity.next_step
    }

    /// Delivers the rest and ends the run: state `finished` for exit code 0, else `failed`.
    ///
    /// # Errors
    /// [`WandbError::Undelivered`] when not everything was confirmed within the settings' `finish_timeout`.
    pub fn finish(mut self, exit_code: i32) -> Result<Report> {
        let (counts, completed, reason) = self.end(Some(exit_code), self.finish_timeout);
        let rows = counts.rows - counts.rows_confirmed;
        let files = counts.files - counts.files_confirmed;
        if !completed || rows > 0 || files > 0 {
            let id = self.identity.id.clone();
            return Err(WandbError::Undelivered { id, rows, files, reason });
        }
        Ok(Report {
            url: self.identity.url.clone(),
            rows_sent: counts.rows_confirmed,
            rows_known: counts.rows_known,
            files_sent: counts.files_confirmed,
        })
    }

    /// Tells the thread to come to an end, and waits for it as long as `patience` lasts.
    fn end(&mut self, exit_code: Option<i32>, patience: Duration) -> (Counts, bool, String) {
        self.ended = true;
        let deadline = Instant::now() + patience;
        let files_until = deadline - (patience / 4).min(Duration::from_secs(10));
        let mut journal = self.shared.journal();
        journal.finish(End { exit_code, files_until, deadline });
        self.shared.notify();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if journal.over || left.is_zero() || self.thread.is_finished() {
                return (journal.counts, journal.completed, journal.reason());
            }
            journal = self.shared.wait(journal, left.min(Duration::from_secs(1)));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (counts, _, reason) = self.end(None, self.finish_timeout.min(LAST_BREATH));
        let rows = counts.rows - counts.rows_confirmed;
        if rows > 0 {
            tracing::warn!("W&B: run `{}` was dropped, {rows} rows were not delivered: {reason}", self.identity.id);
        }
    }
}

/// Talks to the server until the run is there.
fn begin(
    settings: &Settings,
    base: Url,
    key: crate::credentials::ApiKey,
    config: Object,
) -> Result<(Arc<Shared>, Identity, Sender)> {
    let api = Api::new(base.clone(), key)?;
    let started = handshake::start(&api, settings, config)?;
    let identity = Identity {
        id: started.id.clone(),
        name: started.name.clone(),
        url: page(base, &[&started.entity, &started.project, "runs", &started.id]),
        next_step: started.next_step,
        resumed: started.resumed,
    };
    let shared = Arc::new(Shared::new(Journal::new(&started)));
    let sender = Sender::new(api, started, settings.pace, Arc::clone(&shared));
    Ok((shared, identity, sender))
}

/// The address that people open: the public service has its pages on another host than its interface.
fn page(mut base: Url, segments: &[&str]) -> String {
    if base.host_str() == Some("api.wandb.ai") {
        base.set_host(Some("wandb.ai")).expect("an https address takes another host");
    }
    base.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(segments);
    base.into()
}

fn config_object(config: serde_json::Value) -> Result<Object> {
    let found = match &config {
        serde_json::Value::Object(_) => "an object",
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "true or false",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a text",
        serde_json::Value::Array(_) => "a list",
    };
    let config = Value::from(config).into_object().ok_or(WandbError::ConfigNotAnObject { found })?;
    journal::check_names(&config)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_service_has_its_pages_on_another_host() {
        let url = |base: &str| page(Url::parse(base).unwrap(), &["e", "p", "runs", "r"]);
        assert_eq!(url("https://api.wandb.ai"), "https://wandb.ai/e/p/runs/r");
        assert_eq!(url("http://127.0.0.1:8080/wandb/"), "http://127.0.0.1:8080/wandb/e/p/runs/r");
    }

    #[test]
    fn a_config_that_is_no_object_is_refused_by_what_it_is() {
        let error = config_object(serde_json::json!([1])).unwrap_err();
        assert_eq!(error.to_string(), "the run's config is a list, not an object");
    }

    #[test]
    fn a_run_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Run>();
    }
}
