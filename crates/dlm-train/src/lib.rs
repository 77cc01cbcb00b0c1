//! The training loop of a masked-diffusion language model: optimiser, schedules, accumulation, evaluation, checkpoints.
//!
//! A [`Trainer`] takes a [model](dlm_model::Model), [rows](RowSource) and a [`RunConfig`], and leaves a run folder in the habit of
//! Hugging Face: the model at its root, `checkpoint-<step>/`, `metrics.jsonl`, `samples.jsonl`, `loss_curve.svg`.
//!
//! ```
//! use dlm_model::{LoadOptions, Model, ModelConfig};
//! use dlm_train::{MemoryRows, ObjectiveConfig, Outcome, RunConfig, RunLength, Start, Trainer};
//!
//! # let folder = tempfile::tempdir()?;
//! # let output_dir = folder.path().join("run");
//! // Rows that count upwards; token 31 is the mask.
//! let texts: Vec<Vec<i32>> = (0..8).map(|first| (first..first + 16).collect()).collect();
//! let rows = MemoryRows::of_texts(16, &texts)?;
//! let model = Model::from_config(ModelConfig::preset("tiny", 32)?, 1, &LoadOptions::default())?;
//!
//! let config = RunConfig::new(&output_dir, RunLength::Steps(2), ObjectiveConfig::new(31));
//! let (outcome, _model) = Trainer::new(config, model, &rows)?.run(Start::New)?;
//! assert_eq!(outcome, Outcome::Finished { step: 2 });
//! assert!(output_dir.join("model.safetensors").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - A step is a window of micro-batches: all are masked, then counted, then scored ([`NoisedWindow`], [`optimizer_step`]), so
//!   that how a step is cut into micro-batches does not change its gradient. This part works with any
//!   [`Denoiser`](dlm_diffusion::Denoiser).
//! - Noise is a function of seed, epoch and document ([`KeyedNoise`]); [`NoiseSource`] is the door for other noise.
//! - A [checkpoint](Checkpoint) is whole or absent. A run killed at any instant goes on from its newest one, to the bit, and its logs
//!   are cut back to it; other data or settings are refused by name.
//! - [`evaluate`] scores validation rows with noise that is the same every time.
//! - Numbers go to [`MetricSink`]s: the files of the run folder always, a terminal or a tracking service where the caller adds them.
//!
//! This crate opens no socket, and knows no tokenizer: samples become text through a closure of the caller's.

mod checkpoint;
mod config;
mod curve;
mod data;
mod device_batch;
mod error;
mod evaluate;
mod lr_schedule;
mod metrics;
mod noise;
mod objective;
mod optimizer;
mod preview;
mod sink;
mod step;
mod trainer;
mod writing_order;

pub use checkpoint::{Checkpoint, TrainerState, existing_run, remove_old_checkpoints};
pub use config::{
    BatchConfig, CheckpointConfig, EvaluationConfig, Interval, Precision, PreviewConfig, RunConfig, RunLength,
};
pub use curve::{LossCurve, write_loss_curve};
pub use data::{MemoryRows, RowSource, WindowSource};
pub use device_batch::{clean_batch, noised_views};
pub use error::{Result, TrainError};
pub use evaluate::evaluate;
pub use lr_schedule::{LrSchedule, LrScheduleConfig, LrScheduler, Warmup};
pub use metrics::{Accumulator, Metrics, metric, peak_memory_gib, prefixed};
pub use noise::{KeyedNoise, NoiseSource};
pub use objective::ObjectiveConfig;
pub use optimizer::{AdamW, OptimizerConfig};
pub use preview::{Piece, Preview, PreviewMode, TextOf};
pub use sink::{JsonlSink, METRICS_FILE, MetricSink, Outcome, Progress, SAMPLES_FILE, read_metrics};
pub use step::{NoisedWindow, StepReport, optimizer_step};
pub use trainer::{Start, Trainer, set_precision};
