//! What was logged and is not yet delivered: pure bookkeeping, no network.
//!
//! A row waits until its step is over, because a line that was sent cannot be changed. A line that was taken for a
//! request keeps its place in the history for ever; the request is repeated word for word until it is confirmed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use crate::{
    error::{Result, WandbError},
    handshake::Started,
    value::{Object, Value},
};

/// The longest line that the server takes: 10 MiB less 100 KiB.
pub(crate) const LONGEST_LINE: usize = 10 * 1024 * 1024 - 100 * 1024;
/// Lines in a request, in bytes as sent.
const LONGEST_REQUEST: usize = 10 * 1024 * 1024;
const RESERVED: [&str; 4] = ["_step", "_runtime", "_timestamp", "_wandb"];

/// A file to upload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct File {
    /// Its path among the run's files.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
}

/// How the run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// None: the run was dropped; what is there is delivered, but the run is not called complete.
    pub(crate) exit_code: Option<i32>,
    /// After this no file is tried any more; the rest of the time is for the rows.
    pub(crate) files_until: Instant,
    /// After this nothing is waited for.
    pub(crate) deadline: Instant,
}

/// One delivery, to be repeated unchanged until it is confirmed.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) body: String,
    pub(crate) rows: u64,
    /// It says that the run is over.
    pub(crate) is_last: bool,
}

/// Rows and files so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) rows: u64,
    pub(crate) rows_confirmed: u64,
    pub(crate) rows_known: u64,
    pub(crate) files: u64,
    pub(crate) files_confirmed: u64,
}

/// The run's memory, shared by the caller and the sending thread.
#[derive(Debug)]
pub(crate) struct Journal {
    started: Instant,
    runtime_before_s: f64,
    next_step: u64,
    skipped_step: Option<u64>,
    held: Option<(u64, Object)>,
    lines: VecDeque<String>,
    next_line: u64,
    summary: Object,
    summary_line: Option<String>,
    config: Object,
    files: VecDeque<File>,
    uploaded: Vec<String>,
    /// The server will take no more rows.
    closed: bool,
    pub(crate) counts: Counts,
    /// What went wrong last and has not gone right since.
    trouble: Option<String>,
    /// Why something is given up for good.
    loss: Option<String>,
    pub(crate) end: Option<End>,
    /// The delivery that says that the run is over was taken.
    last_taken: bool,
    /// It was confirmed.
    pub(crate) completed: bool,
    /// The sending thread has stopped.
    pub(crate) over: bool,
}

impl Journal {
    pub(crate) fn new(run: &Started) -> Self {
        Self {
            started: Instant::now(),
            runtime_before_s: run.runtime_s,
            next_step: run.next_step,
            skipped_step: None,
            held: None,
            lines: VecDeque::new(),
            next_line: run.history_lines,
            summary: run.summary.clone(),
            summary_line: None,
            config: run.config.clone(),
            files: VecDeque::new(),
            uploaded: Vec::new(),
            closed: false,
            counts: Counts::default(),
            trouble: None,
            loss: None,
            end: None,
            last_taken: false,
            completed: false,
            over: false,
        }
    }

    /// Adds values to the row of `step`; false if the server has that row from an earlier session.
    pub(crate) fn log(&mut self, step: u64, values: Object) -> Result<bool> {
        check_names(&values)?;
        if step < self.next_step {
            self.counts.rows_known += u64::from(self.skipped_step != Some(step));
            self.skipped_step = Some(step);
            return Ok(false);
        }
        let mut row = match &self.held {
            Some((current, _)) if step < *current => {
                return Err(WandbError::StepWentBack { step, current: *current });
            }
            Some((current, row)) if step == *current => row.clone(),
            _ => self.stamp(step),
        };
        row.merge(values);
        check_length(&format!("the row of step {step}"), &row.to_string())?;
        let mut summary = self.summary.clone();
        summary.merge(row.clone());
        self.set_summary(summary)?;
        match self.held.replace((step, row)) {
            Some((current, row)) if current != step => self.keep(&row),
            _ => {}
        }
        Ok(true)
    }

    /// Sets values of the summary alone.
    pub(crate) fn summarize(&mut self, values: Object) -> Result<()> {
        check_names(&values)?;
        let mut summary = self.summary.clone();
        summary.merge(values);
        self.set_summary(summary)
    }

    /// Queues a file; the same path is not sent twice at a time.
    pub(crate) fn add_file(&mut self, file: File) {
        if !self.files.contains(&file) {
            self.files.push_back(file);
            self.counts.files += 1;
        }
    }

    /// Ends the run: the held row counts as complete, the closing files join the queue.
    pub(crate) fn finish(&mut self, end: End) {
        if let Some((_, row)) = self.held.take() {
            self.keep(&row);
        }
        if end.exit_code.is_some() {
            let summary = self.summary.clone();
            if let Err(error) = self.set_summary(summary) {
                self.loss = Some(error.to_string()); // it grew by a digit too many; the one before stays
            }
            self.add_file(File {
                path: "wandb-summary.json".to_owned(),
                content: self.summary.to_string().into_bytes(),
            });
            let config = serde_yaml_ng::to_string(&self.config).expect("names, texts, numbers and lists are YAML");
            self.add_file(File { path: "config.yaml".to_owned(), content: config.into_bytes() });
        }
        self.end = Some(end);
    }

    /// The next file to upload, and the paths of all that wait.
    pub(crate) fn files(&self) -> Option<(File, Vec<String>)> {
        let first = self.files.front()?;
        Some((first.clone(), self.files.iter().map(|file| file.path.clone()).collect()))
    }

    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// The first file arrived: it is named in the next delivery.
    pub(crate) fn file_arrived(&mut self) {
        if let Some(file) = self.files.pop_front() {
            self.counts.files_confirmed += 1;
            self.trouble = None;
            self.uploaded.push(file.path);
        }
    }

    /// The first file lets the others go before.
    pub(crate) fn file_delayed(&mut self, reason: String) {
        self.files.rotate_left(1);
        self.trouble = Some(reason);
    }

    /// The first file is given up.
    pub(crate) fn file_failed(&mut self, reason: String) {
        self.files.pop_front();
        self.loss = Some(reason);
    }

    /// All waiting files are given up, for lack of time.
    pub(crate) fn files_failed(&mut self) {
        if !self.files.is_empty() {
            self.files.clear();
            self.loss = self.trouble.take().or_else(|| self.loss.take());
        }
    }

    /// Whether there is anything to deliver.
    pub(crate) fn has_news(&self) -> bool {
        !self.closed
            && (!self.lines.is_empty()
                || self.summary_line.is_some()
                || !self.uploaded.is_empty()
                || self.may_complete())
    }

    /// Takes what fits in one request; the last one of a finished run says so.
    pub(crate) fn take(&mut self) -> Option<Delivery> {
        if !self.has_news() {
            return None;
        }
        let mut size = 0;
        let mut lines = Vec::new();
        while let Some(line) = self.lines.front() {
            size += size_inside_a_string(line);
            if size > LONGEST_REQUEST && !lines.is_empty() {
                break;
            }
            lines.extend(self.lines.pop_front());
        }
        let rows = lines.len() as u64;
        let mut body = serde_json::Map::new();
        let mut files = serde_json::Map::new();
        if rows > 0 {
            files.insert("wandb-history.jsonl".to_owned(), json!({"offset": self.next_line, "content": lines}));
            self.next_line += rows;
        }
        // A summary that does not fit waits for a request of its own.
        let fits = |line: &mut String| rows == 0 || size + size_inside_a_string(line) <= LONGEST_REQUEST;
        if let Some(line) = self.summary_line.take_if(fits) {
            files.insert("wandb-summary.json".to_owned(), json!({"offset": 0, "content": [line]}));
        }
        if !files.is_empty() {
            body.insert("files".to_owned(), files.into());
        }
        if !self.uploaded.is_empty() {
            body.insert("uploaded".to_owned(), std::mem::take(&mut self.uploaded).into());
        }
        let exit_code = self.end.and_then(|end| end.exit_code).filter(|_| self.may_complete());
        if let Some(exit_code) = exit_code {
            body.insert("complete".to_owned(), true.into());
            body.insert("exitcode".to_owned(), exit_code.into());
        }
        self.last_taken |= exit_code.is_some();
        Some(Delivery { body: serde_json::Value::from(body).to_string(), rows, is_last: exit_code.is_some() })
    }

    /// A delivery failed and will be repeated.
    pub(crate) fn troubled(&mut self, reason: String) {
        self.trouble = Some(reason);
    }

    /// A delivery was confirmed.
    pub(crate) fn delivered(&mut self, delivery: &Delivery) {
        self.trouble = None;
        self.counts.rows_confirmed += delivery.rows;
        self.completed |= delivery.is_last;
    }

    /// The server takes no more rows: from now on they are counted, not kept.
    pub(crate) fn close(&mut self, reason: String) {
        self.lines.clear();
        self.loss = Some(reason);
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Why not everything was delivered, as far as is known.
    pub(crate) fn reason(&self) -> String {
        let known = self.loss.as_ref().or(self.trouble.as_ref());
        known.cloned().unwrap_or_else(|| "the time was up before the server answered".to_owned())
    }

    /// Everything but the word that the run is over has been taken.
    fn may_complete(&self) -> bool {
        let finished = self.end.is_some_and(|end| end.exit_code.is_some());
        let nothing_waits = self.lines.is_empty() && self.summary_line.is_none() && self.files.is_empty();
        finished && nothing_waits && !self.last_taken
    }

    fn runtime_s(&self) -> f64 {
        self.runtime_before_s + self.started.elapsed().as_secs_f64()
    }

    fn stamp(&self, step: u64) -> Object {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO); // a clock before 1970 is no reason to fail
        Object::new().with("_step", step).with("_runtime", self.runtime_s()).with("_timestamp", now.as_secs_f64())
    }

    fn set_summary(&mut self, mut summary: Object) -> Result<()> {
        let mut inner = match summary.get("_wandb") {
            Some(Value::Object(inner)) => inner.clone(),
            _ => Object::new(),
        };
        inner.insert("runtime", self.runtime_s() as u64);
        summary.insert("_wandb", inner);
        let line = summary.to_string();
        check_length("the summary", &line)?;
        self.summary = summary;
        self.summary_line = Some(line);
        Ok(())
    }

    fn keep(&mut self, row: &Object) {
        self.counts.rows += 1;
        if !self.closed {
            self.lines.push_back(row.to_string());
        }
    }
}

/// Refuses the names that the protocol keeps for itself.
pub(crate) fn check_names(values: &Object) -> Result<()> {
    match values.names().find(|name| RESERVED.contains(name)) {
        Some(key) => Err(WandbError::ReservedName { key: key.to_owned() }),
        None => Ok(()),
    }
}

/// A line's length where it is sent: in a string, with quotes and backslashes escaped once more.
fn size_inside_a_string(line: &str) -> usize {
    line.len() + line.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count() + "\"\",".len()
}

fn check_length(what: &str, line: &str) -> Result<()> {
    if line.len() <= LONGEST_LINE {
        return Ok(());
    }
    Err(WandbError::TooLong { what: what.to_owned(), size_bytes: line.len(), limit_bytes: LONGEST_LINE })
}

#[cfg(test)]
mod tests;
