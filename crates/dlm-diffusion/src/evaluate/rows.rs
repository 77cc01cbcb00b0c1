//! Rows of one forward pass: what the denoiser sees and which tokens it is scored on.

use crate::{
    attention::{AttentionLayout, Visibility},
    denoiser::{Denoiser, DenoiserInput, TokenLoss},
    error::{DiffusionError, Result},
};
use tch::{Kind, Tensor};

/// A text as the denoiser sees it, and what it is asked.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Whose row it is, for error messages.
    pub(super) document: i64,
    /// Tokens, some of them masks.
    pub(super) ids: Vec<i64>,
    /// Positions whose states are wanted, and the tokens they are scored against.
    pub(super) asked: Vec<(usize, i64)>,
}

/// How rows are laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Layout {
    /// One text each, seen so.
    Plain(Visibility),
    /// Noised and clean halves, in blocks of this length.
    Blocks(i64),
}

/// The score of one token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Score {
    pub(super) nll: f64,
    pub(super) is_correct: bool,
}

/// Scores what each row asks, in one forward pass. `clean`, of the same lengths, is the second half in blocks.
pub(super) fn score(
    denoiser: &dyn Denoiser,
    rows: &[Row],
    clean: &[&[i64]],
    layout: Layout,
    forbidden: Option<i64>,
) -> Result<Vec<Vec<Score>>> {
    let Some(seq_len) = rows.iter().map(|row| row.ids.len()).max().filter(|len| *len > 0) else {
        return Ok(rows.iter().map(|_| Vec::new()).collect());
    };
    let halves = if matches!(layout, Layout::Blocks(_)) { 2 } else { 1 };
    let width = halves * seq_len;
    let slots = rows.len() * width;
    let (mut ids, mut segments, mut positions) = (vec![0i64; slots], vec![0i64; slots], vec![0i64; slots]);
    let (mut wanted, mut targets) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        for half in 0..halves {
            let text = if half == 0 { row.ids.as_slice() } else { clean[i] };
            let begin = i * width + half * seq_len;
            ids[begin..begin + text.len()].copy_from_slice(text);
            segments[begin..begin + text.len()].fill(1);
            (0..seq_len).for_each(|position| positions[begin + position] = position as i64);
        }
        wanted.extend(row.asked.iter().map(|(position, _)| (i * width + position) as i64));
        targets.extend(row.asked.iter().map(|(_, target)| *target));
    }
    let whole = |values: &[i64]| Tensor::from_slice(values).view([rows.len() as i64, width as i64]);
    let is_padded = segments.contains(&0);
    let attention = if is_padded { AttentionLayout::segments(&whole(&segments))? } else { AttentionLayout::full() };
    let attention = attention.with_visibility(match layout {
        Layout::Plain(visibility) => visibility,
        Layout::Blocks(block_length) => Visibility::NoisyAndClean { block_length, seq_len: seq_len as i64 },
    });
    let (ids, positions, wanted) = (whole(&ids), whole(&positions), Tensor::from_slice(&wanted));
    let input = DenoiserInput::new(&ids, &attention).at(&wanted).with_positions(&positions);
    let hidden = denoiser.hidden_states(&input)?;
    let targets = Tensor::from_slice(&targets).to_device(hidden.device());
    let nothing = Tensor::zeros([wanted.numel() as i64], (Kind::Float, hidden.device()));
    let token_loss = TokenLoss { forbidden, ..TokenLoss::default() };
    let head = denoiser.head();
    let scores = head.weighted_loss(&hidden, &targets, &nothing, &token_loss).map_err(|error| {
        // Only where it failed is it worth asking how large the vocabulary is.
        let vocab_size = head.logits(&hidden.narrow(0, 0, 1)).map_or(i64::MAX, |logits| logits.size()[1]);
        let mut asked = rows.iter().flat_map(|row| row.asked.iter().map(move |asked| (row.document, *asked)));
        let beyond = asked.find(|(_, (_, id))| *id >= vocab_size || *id < 0);
        beyond.map_or(error, |(document, (position, id))| DiffusionError::DocumentBeyondVocabulary {
            id,
            document,
            position,
            vocab_size,
        })
    })?;
    let nll = Vec::<f32>::try_from(scores.nll.to_kind(Kind::Float))?;
    let correct = Vec::<bool>::try_from(scores.argmax.eq_tensor(&targets))?;
    let mut all = nll.into_iter().zip(correct);
    let mut of_rows = Vec::with_capacity(rows.len());
    for row in rows {
        let scores: Vec<Score> = all
            .by_ref()
            .take(row.asked.len())
            .map(|(nll, is_correct)| Score { nll: f64::from(nll), is_correct })
            .collect();
        if scores.iter().any(|score| !score.nll.is_finite()) {
            return Err(DiffusionError::NotFiniteDocument { document: row.document });
        }
        of_rows.push(scores);
    }
    Ok(of_rows)
}
