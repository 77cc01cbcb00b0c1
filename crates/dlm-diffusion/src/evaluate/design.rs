//! Which tokens each pass of a replicate masks, and how much each of them counts.
//!
//! Two things make a plain estimate of the bound vary: how many tokens are masked, and on which of them the masks fall. The counts of a
//! replicate are therefore spread evenly, and its masks are windows into one random order of the tokens, begun at even distances, so that
//! every token is masked about as often as any other.
//!
//! What is left is that a token masked where few are counts more than one masked where many are. But whether the tokens of a window share its
//! weight alike is free: their order is random, so any shares that sum to the window's weight leave the expectation as it is. They are
//! chosen so that the shares of each *token*, over all passes, sum to 1 as nearly as can be, some of them below 0. A loss that depends
//! on the token, and on how many are masked, but not on which others, is then estimated without error from masks; and since no guess of a
//! loss enters, the estimate is unbiased whatever the denoiser does.

/// The squared ratio of how much losses vary from token to token and how much with what else is masked. It decides how far shares may
/// differ to make up for tokens that are masked more often; the estimate is unbiased for any value.
const BETWEEN_TOKENS: f64 = 16.0;

/// One token of a pass: which it is, and what its loss is multiplied by.
pub(super) type Share = (usize, f64);

/// The masks of a replicate of `passes` passes over `order.len()` tokens, at least one: of each pass the masked tokens, ascending.
///
/// Pass `j` masks `1 + floor(n (j + shift) / passes)` tokens, `shift` being drawn from [0, 1) and `order` a random order of `0..n`. The
/// sum of all shares times losses estimates the sum over `k` of `1 / k` times the loss of `k` masks.
pub(super) fn design(order: &[usize], passes: usize, shift: f64) -> Vec<Vec<Share>> {
    let n = order.len();
    let windows: Vec<(usize, usize)> = (0..passes)
        .map(|pass| {
            let count = 1 + (n as f64 * (pass as f64 + shift) / passes as f64) as usize;
            (pass * n / passes, count.min(n))
        })
        .collect();
    let within = |(begin, count): (usize, usize)| (begin..begin + count).map(move |place| place % n);
    // By place in the order: how many windows hold it.
    let mut holders = vec![0.0; n];
    for &window in &windows {
        within(window).for_each(|place| holders[place] += 1.0);
    }
    // Shares `a` minimise `BETWEEN_TOKENS * sum over tokens (sum of its shares - 1)^2 + sum of all a^2` while those of each window sum to
    // n / passes. With multipliers l of these conditions, `a = l_j - s (sum of l over the token's windows - 1)`.
    let factor: Vec<f64> = holders.iter().map(|count| BETWEEN_TOKENS / (1.0 + count * BETWEEN_TOKENS)).collect();
    let mut of_windows = vec![vec![false; n]; passes];
    for (holds, &window) in of_windows.iter_mut().zip(&windows) {
        within(window).for_each(|place| holds[place] = true);
    }
    let mut matrix = vec![vec![0.0; passes]; passes];
    let mut wanted = vec![n as f64 / passes as f64; passes];
    for (j, &window) in windows.iter().enumerate() {
        for place in within(window) {
            matrix[j][j] += 1.0;
            wanted[j] -= factor[place];
            for (l, holds) in of_windows.iter().enumerate() {
                if holds[place] {
                    matrix[j][l] -= factor[place];
                }
            }
        }
    }
    let multipliers = solve(matrix, wanted);
    let mut sums = vec![0.0; n];
    for (&window, multiplier) in windows.iter().zip(&multipliers) {
        within(window).for_each(|place| sums[place] += multiplier);
    }
    let of_window = |(&window, multiplier): (&(usize, usize), &f64)| {
        let share = |place: usize| multiplier - factor[place] * (sums[place] - 1.0);
        let mut shares: Vec<Share> = within(window).map(|place| (order[place], share(place))).collect();
        shares.sort_unstable_by_key(|(token, _)| *token);
        shares
    };
    windows.iter().zip(&multipliers).map(of_window).collect()
}

/// Solves a symmetric, positive definite system by elimination. This one is: `1 - holders * factor` is above 0 everywhere.
fn solve(mut matrix: Vec<Vec<f64>>, mut wanted: Vec<f64>) -> Vec<f64> {
    let n = wanted.len();
    for column in 0..n {
        for row in column + 1..n {
            let factor = matrix[row][column] / matrix[column][column];
            let (above, below) = matrix.split_at_mut(row);
            below[0].iter_mut().zip(&above[column]).skip(column).for_each(|(x, y)| *x -= factor * y);
            wanted[row] -= factor * wanted[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|column| matrix[row][column] * wanted[column]).sum();
        wanted[row] = (wanted[row] - known) / matrix[row][row];
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Which is all that being unbiased takes: within a window the order is random.
        #[test]
        fn the_shares_of_each_pass_sum_to_its_part_of_the_counts(n in 1usize..60, passes in 1usize..20, shift in 0.0f64..1.0) {
            let order: Vec<usize> = (0..n).rev().collect();
            for (pass, shares) in design(&order, passes, shift).iter().enumerate() {
                let count = 1 + (n as f64 * (pass as f64 + shift) / passes as f64) as usize;
                prop_assert_eq!(shares.len(), count.min(n));
                prop_assert!(shares.windows(2).all(|pair| pair[0].0 < pair[1].0), "each token once, ascending");
                let sum: f64 = shares.iter().map(|(_, share)| share).sum();
                prop_assert!((sum - n as f64 / passes as f64).abs() < 1e-7 * n as f64, "pass {pass}: {sum}");
            }
        }

        /// With some passes every token is masked somewhere, and counts about once over all of them.
        #[test]
        fn the_shares_of_each_token_sum_to_about_one(n in 8usize..60, passes in 4usize..12, shift in 0.0f64..1.0) {
            let order: Vec<usize> = (0..n).collect();
            let mut sums = vec![0.0; n];
            design(&order, passes, shift).iter().flatten().for_each(|(token, share)| sums[*token] += share);
            let off = sums.iter().map(|sum| (sum - 1.0f64).powi(2)).sum::<f64>() / n as f64;
            prop_assert!(off < 0.1, "{off}: {sums:?}");
        }
    }

    #[test]
    fn one_pass_shares_its_weight_alike_and_a_single_token_counts_once() {
        let one = design(&[2, 0, 3, 1], 1, 0.3);
        assert_eq!(one[0].iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 2]);
        assert!(one[0].iter().all(|(_, share)| (share - 2.0).abs() < 1e-9));
        let single = design(&[0], 3, 0.9);
        assert!(single.iter().all(|pass| pass.len() == 1 && (pass[0].1 - 1.0 / 3.0).abs() < 1e-9), "{single:?}");
    }
}
