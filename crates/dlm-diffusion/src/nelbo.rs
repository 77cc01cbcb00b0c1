//! The loss: masked tokens scored by a denoiser, weighted and averaged; with the right weight, a likelihood bound.

use crate::{
    check::expect_within,
    denoiser::{Denoiser, DenoiserInput, TargetScores, TokenLoss},
    error::{DiffusionError, Result},
    metrics::{Mean, StepMetrics},
    noised_batch::NoisedBatch,
    normalization::{Accumulation, LossNormalization, WindowCounts},
    weight::{LossWeight, WeightRule, cart_weights},
};
use tch::{Kind, Tensor};

/// Which loss is minimised: what a masked token counts, and what the sum is divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Objective {
    /// The weight of a masked token.
    pub weight: WeightRule,
    /// What is weighed: negative log-likelihood, and what is added to it.
    pub token_loss: TokenLoss,
    /// What the sum is divided by.
    pub normalization: LossNormalization,
    /// Over what that is counted.
    pub accumulation: Accumulation,
}

impl Objective {
    /// The weight that makes the loss a bound, with counts over the whole optimiser step.
    #[must_use]
    pub fn new(normalization: LossNormalization) -> Self {
        Self {
            weight: WeightRule::default(),
            token_loss: TokenLoss::default(),
            normalization,
            accumulation: Accumulation::default(),
        }
    }

    /// The same objective with another weight.
    #[must_use]
    pub fn weighted(mut self, weight: impl Into<WeightRule>) -> Self {
        self.weight = weight.into();
        self
    }

    /// The same objective, scoring each token so.
    #[must_use]
    pub fn scoring(mut self, token_loss: TokenLoss) -> Self {
        self.token_loss = token_loss;
        self
    }

    /// The same objective counted over something else.
    #[must_use]
    pub fn accumulated(mut self, accumulation: Accumulation) -> Self {
        self.accumulation = accumulation;
        self
    }

    /// Refuses numbers out of range.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a label smoothing outside `[0, 1]`, a negative z-loss, and what
    /// [`WeightRule::validate`] refuses.
    pub fn validate(&self) -> Result<()> {
        let TokenLoss { label_smoothing, z_loss, forbidden } = self.token_loss;
        expect_within("label_smoothing", label_smoothing, 0.0..=1.0, "between 0 and 1")?;
        expect_within("z_loss", z_loss, 0.0..=f64::MAX, "at least 0")?;
        expect_within("forbidden", forbidden.unwrap_or(0) as f64, 0.0..=f64::MAX, "a token id")?;
        self.weight.validate()
    }

    /// What the loss of each masked token is multiplied by, `[n]` of `Float`: its weight over the denominator.
    ///
    /// The loss of an optimiser step is the sum of `coefficient_i * nll_i` over the micro-batches of its `window`, whose counts
    /// must include this batch.
    ///
    /// Tokens of the autoregressive part of a hybrid loss have its weight, over a denominator of their own.
    pub fn coefficients(&self, batch: &NoisedBatch, window: &WindowCounts) -> Tensor {
        let beside = batch.beside_weight.map(|_| window.of_beside());
        let (own, window) = (batch.own_counts(), beside.as_ref().unwrap_or(window));
        let shares = self.normalization.shares(self.accumulation, &batch.masked.unit_targets, &own, window);
        self.weights(batch) * shares
    }

    fn weights(&self, batch: &NoisedBatch) -> Tensor {
        let masked = &batch.masked;
        if let Some(weight) = batch.beside_weight {
            return masked.p_mask.ones_like() * weight;
        }
        self.weight.of(&batch.schedule, &masked.p_mask, &masked.slope, || {
            let weights = cart_weights(&batch.noised().is_masked, batch.borders(), self.weight.cart_p);
            weights.flatten(0, 1).index_select(0, &masked.positions)
        })
    }
}

/// The loss of one micro-batch.
#[derive(Debug)]
#[non_exhaustive]
pub struct LossOutput {
    /// Its part of the loss of its optimiser step, a scalar of `Float`: `backward()` on every part accumulates the gradient.
    ///
    /// It has a graph to every parameter of the denoiser even when nothing is masked. Only a batch of nothing but padding, for
    /// which the denoiser is not called, gives a constant 0; `requires_grad()` tells.
    pub loss: Tensor,
    /// What to report.
    pub metrics: StepMetrics,
}

/// Scores the masked tokens of a micro-batch, and nothing else: `[batch, seq_len, vocab]` never exists.
///
/// `loss = sum_i w_i / d_i * nll_i` over masked tokens `i`, `nll_i = -log p(clean_i | noised)`, with the weight `w` and the
/// denominator `d` of the objective. With [`LossWeight::Auto`] or [`LossWeight::Elbo`] its mean over timesteps and masks is a bound on
/// `-log p(clean)`: the NELBO of MDLM ([arXiv:2406.07524](https://arxiv.org/abs/2406.07524), eq. 10).
///
/// `window` is the sum of [`NoisedBatch::counts`] over the micro-batches of the optimiser step, so all of them are noised
/// before the first is scored. One copy from the device fetches every metric.
///
/// # Errors
/// Those of the denoiser, and [`DiffusionError::NotFinite`] with the row and document whose loss is NaN or infinite.
pub fn diffusion_loss(
    denoiser: &dyn Denoiser,
    batch: &NoisedBatch,
    objective: &Objective,
    window: &WindowCounts,
) -> Result<LossOutput> {
    let device = batch.clean().ids().device();
    let (loss, sums) = match (batch.first_real, batch.own_counts().masked) {
        (None, _) => (Tensor::zeros([0i64; 0], (Kind::Float, device)), Sums::default()),
        (Some(position), 0) => {
            // One token with a coefficient of 0 ties the loss to the denoiser and its head.
            let position = Tensor::from_slice(&[position]).to_device(device);
            let target = batch.clean().ids().flatten(0, 1).index_select(0, &position);
            let nothing = Tensor::zeros([1], (Kind::Float, device));
            let scores = score(denoiser, batch, &position, &target, &nothing, &objective.token_loss)?;
            if !scores.weighted_sum.double_value(&[]).is_finite() {
                return Err(not_finite(&scores.nll, &position, batch));
            }
            (scores.weighted_sum, Sums::default())
        }
        (Some(_), _) => {
            let (positions, targets) = (&batch.masked.positions, &batch.masked.targets);
            let coefficients = objective.coefficients(batch, window);
            let scores = score(denoiser, batch, positions, targets, &coefficients, &objective.token_loss)?;
            let sums = Sums::of(&scores, batch, &objective.weights(batch))?;
            (scores.weighted_sum, sums)
        }
    };
    let metrics = match objective.accumulation {
        Accumulation::Global => sums.metrics(batch, objective, window),
        Accumulation::MicroBatch if batch.is_padding() => StepMetrics::default(),
        Accumulation::MicroBatch => sums.metrics(batch, objective, window).of_one_micro_batch(),
    };
    Ok(LossOutput { loss, metrics })
}

fn score(
    denoiser: &dyn Denoiser,
    batch: &NoisedBatch,
    positions: &Tensor,
    targets: &Tensor,
    coefficients: &Tensor,
    token_loss: &TokenLoss,
) -> Result<TargetScores> {
    let of_batch = batch.model_input(positions)?;
    let mut input = DenoiserInput::new(&of_batch.ids, &of_batch.attention).at(&of_batch.wanted);
    input.position_ids = of_batch.position_ids.as_ref();
    let row_t = (batch.t().size()[1] == 1).then(|| batch.t().squeeze_dim(1));
    input.t = row_t.as_ref();
    let dropout_keys = batch.clean().dropout_keys().map(|keys| keys_of(keys, &of_batch.ids));
    input.dropout_keys = dropout_keys.as_ref();
    let hidden = denoiser.hidden_states(&input)?; // [n, hidden]
    let head = denoiser.head();
    head.weighted_loss(&hidden, targets, coefficients, token_loss).map_err(|error| {
        // Only where it failed is it worth asking how large the vocabulary is.
        let vocab_size = head.logits(&hidden.narrow(0, 0, 1)).map_or(i64::MAX, |logits| logits.size()[1]);
        beyond_vocabulary(batch, positions, targets, vocab_size).unwrap_or(error)
    })
}

/// The first target that a vocabulary of this size does not hold.
fn beyond_vocabulary(
    batch: &NoisedBatch,
    positions: &Tensor,
    targets: &Tensor,
    vocab_size: i64,
) -> Option<DiffusionError> {
    let is_beyond = targets.ge(vocab_size).logical_or(&targets.lt(0));
    let first = is_beyond.to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]);
    let (position, id) = (positions.int64_value(&[first]), targets.int64_value(&[first]));
    let seq_len = batch.clean().shape().1;
    (id >= vocab_size || id < 0).then(|| DiffusionError::IdBeyondVocabulary {
        id,
        row: position / seq_len,
        position: position % seq_len,
        vocab_size,
    })
}

/// The dropout keys of a row that may hold its text twice, noised and clean, which drop different numbers.
fn keys_of(keys: &Tensor, ids: &Tensor) -> Tensor {
    if keys.size() == ids.size() {
        return keys.shallow_clone();
    }
    Tensor::cat(&[keys, &keys.bitwise_xor(1)], 1)
}

/// Sums over the masked tokens of a micro-batch.
#[derive(Debug, Default)]
struct Sums {
    loss: f64,
    nll: f64,
    correct: f64,
    p_mask: f64,
    weight: f64,
    elbo: f64,
}

impl Sums {
    fn of(scores: &TargetScores, batch: &NoisedBatch, weights: &Tensor) -> Result<Self> {
        let masked = &batch.masked;
        let elbo = &scores.nll * (&masked.slope / &masked.p_mask);
        let correct = scores.argmax.eq_tensor(&masked.targets);
        let sums = [&scores.nll, &correct, &masked.p_mask, weights, &elbo].map(|values| values.sum(Kind::Double));
        let loss = scores.weighted_sum.detach().to_kind(Kind::Double);
        let [a, b, c, d, e] = &sums;
        let copied = Vec::<f64>::try_from(Tensor::stack(&[&loss, a, b, c, d, e], 0))?;
        let [loss, nll, correct, p_mask, weight, elbo] = copied[..] else {
            unreachable!("six sums were stacked");
        };
        if !(loss.is_finite() && nll.is_finite()) {
            return Err(not_finite(&scores.nll, &masked.positions, batch));
        }
        Ok(Self { loss, nll, correct, p_mask, weight, elbo })
    }

    fn metrics(&self, batch: &NoisedBatch, objective: &Objective, window: &WindowCounts) -> StepMetrics {
        let counts = batch.own_counts();
        let masked = counts.masked;
        if batch.beside_weight.is_some() {
            // Its share of the loss is added to that of the masked micro-batches, whose number it leaves alone.
            return StepMetrics {
                loss: Mean::new(self.loss * window.micro_batches.max(1) as f64, 0),
                autoregressive_nll: Some(Mean::new(self.nll, masked)),
                ..StepMetrics::default()
            };
        }
        let is_weighted = objective.weight.weight != LossWeight::Uniform;
        let has_labels = batch.clean().labels().is_some();
        StepMetrics {
            micro_batches: 1,
            num_masked_tokens: masked,
            loss: Mean::new(self.loss * window.micro_batches.max(1) as f64, 1),
            accuracy: Mean::new(self.correct, masked),
            mask_ratio: Mean::new(masked as f64, counts.slots),
            avg_p_mask: Mean::new(self.p_mask, masked),
            ce_loss: Mean::new(self.nll, masked),
            importance_weight_avg: is_weighted.then(|| Mean::new(self.weight, masked)),
            answer_ratio: has_labels.then(|| Mean::new(batch.targets as f64, counts.slots)),
            avg_answer_length: has_labels.then(|| Mean::new(batch.targets as f64, counts.units)),
            nelbo: batch.is_bound.then(|| Mean::new(self.elbo, counts.maskable)),
            autoregressive_nll: None,
        }
    }
}

/// Finds the row of the first token whose loss is not finite; of the first token when the sum alone is not.
fn not_finite(nll: &Tensor, positions: &Tensor, batch: &NoisedBatch) -> DiffusionError {
    let first = nll.isfinite().logical_not().to_kind(Kind::Uint8).argmax(0, false);
    let position = positions.index_select(0, &first.unsqueeze(0)).int64_value(&[0]);
    let seq_len = batch.clean().shape().1;
    let (row, column) = (position / seq_len, position % seq_len);
    let document = batch.clean().segment_ids().map_or(1, |segments| segments.int64_value(&[row, column]));
    DiffusionError::NotFinite { what: "loss", row, document }
}
