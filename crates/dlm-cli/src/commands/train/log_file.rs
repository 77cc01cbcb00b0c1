//! `dlm.log`: what happened to a run and when, through stops and resumes.

use chrono::{SecondsFormat, Utc};
use dlm_files::FileError;
use dlm_train::{MetricSink, Outcome, Preview, Progress};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// The file of a run folder that tells its story.
const LOG_FILE: &str = "dlm.log";

/// Appends a line with its time for everything that a person would want to look up later. Unlike the metrics it is never cut
/// back: a step that was done twice, since a kill came between, stands there twice.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    pub(super) fn new(output_dir: &Path) -> Self {
        Self { path: output_dir.join(LOG_FILE), file: None }
    }

    fn line(&mut self, text: &str) -> dlm_train::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let written = file.write_all(format!("{now} {text}\n").as_bytes());
        Ok(written.map_err(|source| FileError { action: "write", path: self.path.clone(), source })?)
    }
}

impl MetricSink for LogFile {
    fn begin(&mut self, progress: &Progress) -> dlm_train::Result<()> {
        let opened = OpenOptions::new().create(true).append(true).open(&self.path);
        self.file = Some(opened.map_err(|source| FileError { action: "open", path: self.path.clone(), source })?);
        let (version, libtorch) = (env!("CARGO_PKG_VERSION"), dlm_torch::libtorch_version());
        self.line(&format!(
            "dlm {version}, libtorch {libtorch}: begins after step {} of {}",
            progress.step, progress.total_steps
        ))
    }

    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        let numbers: Vec<String> = metrics.iter().map(|(name, value)| format!("{name}={value:.6}")).collect();
        self.line(&format!("step {step}: {}", numbers.join(" ")))
    }

    fn samples(&mut self, step: u64, previews: &[Preview]) -> dlm_train::Result<()> {
        self.line(&format!("step {step}: {} samples", previews.len()))
    }

    fn finish(&mut self, outcome: &Outcome) -> dlm_train::Result<()> {
        self.line(&match outcome {
            Outcome::Finished { step } => format!("finished after step {step}"),
            Outcome::Interrupted { step, checkpoint } => {
                format!("interrupted after step {step}, saved as {}", checkpoint.display())
            }
            Outcome::Failed { step, reason } => format!("failed after step {step}: {reason}"),
        })
    }
}
