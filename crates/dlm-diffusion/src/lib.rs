//! The mathematics of masked diffusion: no model, no data.
//!
//! # In one page
//!
//! A masked diffusion model learns to fill in blanks. Its **forward process** replaces each token of a text `x` by the mask token with
//! probability `p_mask(t)`, independently, where `t` runs from 0 (text) to 1 (all masks):
//!
//! ```text
//! p_mask(t) = 1 - alpha_t            linear: (1 - eps) t + eps      cosine: 1 - (1 - eps) cos(pi t / 2)      and twelve more
//! ```
//!
//! A **denoiser** sees the noised text `x_t` at once, in both directions, and predicts the clean token behind each mask. The **loss**
//! of a text of `L` tokens, over random `t` and random masks,
//!
//! ```text
//! loss = E_t E_mask [ sum over masked i of  w(t) * -log p(x_i | x_t) ] / L,      w(t) = p'(t) / p(t) = -alpha'_t / (1 - alpha_t)
//! ```
//!
//! bounds `-log p(x) / L` from above: the negative evidence lower bound (NELBO) of MDLM
//! ([2406.07524](https://arxiv.org/abs/2406.07524), eq. 10), whatever the schedule; which one is chosen decides only how much the loss
//! varies. On the linear schedule `w` is `1 / p_mask` but for the factor `1 - eps`: what LLaDA
//! ([2502.09992](https://arxiv.org/abs/2502.09992)) and SMDM ([2410.18514](https://arxiv.org/abs/2410.18514)) train with.
//!
//! Why it is a bound: reveal a text in a random order, one token at a time. By the chain rule the logarithms of what each revealed token
//! is predicted with sum to `log p(x)` in that order, and averaged over orders they bound it from below. Of the texts along the way the one
//! with `k` masks counts each of its masks as the next, with chance `1 / k`; integrating the weight `w` over `t` gives every `k` just that:
//!
//! ```text
//! -log p(x)  <=  sum over k = 1..L of  1/k * E[ sum over the k masked i of -log p(x_i | the others) ]
//! ```
//!
//! In this form, without `t`, the bound is evaluated ([`evaluate`]), and trained by [`Masking::ExactCount`].
//!
//! **Block diffusion** (BD3-LM, [2503.09573](https://arxiv.org/abs/2503.09573)) writes a text block by block, each denoised given the clean
//! ones before it: `-log p(x) = sum over blocks b of -log p(x_b | x_<b)`, every term with a bound as above and a `t` of its own. One pass over
//! the noised text with the clean one behind it trains all blocks ([`Visibility::NoisyAndClean`]). A block as long as the text is plain
//! masked diffusion; blocks of one token are an autoregressive model.
//!
//! **From an autoregressive model** one comes by opening its attention over the steps (DiffuLLaMA,
//! [2410.17891](https://arxiv.org/abs/2410.17891); [`Visibility::annealed`]), keeping its habit of predicting a token from the state before it
//! (the logits shift of Dream, [2508.15487](https://arxiv.org/abs/2508.15487); [`predicting_positions`]), with or without its own loss beside the
//! new one ([`AutoregressivePart`]).
//!
//! # One optimiser step
//!
//! | step | what does it |
//! |---|---|
//! | draw a timestep for each document or block | [`Timesteps`], [`MaskRange`], [`NoiseKey`] |
//! | mask | [`ForwardProcess::noise_views`] by [`NoiseSchedule`], [`MaskPolicy`], [`Masking`] and [`Views`]; [`mask_tokens`] alone |
//! | count what the step's micro-batches hold | [`NoisedBatch::counts`], summed to [`WindowCounts`] |
//! | score the masked tokens | [`Denoiser`] and [`Head`]: hidden states at wanted positions, then their scores |
//! | weigh, normalise, report | [`Objective`] ([`WeightRule`], [`TokenLoss`], [`LossNormalization`], [`Accumulation`]), [`diffusion_loss`], [`StepMetrics`] |
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
//!
//! # Whose objective is which
//!
//! | system | here |
//! |---|---|
//! | LLaDA, SMDM, Axolotl | `Linear`, weight [`InverseP`](LossWeight::InverseP); in fine-tuning [`LossNormalization::Sequence`] |
//! | MDLM | `LogLinear`, weight [`Elbo`](LossWeight::Elbo), the mask token [forbidden](TokenLoss::forbidden) |
//! | Dream | `Linear`, weight [`Cart`](LossWeight::Cart), a [logits shift](predicting_positions) |
//! | BD3-LM | [`ForwardProcess::in_blocks`], a [`MaskRange`] with the [least variance](MaskRange::least_variance) |
//! | Fast-dLLM v2, LLaDA2.0 | blocks, [`Views::Pair`], weight [`Uniform`](LossWeight::Uniform), [`BlockLengths`] over the run |
//! | DiffuLLaMA | [`Visibility::annealed`] from causal to bidirectional |
//! | an autoregressive baseline; a hybrid | [`Views::Autoregressive`]; [`ForwardProcess::beside`] |
//!
//! Each equals its reference. `make golden-table` compares with what the systems' own code computed (losses, gradients, weights, probabilities;
//! masks and ids are equal) and prints the largest error, relative to the larger of 1 and the number:
//!
//! | golden file | cases | comparisons | largest error |
//! |---|---|---|---|
//! | `diffusion_axolotl` | 30 | 288 | 1.8e-07 |
//! | `diffusion_bd3lm` | 5 | 10 | 2.2e-07 |
//! | `diffusion_dllm` | 22 | 81 | 2.9e-06 |
//! | `diffusion_llada` | 7 | 19 | 1.7e-07 |
//! | `diffusion_mdlm` | 12 | 32 | 1.7e-06 |
//! | `diffusion_schedules` | 43 | 2786 | 1.4e-04 |
//! | `diffusion_weights_masks` | 10 | 10 | 6.0e-08 |
//! | `pipeline_sft` | 14 | 84 | 1.4e-07 |
//! | `sample_llada_loglikelihood` | 5 | 5 | 0.0e+00 |
//!
//! (The schedules were recorded in float32: where a weight divides by a probability near 0, that is what their rounding comes to.)
//!
//! `cargo run -p dlm-diffusion --example objectives` trains a small denoiser with each of them and prints the bound it reaches.
//!
//! # Evaluation
//!
//! [`evaluate`] bounds the likelihood of texts with error bars, estimates or reckons that of answers, and answers multiple-choice
//! questions. Exact mask counts that are spread evenly, in windows of one random order, reach the error of plain Bernoulli masks with an
//! eighth of the forward passes. From `cargo run -p dlm-diffusion --example estimators`, over 400 seeds: two texts of 32 tokens under one
//! of two causes, whose likelihood is known, one with odds of its own at each position and one with all positions alike:
//!
//! | estimate of `-log p` | passes | mean (23.976) | deviation | mean, alike (17.538) | deviation, alike |
//! |---|---|---|---|---|---|
//! | Bernoulli masks, `t` uniform, weight `1/p` | 8 | 24.076 | 5.987 | 17.513 | 4.882 |
//! | Bernoulli masks, `t` uniform, weight `1/p` | 64 | 23.914 | 1.548 | 17.458 | 1.408 |
//! | exact counts, spread evenly, balanced shares | 4 | 24.020 | 1.600 | 17.393 | 1.708 |
//! | exact counts, spread evenly, balanced shares | 8 | 23.982 | 1.175 | 17.529 | 0.979 |
//! | exact counts, spread evenly, balanced shares | 16 | 23.976 | 0.794 | 17.585 | 0.697 |
//!
//! What limits a plain estimate is less how many tokens are masked than which: with few masks each counts `n / k` times, whether it is an
//! easy token or a hard one. Shares that balance over the passes, how often and how heavily each token counts, take that away; what is left
//! is how much a token's loss depends on which others are masked beside it.

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
mod noised_batch;
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
pub use blocks::{BlockLengths, BlockStart, LastBlock};
pub use denoiser::{Denoiser, DenoiserInput, Head, TargetScores, TokenLoss, for_each_chunk};
pub use error::{DiffusionError, Result};
pub use exact_count::Masking;
pub use masking::{MaskPolicy, Noised, mask_tokens};
pub use metrics::{Mean, StepMetrics};
pub use nelbo::{LossOutput, Objective, diffusion_loss};
pub use noise::{NoiseKey, Purpose, drops_prompt, random_length};
pub use noised_batch::{ModelInput, NoisedBatch};
pub use normalization::{Accumulation, LossNormalization, PartCounts, WindowCounts};
pub use packing::{PackingIsolation, segment_positions, segment_starts};
pub use process::{AutoregressivePart, ForwardProcess, Views};
pub use range::{EffectiveRange, MaskRange};
pub use schedule::{CustomSchedule, NoiseSchedule, ScheduleConfig, ScheduleName};
pub use shift::{predicting_positions, predicting_positions_in};
pub use timestep::{Timesteps, slot_t, stratified_t};
pub use weight::{LossWeight, WeightRule, cart_weights};
