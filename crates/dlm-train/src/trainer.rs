//! The loop: read a window, step, report, evaluate, show, save, until it is done or asked to stop.

use crate::{
    checkpoint::{Checkpoint, TrainerState, existing_run, remove_after, remove_old_checkpoints},
    config::{Interval, Precision, RunConfig},
    curve::write_loss_curve,
    data::RowSource,
    error::{Result, TrainError},
    evaluate::evaluate,
    lr_schedule::LrSchedule,
    metrics::{Accumulator, Metrics, metric, peak_memory_gib, prefixed},
    noise::KeyedNoise,
    optimizer::AdamW,
    preview::{Masking, TextOf, generate_previews},
    sink::{JsonlSink, METRICS_FILE, MetricSink, Outcome, Progress},
    step::{NoisedWindow, StepReport, optimizer_step},
    writing_order::WritingOrder,
};
use dlm_data::{Cursor, ReaderConfig};
use dlm_model::{Model, SaveOptions};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tch::Kind;

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first step, in a folder that holds no run.
    New,
    /// At the newest complete checkpoint of the folder, or at the first step of a run that was killed before it had one.
    Resume,
}

/// Trains a model on rows.
///
/// The same build, device, number of threads, seed, data and settings give the same weights to the bit, in one go or resumed.
/// No clock has a say in them.
pub struct Trainer<'a> {
    config: RunConfig,
    model: Model,
    rows: &'a dyn RowSource,
    validation: Option<&'a dyn RowSource>,
    sinks: Vec<Box<dyn MetricSink + 'a>>,
    companions: Vec<(String, Vec<u8>)>,
    identity: BTreeMap<String, Value>,
    text_of: Box<TextOf<'a>>,
    stop: Arc<AtomicBool>,
    saving: Option<SaveOptions>,
}

impl<'a> Trainer<'a> {
    /// A run of `model` on `rows`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] and [`TrainError::Diffusion`] for settings that mean nothing, [`TrainError::NoRows`],
    /// [`TrainError::RowsTooLong`].
    pub fn new(config: RunConfig, mut model: Model, rows: &'a dyn RowSource) -> Result<Self> {
        config.validate()?;
        expect_rows(rows, &model)?;
        model.set_packing_isolation(config.objective.packing_isolation);
        set_precision(&mut model, config.precision)?;
        model.set_gradient_checkpointing(config.gradient_checkpointing);
        let show_ids = |ids: &[i64]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Ok(Self {
            config,
            model,
            rows,
            validation: None,
            sinks: Vec::new(),
            companions: Vec::new(),
            identity: BTreeMap::new(),
            text_of: Box::new(show_ids),
            stop: Arc::default(),
            saving: None,
        })
    }

    /// Evaluates on these rows, and shows samples of them rather than of what is trained on.
    ///
    /// # Errors
    /// [`TrainError::NoRows`], [`TrainError::RowsTooLong`].
    pub fn with_validation(mut self, rows: &'a dyn RowSource) -> Result<Self> {
        expect_rows(rows, &self.model)?;
        self.validation = Some(rows);
        Ok(self)
    }

    /// Sends the numbers here as well; `metrics.jsonl` and `samples.jsonl` are always written.
    #[must_use]
    pub fn with_sink(mut self, sink: impl MetricSink + 'a) -> Self {
        self.sinks.push(Box::new(sink));
        self
    }

    /// Files that are saved beside the model, such as those of its tokenizer.
    #[must_use]
    pub fn with_companions(mut self, companions: Vec<(String, Vec<u8>)>) -> Self {
        self.companions = companions;
        self
    }

    /// Something else that decides the weights, such as a hash of the data: a checkpoint where it differs is not resumed.
    #[must_use]
    pub fn with_identity(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.identity.insert(name.to_owned(), value.into());
        self
    }

    /// How samples become text; without, they show ids.
    #[must_use]
    pub fn with_text(mut self, text_of: impl Fn(&[i64]) -> String + 'a) -> Self {
        self.text_of = Box::new(text_of);
        self
    }

    /// Saves a checkpoint and ends after the step in which this becomes true, as a signal handler makes it.
    #[must_use]
    pub fn with_stop(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
    }

    /// How the finished model is written; without, in one piece as it was trained. Checkpoints are always as exact as training.
    #[must_use]
    pub fn with_saving(mut self, saving: SaveOptions) -> Self {
        self.saving = Some(saving);
        self
    }

    /// Optimiser steps of the whole run.
    ///
    /// # Errors
    /// Those of reading the rows.
    pub fn total_steps(&self) -> Result<u64> {
        Ok(self.config.length.total_steps(self.steps_per_epoch()?))
    }

    /// Trains until the run is done or asked to stop. The model is given back in either case.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] and [`TrainError::NoCheckpoint`] where the folder does not fit `start`, [`TrainError::OtherRun`] when the
    /// checkpoint is of other settings or data, [`TrainError::NotFinite`] before the weights are touched, and what reading, computing
    /// and writing fail with. Sinks hear of it.
    pub fn run(mut self, start: Start) -> Result<(Outcome, Model)> {
        let mut run = Run::begin(&mut self, start)?;
        self.model.train(true);
        let result = self.begin(&run, start).and_then(|()| self.train(&mut run));
        self.model.train(false);
        let outcome = match &result {
            Ok(outcome) => outcome.clone(),
            Err(error) => Outcome::Failed { step: run.step, reason: error.to_string() },
        };
        let told: Result<()> = self.sinks.iter_mut().try_for_each(|sink| sink.finish(&outcome));
        let outcome = result?;
        told?;
        write_loss_curve(&self.config.output_dir)?;
        Ok((outcome, self.model))
    }

    fn begin(&mut self, run: &Run, start: Start) -> Result<()> {
        let progress = run.progress(&[]);
        self.sinks.iter_mut().try_for_each(|sink| sink.begin(&progress))?;
        // The run's own files come after every sink has agreed, so that a refused run leaves none of them.
        let resume_step = (start == Start::Resume).then_some(run.step);
        self.sinks.insert(0, Box::new(JsonlSink::open(&self.config.output_dir, resume_step)?));
        Ok(())
    }

    fn train(&mut self, run: &mut Run) -> Result<Outcome> {
        let rows = self.rows;
        let mut windows = rows.windows(&self.reader_config(), run.cursor)?;
        while run.step < run.total_steps {
            let window = windows.next_window()?;
            self.expect_known_ids(&window.micro_batches)?;
            let process = self.config.objective.process_at(run.step, self.config.seed)?;
            let noised = NoisedWindow::new(&window.micro_batches, window.epoch, &process, &run.noise)?;
            let lr = run.schedule.rate(run.step);
            let loss = self.config.objective.loss();
            let (device, step) = (self.model.device(), run.step + 1);
            let report = optimizer_step(&self.model, device, &mut run.optimizer, &noised, &loss, lr, step)?;
            run.count(&report, window.cursor);
            let metrics = self.report(run, &report, lr)?;
            if !metrics.is_empty() {
                self.sinks.iter_mut().try_for_each(|sink| sink.log(run.step, &metrics))?;
            }
            self.preview(run.step)?;
            let stops = self.stop.load(Ordering::Relaxed) || self.sinks.iter().any(|sink| sink.wants_stop());
            let is_last = run.step == run.total_steps;
            let is_due = self.config.checkpoints.every.is_due(run.step, run.steps_per_epoch);
            let saved = if is_due || (stops && !is_last) { Some(self.save(run)?) } else { None };
            if let (Some(checkpoint), true, false) = (saved, stops, is_last) {
                return Ok(Outcome::Interrupted { step: run.step, checkpoint });
            }
        }
        let saving = self.saving.unwrap_or_else(|| self.model.kind().into());
        self.model.save(&self.config.output_dir, saving, &self.companions)?;
        Ok(Outcome::Finished { step: run.step })
    }

    /// The numbers of a step that are logged after it: those of training where a line is due, and those of an evaluation.
    fn report(&mut self, run: &mut Run, report: &StepReport, lr: f64) -> Result<Metrics> {
        let mut of_step = prefixed("train", report.metrics.named());
        of_step.push(("train/grad_norm".to_owned(), report.grad_norm));
        run.between_logs.add(&of_step);
        let progress = run.progress(&of_step);
        for sink in &mut self.sinks {
            sink.progress(&progress);
        }
        let is_last = run.step == run.total_steps;
        let mut metrics = Metrics::new();
        if run.step.is_multiple_of(self.config.logging_steps) || is_last {
            metrics = run.between_logs.take();
            metrics.push(("train/learning_rate".to_owned(), lr));
            metrics.push(("train/epoch".to_owned(), progress.epoch));
            metrics.push(("train/tokens_per_s".to_owned(), run.speed.take()));
            metrics.extend(peak_memory_gib().map(|gib| ("train/memory_gib".to_owned(), gib)));
        }
        let evaluation = &self.config.evaluation;
        let is_due =
            evaluation.every.is_due(run.step, run.steps_per_epoch) || (is_last && evaluation.every != Interval::Never);
        if let Some(rows) = self.validation.filter(|_| is_due) {
            let (device, objective, seed) = (self.model.device(), &self.config.objective, self.config.seed);
            let start = Instant::now();
            metrics.extend(evaluate(&self.model, device, rows, objective, evaluation, seed, run.step)?);
            run.speed.exclude(start.elapsed());
        }
        Ok(metrics)
    }

    fn preview(&mut self, step: u64) -> Result<()> {
        let Some(config) = self.config.previews.as_ref().filter(|previews| step.is_multiple_of(previews.interval))
        else {
            return Ok(());
        };
        let rows = self.validation.unwrap_or(self.rows);
        let objective = &self.config.objective;
        let masking = Masking {
            mask_token_id: objective.mask_token_id,
            never_mask: &objective.never_mask,
            // Of the step that was just done.
            order: WritingOrder::of(objective, step - 1),
        };
        let seed_and_step = (self.config.seed, step);
        let previews = generate_previews(&self.model, rows, config, masking, seed_and_step, &*self.text_of)?;
        self.sinks.iter_mut().try_for_each(|sink| sink.samples(step, &previews))
    }

    fn save(&mut self, run: &Run) -> Result<PathBuf> {
        // What the logs say up to here must survive whatever the checkpoint survives.
        self.sinks.iter_mut().try_for_each(|sink| sink.flush())?;
        let state = TrainerState::new(run.step, run.cursor, run.identity.clone(), run.between_logs.clone());
        let output_dir = &self.config.output_dir;
        let path = Checkpoint::save(output_dir, &self.model, &self.companions, &run.optimizer, &state)?;
        if let Some(limit) = self.config.checkpoints.total_limit {
            remove_old_checkpoints(output_dir, limit)?;
        }
        Ok(path)
    }

    fn reader_config(&self) -> ReaderConfig {
        let batches = &self.config.batches;
        ReaderConfig {
            micro_batch_size: batches.micro_batch_size,
            micro_batches_per_window: batches.gradient_accumulation_steps,
            seed: self.config.seed,
            shuffle: batches.shuffle,
            read_ahead: self.config.read_ahead,
            ..ReaderConfig::default()
        }
    }

    fn steps_per_epoch(&self) -> Result<u64> {
        Ok(self.rows.windows(&self.reader_config(), Cursor::default())?.windows_per_epoch())
    }

    fn expect_known_ids(&self, batches: &[dlm_data::Batch]) -> Result<()> {
        let vocab_size = self.model.vocab_size();
        for batch in batches {
            let is_unknown = |id: &i32| !(0..vocab_size).contains(&i64::from(*id));
            if let Some(slot) = batch.ids.iter().position(is_unknown) {
                let holds =
                    |document: &&dlm_data::Document| crate::device_batch::slots_of(batch, document).contains(&slot);
                let document = batch.documents.iter().find(holds).map_or(-1, |document| document.id);
                return Err(TrainError::IdBeyondVocabulary { document, id: i64::from(batch.ids[slot]), vocab_size });
            }
        }
        Ok(())
    }
}

/// The state of a run under way.
struct Run {
    step: u64,
    total_steps: u64,
    steps_per_epoch: u64,
    cursor: Cursor,
    identity: BTreeMap<String, Value>,
    between_logs: Accumulator,
    schedule: LrSchedule,
    noise: KeyedNoise,
    optimizer: AdamW,
    speed: Speed,
}

impl Run {
    fn begin(trainer: &mut Trainer<'_>, start: Start) -> Result<Self> {
        let config = &trainer.config;
        let steps_per_epoch = trainer.steps_per_epoch()?;
        let total_steps = config.length.total_steps(steps_per_epoch);
        let mut identity = config.identity(total_steps);
        identity.extend(trainer.identity.clone());
        let mut run = Self {
            step: 0,
            total_steps,
            steps_per_epoch,
            cursor: Cursor::default(),
            identity,
            between_logs: Accumulator::default(),
            schedule: LrSchedule::new(&config.lr_schedule, total_steps),
            noise: config.objective.noise(config.seed),
            optimizer: AdamW::new(trainer.model.trainable_parameters(), &config.optimizer),
            speed: Speed::default(),
        };
        let output_dir = &config.output_dir;
        if let (Start::New, Some(found)) = (start, existing_run(output_dir)?) {
            return Err(TrainError::RunExists { path: output_dir.clone(), found });
        }
        dlm_files::remove_leftovers(output_dir)?;
        if start == Start::Resume {
            run.resume(output_dir, &mut trainer.model)?;
        }
        run.speed = Speed::default();
        Ok(run)
    }

    fn resume(&mut self, output_dir: &Path, model: &mut Model) -> Result<()> {
        let checkpoint = match Checkpoint::newest(output_dir) {
            // Killed before its first checkpoint: its logs are there, its model is not.
            Err(TrainError::NoCheckpoint { .. }) if has_begun(output_dir) => return Ok(()),
            other => other?,
        };
        checkpoint.expect_identity(&self.identity)?;
        checkpoint.restore(model, &mut self.optimizer)?;
        remove_after(output_dir, checkpoint.state.step)?;
        self.step = checkpoint.state.step;
        self.cursor = checkpoint.state.cursor;
        self.between_logs = checkpoint.state.between_logs;
        Ok(())
    }

    fn count(&mut self, report: &StepReport, cursor: Cursor) {
        self.step += 1;
        self.cursor = cursor;
        self.speed.count(report.num_tokens);
    }

    fn progress(&self, of_step: &[(String, f64)]) -> Progress {
        Progress {
            step: self.step,
            total_steps: self.total_steps,
            epoch: self.step as f64 / self.steps_per_epoch as f64,
            loss: metric(of_step, "train/loss").unwrap_or(0.0),
            nelbo: metric(of_step, "train/nelbo"),
            tokens_per_s: self.speed.overall(),
            time_left: self.speed.time_left(self.total_steps - self.step),
        }
    }
}

/// Tokens per second, for people: nothing that is computed depends on it.
#[derive(Debug)]
struct Speed {
    began: Instant,
    tokens: u64,
    steps: u32,
    since: Instant,
    tokens_since: u64,
    /// Time that was not training's, since `since` and since `began`.
    excluded_since: Duration,
}

impl Default for Speed {
    fn default() -> Self {
        let now = Instant::now();
        Self { began: now, tokens: 0, steps: 0, since: now, tokens_since: 0, excluded_since: Duration::ZERO }
    }
}

impl Speed {
    fn count(&mut self, tokens: u64) {
        self.tokens += tokens;
        self.tokens_since += tokens;
        self.steps += 1;
    }

    fn exclude(&mut self, elapsed: Duration) {
        self.excluded_since += elapsed;
    }

    /// Tokens per second since the last call.
    fn take(&mut self) -> f64 {
        let elapsed = self.since.elapsed().saturating_sub(self.excluded_since);
        let speed = self.tokens_since as f64 / elapsed.as_secs_f64().max(1e-9);
        (self.since, self.tokens_since, self.excluded_since) = (Instant::now(), 0, Duration::ZERO);
        speed
    }

    fn overall(&self) -> f64 {
        self.tokens as f64 / self.began.elapsed().as_secs_f64().max(1e-9)
    }

    fn time_left(&self, steps: u64) -> Duration {
        self.began.elapsed().div_f64(f64::from(self.steps.max(1))).mul_f64(steps as f64)
    }
}

/// Turns a model's numbers into those of the run; an optimiser takes them after this.
///
/// # Errors
/// [`TrainError::Model`] when memory runs out.
pub fn set_precision(model: &mut Model, precision: Precision) -> Result<()> {
    let (stored, computed) = match precision {
        Precision::Float32 => (Kind::Float, Kind::Float),
        Precision::Mixed => (Kind::Float, Kind::BFloat16),
        Precision::Bfloat16 => (Kind::BFloat16, Kind::BFloat16),
    };
    if model.kind() != stored {
        model.convert(stored)?;
    }
    Ok(model.compute_in(computed)?)
}

/// Whether a folder holds the logs of a run that has no model yet.
fn has_begun(output_dir: &Path) -> bool {
    output_dir.join(METRICS_FILE).exists() && !output_dir.join("config.json").exists()
}

fn expect_rows(rows: &dyn RowSource, model: &Model) -> Result<()> {
    if rows.rows() == 0 {
        return Err(TrainError::NoRows);
    }
    let (seq_len, max_seq_len) = (rows.seq_len(), model.max_seq_len() as usize);
    if seq_len > max_seq_len {
        return Err(TrainError::RowsTooLong { seq_len, max_seq_len });
    }
    Ok(())
}
