//! A denoiser that knows the distribution its texts come from, so that every likelihood is known in closed form.

use tch::{Device, Kind, Tensor};

/// Texts of a fixed length whose tokens are independent given a hidden cause, each position with its own odds.
///
/// Every conditional follows from Bayes' rule on what is visible, so the chain rule gives the same likelihood in every order, and
/// the expected bound is the likelihood itself.
pub(crate) struct Mixture {
    vocab: i64,
    /// Log odds of each cause.
    causes: Vec<f64>,
    /// Log probabilities `[cause][position][token]`.
    tokens: Vec<Vec<Vec<f64>>>,
}

impl Mixture {
    pub(crate) const MASK: i64 = 4;

    /// `draw` gives numbers in [0, 1).
    pub(crate) fn new(causes: usize, len: usize, mut draw: impl FnMut() -> f64) -> Self {
        let vocab = Self::MASK;
        let mut odds = |n: usize, sharpness: f64| {
            let weights: Vec<f64> = (0..n).map(|_| (sharpness * draw()).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| (weight / total).ln()).collect::<Vec<f64>>()
        };
        let causes = odds(causes, 1.0);
        let tokens = causes.iter().map(|_| (0..len).map(|_| odds(vocab as usize, 5.0)).collect()).collect();
        Self { vocab, causes, tokens }
    }

    /// Two causes as likely as each other, under each of which all positions have the same odds: texts whose tokens are alike.
    pub(crate) fn alike(len: usize) -> Self {
        let of_cause = |odds: [f64; 4]| vec![odds.map(f64::ln).to_vec(); len];
        let tokens = vec![of_cause([0.7, 0.1, 0.1, 0.1]), of_cause([0.1, 0.1, 0.1, 0.7])];
        Self { vocab: Self::MASK, causes: vec![0.5f64.ln(); 2], tokens }
    }

    /// Log probability of the tokens that are not masked.
    pub(crate) fn log_likelihood(&self, ids: &[i64]) -> f64 {
        log_sum(&self.posterior(ids))
    }

    fn posterior(&self, ids: &[i64]) -> Vec<f64> {
        let of_cause = |(cause, prior): (usize, &f64)| {
            let seen = ids.iter().enumerate().filter(|(_, id)| **id < self.vocab);
            prior + seen.map(|(position, &id)| self.tokens[cause][position][id as usize]).sum::<f64>()
        };
        self.causes.iter().enumerate().map(of_cause).collect()
    }

    /// Log probabilities of every token at every position, `[batch, seq_len, vocab + 1]`, the mask's next to none.
    pub(crate) fn logits(&self, ids: &Tensor) -> Tensor {
        let rows: Vec<Vec<i64>> = Vec::try_from(ids).unwrap();
        let mut logits = Vec::new();
        for row in &rows {
            let posterior = self.posterior(row);
            let total = log_sum(&posterior);
            for position in 0..row.len() {
                for token in 0..self.vocab as usize {
                    let joint: Vec<f64> = posterior
                        .iter()
                        .enumerate()
                        .map(|(cause, log_p)| {
                            log_p - total + self.tokens[cause][position.min(self.tokens[cause].len() - 1)][token]
                        })
                        .collect();
                    logits.push(log_sum(&joint) as f32);
                }
                logits.push(-1e4);
            }
        }
        Tensor::from_slice(&logits)
            .view([rows.len() as i64, ids.size()[1], self.vocab + 1])
            .to_kind(Kind::Float)
            .to_device(Device::Cpu)
    }
}

fn log_sum(values: &[f64]) -> f64 {
    let largest = values.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}
