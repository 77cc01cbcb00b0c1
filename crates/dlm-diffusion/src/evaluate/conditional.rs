//! The likelihood of an answer given a prompt: by Monte Carlo, or exactly for one order of revealing.

use super::{
    report::mean,
    rows::{Layout, Row, score},
};
use crate::{
    attention::{AttentionLayout, Visibility},
    check::expect_within,
    denoiser::{Denoiser, DenoiserInput},
    error::{DiffusionError, Result},
    noise::NoiseKey,
};
use tch::{Kind, Tensor};

/// How a conditional likelihood is estimated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LikelihoodConfig {
    /// Id of the mask token.
    pub mask_token_id: i64,
    /// Masks drawn, a multiple of `batch_size`; a single token needs only one.
    pub samples: usize,
    /// Rows in one forward pass, whose mask counts are spread evenly.
    pub batch_size: usize,
    /// Classifier-free guidance: logits are `u + (guidance + 1) (c - u)` with `u` those without the prompt. 0 is none.
    pub guidance: f64,
}

impl LikelihoodConfig {
    /// 128 masks in passes of 16, as LLaDA evaluates.
    #[must_use]
    pub fn new(mask_token_id: i64) -> Self {
        Self { mask_token_id, samples: 128, batch_size: 16, guidance: 0.0 }
    }

    fn validate(&self) -> Result<()> {
        expect_within("batch_size", self.batch_size as f64, 1.0..=f64::MAX, "at least 1")?;
        expect_within("guidance", self.guidance, 0.0..=f64::MAX, "at least 0")?;
        let rounds = (self.samples / self.batch_size) as f64;
        expect_within("samples", rounds * self.batch_size as f64, 1.0..=f64::MAX, "at least `batch_size`")
    }
}

/// Where the draws of a likelihood come from.
pub trait LikelihoodDraws {
    /// The first mask count of a round, in `1..=len`.
    fn shift(&mut self, round: usize, len: usize) -> usize;

    /// An order of the answer's tokens for one row: with a mask count `k`, those whose entry is below `k` are masked.
    fn order(&mut self, round: usize, row: usize, len: usize) -> Vec<usize>;
}

/// Draws that follow from a key; by habit one of [`Purpose::Evaluation`](crate::Purpose::Evaluation) for the question.
#[derive(Debug, Clone, Copy)]
pub struct KeyedDraws(
    /// The key; its occurrence is used up.
    pub NoiseKey,
);

impl LikelihoodDraws for KeyedDraws {
    fn shift(&mut self, round: usize, len: usize) -> usize {
        let draw = self.0.of_document(self.0.document, round as u64).uniforms_f64(0, 1)[0];
        1 + ((draw * len as f64) as usize).min(len - 1)
    }

    fn order(&mut self, round: usize, row: usize, len: usize) -> Vec<usize> {
        self.0.of_document(self.0.document, ((row as u64 + 1) << 32) + round as u64).permutation(len)
    }
}

/// An estimated log-likelihood in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Likelihood {
    /// The estimate, in expectation a lower bound of the log-likelihood.
    pub log_likelihood: f64,
    /// Its standard error from masks, over rounds; `None` for one round.
    pub standard_error: Option<f64>,
    /// Rows that went through the denoiser.
    pub rows: usize,
}

/// The mask counts of one round: `batch_size` of them spread evenly over `1..=len` from `shift` on, wrapping around.
///
/// LLaDA's, half to even: the counts of `shift + j len / batch_size`.
#[must_use]
pub fn mask_counts(shift: usize, len: usize, batch_size: usize) -> Vec<usize> {
    let step = len as f64 / batch_size as f64;
    let count = |j: usize| (shift as f64 + j as f64 * step).round_ties_even() as usize;
    (0..batch_size).map(|j| (count(j) - 1) % len + 1).collect()
}

/// `log p(answer | prompt)` from below, by LLaDA's estimator ([arXiv:2502.09992](https://arxiv.org/abs/2502.09992), eq. 6): exact
/// mask counts, spread evenly in each pass.
///
/// # Errors
/// [`DiffusionError::NothingToScore`] for an empty answer, [`DiffusionError::OutOfRange`] for settings, and what the denoiser refuses.
pub fn loglikelihood(
    denoiser: &dyn Denoiser,
    prompt: &[i64],
    answer: &[i64],
    config: &LikelihoodConfig,
    draws: &mut dyn LikelihoodDraws,
) -> Result<Likelihood> {
    config.validate()?;
    if answer.is_empty() {
        return Err(DiffusionError::NothingToScore { why: "the answer is empty" });
    }
    let len = answer.len();
    // With one token there is only one mask.
    let is_exact = len == 1 && config.guidance == 0.0;
    let (rounds, batch_size) = if is_exact { (1, 1) } else { (config.samples / config.batch_size, config.batch_size) };
    let _no_grad = tch::no_grad_guard();
    let mut estimates = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let counts = mask_counts(draws.shift(round, len), len, batch_size);
        let masked: Vec<Vec<usize>> = counts
            .iter()
            .enumerate()
            .map(|(row, &count)| {
                let order = draws.order(round, row, len);
                (0..len).filter(|&position| order[position] < count).collect()
            })
            .collect();
        let nll = nll_of_masks(denoiser, prompt, answer, &masked, config)?;
        let of_row = |(nll, count): (Vec<f64>, &usize)| nll.iter().sum::<f64>() * len as f64 / *count as f64;
        let of_rows: Vec<f64> = nll.into_iter().zip(&counts).map(of_row).collect();
        estimates.push(-mean(&of_rows));
    }
    let log_likelihood = mean(&estimates);
    let spread = estimates.iter().map(|estimate| (estimate - log_likelihood).powi(2)).sum::<f64>();
    let n = rounds as f64;
    Ok(Likelihood {
        log_likelihood,
        standard_error: if is_exact { Some(0.0) } else { (rounds > 1).then(|| (spread / (n - 1.0) / n).sqrt()) },
        rows: rounds * batch_size,
    })
}

/// In which order an answer is revealed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Order {
    /// From left to right.
    #[default]
    LeftToRight,
    /// As listed: indices into the answer, each once.
    Listed(Vec<usize>),
}

/// `log p(answer | prompt)` by the chain rule: one token is scored and revealed at a time, in a given order, the rest being masked.
///
/// Exact for a decoder that reveals in this order, one token a step. One row for each token of the answer, `batch_size` of them in a pass.
///
/// # Errors
/// Those of [`loglikelihood`], and [`DiffusionError::ShapeMismatch`] for an order that does not hold each index once.
pub fn chain_loglikelihood(
    denoiser: &dyn Denoiser,
    prompt: &[i64],
    answer: &[i64],
    order: &Order,
    config: &LikelihoodConfig,
) -> Result<Likelihood> {
    config.validate()?;
    let order = match order {
        Order::LeftToRight => (0..answer.len()).collect(),
        Order::Listed(order) => order.clone(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..answer.len()).collect::<Vec<_>>() {
        let expected = format!("each of 0..{} once", answer.len());
        return Err(DiffusionError::ShapeMismatch { name: "order", found: vec![order.len() as i64], expected });
    }
    if answer.is_empty() {
        return Err(DiffusionError::NothingToScore { why: "the answer is empty" });
    }
    let _no_grad = tch::no_grad_guard();
    let mut log_likelihood = 0.0;
    let stages: Vec<usize> = (0..order.len()).collect();
    for batch in stages.chunks(config.batch_size) {
        let masked: Vec<Vec<usize>> = batch.iter().map(|&stage| order[stage..].to_vec()).collect();
        // Of each row only the first of its masks is scored.
        let nll = nll_of_masks(denoiser, prompt, answer, &masked, config)?;
        log_likelihood -= nll.iter().map(|row| row[0]).sum::<f64>();
    }
    Ok(Likelihood { log_likelihood, standard_error: Some(0.0), rows: order.len() })
}

/// The negative log-likelihoods of the masked tokens of the answer, a list for each row.
fn nll_of_masks(
    denoiser: &dyn Denoiser,
    prompt: &[i64],
    answer: &[i64],
    masked: &[Vec<usize>],
    config: &LikelihoodConfig,
) -> Result<Vec<Vec<f64>>> {
    let rows: Vec<Row> = masked
        .iter()
        .map(|masked| {
            let mut ids = [prompt, answer].concat();
            masked.iter().for_each(|position| ids[prompt.len() + position] = config.mask_token_id);
            Row { document: 0, ids, asked: masked.iter().map(|&i| (prompt.len() + i, answer[i])).collect() }
        })
        .collect();
    if config.guidance == 0.0 {
        let scores = score(denoiser, &rows, &[], Layout::Plain(Visibility::Bidirectional), None)?;
        return Ok(scores.into_iter().map(|row| row.into_iter().map(|score| score.nll).collect()).collect());
    }
    let width = (prompt.len() + answer.len()) as i64;
    let ids: Vec<i64> = rows.iter().flat_map(|row| row.ids.clone()).collect();
    let asked = |(i, row): (usize, &Row)| {
        row.asked.iter().map(move |(p, target)| (i as i64 * width + *p as i64, *target)).collect::<Vec<_>>()
    };
    let (wanted, targets): (Vec<i64>, Vec<i64>) = rows.iter().enumerate().flat_map(asked).unzip();
    let (conditional, wanted) = (Tensor::from_slice(&ids).view([-1, width]), Tensor::from_slice(&wanted));
    let unconditional = conditional.copy();
    let _ = unconditional.narrow(1, 0, prompt.len() as i64).fill_(config.mask_token_id);
    let attention = AttentionLayout::full();
    let logits = |ids: &Tensor| -> Result<Tensor> {
        let hidden = denoiser.hidden_states(&DenoiserInput::new(ids, &attention).at(&wanted))?;
        Ok(denoiser.head().logits(&hidden)?.to_kind(Kind::Float))
    };
    let (c, u) = (logits(&conditional)?, logits(&unconditional)?);
    let guided = &u + (c - &u) * (config.guidance + 1.0);
    let targets = Tensor::from_slice(&targets).to_device(guided.device());
    let nll = guided.f_cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::None, -100, 0.0)?;
    let mut nll = Vec::<f32>::try_from(nll)?.into_iter().map(f64::from);
    Ok(rows.iter().map(|row| nll.by_ref().take(row.asked.len()).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mask_counts_lie_between_one_and_all_and_are_spread_evenly(shift in 1usize..30, len in 1usize..30, batch_size in 1usize..20) {
            prop_assume!(shift <= len);
            let mut counts = mask_counts(shift, len, batch_size);
            prop_assert!(counts.iter().all(|count| (1..=len).contains(count)));
            counts.sort_unstable();
            let step = len as f64 / batch_size as f64;
            for pair in counts.windows(2) {
                prop_assert!(((pair[1] - pair[0]) as f64) < step + 1.5);
            }
        }
    }

    #[test]
    fn keyed_draws_repeat_and_differ_between_rounds_and_rows() {
        let mut draws = KeyedDraws(NoiseKey::new(1, Purpose::Evaluation, 0).of_document(5, 0));
        assert_eq!(draws.order(0, 0, 30), draws.order(0, 0, 30));
        assert_ne!(draws.order(0, 0, 30), draws.order(1, 0, 30));
        assert_ne!(draws.order(0, 0, 30), draws.order(0, 1, 30));
        let shifts: Vec<usize> = (0..200).map(|round| draws.shift(round, 5)).collect();
        assert!((1..=5).all(|shift| shifts.contains(&shift)) && shifts.iter().all(|shift| (1..=5).contains(shift)));
    }
}
