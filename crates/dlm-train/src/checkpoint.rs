//! Checkpoints: saved whole or not at all, found again, and refused where they belong to another run.

use crate::{
    error::{Result, TrainError},
    metrics::Accumulator,
    optimizer::AdamW,
};
use dlm_data::Cursor;
use dlm_files::NewFolder;
use dlm_model::Model;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "checkpoint-";
const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const FORMAT: u32 = 1;

/// What a checkpoint knows beside weights and moments: `trainer_state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Version of this file's meaning.
    format: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Where in the data the next step begins.
    pub cursor: Cursor,
    /// Everything that decides the weights, by name: settings, data, tokenizer.
    pub identity: BTreeMap<String, Value>,
    /// Numbers of the steps since the last line of metrics.
    pub between_logs: Accumulator,
}

impl TrainerState {
    /// The state of a run after `step` steps.
    #[must_use]
    pub fn new(step: u64, cursor: Cursor, identity: BTreeMap<String, Value>, between_logs: Accumulator) -> Self {
        Self { format: FORMAT, step, cursor, identity, between_logs }
    }

    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
        let state: Self = serde_json::from_slice(&bytes).map_err(TrainError::json(path))?;
        if state.format != FORMAT {
            let reason = format!("it has format {}, but this program writes and reads format {FORMAT}", state.format);
            return Err(TrainError::BadCheckpoint { path: path.to_owned(), reason });
        }
        Ok(state)
    }
}

/// A folder `checkpoint-<step>` of a run: a model folder, the optimiser's moments, and [`TrainerState`].
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The folder; a model folder like any other.
    pub path: PathBuf,
    /// What it knows beside the tensors.
    pub state: TrainerState,
}

impl Checkpoint {
    /// Saves a checkpoint: it appears under its name when all of it is on the disk.
    ///
    /// # Errors
    /// [`TrainError::File`], [`TrainError::Model`] or [`TrainError::OptimizerState`] when something cannot be written; nothing is left behind.
    pub fn save(
        output_dir: &Path,
        model: &Model,
        companions: &[(String, Vec<u8>)],
        optimizer: &AdamW,
        state: &TrainerState,
    ) -> Result<PathBuf> {
        let path = output_dir.join(format!("{PREFIX}{}", state.step));
        let folder = NewFolder::begin(&path)?;
        model.save(folder.path(), model.kind(), companions)?;
        optimizer.save(&folder.path().join(OPTIMIZER_FILE))?;
        let text = serde_json::to_vec_pretty(state).map_err(TrainError::json(&path))?;
        dlm_files::write(&folder.path().join(STATE_FILE), &text)?;
        folder.finish()?;
        Ok(path)
    }

    /// The newest complete checkpoint of a run folder.
    ///
    /// # Errors
    /// [`TrainError::NoCheckpoint`] when there is none; the error of reading it when the newest complete one is no checkpoint of this program.
    pub fn newest(output_dir: &Path) -> Result<Self> {
        for (_, path) in list(output_dir)?.into_iter().rev() {
            let complete = [STATE_FILE, OPTIMIZER_FILE, "config.json"].iter().all(|name| path.join(name).is_file());
            if complete {
                let state = TrainerState::read(&path.join(STATE_FILE))?;
                return Ok(Self { path, state });
            }
        }
        Err(TrainError::NoCheckpoint { path: output_dir.to_owned() })
    }

    /// Refuses a checkpoint whose run differs in anything that decides the weights.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] with the names and both values.
    pub fn expect_identity(&self, now: &BTreeMap<String, Value>) -> Result<()> {
        let then = &self.state.identity;
        let names: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        let show = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), show);
        let differences: Vec<String> = names
            .into_iter()
            .filter(|name| then.get(*name) != now.get(*name))
            .map(|name| format!("`{name}` was {}, is {}", show(then.get(name)), show(now.get(name))))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrainError::OtherRun { path: self.path.clone(), differences })
    }

    /// Puts the weights and moments of the checkpoint in place.
    ///
    /// # Errors
    /// [`TrainError::Model`] or [`TrainError::OptimizerState`] when they are of another model.
    pub fn restore(&self, model: &mut Model, optimizer: &mut AdamW) -> Result<()> {
        model.load_parameters(&self.path)?;
        optimizer.load(&self.path.join(OPTIMIZER_FILE))
    }
}

fn show(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Removes the oldest checkpoints until `limit` are left.
///
/// # Errors
/// [`TrainError::Io`] when one cannot be removed.
pub fn remove_old_checkpoints(output_dir: &Path, limit: usize) -> Result<()> {
    let all = list(output_dir)?;
    for (_, path) in all.iter().take(all.len().saturating_sub(limit)) {
        // The new name hides it from a resume, should a kill leave half of it.
        let hidden = output_dir.join(format!("{}{PREFIX}old", dlm_files::TEMPORARY_PREFIX));
        fs::rename(path, &hidden).map_err(TrainError::io("remove", path))?;
        fs::remove_dir_all(&hidden).map_err(TrainError::io("remove", path))?;
    }
    Ok(())
}

/// Removes checkpoints of later steps than the one a run goes on from: they belong to a future that it will write anew.
///
/// # Errors
/// [`TrainError::Io`] when one cannot be removed.
pub(crate) fn remove_after(output_dir: &Path, step: u64) -> Result<()> {
    for (_, path) in list(output_dir)?.into_iter().filter(|(other, _)| *other > step) {
        fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
    }
    Ok(())
}

/// What of a run a folder holds already, if anything.
///
/// # Errors
/// [`TrainError::Io`] when the folder cannot be read.
pub fn existing_run(output_dir: &Path) -> Result<Option<String>> {
    if let Some((_, path)) = list(output_dir)?.pop() {
        return Ok(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    let files = [crate::sink::METRICS_FILE, "config.json"];
    Ok(files.into_iter().find(|name| output_dir.join(name).exists()).map(str::to_owned))
}

/// The checkpoints of a run folder by step, in order; a folder that is not there has none.
fn list(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(output_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(TrainError::io("read", output_dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::io("read", output_dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let step = name.strip_prefix(PREFIX).and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|_| path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(identity: &[(&str, Value)]) -> Checkpoint {
        let identity = identity.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let state = TrainerState::new(3, Cursor::default(), identity, Accumulator::default());
        Checkpoint { path: PathBuf::from("run/checkpoint-3"), state }
    }

    #[test]
    fn a_checkpoint_of_other_settings_is_refused_with_the_names_of_what_differs() {
        let then = checkpoint(&[("data", "abc".into()), ("seed", 1.into()), ("batches.shuffle", true.into())]);
        let now = checkpoint(&[("data", "xyz".into()), ("seed", 1.into())]).state.identity;
        let error = then.expect_identity(&now).unwrap_err().to_string();
        assert!(
            error.contains("`data` was abc, is xyz") && error.contains("`batches.shuffle` was true, is unset"),
            "{error}"
        );
        assert!(!error.contains("seed"), "{error}");
        then.expect_identity(&then.state.identity).unwrap();
    }

    #[test]
    fn the_newest_complete_checkpoint_is_found_by_number_and_half_copied_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        for step in [9, 10, 100] {
            let path = folder.path().join(format!("checkpoint-{step}"));
            fs::create_dir(&path).unwrap();
            let state = TrainerState { step, ..checkpoint(&[]).state };
            fs::write(path.join(STATE_FILE), serde_json::to_vec(&state).unwrap()).unwrap();
            if step != 100 {
                fs::write(path.join(OPTIMIZER_FILE), b"").unwrap();
                fs::write(path.join("config.json"), b"").unwrap();
            }
        }
        assert_eq!(Checkpoint::newest(folder.path()).unwrap().state.step, 10);
        remove_old_checkpoints(folder.path(), 1).unwrap();
        let left: Vec<u64> = list(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(left, [100]);
    }

    #[test]
    fn a_folder_without_checkpoints_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("absent")] {
            let error = Checkpoint::newest(&path).unwrap_err();
            assert!(matches!(error, TrainError::NoCheckpoint { .. }), "{error}");
            assert!(existing_run(&path).unwrap().is_none());
        }
    }
}
