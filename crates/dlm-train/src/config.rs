//! The settings of a run: one struct for each component, whole and checked before anything begins.

use crate::{
    error::{Result, TrainError},
    lr_schedule::{LrSchedule, LrScheduleConfig},
    objective::ObjectiveConfig,
    optimizer::OptimizerConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf};

/// Everything a [`Trainer`](crate::Trainer) is told beside the model and the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run's folder: the final model at its root, checkpoints, metrics and samples.
    pub output_dir: PathBuf,
    /// What every random choice follows from.
    pub seed: u64,
    /// When the run is done.
    pub length: RunLength,
    /// Optimiser steps between two lines of metrics.
    pub logging_steps: u64,
    /// What is trained: masking, loss and how it is averaged.
    pub objective: ObjectiveConfig,
    /// How rows become optimiser steps.
    pub batches: BatchConfig,
    /// Optimiser steps whose rows a thread reads in advance; 0 reads them when they are needed. Changes nothing that is computed.
    pub read_ahead: usize,
    /// In which kinds of numbers is trained.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the activations inside of blocks are computed again instead of kept. Changes nothing that is computed.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// AdamW and clipping.
    pub optimizer: OptimizerConfig,
    /// The learning rate of each step.
    pub lr_schedule: LrScheduleConfig,
    /// When to save, and how many to keep.
    pub checkpoints: CheckpointConfig,
    /// When and on how much to evaluate.
    pub evaluation: EvaluationConfig,
    /// Samples generated while training; `None` for none.
    pub previews: Option<PreviewConfig>,
}

impl RunConfig {
    /// A short run with defaults for everything else: what an example or a test begins with.
    #[must_use]
    pub fn new(output_dir: impl Into<PathBuf>, length: RunLength, objective: ObjectiveConfig) -> Self {
        Self {
            output_dir: output_dir.into(),
            seed: 42,
            length,
            logging_steps: 1,
            objective,
            batches: BatchConfig::default(),
            read_ahead: 2,
            precision: Precision::default(),
            gradient_checkpointing: false,
            optimizer: OptimizerConfig::default(),
            lr_schedule: LrScheduleConfig::default(),
            checkpoints: CheckpointConfig::default(),
            evaluation: EvaluationConfig::default(),
            previews: None,
        }
    }

    /// Refuses settings that no run can follow.
    ///
    /// # Errors
    /// [`TrainError::Setting`] with the name and the value.
    pub fn validate(&self) -> Result<()> {
        match self.length {
            RunLength::Steps(steps) => expect("max_steps", steps, "at least 1", |v| v > 0)?,
            RunLength::Epochs(epochs) => expect("num_epochs", epochs, "above 0", |v| v > 0.0 && v.is_finite())?,
        }
        expect("logging_steps", self.logging_steps, "at least 1", |v| v > 0)?;
        expect("micro_batch_size", self.batches.micro_batch_size, "at least 1", |v| v > 0)?;
        expect("gradient_accumulation_steps", self.batches.gradient_accumulation_steps, "at least 1", |v| v > 0)?;
        expect("eval_batch_size", self.evaluation.micro_batch_size, "at least 1", |v| v > 0)?;
        if let Some(max_rows) = self.evaluation.max_rows {
            expect("max_eval_samples", max_rows, "at least 1", |v| v > 0)?;
        }
        expect("eval_passes", self.evaluation.passes, "at least 1", |v| v > 0)?;
        for (name, interval) in [("save_steps", self.checkpoints.every), ("eval_steps", self.evaluation.every)] {
            if let Interval::Steps(count) | Interval::PerEpoch(count) = interval {
                expect(name, count, "at least 1", |v| v > 0)?;
            }
        }
        // Keeping none would remove a checkpoint as soon as it is written.
        if let Some(limit) = self.checkpoints.total_limit {
            expect("save_total_limit", limit, "at least 1", |v| v > 0)?;
        }
        if let Some(previews) = &self.previews {
            previews.validate()?;
        }
        self.optimizer.validate()?;
        self.lr_schedule.validate()?;
        self.objective.validate()
    }

    /// What decides the weights of a run, by name: a checkpoint is resumed only where all of it is the same.
    ///
    /// Logging, saving, evaluation and previews are free to change. So is the length of a run whose rate does not depend on it.
    pub(crate) fn identity(&self, total_steps: u64) -> BTreeMap<String, Value> {
        let schedule = LrSchedule::new(&self.lr_schedule, total_steps);
        let parts = json!({
            "seed": self.seed,
            "objective": self.objective,
            "batches": self.batches,
            "precision": self.precision,
            "optimizer": self.optimizer,
            "learning_rate": self.lr_schedule.learning_rate,
            "lr_scheduler": self.lr_schedule.scheduler,
            "warmup_steps": schedule.warmup_steps(),
            "max_steps": schedule.decay_end(),
        });
        let mut flat = BTreeMap::new();
        flatten("", parts, &mut flat);
        flat
    }
}

/// Turns nested objects into one of `outer.inner` names.
fn flatten(prefix: &str, value: Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&name, value, flat);
            }
        }
        // As text, which is compared letter by letter: parsing a float may change its last bit.
        Value::Number(number) if number.is_f64() => {
            flat.insert(prefix.to_owned(), Value::from(number.to_string()));
        }
        other => {
            flat.insert(prefix.to_owned(), other);
        }
    }
}

/// In which kinds of numbers a model is trained.
///
/// Norms, softmax and loss are in float32 in each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in float32.
    #[default]
    Float32,
    /// Matrices are multiplied in bfloat16; weights, gradients, moments and the residual stream are in float32. Faster where the
    /// processor multiplies bfloat16.
    Mixed,
    /// Weights, gradients and moments in bfloat16: half the memory, and steps too small for eight bits of a weight are lost.
    Bfloat16,
}

/// When a run is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunLength {
    /// After this many optimiser steps.
    Steps(u64),
    /// After this many passes over the data, rounded up to a whole step.
    Epochs(f64),
}

impl RunLength {
    /// Optimiser steps of a run over data with so many steps an epoch.
    #[must_use]
    pub fn total_steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => (epochs * steps_per_epoch as f64).ceil() as u64,
        }
    }
}

/// How rows become optimiser steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Rows in one forward and backward pass.
    pub micro_batch_size: usize,
    /// Micro-batches in one optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Whether each epoch takes the rows in an order of its own, rather than as they lie.
    pub shuffle: bool,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { micro_batch_size: 4, gradient_accumulation_steps: 1, shuffle: true }
    }
}

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// Never.
    #[default]
    Never,
    /// After every so many optimiser steps.
    Steps(u64),
    /// So many times in each epoch, evenly spread.
    PerEpoch(u64),
}

impl Interval {
    /// Whether it is due after `step` (counted from 1) of a run with so many steps an epoch.
    #[must_use]
    pub fn is_due(self, step: u64, steps_per_epoch: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Steps(every) => step.is_multiple_of(every.max(1)),
            Self::PerEpoch(times) => {
                let done = |step: u64| u128::from(step) * u128::from(times) / u128::from(steps_per_epoch.max(1));
                done(step) > done(step.saturating_sub(1))
            }
        }
    }
}

/// When to save a checkpoint, and how many to keep.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// How often.
    pub every: Interval,
    /// The newest so many stay, older ones are removed; `None` keeps all.
    pub total_limit: Option<usize>,
}

/// When to evaluate, and on how much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// How often, and then at the end of the run, too, where there are validation rows; [`Interval::Never`] evaluates nothing.
    pub every: Interval,
    /// Rows in one forward pass.
    pub micro_batch_size: usize,
    /// So many rows are evaluated, scattered over the data and the same every time; `None` for all. Fewer are faster and say less.
    pub max_rows: Option<usize>,
    /// Forward passes of each document in each of the two replicates of the bound: more of them lower its error from masks.
    pub passes: usize,
    /// Tokens in a byte of the validation text, which turns nats per token into bits per byte; `None` where it is not known.
    pub tokens_per_byte: Option<f64>,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { every: Interval::PerEpoch(1), micro_batch_size: 8, max_rows: None, passes: 1, tokens_per_byte: None }
    }
}

/// Samples generated while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewConfig {
    /// Optimiser steps between them.
    pub interval: u64,
    /// Samples each time.
    pub count: usize,
    /// Denoising steps of a sample.
    pub steps: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// Longer documents are cut to so many tokens.
    pub max_length: usize,
    /// Tokens of the tokenizer; ids of a padded vocabulary beyond it are never predicted.
    pub vocab_size: Option<i64>,
}

impl Default for PreviewConfig {
    fn default() -> Self {
        Self { interval: 100, count: 3, steps: 128, temperature: 0.0, max_length: 100, vocab_size: None }
    }
}

impl PreviewConfig {
    fn validate(&self) -> Result<()> {
        expect("generation_interval", self.interval, "at least 1", |v| v > 0)?;
        expect("num_generation_samples", self.count, "at least 1", |v| v > 0)?;
        expect("generation_steps", self.steps, "at least 1", |v| v > 0)?;
        expect("generation_temperature", self.temperature, "at least 0", |v| v >= 0.0 && v.is_finite())?;
        expect("generation_max_length", self.max_length, "at least 10", |v| v >= crate::preview::SHORTEST)
    }
}

/// Refuses a setting outside its range.
pub(crate) fn expect<T: Copy + ToString>(
    name: &'static str,
    value: T,
    expected: &'static str,
    fits: impl FnOnce(T) -> bool,
) -> Result<()> {
    if fits(value) { Ok(()) } else { Err(TrainError::Setting { name, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_rounded_up_to_a_whole_step() {
        assert_eq!(RunLength::Epochs(1.5).total_steps(7), 11);
        assert_eq!(RunLength::Steps(3).total_steps(7), 3);
    }

    #[test]
    fn something_done_twice_an_epoch_is_due_in_its_middle_and_at_its_end() {
        let due: Vec<u64> = (1..=21).filter(|&step| Interval::PerEpoch(2).is_due(step, 7)).collect();
        assert_eq!(due, [4, 7, 11, 14, 18, 21]);
        assert!((1..=21).all(|step| !Interval::Never.is_due(step, 7)));
    }
}
