//! How a generated sequence differs from the text it was made from: what a console, a table and a page colour.

use serde::Serialize;
use std::ops::Range;

/// What became of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenOutcome {
    /// Was masked, and is again what it was: green.
    Right,
    /// Was masked, and became another token: red.
    Wrong,
    /// Was generated where the original has nothing to compare with: plain.
    Generated,
    /// Is still masked.
    Masked,
    /// Was never masked: dim.
    Unchanged,
}

/// Compares every token of a generation with the text before it was masked.
///
/// `original` may be shorter than `ids`, as in a completion, or empty where nothing is known.
///
/// ```
/// use dlm_sample::{TokenOutcome::{Generated, Right, Unchanged, Wrong}, outcomes};
///
/// let found = outcomes(&[1, 2, 8, 9], &[1, 2, 3], &[1, 2, 3], 99);
/// assert_eq!(found, [Unchanged, Right, Wrong, Generated]);
/// ```
#[must_use]
pub fn outcomes(ids: &[i64], masked_positions: &[usize], original: &[i64], mask_token_id: i64) -> Vec<TokenOutcome> {
    let mut outcomes = vec![TokenOutcome::Unchanged; ids.len()];
    for &position in masked_positions.iter().filter(|&&position| position < ids.len()) {
        outcomes[position] = match (ids[position], original.get(position)) {
            (id, _) if id == mask_token_id => TokenOutcome::Masked,
            (id, Some(&before)) if id == before => TokenOutcome::Right,
            (_, Some(_)) => TokenOutcome::Wrong,
            (_, None) => TokenOutcome::Generated,
        };
    }
    outcomes
}

/// Stretches of equal outcomes, so that their tokens can be decoded together: a character may be made of several.
#[must_use]
pub fn spans(outcomes: &[TokenOutcome]) -> Vec<(TokenOutcome, Range<usize>)> {
    let mut start = 0;
    let stretches = outcomes.chunk_by(|a, b| a == b);
    stretches
        .map(|stretch| {
            let range = start..start + stretch.len();
            start = range.end;
            (stretch[0], range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{TokenOutcome::*, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spans_cover_every_token_once(flags in proptest::collection::vec(0u8..3, 0..40)) {
            let outcomes: Vec<_> = flags.iter().map(|flag| [Right, Wrong, Unchanged][*flag as usize]).collect();
            let spans = spans(&outcomes);
            let rebuilt: Vec<_> = spans.iter().flat_map(|(outcome, range)| vec![*outcome; range.len()]).collect();
            prop_assert_eq!(rebuilt, outcomes);
            prop_assert!(spans.windows(2).all(|pair| pair[0].0 != pair[1].0 && pair[0].1.end == pair[1].1.start));
        }
    }

    #[test]
    fn a_canvas_on_its_way_shows_what_is_still_masked() {
        assert_eq!(outcomes(&[1, 99, 3], &[1, 2], &[1, 2, 3], 99), [Unchanged, Masked, Right]);
    }

    #[test]
    fn a_mask_token_of_the_text_itself_is_unchanged() {
        assert_eq!(outcomes(&[99, 4], &[1], &[99, 5], 99), [Unchanged, Wrong]);
    }

    #[test]
    fn without_an_original_everything_filled_is_generated() {
        assert_eq!(outcomes(&[1, 4], &[1], &[], 99), [Unchanged, Generated]);
    }

    #[test]
    fn neighbours_of_one_outcome_are_one_span() {
        let expected = [(Unchanged, 0..2), (Wrong, 2..3), (Unchanged, 3..4)];
        assert_eq!(spans(&[Unchanged, Unchanged, Wrong, Unchanged]), expected);
        assert!(spans(&[]).is_empty());
    }
}
