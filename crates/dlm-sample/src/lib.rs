//! Decoding for masked diffusion models: which masks to fill, when, and with what.
//!
//! A [`Canvas`] holds known tokens and masks: a prompt with masks behind it ([`Canvas::completion`]), a text with holes
//! ([`Canvas::random_masks`], [`Canvas::mask_positions`]), or the answers of a fine-tuning row ([`Canvas::answers`]).
//! [`sample`] asks a [`Denoiser`](dlm_diffusion::Denoiser) for all masks at once, keeps the predictions it is surest
//! of, and repeats until nothing is masked. Every step costs one forward pass, so that [`SamplerConfig::steps`] buys
//! quality with time.
//!
//! ```
//! use dlm_sample::{Canvas, KeyedDraws, SamplerConfig, sample};
//! use std::ops::ControlFlow;
//! use tch::Tensor;
//!
//! // A "network" over eight letters and a mask (8): at position i it expects letter i, the surer the smaller i is.
//! let denoiser = |ids: &Tensor| {
//!     let letters = Tensor::from_slice(&[9f32, 8., 7., 6., 5., 4., 3., 2., 0.]).diag(0); // [position, vocab]
//!     letters.narrow(0, 0, ids.size()[1]).unsqueeze(0).expand([ids.size()[0], -1, -1], false)
//! };
//! let canvas = Canvas::completion(&[0, 1], 4, 8)?;
//! let config = SamplerConfig::new(8).with_steps(2).with_trace();
//! let mut watch = |event: &dlm_sample::StepEvent| {
//!     println!("step {}: {:?}, {} masks left", event.step, event.ids, event.remaining);
//!     ControlFlow::Continue(())
//! };
//! let generations = sample(&denoiser, &[canvas], &config, &mut KeyedDraws::new(42), &mut watch)?;
//! assert_eq!(generations[0].ids, [0, 1, 2, 3, 4, 5]);
//! assert_eq!(generations[0].nfe, 2);
//! assert_eq!(generations[0].trace[0], [0, 1, 2, 3, 8, 8]);
//! # Ok::<(), dlm_sample::SampleError>(())
//! ```
//!
//! - Many canvases of different lengths are decoded in one batch, each as if it were alone; a canvas that is done
//!   leaves the batch.
//! - Scores exist only at masked positions, [`SamplerConfig::chunk_len`] of them at a time.
//! - With a temperature, noise follows from a seed, the canvas, the step and the position ([`KeyedDraws`]); [`Draws`]
//!   is the door for other noise.
//! - [`outcomes`] and [`spans`] say how a generation differs from the original, for whoever colours it; [`Stats`] what
//!   it cost; [`parse_commands`] reads `:complete N` and `:mask R` before a prompt; [`choose_previews`] picks rows to
//!   show while training.
//!
//! This crate knows the [`Denoiser`](dlm_diffusion::Denoiser) alone: no files, no tokenizer, no network of its own.

mod batch;
mod canvas;
mod choose;
mod config;
mod diff;
mod error;
mod generation;
mod gumbel;
mod masked_text;
mod prediction;
mod prompt_command;
mod remasking;
mod sampler;
mod stats;
mod transfer;

pub use canvas::{Canvas, masked_count, preview_mask_ratio};
pub use choose::{PreviewLimits, PreviewRow, choose_previews, has_prompt_and_answer};
pub use config::SamplerConfig;
pub use diff::{TokenOutcome, outcomes, spans};
pub use error::{Result, SampleError};
pub use generation::{Generation, Reveal, StepEvent};
pub use gumbel::{DrawRequest, Draws, KeyedDraws};
pub use masked_text::{MASK_TEXT, masked_text};
pub use prompt_command::{DEFAULT_COMPLETION_TOKENS, PromptCommands, PromptMode, parse_commands};
pub use remasking::Remasking;
pub use sampler::sample;
pub use stats::Stats;
pub use transfer::Transfer;
