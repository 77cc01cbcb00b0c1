//! The numbers of a training step, kept as sums so that micro-batches merge exactly.

/// A mean that can be merged: a sum and what it is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mean {
    /// Sum of the values.
    pub sum: f64,
    /// How many there are.
    pub count: f64,
}

impl Mean {
    /// A mean of `count` values.
    #[must_use]
    pub fn new(sum: f64, count: u64) -> Self {
        Self { sum, count: count as f64 }
    }

    /// The mean, unless there are no values.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The mean as one value; without values, `empty`.
    fn as_one(self, empty: Option<f64>) -> Self {
        self.value().or(empty).map_or(Self::default(), |value| Self { sum: value, count: 1.0 })
    }
}

/// What is reported of one or more micro-batches.
///
/// Merged, every number is what one large batch would have given; under
/// [`Accumulation::MicroBatch`](crate::Accumulation::MicroBatch) it is the plain mean of what each micro-batch gave, Axolotl's way,
/// and `num_masked_tokens` the sum.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct StepMetrics {
    /// Micro-batches that were counted.
    pub micro_batches: u64,
    /// Masked tokens.
    pub num_masked_tokens: u64,
    /// The loss of an optimiser step, averaged over micro-batches: each counts its own part times their number.
    pub loss: Mean,
    /// Share of masked tokens whose most likely prediction is right.
    pub accuracy: Mean,
    /// Share of slots, padding included, that are masked.
    pub mask_ratio: Mean,
    /// Mean mask probability of masked tokens.
    pub avg_p_mask: Mean,
    /// Mean negative log-likelihood of masked tokens in nats, without weights.
    pub ce_loss: Mean,
    /// Mean weight of masked tokens; `None` when the loss is not weighted.
    pub importance_weight_avg: Option<Mean>,
    /// Share of slots, padding included, that are targets; `None` without labels. Of interest in fine-tuning only.
    pub answer_ratio: Option<Mean>,
    /// Mean number of targets of a document or row; `None` without labels. Of interest in fine-tuning only.
    pub avg_answer_length: Option<Mean>,
    /// Negative evidence lower bound: ELBO-weighted loss in nats per token that may be masked; `None` when the mask ratio is restricted.
    pub nelbo: Option<Mean>,
    /// Mean negative log-likelihood in nats of the tokens of the autoregressive part of a hybrid loss, each given those before it;
    /// `None` without such a part.
    pub autoregressive_nll: Option<Mean>,
}

impl StepMetrics {
    /// Adds what another micro-batch reports.
    pub fn merge(&mut self, other: &Self) {
        self.micro_batches += other.micro_batches;
        self.num_masked_tokens += other.num_masked_tokens;
        self.loss.merge(other.loss);
        self.accuracy.merge(other.accuracy);
        self.mask_ratio.merge(other.mask_ratio);
        self.avg_p_mask.merge(other.avg_p_mask);
        self.ce_loss.merge(other.ce_loss);
        for (mean, other) in [
            (&mut self.importance_weight_avg, other.importance_weight_avg),
            (&mut self.answer_ratio, other.answer_ratio),
            (&mut self.avg_answer_length, other.avg_answer_length),
            (&mut self.nelbo, other.nelbo),
            (&mut self.autoregressive_nll, other.autoregressive_nll),
        ] {
            if let Some(other) = other {
                mean.get_or_insert_default().merge(other);
            }
        }
    }

    /// The same without what is of interest in fine-tuning only.
    #[must_use]
    pub fn without_answers(mut self) -> Self {
        self.answer_ratio = None;
        self.avg_answer_length = None;
        self
    }

    /// Every number under the name it is known by, without the prefix `train/` or `eval/`; none when nothing was counted.
    ///
    /// Means over masked tokens are 0 when nothing is masked, and the mean weight is 1, as Axolotl reports them. A bound
    /// without tokens is left out.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        if self.micro_batches == 0 {
            return Vec::new();
        }
        let over_masked = |mean: &Mean| Some(mean.value().unwrap_or(0.0));
        let named = [
            ("loss", self.loss.value()),
            ("accuracy", over_masked(&self.accuracy)),
            ("mask_ratio", self.mask_ratio.value()),
            ("num_masked_tokens", Some(self.num_masked_tokens as f64)),
            ("avg_p_mask", over_masked(&self.avg_p_mask)),
            ("ce_loss", over_masked(&self.ce_loss)),
            ("importance_weight_avg", self.importance_weight_avg.map(|mean| mean.value().unwrap_or(1.0))),
            ("answer_ratio", self.answer_ratio.and_then(|mean| mean.value())),
            ("avg_answer_length", self.avg_answer_length.and_then(|mean| mean.value())),
            ("nelbo", self.nelbo.and_then(|mean| mean.value())),
            ("autoregressive_nll", self.autoregressive_nll.and_then(|mean| mean.value())),
        ];
        named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Every mean as a single value, so that merging averages micro-batches whatever their size.
    pub(crate) fn of_one_micro_batch(self) -> Self {
        let autoregressive_nll = self.autoregressive_nll.map(|mean| mean.as_one(None));
        // A part of a hybrid loss adds to the loss of the others without being one more.
        if self.micro_batches == 0 {
            return Self { autoregressive_nll, ..self };
        }
        Self {
            loss: self.loss.as_one(None),
            accuracy: self.accuracy.as_one(Some(0.0)),
            mask_ratio: self.mask_ratio.as_one(None),
            avg_p_mask: self.avg_p_mask.as_one(Some(0.0)),
            ce_loss: self.ce_loss.as_one(Some(0.0)),
            importance_weight_avg: self.importance_weight_avg.map(|mean| mean.as_one(Some(1.0))),
            answer_ratio: self.answer_ratio.map(|mean| mean.as_one(None)),
            avg_answer_length: self.avg_answer_length.map(|mean| mean.as_one(None)),
            nelbo: self.nelbo.map(|mean| mean.as_one(None)),
            autoregressive_nll,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(correct: f64, masked: u64) -> StepMetrics {
        StepMetrics {
            micro_batches: 1,
            num_masked_tokens: masked,
            accuracy: Mean::new(correct, masked),
            importance_weight_avg: Some(Mean::new(3.0 * masked as f64, masked)),
            ..StepMetrics::default()
        }
    }

    fn value(metrics: &StepMetrics, name: &str) -> Option<f64> {
        metrics.named().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    #[test]
    fn merged_sums_give_the_mean_of_all_tokens_and_merged_micro_batches_the_mean_of_means() {
        let (a, b) = (metrics(1.0, 2), metrics(6.0, 6));
        let mut exact = a.clone();
        exact.merge(&b);
        assert_eq!(value(&exact, "accuracy"), Some(7.0 / 8.0));
        let mut plain = a.of_one_micro_batch();
        plain.merge(&b.of_one_micro_batch());
        assert_eq!(value(&plain, "accuracy"), Some(0.75));
        assert_eq!(value(&plain, "num_masked_tokens"), Some(8.0));
    }

    #[test]
    fn without_masked_tokens_means_are_zero_and_the_weight_is_one() {
        for metrics in [metrics(0.0, 0), metrics(0.0, 0).of_one_micro_batch()] {
            assert_eq!(value(&metrics, "accuracy"), Some(0.0));
            assert_eq!(value(&metrics, "importance_weight_avg"), Some(1.0));
            assert_eq!(value(&metrics, "nelbo"), None);
        }
    }

    #[test]
    fn nothing_counted_is_nothing_named() {
        assert!(StepMetrics::default().named().is_empty());
    }
}
