//! The bound on the likelihood of whole documents.

use super::{
    design::{Share, design},
    report::{BinSums, BoundReport, DocumentSums, Excluded, report},
    rows::{Layout, Row, Score, score},
};
use crate::{
    attention::Visibility,
    blocks::expect_block_length,
    check::expect_within,
    denoiser::Denoiser,
    error::{DiffusionError, Result},
    noise::{NoiseKey, Purpose},
    timestep::stratified_t,
};

/// A document to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalDocument {
    /// A stable number, from which its masks follow.
    pub id: i64,
    /// Its tokens.
    pub ids: Vec<i64>,
    /// Which of them are scored; the others, such as a prompt, are given.
    pub is_target: Vec<bool>,
    /// Bytes of its scored text, where they are known.
    pub bytes: Option<u64>,
}

impl EvalDocument {
    /// A document of which every token is scored.
    #[must_use]
    pub fn new(id: i64, ids: Vec<i64>) -> Self {
        Self { id, is_target: vec![true; ids.len()], ids, bytes: None }
    }
}

/// What becomes of documents longer than the denoiser reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LongDocuments {
    /// They are scored in windows that follow each other, each given so many tokens before it: every token counts once.
    Roll {
        /// Tokens of the window before that are given, not scored.
        context: usize,
    },
    /// Their end is cut off.
    #[default]
    Cut,
    /// They are left out.
    Skip,
}

/// How the bound is estimated.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundConfig {
    /// Id of the mask token.
    pub mask_token_id: i64,
    /// Ids that are never masked, hence not scored.
    pub never_mask: Vec<i64>,
    /// Forward passes of a document in one replicate: mask counts spread evenly.
    pub passes: usize,
    /// How often all of it is done with other masks; at least 2, for the error of the estimate.
    pub replicates: usize,
    /// Rows in one forward pass.
    pub batch_size: usize,
    /// Longest row; `None` for any.
    pub max_len: Option<usize>,
    /// What becomes of longer documents.
    pub long: LongDocuments,
    /// Tokens of a block for a model of block diffusion.
    pub block_length: Option<i64>,
    /// Whether the mask token's own probability is taken as 0.
    pub forbid_mask: bool,
    /// What masks follow from.
    pub seed: u64,
    /// Rows of the table by mask ratio.
    pub bins: usize,
}

impl BoundConfig {
    /// Four passes, twice.
    #[must_use]
    pub fn new(mask_token_id: i64) -> Self {
        Self {
            mask_token_id,
            never_mask: Vec::new(),
            passes: 4,
            replicates: 2,
            batch_size: 8,
            max_len: None,
            long: LongDocuments::default(),
            block_length: None,
            forbid_mask: false,
            seed: 0,
            bins: 10,
        }
    }

    /// Refuses numbers out of range.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`].
    pub fn validate(&self) -> Result<()> {
        let at_least = |name, value: usize, least: usize, expected| {
            expect_within(name, value as f64, least as f64..=f64::MAX, expected)
        };
        at_least("passes", self.passes, 1, "at least 1")?;
        at_least("replicates", self.replicates, 2, "at least 2, for the error of the estimate")?;
        at_least("batch_size", self.batch_size, 1, "at least 1")?;
        at_least("bins", self.bins, 1, "at least 1")?;
        let max_len = self.max_len.unwrap_or(usize::MAX);
        at_least("max_len", max_len, 2, "at least 2")?;
        if let LongDocuments::Roll { context } = self.long {
            expect_within("context", context as f64, 0.0..=(max_len - 1) as f64, "less than `max_len`")?;
        }
        self.block_length.map_or(Ok(()), expect_block_length)
    }
}

/// A window of a document that fits the denoiser.
struct Piece<'a> {
    document: usize,
    id: i64,
    /// Where it begins in the document, which tells the masks of pieces apart.
    offset: usize,
    ids: &'a [i64],
    /// Positions that are scored, a list for each block; one list without blocks.
    groups: Vec<Vec<usize>>,
}

/// A bound on `-log p` of documents, in expectation over masks, with its errors.
///
/// Of each document, replicate `r` masks `k_j = 1 + floor(n (j + u_r) / passes)` of its `n` targets in pass `j` and sums the masked
/// tokens' negative log-likelihoods times shares that sum to `n / passes`: unbiased, since every `k` is as likely. The masks of a
/// replicate are windows into one random order of the tokens, and the shares such that each token counts about once over all passes, which
/// lowers the variance and leaves the mean. In block diffusion each block has its own counts. Masks follow from the seed and the
/// document alone, not from the order or the size of a batch.
///
/// Runs without gradients. Documents are taken by length, so that little is padded.
///
/// # Errors
/// [`DiffusionError::NothingToScore`] when no document has a target, [`DiffusionError::NotFiniteDocument`] for a document whose loss is
/// not finite, [`DiffusionError::ShapeMismatch`] for a document with more or fewer flags than tokens, and what the denoiser refuses.
pub fn bound(denoiser: &dyn Denoiser, documents: &[EvalDocument], config: &BoundConfig) -> Result<BoundReport> {
    config.validate()?;
    let mut excluded = Excluded::default();
    let mut pieces = pieces(documents, config, &mut excluded)?;
    pieces.sort_by_key(|piece| piece.ids.len());
    let layout = config.block_length.map_or(Layout::Plain(Visibility::Bidirectional), Layout::Blocks);
    let forbidden = config.forbid_mask.then_some(config.mask_token_id);
    let mut totals = vec![vec![0.0; config.replicates]; documents.len()];
    let (mut bins, mut passed) = (vec![BinSums::default(); config.bins], 0);
    let mut draws = pieces.iter().flat_map(|piece| {
        let of_replicate =
            move |replicate| plan(piece, config, replicate).into_iter().map(move |pass| (replicate, pass));
        (0..config.replicates).flat_map(of_replicate).map(move |(replicate, pass)| (piece, replicate, pass))
    });
    let _no_grad = tch::no_grad_guard();
    loop {
        let batch: Vec<(&Piece<'_>, usize, Pass)> = draws.by_ref().take(config.batch_size).collect();
        if batch.is_empty() {
            break;
        }
        let rows: Vec<Row> = batch.iter().map(|(piece, _, pass)| masked_row(piece, pass, config)).collect();
        let clean: Vec<&[i64]> = batch.iter().map(|(piece, ..)| piece.ids).collect();
        passed += rows.len() as u64;
        let scores = score(denoiser, &rows, &clean, layout, forbidden)?;
        for ((piece, replicate, pass), scores) in batch.iter().zip(&scores) {
            count_bins(piece, pass, scores, &mut bins);
            let weighed = pass.iter().flatten().zip(scores).map(|((_, share), score)| share * score.nll);
            totals[piece.document][*replicate] += weighed.sum::<f64>();
        }
    }
    finish(documents, &pieces, totals, &bins, passed, excluded)
}

/// The exact negative log-likelihood of documents under an autoregressive model: each target given the tokens before it.
///
/// The first token of a document, which nothing predicts, is not scored. `logits_shift` says whether the denoiser predicts a token from
/// the state before it by itself; if not, it is asked for that state. There is no error from masks; the table by mask ratio is empty.
///
/// # Errors
/// Those of [`bound`].
pub fn autoregressive(
    denoiser: &dyn Denoiser,
    documents: &[EvalDocument],
    logits_shift: bool,
    config: &BoundConfig,
) -> Result<BoundReport> {
    config.validate()?;
    let mut excluded = Excluded::default();
    let plain = BoundConfig { block_length: None, ..config.clone() };
    let mut pieces = pieces(documents, &plain, &mut excluded)?;
    for piece in &mut pieces {
        piece.groups.iter_mut().for_each(|group| group.retain(|&position| position > 0));
    }
    pieces.sort_by_key(|piece| piece.ids.len());
    let mut totals = vec![vec![0.0]; documents.len()];
    let (mut passed, mut all) = (0, BinSums::default());
    let _no_grad = tch::no_grad_guard();
    for batch in pieces.chunks(config.batch_size) {
        let before = usize::from(!logits_shift);
        let row = |piece: &Piece<'_>| Row {
            document: piece.id,
            ids: piece.ids.to_vec(),
            asked: piece.groups.iter().flatten().map(|&position| (position - before, piece.ids[position])).collect(),
        };
        let rows: Vec<Row> = batch.iter().map(row).collect();
        passed += rows.len() as u64;
        let scores = score(denoiser, &rows, &[], Layout::Plain(Visibility::Causal), None)?;
        for (piece, scores) in batch.iter().zip(scores) {
            totals[piece.document][0] += scores.iter().map(|score| score.nll).sum::<f64>();
            all.tokens += scores.len() as u64;
            all.correct += scores.iter().filter(|score| score.is_correct).count() as u64;
        }
    }
    let mut found = finish(documents, &pieces, totals, &[all], passed, excluded)?;
    found.by_mask_ratio.clear();
    Ok(found)
}

/// What one pass over a piece masks in each group: positions, and what their losses count.
type Pass = Vec<Vec<Share>>;

/// Adds the scores of a row to the table by mask ratio.
fn count_bins(piece: &Piece<'_>, pass: &Pass, scores: &[Score], bins: &mut [BinSums]) {
    let mut scores = scores.iter();
    for (group, masked) in piece.groups.iter().zip(pass) {
        let ratio = masked.len() as f64 / group.len() as f64;
        let n_bins = bins.len();
        let bin = &mut bins[((ratio * n_bins as f64).ceil() as usize).clamp(1, n_bins) - 1];
        bin.tokens += masked.len() as u64;
        for score in scores.by_ref().take(masked.len()) {
            bin.nats += score.nll;
            bin.correct += u64::from(score.is_correct);
        }
    }
}

fn finish(
    documents: &[EvalDocument],
    pieces: &[Piece<'_>],
    totals: Vec<Vec<f64>>,
    bins: &[BinSums],
    rows: u64,
    excluded: Excluded,
) -> Result<BoundReport> {
    let mut tokens = vec![0u64; documents.len()];
    for piece in pieces {
        tokens[piece.document] += piece.groups.iter().map(Vec::len).sum::<usize>() as u64;
    }
    let scored: Vec<DocumentSums> = totals
        .into_iter()
        .zip(&tokens)
        .zip(documents)
        .filter(|((_, tokens), _)| **tokens > 0)
        .map(|((replicates, tokens), document)| DocumentSums { tokens: *tokens, bytes: document.bytes, replicates })
        .collect();
    if scored.is_empty() {
        return Err(DiffusionError::NothingToScore { why: "no document has a token that may be masked" });
    }
    Ok(report(&scored, bins, rows, excluded))
}

/// Cuts documents into pieces that fit, and counts what is left out.
fn pieces<'a>(documents: &'a [EvalDocument], config: &BoundConfig, excluded: &mut Excluded) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let len = document.ids.len();
        if document.is_target.len() != len {
            let found = vec![document.is_target.len() as i64];
            return Err(DiffusionError::ShapeMismatch { name: "is_target", found, expected: format!("[{len}]") });
        }
        let max_len = config.max_len.unwrap_or(len.max(1));
        // Windows and where the scored part of each begins.
        let windows: Vec<(std::ops::Range<usize>, usize)> = match config.long {
            _ if len <= max_len => vec![(0..len, 0)],
            LongDocuments::Skip => {
                excluded.long_documents += 1;
                continue;
            }
            LongDocuments::Cut => {
                excluded.cut_tokens += (len - max_len) as u64;
                vec![(0..max_len, 0)]
            }
            LongDocuments::Roll { context } => rolling_windows(len, max_len, context),
        };
        let mut is_empty = true;
        for (window, scored) in windows {
            let mut groups: Vec<Vec<usize>> = Vec::new();
            for position in window.clone().filter(|position| *position >= scored) {
                if !document.is_target[position] {
                    excluded.prompt_tokens += 1;
                } else if config.never_mask.contains(&document.ids[position]) {
                    excluded.never_masked_tokens += 1;
                } else {
                    let inside = position - window.start;
                    let block = config.block_length.map_or(0, |block_length| inside / block_length as usize);
                    groups.resize(groups.len().max(block + 1), Vec::new());
                    groups[block].push(inside);
                }
            }
            groups.retain(|group| !group.is_empty());
            if !groups.is_empty() {
                is_empty = false;
                let ids = &document.ids[window.clone()];
                pieces.push(Piece { document: index, id: document.id, offset: window.start, ids, groups });
            }
        }
        excluded.empty_documents += u64::from(is_empty);
    }
    Ok(pieces)
}

/// Windows of at most `max_len` tokens over `len`, and where the part of each begins that no earlier window scored.
fn rolling_windows(len: usize, max_len: usize, context: usize) -> Vec<(std::ops::Range<usize>, usize)> {
    let mut windows = vec![(0..max_len.min(len), 0)];
    let mut scored = max_len.min(len);
    while scored < len {
        let begin = scored - context;
        let end = (begin + max_len).min(len);
        windows.push((begin..end, scored));
        scored = end;
    }
    windows
}

/// The passes of a replicate over a piece.
fn plan(piece: &Piece<'_>, config: &BoundConfig, replicate: usize) -> Vec<Pass> {
    let key = |stage: usize| {
        let key = NoiseKey::new(config.seed, Purpose::Evaluation, piece.offset as u64);
        key.of_document(piece.id as u64, (2 * replicate + stage) as u64)
    };
    let (shift, orders) = (key(0).uniforms_f64(0, 1)[0], key(1));
    let mut first = 0;
    let mut passes: Vec<Pass> = vec![Vec::with_capacity(piece.groups.len()); config.passes];
    for (block, group) in piece.groups.iter().enumerate() {
        // Blocks are spread among each other too.
        let shift = (shift + f64::from(stratified_t(0.0, block as u64))).fract();
        let draws = orders.uniforms_f64(first, group.len());
        first += group.len() as u64;
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]).then(a.cmp(&b)));
        for (pass, shares) in passes.iter_mut().zip(design(&order, config.passes, shift)) {
            pass.push(shares.into_iter().map(|(place, share)| (group[place], share)).collect());
        }
    }
    passes
}

fn masked_row(piece: &Piece<'_>, pass: &Pass, config: &BoundConfig) -> Row {
    let mut ids = piece.ids.to_vec();
    let asked: Vec<(usize, i64)> = pass
        .iter()
        .flatten()
        .map(|&(position, _)| (position, std::mem::replace(&mut ids[position], config.mask_token_id)))
        .collect();
    Row { document: piece.id, ids, asked }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rolling_windows_score_every_token_once_and_give_each_its_context(len in 1usize..200, max_len in 2usize..50, context in 0usize..49) {
            prop_assume!(context < max_len);
            let mut scored = 0;
            for (window, from) in rolling_windows(len, max_len, context) {
                prop_assert!(window.len() <= max_len && from == scored && from < window.end);
                prop_assert!(from == 0 || from - window.start == context);
                scored = window.end;
            }
            prop_assert_eq!(scored, len);
        }
    }
}
