//! The mathematics of masked diffusion: no model, no data.
//!
//! A masked diffusion model learns to fill in blanks. Its **forward process** replaces each token of a text by the mask token with
//! probability `p_mask(t)`, independently, where `t` runs from 0 (text) to 1 (all masks):
//!
//! ```text
//! p_mask(t) = 1 - alpha_t            linear: (1 - eps) t + eps      cosine: 1 - (1 - eps) cos(pi t / 2)
//! ```
//!
//! A **denoiser** sees the noised text `x_t` at once, in both directions, and predicts the clean token behind each mask. The loss
//! of one text of `L` tokens, over random `t` and random masks,
//!
//! ```text
//! loss = E_t E_mask [ sum over masked i of  w(t) * -log p(x_i | x_t) ] / L,      w(t) = p'(t) / p(t) = -alpha'_t / (1 - alpha_t)
//! ```
//!
//! bounds `-log p(x) / L` from above: the negative evidence lower bound (NELBO) of MDLM
//! ([arXiv:2406.07524](https://arxiv.org/abs/2406.07524)). On the linear schedule `w` is `1 / p_mask` but for the factor `1 - eps`: the
//! form that LLaDA ([arXiv:2502.09992](https://arxiv.org/abs/2502.09992)) and SMDM
//! ([arXiv:2410.18514](https://arxiv.org/abs/2410.18514)) train with.
//!
//! The crate follows one optimiser step:
//!
//! | step | what does it |
//! |---|---|
//! | draw a timestep for each document or block | [`Timesteps`], [`MaskRange`], [`NoiseKey`] |
//! | mask | [`ForwardProcess::noise_views`] by [`NoiseSchedule`], [`MaskPolicy`], [`Masking`] and [`Views`]; [`mask_tokens`] alone |
//! | count what the step's micro-batches hold | [`NoisedBatch::counts`], summed to [`WindowCounts`] |
//! | score the masked tokens | [`Denoiser`] and [`Head`]: hidden states at wanted positions, then their scores |
//! | weigh, normalise, report | [`Objective`] ([`WeightRule`], [`TokenLoss`], [`LossNormalization`], [`Accumulation`]), [`diffusion_loss`], [`StepMetrics`] |
//!
//! # Whose objective is which
//!
//! | system | here |
//! |---|---|
//! | LLaDA, SMDM, Axolotl | `Linear`, weight [`InverseP`](LossWeight::InverseP) |
//! | MDLM ([2406.07524](https://arxiv.org/abs/2406.07524)) | `LogLinear`, weight [`Elbo`](LossWeight::Elbo), the mask token [forbidden](TokenLoss::forbidden) |
//! | Dream ([2508.15487](https://arxiv.org/abs/2508.15487)) | `Linear`, weight [`Cart`](LossWeight::Cart), a [logits shift](predicting_positions) |
//! | BD3-LM ([2503.09573](https://arxiv.org/abs/2503.09573)) | [`ForwardProcess::in_blocks`]: `x_t` with `x_0` in one pass, [`Visibility::NoisyAndClean`] |
//! | Fast-dLLM v2, LLaDA2.0 | blocks, [`Views::Pair`], weight [`Uniform`](LossWeight::Uniform), [`BlockLengths`] over the run |
//! | DiffuLLaMA ([2410.17891](https://arxiv.org/abs/2410.17891)) | [`Visibility::annealed`] from causal to bidirectional |
//! | an autoregressive baseline | [`Views::Autoregressive`] |
//!
//! # Evaluation
//!
//! [`evaluate`] bounds the likelihood of texts with error bars, estimates or reckons that of answers, and answers multiple-choice
//! questions. Exact mask counts that are spread evenly reach the error of plain Bernoulli masks with an eighth of the forward passes, from
//! `cargo run -p dlm-diffusion --example estimators` (a text of 32 tokens, each position with odds of its own under two
//! causes; how much is gained depends on how alike the tokens of a text are):
//!
//! | estimate of `-log p` = 23.976 nats | passes | mean | standard deviation over 100 seeds |
//! |---|---|---|---|
//! | Bernoulli masks, `t` uniform, weight `1/p` | 8 | 23.428 | 2.567 |
//! | Bernoulli masks, `t` uniform, weight `1/p` | 64 | 23.914 | 1.285 |
//! | exact counts, spread evenly, weight `n/k` | 4 | 24.199 | 2.571 |
//! | exact counts, spread evenly, weight `n/k` | 8 | 23.811 | 1.121 |
//!
//! Three rules hold throughout. Noise is an argument, never a state: whoever calls brings the uniforms, by default from
//! [`NoiseKey`], so the same document gets the same mask wherever it is packed and however often a run restarts. Packing is exact:
//! the loss of a packed row is that of its documents one by one, with a timestep, positions and a normalisation of their own
//! ([`PackingIsolation`]). And logits exist only for masked tokens.
//!
//! ```
//! use dlm_diffusion::{
//!     CleanBatch, ForwardProcess, LossNormalization, MaskPolicy, NoiseKey, NoiseSchedule, Objective, Purpose, ScheduleName,
//!     Timesteps, diffusion_loss,
//! };
//! use tch::{Kind, Tensor};
//!
//! // Eight tokens, of which id 1 is never masked; the mask token is 9.
//! let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 5, 2, 7, 4, 6, 3, 5]]))?;
//! let schedule = NoiseSchedule::new(ScheduleName::Linear, 1e-3)?;
//! let process = ForwardProcess::new(schedule, MaskPolicy::new(9).sparing([1]));
//!
//! // The noise of document 0 in epoch 0 of a run with seed 42.
//! let key = |purpose| NoiseKey::new(42, purpose, 0).of_document(0, 0);
//! let t = process.range.t_of(Timesteps::Stratified.draw(&key(Purpose::Timestep), 0));
//! let uniform = Tensor::from_slice(&key(Purpose::Mask).uniforms(0, 8)).unsqueeze(0);
//! let batch = process.noise(clean, &Tensor::from_slice2(&[[t]]), &uniform)?;
//!
//! // A denoiser that knows nothing: every one of ten tokens is as likely.
//! let denoiser = |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], 10], (Kind::Float, ids.device()));
//! let output = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts())?;
//! for (name, value) in output.metrics.named() {
//!     println!("train/{name} = {value:.4}");
//! }
//! assert!((output.metrics.ce_loss.value().unwrap() - 10f64.ln()).abs() < 1e-6);
//! # Ok::<(), dlm_diffusion::DiffusionError>(())
//! ```

mod attention;
mod batch;
mod blocks;
mod check;
mod denoiser;
mod error;
pub mod evaluate;
mod exact_count;
mod masking;
mod metrics;
mod nelbo;
mod noise;
mod normalization;
mod packing;
mod process;
mod range;
mod schedule;
mod shift;
mod timestep;
mod weight;

pub use attention::{AttentionLayout, Visibility};
pub use batch::{CleanBatch, IGNORE_INDEX};
pub use blocks::{BlockLengths, BlockStart};
pub use denoiser::{Denoiser, DenoiserInput, Head, TargetScores, TokenLoss, for_each_chunk};
pub use error::{DiffusionError, Result};
pub use exact_count::Masking;
pub use masking::{MaskPolicy, Noised, mask_tokens};
pub use metrics::{Mean, StepMetrics};
pub use nelbo::{LossOutput, Objective, diffusion_loss};
pub use noise::{NoiseKey, Purpose, drops_prompt, random_length};
pub use normalization::{Accumulation, LossNormalization, WindowCounts};
pub use packing::{PackingIsolation, segment_positions, segment_starts};
pub use process::{ForwardProcess, ModelInput, NoisedBatch, Views};
pub use range::{EffectiveRange, MaskRange};
pub use schedule::{CustomSchedule, NoiseSchedule, ScheduleConfig, ScheduleName};
pub use shift::{predicting_positions, predicting_positions_in};
pub use timestep::{Timesteps, slot_t, stratified_t};
pub use weight::{LossWeight, WeightRule, cart_weights};
