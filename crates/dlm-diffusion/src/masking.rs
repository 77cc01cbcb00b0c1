//! The forward process on one batch: clean tokens to noised ones.

use crate::{
    batch::CleanBatch,
    check::{expect_kind, expect_mask_token, expect_per_token_or_row, expect_uniform, expect_unit},
    error::Result,
};
use tch::{Kind, Tensor};

/// What a masked token becomes, and which tokens never are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaskPolicy {
    /// Id of the mask token. One that is in the data already is an ordinary token and target.
    pub mask_token_id: i64,
    /// Ids that always stay as they are, for example bos. They are never learnt.
    pub never_mask: Vec<i64>,
}

impl MaskPolicy {
    /// Every target may be masked.
    #[must_use]
    pub fn new(mask_token_id: i64) -> Self {
        Self { mask_token_id, never_mask: Vec::new() }
    }

    /// The same policy, sparing these ids.
    #[must_use]
    pub fn sparing(mut self, never_mask: impl IntoIterator<Item = i64>) -> Self {
        self.never_mask.extend(never_mask);
        self
    }

    /// Where a token may be masked, `[batch, seq_len]` of `Bool`: a target that is neither padding nor spared.
    pub fn maskable(&self, clean: &CleanBatch) -> Tensor {
        let targets = clean.is_target().logical_and(&clean.is_real());
        self.never_mask.iter().fold(targets, |maskable, &id| maskable.logical_and(&clean.ids().ne(id)))
    }
}

/// A batch after masking.
#[derive(Debug)]
#[non_exhaustive]
pub struct Noised {
    /// Tokens with masks among them, `[batch, seq_len]` of `Int64`.
    pub ids: Tensor,
    /// Where a token was masked, `[batch, seq_len]` of `Bool`. Not the same as where `ids` holds the mask token, which the data may hold too.
    pub is_masked: Tensor,
    /// Probability with which each token could be masked, `[batch, seq_len]` of `Float`; 0 on padding.
    pub p_mask: Tensor,
}

/// Replaces maskable tokens by the mask token, each with probability `p_mask`: masked where `uniform < p_mask`.
///
/// The forward process of MDLM ([arXiv:2406.07524](https://arxiv.org/abs/2406.07524)). Deterministic in `uniform`, drawn from [0, 1)
/// by the caller, so that a test can choose it. Each token has a probability of its own, so documents packed in one row can each
/// have their timestep.
///
/// # Shapes
/// - `p_mask`: `[batch, seq_len]`, or `[batch, 1]` for one probability a row, of `Float` in [0, 1]
/// - `uniform`: `[batch, seq_len]` of `Float`
///
/// # Errors
/// [`DiffusionError::ShapeMismatch`](crate::DiffusionError::ShapeMismatch) or
/// [`DiffusionError::KindMismatch`](crate::DiffusionError::KindMismatch) for other shapes and kinds,
/// [`DiffusionError::OutOfRange`](crate::DiffusionError::OutOfRange) for draws or probabilities outside [0, 1] and a negative mask token.
///
/// ```
/// use dlm_diffusion::{CleanBatch, IGNORE_INDEX, MaskPolicy, mask_tokens};
/// use tch::Tensor;
///
/// let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 5, 6, 7]]))?
///     .with_labels(Tensor::from_slice2(&[[IGNORE_INDEX, 5, 6, 7]]))?;
/// let uniform = Tensor::from_slice2(&[[0.1f32, 0.2, 0.9, 0.3]]);
/// let noised = mask_tokens(&clean, &Tensor::from_slice2(&[[0.5f32]]), &uniform, &MaskPolicy::new(99))?;
/// assert_eq!(Vec::<i64>::try_from(noised.ids.flatten(0, 1))?, [1, 99, 6, 99]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn mask_tokens(clean: &CleanBatch, p_mask: &Tensor, uniform: &Tensor, policy: &MaskPolicy) -> Result<Noised> {
    let shape = clean.shape();
    expect_per_token_or_row("p_mask", p_mask, shape)?;
    expect_kind("p_mask", p_mask, Kind::Float)?;
    expect_unit("p_mask", p_mask)?;
    expect_uniform(uniform, shape)?;
    expect_mask_token(policy.mask_token_id)?;
    let p_mask = p_mask * clean.is_real().to_kind(Kind::Float); // [batch, seq_len]
    let is_masked = uniform.lt_tensor(&p_mask).logical_and(&policy.maskable(clean));
    Ok(Noised::new(clean, is_masked, p_mask, policy))
}

impl Noised {
    pub(crate) fn new(clean: &CleanBatch, is_masked: Tensor, p_mask: Tensor, policy: &MaskPolicy) -> Self {
        let ids = clean.shown(policy.mask_token_id).masked_fill(&is_masked, policy.mask_token_id);
        Self { ids, is_masked, p_mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::IGNORE_INDEX,
        noise::{NoiseKey, Purpose},
    };
    use proptest::prelude::*;

    const MASK: i64 = 50;

    proptest! {
        #[test]
        fn exactly_the_maskable_tokens_with_a_draw_below_their_probability_are_masked(
            tokens in proptest::collection::vec((0i64..5, any::<bool>(), 0i64..3, 0.0f32..=1.0, 0.0f32..1.0), 1..30),
        ) {
            let row = |values: Vec<i64>| Tensor::from_slice(&values).unsqueeze(0);
            let clean = CleanBatch::new(row(tokens.iter().map(|token| token.0).collect())).unwrap()
                .with_labels(row(tokens.iter().map(|token| if token.1 { token.0 } else { IGNORE_INDEX }).collect())).unwrap()
                .with_segments(row(tokens.iter().map(|token| token.2).collect())).unwrap();
            let floats = |values: Vec<f32>| Tensor::from_slice(&values).unsqueeze(0);
            let p_mask = floats(tokens.iter().map(|token| token.3).collect());
            let uniform = floats(tokens.iter().map(|token| token.4).collect());
            let noised = mask_tokens(&clean, &p_mask, &uniform, &MaskPolicy::new(MASK).sparing([4])).unwrap();
            for (i, &(id, is_answer, segment, p, u)) in tokens.iter().enumerate() {
                let masked = is_answer && segment != 0 && id != 4 && u < p;
                let at = [0, i as i64];
                prop_assert_eq!(noised.is_masked.int64_value(&at) == 1, masked);
                prop_assert_eq!(noised.ids.int64_value(&at), if masked { MASK } else { id });
                prop_assert_eq!(noised.p_mask.double_value(&at) as f32, if segment == 0 { 0.0 } else { p });
            }
        }

        #[test]
        fn the_mask_of_a_document_is_the_same_wherever_it_is_packed(
            seed: u64, lens in proptest::collection::vec(1usize..6, 2..6), p in 0.1f32..0.9,
        ) {
            // Each document by itself.
            let key = |document: usize| NoiseKey::new(seed, Purpose::Mask, 1).of_document(document as u64, 0);
            let mask = |draws: &[f32]| {
                let clean = CleanBatch::new(Tensor::full([1, draws.len() as i64], 7, (Kind::Int64, tch::Device::Cpu))).unwrap();
                let uniform = Tensor::from_slice(draws).unsqueeze(0);
                let noised = mask_tokens(&clean, &Tensor::from_slice2(&[[p]]), &uniform, &MaskPolicy::new(MASK)).unwrap();
                Vec::<bool>::try_from(noised.is_masked.flatten(0, 1)).unwrap()
            };
            let alone: Vec<Vec<bool>> = lens.iter().enumerate().map(|(i, &len)| mask(&key(i).uniforms(0, len))).collect();
            // All in one row, in the opposite order, the first of them cut in two.
            let cut = lens[0] / 2;
            let mut draws: Vec<f32> = (1..lens.len()).rev().flat_map(|i| key(i).uniforms(0, lens[i])).collect();
            draws.extend(key(0).uniforms(0, cut));
            draws.extend(key(0).uniforms(cut as u64, lens[0] - cut));
            let expected: Vec<bool> = alone.into_iter().rev().flatten().collect();
            prop_assert_eq!(mask(&draws), expected);
        }

        #[test]
        fn draws_of_another_shape_are_refused(batch in 1i64..4, seq_len in 2i64..5, other in proptest::collection::vec(0i64..5, 0..4)) {
            prop_assume!(other != [batch, seq_len]);
            let clean = CleanBatch::new(Tensor::zeros([batch, seq_len], (Kind::Int64, tch::Device::Cpu))).unwrap();
            let float = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu));
            let policy = MaskPolicy::new(MASK);
            prop_assert!(mask_tokens(&clean, &float(&[batch, 1]), &float(&other), &policy).is_err());
            let p_mask = mask_tokens(&clean, &float(&other), &float(&[batch, seq_len]), &policy);
            prop_assert_eq!(p_mask.is_ok(), other == [batch, 1]);
        }
    }

    #[test]
    fn a_draw_that_equals_the_probability_does_not_mask() {
        let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 2]])).unwrap();
        let p_mask = Tensor::from_slice2(&[[0.25f32]]);
        let uniform = Tensor::from_slice2(&[[0.25f32, 0.249_999_98]]);
        let noised = mask_tokens(&clean, &p_mask, &uniform, &MaskPolicy::new(MASK)).unwrap();
        assert_eq!(Vec::<bool>::try_from(noised.is_masked.flatten(0, 1)).unwrap(), [false, true]);
    }

    #[test]
    fn the_mean_mask_rate_is_the_probability() {
        let clean = CleanBatch::new(Tensor::zeros([1, 20_000], (Kind::Int64, tch::Device::Cpu))).unwrap();
        let draws = NoiseKey::new(3, Purpose::Mask, 0).uniforms(0, 20_000);
        let uniform = Tensor::from_slice(&draws).unsqueeze(0);
        let noised = mask_tokens(&clean, &Tensor::from_slice2(&[[0.3f32]]), &uniform, &MaskPolicy::new(MASK)).unwrap();
        let rate = noised.is_masked.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((rate - 0.3).abs() < 4.0 * (0.21f64 / 20_000.0).sqrt(), "{rate}");
    }
}
