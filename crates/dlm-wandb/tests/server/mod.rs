//! The stand-in server as a test sees it: started, asked, made to misbehave, and its log checked.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dlm_wandb::{ApiKey, Pace, Settings};
use serde_json::Value;

pub(crate) const KEY: &str = "0123456789abcdef0123456789abcdef01234567";
/// No wait in these tests is longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server; stopped when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
    folder: tempfile::TempDir,
    client: reqwest::blocking::Client,
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/wandb")
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

impl Server {
    /// Starts it in strict mode: a request that breaks a rule is answered 400.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let mut process =
            python(&[scripts().join("stub_server.py").to_str().unwrap(), "--strict", "--max-seconds", "120"])
                .arg("--log")
                .arg(&log)
                .args(arguments)
                .stdout(Stdio::piped())
                .spawn()
                .expect("these tests start `python3` (3.9 or newer): install it and put it on the PATH");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("the stub server prints its address when it listens");
        // The crate installs the TLS provider that reqwest needs only when a run starts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
        Self { process, url: ready["url"].as_str().unwrap().to_owned(), folder, client }
    }

    /// Settings for it, at a pace for tests.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            project: "poems".into(),
            id: Some("run1".into()),
            base_url: self.url.clone(),
            api_key: Some(ApiKey::new(KEY, "a test").unwrap()),
            start_timeout: DEADLINE,
            finish_timeout: DEADLINE,
            pace: Pace {
                flush_interval: Duration::from_millis(10),
                first_retry: Duration::from_millis(10),
                longest_retry: Duration::from_millis(50),
                ..Pace::default()
            },
            ..Settings::default()
        }
    }

    /// Everything it knows of the run of [`settings`](Self::settings).
    pub(crate) fn run(&self) -> Value {
        self.state()["runs"]["stub-entity/poems/run1"].clone()
    }

    fn state(&self) -> Value {
        let text = self.client.get(format!("{}/_stub/state", self.url)).send().unwrap().text().unwrap();
        // The state holds NaN and Infinity as the run sent them; tests that look at those read the log.
        serde_json::from_str(&text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null"))
            .unwrap()
    }

    /// Asks for the run until `holds` of it.
    pub(crate) fn wait_until(&self, claim: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let run = self.run();
            if holds(&run) {
                return run;
            }
            assert!(began.elapsed() < DEADLINE, "never happened: {claim}\n{run:#}");
        }
    }

    /// `POST /_stub/WHAT`.
    pub(crate) fn control(&self, what: &str, body: &str) {
        let answer = self.client.post(format!("{}/_stub/{what}", self.url)).body(body.to_owned()).send().unwrap();
        assert!(answer.status().is_success(), "{what}: {}", answer.text().unwrap());
    }

    /// Refuses connections for so long; returns when it does.
    pub(crate) fn take_down(&self, seconds: u32) {
        self.control("down", &seconds.to_string());
        let began = Instant::now();
        while self.client.get(format!("{}/_stub/state", self.url)).send().is_ok() {
            assert!(began.elapsed() < DEADLINE, "the server stays up");
        }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The file_stream requests so far.
    pub(crate) fn deliveries(&self) -> Vec<Value> {
        self.requests().into_iter().filter(|request| request["route"] == "file_stream").collect()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log.jsonl")
    }

    /// Lets `check_log.py` judge the log: nothing lost, nothing twice, the summary right, the end as said, no key leaked.
    pub(crate) fn check(&self, rows: usize, exit: &str) {
        let script = scripts().join("check_log.py");
        let output = python(&[
            script.to_str().unwrap(),
            self.log().to_str().unwrap(),
            "--rows",
            &rows.to_string(),
            "--exit",
            exit,
        ])
        .output()
        .unwrap();
        assert!(output.status.success(), "{}\n{:#?}", String::from_utf8_lossy(&output.stdout), self.requests());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have stopped by itself
        let _ = self.process.wait();
    }
}
