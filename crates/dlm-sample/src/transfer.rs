//! How many masks each step fills.

/// How the masks of a canvas are spread over its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Transfer {
    /// An equal share of what is left in every step, at least one, and the rest in the last step (Axolotl's rule).
    #[default]
    Even,
}

impl Transfer {
    /// Masks that `step`, counted from 0, fills where `remaining` are left; all of them in the last of the `steps`.
    ///
    /// At least one as long as there is one, so that a canvas of `n` masks is done after `min(n, steps)` steps.
    #[must_use]
    pub fn num_transfer_tokens(self, remaining: usize, step: usize, steps: usize) -> usize {
        let left = steps.saturating_sub(step);
        if left <= 1 {
            return remaining;
        }
        match self {
            // A float product as in Axolotl, not a division of integers: 49 * (1 / 49) is below 1.
            Self::Even => ((remaining as f64 * (1.0 / left as f64)) as usize).max(1).min(remaining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mask_is_filled_in_exactly_one_step(n_masks in 0usize..512, steps in 1usize..96) {
            let (mut remaining, mut passes) = (n_masks, 0);
            for step in 0..steps {
                let filled = Transfer::Even.num_transfer_tokens(remaining, step, steps);
                prop_assert!(filled <= remaining);
                prop_assert!(filled > 0 || remaining == 0);
                passes += usize::from(filled > 0);
                remaining -= filled;
            }
            prop_assert_eq!(remaining, 0);
            prop_assert_eq!(passes, n_masks.min(steps));
        }
    }

    #[test]
    fn the_share_is_a_float_product() {
        // 98 / 49 is 2, but 1 / 49 is rounded down, and so is the product.
        assert_eq!(98.0 * (1.0 / 49.0), 2.0 - f64::EPSILON);
        assert_eq!(Transfer::Even.num_transfer_tokens(98, 0, 49), 1);
        assert_eq!(Transfer::Even.num_transfer_tokens(13, 0, 3), 4);
    }
}
