//! Multiple choice: the answer that is most likely given the question.

use super::conditional::{KeyedDraws, LikelihoodConfig, Order, chain_loglikelihood, loglikelihood};
use crate::{
    denoiser::Denoiser,
    error::{DiffusionError, Result},
    noise::{NoiseKey, Purpose},
};

/// A question with its choices, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// A stable number, from which its masks follow.
    pub id: u64,
    /// What comes before the answer.
    pub context: Vec<i64>,
    /// The answers to choose from.
    pub choices: Vec<Vec<i64>>,
    /// Bytes of each choice's text, by which the normalised score divides.
    pub lengths: Vec<u64>,
}

/// Which choice was found most likely.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Chosen {
    /// Log-likelihood of each choice in nats.
    pub log_likelihoods: Vec<f64>,
    /// The most likely one.
    pub by_likelihood: usize,
    /// The most likely one per byte of its text.
    pub by_length: usize,
}

/// Scores every choice; by the chain rule in this order, or without one by Monte Carlo, all choices with the same draws.
///
/// # Errors
/// [`DiffusionError::NothingToScore`] without choices or for an empty one, [`DiffusionError::ShapeMismatch`] for more or fewer lengths than
/// choices, and those of [`loglikelihood`] and [`chain_loglikelihood`].
pub fn choose(
    denoiser: &dyn Denoiser,
    question: &Question,
    order: Option<&Order>,
    config: &LikelihoodConfig,
    seed: u64,
) -> Result<Chosen> {
    let n = question.choices.len();
    if n == 0 {
        return Err(DiffusionError::NothingToScore { why: "a question has no choices" });
    }
    if question.lengths.len() != n {
        let found = vec![question.lengths.len() as i64];
        return Err(DiffusionError::ShapeMismatch { name: "lengths", found, expected: format!("[{n}]") });
    }
    let mut log_likelihoods = Vec::with_capacity(n);
    for choice in &question.choices {
        let found = match order {
            Some(order) => chain_loglikelihood(denoiser, &question.context, choice, order, config)?,
            None => {
                let key = NoiseKey::new(seed, Purpose::Evaluation, 0).of_document(question.id, 0);
                loglikelihood(denoiser, &question.context, choice, config, &mut KeyedDraws(key))?
            }
        };
        log_likelihoods.push(found.log_likelihood);
    }
    let best = |score: &dyn Fn(usize) -> f64| {
        // Of equal ones the first.
        (0..n).rev().max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap_or(0)
    };
    Ok(Chosen {
        by_likelihood: best(&|i| log_likelihoods[i]),
        by_length: best(&|i| log_likelihoods[i] / question.lengths[i].max(1) as f64),
        log_likelihoods,
    })
}
