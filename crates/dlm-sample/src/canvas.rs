//! What a sampler starts from: known tokens and mask tokens.

use crate::error::{Result, SampleError};

/// The label of a token that the model need not produce: part of the prompt, or padding.
pub(crate) const IGNORE_INDEX: i64 = -100;

/// The longest canvas, far above what any model reads; a typing error should not ask for all memory.
const MAX_LEN: usize = 1 << 24;

/// A sequence in which some positions are to be filled.
///
/// Which ones is kept apart from the ids: a token that merely equals the mask token is context like any other.
///
/// ```
/// use dlm_sample::Canvas;
///
/// let canvas = Canvas::completion(&[5, 6, 7], 2, 99)?;
/// assert_eq!(canvas.ids(), [5, 6, 7, 99, 99]);
/// assert_eq!(canvas.masked_positions(), [3, 4]);
/// # Ok::<(), dlm_sample::SampleError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    ids: Vec<i64>,
    masked_positions: Vec<usize>,
    segment_ids: Option<Vec<i64>>,
    position_ids: Option<Vec<i64>>,
}

impl Canvas {
    /// A prompt, then `n_tokens` masks.
    ///
    /// The prompt may be empty: the model then writes from nothing.
    ///
    /// # Errors
    /// [`SampleError::EmptyCanvas`] when there is neither a prompt nor a mask, [`SampleError::CanvasTooLong`].
    pub fn completion(prompt: &[i64], n_tokens: usize, mask_token_id: i64) -> Result<Self> {
        let len = prompt.len().saturating_add(n_tokens);
        if len > MAX_LEN {
            return Err(SampleError::CanvasTooLong { len, limit: MAX_LEN });
        }
        let mut ids = prompt.to_vec();
        ids.resize(len, mask_token_id);
        Self::new(ids, (prompt.len()..len).collect())
    }

    /// A sequence with masks at chosen positions, counted from 0, in any order.
    ///
    /// # Errors
    /// [`SampleError::PositionBeyondCanvas`] when there is no such position, [`SampleError::EmptyCanvas`].
    pub fn mask_positions(ids: &[i64], positions: &[usize], mask_token_id: i64) -> Result<Self> {
        let mut ids = ids.to_vec();
        let mut positions = positions.to_vec();
        positions.sort_unstable();
        positions.dedup();
        for &position in &positions {
            let len = ids.len();
            *ids.get_mut(position).ok_or(SampleError::PositionBeyondCanvas { position, len })? = mask_token_id;
        }
        Self::new(ids, positions)
    }

    /// A sequence in which a share of the tokens is masked at random: [`masked_count`] of those that may be.
    ///
    /// Tokens whose ids are among `keep`, such as the one that begins a text, stay. The others are masked in the order
    /// given, a permutation of `0..ids.len()`: [`NoiseKey::permutation`](dlm_diffusion::NoiseKey::permutation) draws
    /// one.
    ///
    /// # Errors
    /// [`SampleError::RatioOutOfRange`], [`SampleError::LengthMismatch`] when the order is no order of these tokens,
    /// [`SampleError::NothingToMask`] when all of them are kept.
    pub fn random_masks(ids: &[i64], ratio: f64, keep: &[i64], order: &[usize], mask_token_id: i64) -> Result<Self> {
        let n_maskable = ids.iter().filter(|id| !keep.contains(id)).count();
        let n_masks = masked_count(n_maskable, ratio)?;
        if order.len() != ids.len() {
            return Err(SampleError::LengthMismatch { name: "order", found: order.len(), expected: ids.len() });
        }
        if n_maskable == 0 {
            return Err(SampleError::NothingToMask { len: ids.len() });
        }
        let maskable = order.iter().filter(|&&position| ids.get(position).is_none_or(|id| !keep.contains(id)));
        let positions: Vec<usize> = maskable.copied().take(n_masks).collect();
        Self::mask_positions(ids, &positions, mask_token_id)
    }

    /// A sequence in which every token with a label (not -100) is masked: the answers of a fine-tuning row.
    ///
    /// # Errors
    /// [`SampleError::LengthMismatch`] when there is not one label for each token, [`SampleError::NoAnswer`] when none
    /// is set.
    pub fn answers(ids: &[i64], labels: &[i64], mask_token_id: i64) -> Result<Self> {
        if labels.len() != ids.len() {
            return Err(SampleError::LengthMismatch { name: "labels", found: labels.len(), expected: ids.len() });
        }
        let positions: Vec<usize> = (0..ids.len()).filter(|&i| labels[i] != IGNORE_INDEX).collect();
        if positions.is_empty() {
            return Err(SampleError::NoAnswer { len: labels.len() });
        }
        Self::mask_positions(ids, &positions, mask_token_id)
    }

    /// Says which document each token belongs to: 1, 2, ..., and 0 for padding, which attends to nothing.
    ///
    /// Documents do not see each other. Their rotary positions run on unless [`with_positions`](Self::with_positions)
    /// restarts them.
    ///
    /// # Errors
    /// [`SampleError::LengthMismatch`] when there is not one id for each token.
    pub fn with_segments(mut self, segment_ids: &[i64]) -> Result<Self> {
        self.expect_one_each("segment_ids", segment_ids.len())?;
        self.segment_ids = Some(segment_ids.to_vec());
        Ok(self)
    }

    /// Gives each token its rotary position, instead of 0, 1, 2, ... over the canvas.
    ///
    /// # Errors
    /// [`SampleError::LengthMismatch`] when there is not one position for each token.
    pub fn with_positions(mut self, position_ids: &[i64]) -> Result<Self> {
        self.expect_one_each("position_ids", position_ids.len())?;
        self.position_ids = Some(position_ids.to_vec());
        Ok(self)
    }

    /// The tokens, mask tokens included.
    #[must_use]
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The positions to be filled, counted from 0, ascending.
    #[must_use]
    pub fn masked_positions(&self) -> &[usize] {
        &self.masked_positions
    }

    /// The document of each token, where several share the canvas.
    #[must_use]
    pub fn segment_ids(&self) -> Option<&[i64]> {
        self.segment_ids.as_deref()
    }

    /// The rotary position of each token, where it does not just count from 0.
    #[must_use]
    pub fn position_ids(&self) -> Option<&[i64]> {
        self.position_ids.as_deref()
    }

    fn new(ids: Vec<i64>, masked_positions: Vec<usize>) -> Result<Self> {
        if ids.is_empty() {
            return Err(SampleError::EmptyCanvas);
        }
        Ok(Self { ids, masked_positions, segment_ids: None, position_ids: None })
    }

    fn expect_one_each(&self, name: &'static str, found: usize) -> Result<()> {
        let expected = self.ids.len();
        if found == expected { Ok(()) } else { Err(SampleError::LengthMismatch { name, found, expected }) }
    }
}

/// How many of `n` tokens a mask ratio masks: `floor(n * ratio)`, but at least one.
///
/// # Errors
/// [`SampleError::RatioOutOfRange`] unless the ratio is above 0 and at most 1.
pub fn masked_count(n: usize, ratio: f64) -> Result<usize> {
    check_mask_ratio(ratio)?;
    Ok(((n as f64 * ratio) as usize).max(1))
}

/// Refuses a ratio that is no share of a sequence.
pub(crate) fn check_mask_ratio(ratio: f64) -> Result<()> {
    if ratio > 0.0 && ratio <= 1.0 { Ok(()) } else { Err(SampleError::RatioOutOfRange { ratio }) }
}

/// The mask ratio of a preview for which none was chosen: `uniform`, drawn from [0, 1), stretched to [0.1, 0.7), as
/// Axolotl does.
#[must_use]
pub fn preview_mask_ratio(uniform: f64) -> f64 {
    const LEAST: f64 = 0.1;
    const MOST: f64 = 0.7;
    uniform * (MOST - LEAST) + LEAST
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_diffusion::{NoiseKey, Purpose};
    use proptest::prelude::*;

    const MASK: i64 = 99;

    proptest! {
        #[test]
        fn random_masks_spare_the_kept_ids_and_count_only_the_others(
            ids in proptest::collection::vec(0i64..6, 1..40),
            ratio in 0.01f64..=1.0,
            seed: u64,
        ) {
            let order = NoiseKey::new(seed, Purpose::Preview, 0).permutation(ids.len());
            let n_maskable = ids.iter().filter(|&&id| id != 0).count();
            match Canvas::random_masks(&ids, ratio, &[0], &order, MASK) {
                Ok(canvas) => {
                    prop_assert_eq!(canvas.masked_positions().len(), ((n_maskable as f64 * ratio) as usize).max(1));
                    for (position, (&before, &after)) in ids.iter().zip(canvas.ids()).enumerate() {
                        let is_masked = canvas.masked_positions().contains(&position);
                        prop_assert_eq!(after, if is_masked { MASK } else { before });
                        prop_assert!(!is_masked || before != 0);
                    }
                }
                Err(error) => {
                    let is_expected = matches!(error, SampleError::NothingToMask { .. });
                    prop_assert!(is_expected && n_maskable == 0, "{}", error);
                }
            }
        }
    }

    #[test]
    fn a_ratio_of_one_masks_everything() {
        let canvas = Canvas::random_masks(&[1, 2, 3], 1.0, &[], &[2, 0, 1], MASK).unwrap();
        assert_eq!(canvas.ids(), [MASK; 3]);
    }

    #[test]
    fn ratios_outside_their_range_are_refused() {
        for ratio in [0.0, -0.2, 1.5, f64::NAN, f64::INFINITY] {
            assert!(matches!(masked_count(10, ratio), Err(SampleError::RatioOutOfRange { .. })), "{ratio}");
        }
        assert_eq!(masked_count(10, 0.01).unwrap(), 1);
        assert_eq!(masked_count(27, 0.9).unwrap(), 24);
    }

    #[test]
    fn positions_are_sorted_and_counted_once() {
        let canvas = Canvas::mask_positions(&[1, 2, 3], &[2, 0, 2], MASK).unwrap();
        assert_eq!((canvas.ids(), canvas.masked_positions()), (&[MASK, 2, MASK][..], &[0, 2][..]));
    }

    #[test]
    fn a_position_beyond_the_sequence_is_refused_with_both_numbers() {
        let error = Canvas::mask_positions(&[1, 2, 3], &[1, 3], MASK).unwrap_err();
        assert_eq!(error.to_string(), "position 3 cannot be masked in a sequence of 3 tokens");
        assert_eq!(error.help().unwrap(), "positions are counted from 0, so the last one is 2");
    }

    #[test]
    fn an_order_of_other_tokens_is_refused() {
        let short = Canvas::random_masks(&[1, 2, 3], 1.0, &[], &[0, 1], MASK);
        assert!(matches!(short, Err(SampleError::LengthMismatch { name: "order", found: 2, expected: 3 })));
        let beyond = Canvas::random_masks(&[1, 2, 3], 1.0, &[], &[0, 7, 1], MASK);
        assert!(matches!(beyond, Err(SampleError::PositionBeyondCanvas { position: 7, len: 3 })));
    }

    #[test]
    fn a_canvas_needs_a_token() {
        assert!(matches!(Canvas::completion(&[], 0, MASK), Err(SampleError::EmptyCanvas)));
        assert!(matches!(Canvas::mask_positions(&[], &[], MASK), Err(SampleError::EmptyCanvas)));
        assert!(matches!(Canvas::completion(&[1], usize::MAX, MASK), Err(SampleError::CanvasTooLong { .. })));
        assert_eq!(Canvas::completion(&[], 2, MASK).unwrap().ids(), [MASK, MASK]);
    }

    #[test]
    fn answers_are_the_tokens_with_labels_wherever_they_stand() {
        let canvas = Canvas::answers(&[1, 2, 3, 4], &[-100, 2, -100, 4], MASK).unwrap();
        assert_eq!(canvas.masked_positions(), [1, 3]);
        assert!(matches!(Canvas::answers(&[1], &[-100], MASK), Err(SampleError::NoAnswer { len: 1 })));
    }
}
