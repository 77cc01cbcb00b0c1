//! Where metrics go: the trait for whoever wants them, and the files of the run folder.

use crate::{
    error::{Result, TrainError},
    metrics::Metrics,
    preview::Preview,
};
use serde_json::{Map, Value};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// The file of a run folder with one object for each logged step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The file of a run folder with one object for each sample shown while training.
pub const SAMPLES_FILE: &str = "samples.jsonl";

/// How far a run is, told after each optimiser step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Optimiser steps done, those before a resume included.
    pub step: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// Passes over the data, as a fraction.
    pub epoch: f64,
    /// Loss of the step.
    pub loss: f64,
    /// Bound on the negative log-likelihood of the step in nats per token; `None` where the mask ratio is restricted.
    pub nelbo: Option<f64>,
    /// Tokens without padding, per second, since the start of this process.
    pub tokens_per_s: f64,
    /// Time left at the speed so far.
    pub time_left: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and the model is saved.
    Finished {
        /// The last step.
        step: u64,
    },
    /// Someone asked it to stop; a checkpoint is saved.
    Interrupted {
        /// The last step done.
        step: u64,
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
    /// It failed.
    Failed {
        /// The last step done.
        step: u64,
        /// The error's message.
        reason: String,
    },
}

/// Someone who wants the numbers of a run: a file, a terminal, a tracking service.
///
/// A sink may fail, which ends the run; one whose trouble should not matter keeps it to itself.
pub trait MetricSink {
    /// Hears that training begins, or goes on, after everything was checked.
    ///
    /// # Errors
    /// What should end the run.
    fn begin(&mut self, _progress: &Progress) -> Result<()> {
        Ok(())
    }

    /// Takes the numbers of a logged step, training and evaluation together.
    ///
    /// # Errors
    /// What should end the run, such as a full disk.
    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> Result<()>;

    /// Takes the samples generated after a step.
    ///
    /// # Errors
    /// What should end the run.
    fn samples(&mut self, _step: u64, _previews: &[Preview]) -> Result<()> {
        Ok(())
    }

    /// Hears of every optimiser step, logged or not.
    fn progress(&mut self, _progress: &Progress) {}

    /// Puts what it holds out of reach of a kill; a checkpoint follows, to which the run may come back.
    ///
    /// # Errors
    /// What should end the run.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Hears how the run ended.
    ///
    /// # Errors
    /// What the caller should hear of.
    fn finish(&mut self, _outcome: &Outcome) -> Result<()> {
        Ok(())
    }

    /// Whether the run should save a checkpoint and end, asked after each step.
    fn wants_stop(&self) -> bool {
        false
    }
}

/// `metrics.jsonl` and `samples.jsonl` of a run folder.
#[derive(Debug)]
pub struct JsonlSink {
    metrics: JsonlFile,
    samples: JsonlFile,
}

impl JsonlSink {
    /// Begins both files anew, or for a resumed run cuts them back to `resume_step`.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::File`] with the file that cannot be read or written.
    pub fn open(output_dir: &Path, resume_step: Option<u64>) -> Result<Self> {
        let open = |name| JsonlFile::open(output_dir.join(name), resume_step);
        Ok(Self { metrics: open(METRICS_FILE)?, samples: open(SAMPLES_FILE)? })
    }
}

impl MetricSink for JsonlSink {
    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> Result<()> {
        let numbers = metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value)));
        let object: Map<String, Value> = [("step".to_owned(), Value::from(step))].into_iter().chain(numbers).collect();
        self.metrics.append(&Value::Object(object))
    }

    fn samples(&mut self, step: u64, previews: &[Preview]) -> Result<()> {
        for preview in previews {
            let mut object = Map::from_iter([("step".to_owned(), Value::from(step))]);
            if let Value::Object(fields) =
                serde_json::to_value(preview).map_err(TrainError::json(&self.samples.path))?
            {
                object.extend(fields);
            }
            self.samples.append(&Value::Object(object))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.samples.sync()
    }

    fn finish(&mut self, _outcome: &Outcome) -> Result<()> {
        self.flush()
    }
}

/// A file that grows by one JSON object a line.
#[derive(Debug)]
struct JsonlFile {
    path: PathBuf,
    file: File,
}

impl JsonlFile {
    fn open(path: PathBuf, resume_step: Option<u64>) -> Result<Self> {
        let kept = match resume_step {
            None => String::new(),
            Some(step) => lines_until(&path, step)?,
        };
        // Written whole: a kill while it is cut back must not lose what the checkpoint counts on.
        dlm_files::write(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TrainError::io("open", &path))?;
        Ok(Self { path, file })
    }

    fn append(&mut self, object: &Value) -> Result<()> {
        // One write for the whole line, so that a reader never sees half of it.
        self.file.write_all(format!("{object}\n").as_bytes()).map_err(TrainError::io("write", &self.path))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(TrainError::io("write", &self.path))
    }
}

/// The whole lines of a file whose `step` is at most `last_step`; a file that is not there has none.
fn lines_until(path: &Path, last_step: u64) -> Result<String> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(TrainError::io("read", path))?,
    };
    let keep = |line: &&str| {
        let object = serde_json::from_str::<Value>(line).ok(); // a line cut by a kill is no object
        object.and_then(|object| object["step"].as_u64()).is_some_and(|step| step <= last_step)
    };
    Ok(text.split_inclusive('\n').filter(keep).collect())
}

/// The lines of a `metrics.jsonl`: each logged step and its numbers.
///
/// # Errors
/// [`TrainError::Io`] when the file cannot be read, [`TrainError::Json`] when it holds something else.
pub fn read_metrics(path: &Path) -> Result<Vec<(u64, Metrics)>> {
    let text = fs::read_to_string(path).map_err(TrainError::io("read", path))?;
    let parse = |line: &str| -> Result<(u64, Metrics)> {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(TrainError::json(path))?;
        let step = object.get("step").and_then(Value::as_u64).unwrap_or_default();
        let numbers = object.into_iter().filter(|(name, _)| name != "step");
        Ok((step, numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()))
    };
    text.lines().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(step: u64) -> Metrics {
        vec![("train/loss".to_owned(), 1.0 / step as f64)]
    }

    #[test]
    fn a_resumed_log_goes_on_after_the_checkpoint_as_if_nothing_had_followed() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = JsonlSink::open(folder.path(), None).unwrap();
        for step in 1..=5 {
            sink.log(step, &number(step)).unwrap();
        }
        let path = folder.path().join(METRICS_FILE);
        let unbroken = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{unbroken}{{\"step\": 6, \"tra")).unwrap(); // killed while writing

        let mut sink = JsonlSink::open(folder.path(), Some(3)).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), (1..=3).map(|s| (s, number(s))).collect::<Vec<_>>());
        for step in 4..=5 {
            sink.log(step, &number(step)).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), unbroken);
    }

    #[test]
    fn a_new_run_begins_with_empty_files() {
        let folder = tempfile::tempdir().unwrap();
        JsonlSink::open(folder.path(), None).unwrap().log(1, &number(1)).unwrap();
        JsonlSink::open(folder.path(), None).unwrap();
        assert_eq!(read_metrics(&folder.path().join(METRICS_FILE)).unwrap(), []);
    }
}
