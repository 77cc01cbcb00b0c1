//! How a sampler decodes.

use crate::{
    error::{Result, SampleError},
    remasking::Remasking,
    transfer::Transfer,
};

/// More steps than any canvas has masks; beyond this a number is a typing error.
const MAX_STEPS: usize = 1_000_000;

/// How a sampler decodes.
///
/// [`SamplerConfig::new`] chooses everything but the mask token: 128 steps, greedily.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SamplerConfig {
    /// Denoising steps; a canvas with fewer masks is done sooner. Fewer steps fill more masks in each, which is faster
    /// and worse.
    pub steps: usize,
    /// 0 takes the most likely token; above 0 tokens are drawn from `softmax(logits / temperature)`.
    pub temperature: f64,
    /// The token that stands for "to be filled"; never predicted.
    pub mask_token_id: i64,
    /// Tokens of the tokenizer. A model may score more than that (padded vocabularies); those are never predicted, and
    /// an id beyond it in a canvas is refused. `None` trusts the model's own number.
    pub vocab_size: Option<i64>,
    /// Further ids that are never predicted.
    pub forbidden_ids: Vec<i64>,
    /// How many masks each step fills.
    pub transfer: Transfer,
    /// Which masks each step fills.
    pub remasking: Remasking,
    /// Keeps the tokens after every step in [`Generation::trace`](crate::Generation::trace).
    pub trace: bool,
    /// Masked positions whose scores exist at once, as `[chunk_len, vocab]`. Larger is faster until memory is short;
    /// the result stays the same.
    pub chunk_len: usize,
}

impl SamplerConfig {
    /// 128 steps, greedily.
    #[must_use]
    pub fn new(mask_token_id: i64) -> Self {
        Self {
            steps: 128,
            temperature: 0.0,
            mask_token_id,
            vocab_size: None,
            forbidden_ids: Vec::new(),
            transfer: Transfer::default(),
            remasking: Remasking::default(),
            trace: false,
            chunk_len: 128,
        }
    }

    /// The same with another number of steps.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// The same with another temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// The same, predicting only ids below the tokenizer's length.
    #[must_use]
    pub fn with_vocab_size(mut self, vocab_size: i64) -> Self {
        self.vocab_size = Some(vocab_size);
        self
    }

    /// The same, never predicting these ids.
    #[must_use]
    pub fn with_forbidden_ids(mut self, forbidden_ids: Vec<i64>) -> Self {
        self.forbidden_ids = forbidden_ids;
        self
    }

    /// The same, keeping the tokens after every step.
    #[must_use]
    pub fn with_trace(mut self) -> Self {
        self.trace = true;
        self
    }

    /// The same, scoring so many positions at once.
    #[must_use]
    pub fn with_chunk_len(mut self, chunk_len: usize) -> Self {
        self.chunk_len = chunk_len;
        self
    }

    /// Refuses settings that no sampler can follow.
    ///
    /// # Errors
    /// [`SampleError::OutOfRange`]; [`SampleError::IdOutsideVocabulary`] for the mask token or a forbidden one.
    pub fn check(&self) -> Result<()> {
        let out_of_range = |name, value: String, expected| Err(SampleError::OutOfRange { name, value, expected });
        if self.steps == 0 || self.steps > MAX_STEPS {
            return out_of_range("steps", self.steps.to_string(), "from 1 to 1000000");
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return out_of_range("temperature", self.temperature.to_string(), "0 or a positive number");
        }
        if self.chunk_len == 0 {
            return out_of_range("chunk_len", self.chunk_len.to_string(), "at least 1");
        }
        if self.vocab_size.is_some_and(|vocab_size| vocab_size <= 0) {
            let value = self.vocab_size.unwrap_or_default().to_string();
            return out_of_range("vocab_size", value, "at least 1");
        }
        if self.mask_token_id < 0 {
            return out_of_range("mask_token_id", self.mask_token_id.to_string(), "at least 0");
        }
        if let Some(id) = self.forbidden_ids.iter().find(|&&id| id < 0) {
            return out_of_range("forbidden_ids", id.to_string(), "at least 0");
        }
        self.vocab_size.map_or(Ok(()), |vocab_size| self.check_special_ids(vocab_size))
    }

    /// Refuses a mask token or forbidden tokens that the vocabulary does not have.
    pub(crate) fn check_special_ids(&self, vocab_size: i64) -> Result<()> {
        let mask = std::iter::once(("mask token", self.mask_token_id));
        let forbidden = self.forbidden_ids.iter().map(|&id| ("forbidden token", id));
        match mask.chain(forbidden).find(|&(_, id)| id >= vocab_size) {
            Some((what, id)) => Err(SampleError::IdOutsideVocabulary { what, id, vocab_size }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused_by_name() {
        let config = || SamplerConfig::new(7);
        assert!(config().check().is_ok());
        let refused = [
            (config().with_steps(0), "steps"),
            (config().with_steps(usize::MAX), "steps"),
            (config().with_temperature(-0.1), "temperature"),
            (config().with_temperature(f64::NAN), "temperature"),
            (config().with_temperature(f64::INFINITY), "temperature"),
            (config().with_chunk_len(0), "chunk_len"),
            (config().with_vocab_size(0), "vocab_size"),
            (config().with_forbidden_ids(vec![1, -1]), "forbidden_ids"),
            (SamplerConfig::new(-1), "mask_token_id"),
        ];
        for (config, expected) in refused {
            assert!(
                matches!(config.check(), Err(SampleError::OutOfRange { name, .. }) if name == expected),
                "{config:?}"
            );
        }
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused_by_what_they_are() {
        let of = |config: SamplerConfig| config.check().unwrap_err().to_string();
        assert_eq!(
            of(SamplerConfig::new(7).with_vocab_size(7)),
            "mask token id 7 is outside the vocabulary of 7 tokens"
        );
        let config = SamplerConfig::new(6).with_vocab_size(7).with_forbidden_ids(vec![2, 9]);
        assert_eq!(of(config), "forbidden token id 9 is outside the vocabulary of 7 tokens");
    }
}
