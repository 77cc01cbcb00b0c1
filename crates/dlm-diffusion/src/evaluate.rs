//! Evaluation: how likely a denoiser finds texts, with error bars that say how far to trust the number.
//!
//! A denoiser does not give the likelihood of a text, but a bound: the average over `k` of the loss with `k` of `n` tokens masked,
//!
//! ```text
//! -log p(x) <= sum over k = 1..n of  1/k * E[ sum over the k masked i of -log p(x_i | the others) ]
//! ```
//!
//! which is the integral that training samples, with `t` integrated out (LLaDA, [arXiv:2502.09992](https://arxiv.org/abs/2502.09992),
//! eq. 6; no `eps` is left in it). [`bound`] estimates it by exact mask counts spread evenly over `1..=n`, with a random shift for each
//! document and at least two replicates, so that the error of the estimate is known beside the error of the sample.
//!
//! [`loglikelihood`] estimates that of an answer given a prompt, [`chain_loglikelihood`] reckons it exactly for one order of revealing;
//! [`choose`] answers multiple-choice questions by either; [`autoregressive`] scores with a causal model; [`generation`] judges texts.

mod bound;
mod choice;
mod conditional;
mod design;
pub mod generation;
mod report;
mod rows;

pub use bound::{BoundConfig, EvalDocument, LongDocuments, autoregressive, bound};
pub use choice::{Chosen, Question, choose};
pub use conditional::{
    KeyedDraws, Likelihood, LikelihoodConfig, LikelihoodDraws, Order, chain_loglikelihood, loglikelihood, mask_counts,
};
pub use report::{BoundReport, Excluded, RatioBin};
