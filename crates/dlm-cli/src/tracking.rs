//! A run on Weights & Biases: metrics, samples as a table, and how it ended.

use crate::{
    commands::train::say,
    error::UsageError,
    settings::{Resolved, WandbMode},
};
use dlm_train::{METRICS_FILE, MetricSink, Outcome, Preview, Progress, Start, TrainError, read_metrics};
use dlm_wandb::{Mode, Object, Resume, Run, Table, WandbError};
use std::path::{Path, PathBuf};

/// The file of a run folder with the id under which its tracking goes on.
const ID_FILE: &str = "wandb_run_id";

/// Sends what a run reports to Weights & Biases.
///
/// The run is started when training begins, so that a refused run leaves no trace there. A server that cannot be reached at the
/// start is an error; later trouble is told once, and training goes on.
pub(crate) struct Tracking {
    settings: dlm_wandb::Settings,
    config: serde_json::Value,
    id_file: PathBuf,
    /// The metrics of the part of the run that is over, where one is resumed.
    logged_before: Option<PathBuf>,
    run: Option<Run>,
    told: bool,
}

impl Tracking {
    /// What the settings ask for, over what the `WANDB_` variables say; `None` for no tracking.
    pub(crate) fn new(resolved: &Resolved, output_dir: &Path, start: Start) -> anyhow::Result<Option<Self>> {
        let ours = &resolved.settings;
        if !ours.use_wandb.unwrap_or(ours.wandb_project.is_some()) {
            return Ok(None);
        }
        let mut settings = dlm_wandb::Settings::from_environment()?;
        if resolved.is_given("wandb_mode") {
            settings.mode = match ours.wandb_mode {
                WandbMode::Online => Mode::Online,
                WandbMode::Disabled => Mode::Disabled,
                WandbMode::Offline => {
                    return Err(UsageError::Invalid {
                        what: "`wandb_mode`".to_owned(),
                        found: "`offline`".to_owned(),
                        expected: "`online` or `disabled`".to_owned(),
                    }
                    .into());
                }
            };
        }
        if settings.mode == Mode::Disabled {
            return Ok(None);
        }
        if let Some(project) = &ours.wandb_project {
            settings.project.clone_from(project);
        }
        settings.entity = ours.wandb_entity.clone().or(settings.entity);
        settings.name = ours.wandb_name.clone().or(settings.name);
        settings.id = ours.wandb_run_id.clone().or(settings.id);
        let id_file = output_dir.join(ID_FILE);
        if start == Start::Resume && settings.id.is_none() {
            settings.id = std::fs::read_to_string(&id_file).ok().map(|id| id.trim().to_owned());
        }
        if settings.id.is_some() {
            settings.resume = Resume::Allow;
        }
        let config = serde_json::to_value(ours)?;
        let logged_before = (start == Start::Resume).then(|| output_dir.join(METRICS_FILE));
        Ok(Some(Self { settings, config, id_file, logged_before, run: None, told: false }))
    }

    /// Does something with the run; what goes wrong is told once.
    fn with_run(&mut self, send: impl FnOnce(&Run) -> Result<(), WandbError>) {
        let Some(run) = &self.run else { return };
        if let Err(error) = send(run) {
            self.warn(&error);
        }
    }

    fn warn(&mut self, error: &WandbError) {
        if !std::mem::replace(&mut self.told, true) {
            say!("warning: Weights & Biases: {error}; training goes on");
        }
    }
}

impl MetricSink for Tracking {
    fn begin(&mut self, progress: &Progress) -> dlm_train::Result<()> {
        let run = Run::start(self.settings.clone(), self.config.clone()).map_err(TrainError::sink)?;
        dlm_files::write(&self.id_file, run.id().as_bytes())?;
        say!("run `{}` at {}", run.name(), run.url());
        self.run = Some(run);
        // A kill takes the rows that were not delivered yet; the server passes over those that it has.
        if let Some(path) = self.logged_before.take().filter(|path| path.exists()) {
            for (step, metrics) in read_metrics(&path)?.into_iter().filter(|(step, _)| *step <= progress.step) {
                self.log(step, &metrics)?;
            }
        }
        Ok(())
    }

    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        let row: Object = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.with_run(|run| run.log(step, row));
        Ok(())
    }

    fn samples(&mut self, step: u64, previews: &[Preview]) -> dlm_train::Result<()> {
        let columns = ["step", "mode", "mask_ratio", "accuracy", "original", "masked", "generated"];
        let table = previews.iter().fold(Table::new(columns), |table, preview| {
            let mode = serde_json::to_value(preview.mode).unwrap_or_default();
            let (ratio, accuracy) = (preview.mask_ratio.into(), preview.accuracy.into());
            let [original, masked, generated] = [&preview.original, &preview.masked, &preview.generated];
            let texts = [original, masked, generated].map(|text| text.as_str().into());
            table.row([step.into(), mode, ratio, accuracy].into_iter().chain(texts))
        });
        if !previews.is_empty() {
            self.with_run(|run| run.log_table(step, "samples", &table));
        }
        Ok(())
    }

    fn finish(&mut self, outcome: &Outcome) -> dlm_train::Result<()> {
        let exit_code = match outcome {
            Outcome::Finished { .. } => 0,
            Outcome::Failed { .. } => 1,
            Outcome::Interrupted { .. } => 130,
        };
        if let Some(run) = self.run.take() {
            match run.finish(exit_code) {
                Ok(report) => say!("run complete at {}", report.url),
                Err(error) => say!("warning: Weights & Biases: {error}"),
            }
        }
        Ok(())
    }

    fn wants_stop(&self) -> bool {
        self.run.as_ref().is_some_and(Run::stop_requested)
    }
}
