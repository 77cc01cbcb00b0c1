//! What an evaluation found, and how sure it is.

use serde::Serialize;

/// A bound on the negative log-likelihood of texts, with its errors.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BoundReport {
    /// Documents scored.
    pub documents: u64,
    /// Tokens scored.
    pub tokens: u64,
    /// Bytes of the documents scored, where all were told.
    pub bytes: Option<u64>,
    /// The bound in nats per token.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`, which bounds the perplexity from above.
    pub perplexity: f64,
    /// The bound in bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Standard error of `nats_per_token` over documents, as another sample of documents would change it; `None` for one document.
    /// What masks add to it is in it.
    pub standard_error: Option<f64>,
    /// Standard error of `nats_per_token` from masks alone, as other masks on the same documents would change it.
    pub monte_carlo_error: f64,
    /// Share of masked tokens whose most likely prediction is right.
    pub accuracy: f64,
    /// Rows that went through the denoiser.
    pub rows: u64,
    /// The loss by how much is masked.
    pub by_mask_ratio: Vec<RatioBin>,
    /// What is not in the numbers.
    pub excluded: Excluded,
}

/// Tokens that were scored while a share of their text between two bounds was masked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RatioBin {
    /// Lower bound of the share, exclusive.
    pub above: f64,
    /// Upper bound, inclusive.
    pub to: f64,
    /// How many tokens were scored.
    pub tokens: u64,
    /// Their mean negative log-likelihood in nats; `None` without any.
    pub nats: Option<f64>,
    /// Share of them whose most likely prediction is right.
    pub accuracy: Option<f64>,
}

/// What an evaluation leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Excluded {
    /// Documents without a token to score.
    pub empty_documents: u64,
    /// Documents that are too long.
    pub long_documents: u64,
    /// Tokens beyond the longest length.
    pub cut_tokens: u64,
    /// Tokens that are no targets, such as prompts.
    pub prompt_tokens: u64,
    /// Targets that are never masked.
    pub never_masked_tokens: u64,
}

/// Sums over the tokens of one bin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BinSums {
    pub(super) tokens: u64,
    pub(super) nats: f64,
    pub(super) correct: u64,
}

/// The estimates of one document: its nats in each replicate.
#[derive(Debug, Clone)]
pub(super) struct DocumentSums {
    pub(super) tokens: u64,
    pub(super) bytes: Option<u64>,
    pub(super) replicates: Vec<f64>,
}

pub(super) fn report(documents: &[DocumentSums], bins: &[BinSums], rows: u64, excluded: Excluded) -> BoundReport {
    let tokens: u64 = documents.iter().map(|document| document.tokens).sum();
    let n = documents.len() as f64;
    let nats = |document: &DocumentSums| mean(&document.replicates);
    let total: f64 = documents.iter().map(nats).sum();
    let nats_per_token = total / tokens as f64;
    // The ratio of two sums over documents: residuals from the ratio, not from the mean.
    let residual = |document: &DocumentSums| (nats(document) - nats_per_token * document.tokens as f64).powi(2);
    let spread = documents.iter().map(residual).sum::<f64>() * n / (n - 1.0);
    let of_masks = |document: &DocumentSums| {
        let (mean, r) = (nats(document), document.replicates.len() as f64);
        document.replicates.iter().map(|nats| (nats - mean).powi(2)).sum::<f64>() / ((r - 1.0).max(1.0) * r)
    };
    let bytes = documents.iter().map(|document| document.bytes).sum::<Option<u64>>().filter(|bytes| *bytes > 0);
    let all = bins.iter().fold(BinSums::default(), |a, b| BinSums {
        tokens: a.tokens + b.tokens,
        nats: a.nats + b.nats,
        correct: a.correct + b.correct,
    });
    let width = 1.0 / bins.len() as f64;
    BoundReport {
        documents: documents.len() as u64,
        tokens,
        bytes,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: bytes.map(|bytes| total / std::f64::consts::LN_2 / bytes as f64),
        standard_error: (documents.len() > 1).then(|| spread.sqrt() / tokens as f64),
        monte_carlo_error: documents.iter().map(of_masks).sum::<f64>().sqrt() / tokens as f64,
        accuracy: all.correct as f64 / all.tokens.max(1) as f64,
        rows,
        by_mask_ratio: bins
            .iter()
            .enumerate()
            .map(|(i, bin)| RatioBin {
                above: i as f64 * width,
                to: (i + 1) as f64 * width,
                tokens: bin.tokens,
                nats: (bin.tokens > 0).then(|| bin.nats / bin.tokens as f64),
                accuracy: (bin.tokens > 0).then(|| bin.correct as f64 / bin.tokens as f64),
            })
            .collect(),
        excluded,
    }
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_over_documents_and_over_masks_are_known_by_hand() {
        let document =
            |tokens, replicates: [f64; 2]| DocumentSums { tokens, bytes: Some(4), replicates: replicates.to_vec() };
        // 2 nats a token on average; residuals of 0 and 0, then masks that differ by 2 in one document.
        let found =
            report(&[document(2, [4.0, 4.0]), document(3, [5.0, 7.0])], &[BinSums::default()], 9, Excluded::default());
        assert!((found.nats_per_token - 2.0).abs() < 1e-12 && found.standard_error == Some(0.0));
        assert!((found.monte_carlo_error - 1.0 / 5.0).abs() < 1e-12, "one standard error of 1 nat over 5 tokens");
        assert!((found.bits_per_byte.unwrap() - 10.0 / 2f64.ln() / 8.0).abs() < 1e-12);
        // Residuals of 1 and -1 over 5 tokens: sqrt(2 * 2 / 1) / 5.
        let found =
            report(&[document(2, [5.0, 5.0]), document(3, [5.0, 5.0])], &[BinSums::default()], 9, Excluded::default());
        assert!((found.standard_error.unwrap() - 2.0 / 5.0).abs() < 1e-12);
        assert_eq!(found.monte_carlo_error, 0.0);
        assert_eq!(
            report(&[document(2, [5.0, 5.0])], &[BinSums::default()], 1, Excluded::default()).standard_error,
            None
        );
    }
}
