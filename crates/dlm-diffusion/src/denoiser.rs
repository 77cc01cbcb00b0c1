//! The network in its role: noised tokens in, hidden states at wanted positions out, then a head that scores them.

use crate::{
    attention::AttentionLayout,
    error::{DiffusionError, Result},
};
use std::ops::Range;
use tch::{Kind, Tensor};

/// What a denoiser is asked: which tokens, how they see each other, and where states are wanted.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenoiserInput<'a> {
    /// Noised tokens, `[batch, seq_len]` of `Int64`.
    pub ids: &'a Tensor,
    /// Rotary positions, `[batch, seq_len]` of `Int64`; `None` counts 0, 1, 2, ... over each row.
    pub position_ids: Option<&'a Tensor>,
    /// Who attends to whom.
    pub attention: &'a AttentionLayout,
    /// Where states are wanted: flat indices `row * seq_len + position`, `[n]` of `Int64`; `None` is everywhere, in order.
    pub wanted: Option<&'a Tensor>,
    /// The timestep of each row, `[batch]`, for networks that are told it.
    pub t: Option<&'a Tensor>,
    /// What dropout in the network follows from, a number for each token, `[batch, seq_len]` of `Int64`; `None` drops nothing.
    pub dropout_keys: Option<&'a Tensor>,
}

impl<'a> DenoiserInput<'a> {
    /// Asks for the states of every token.
    #[must_use]
    pub fn new(ids: &'a Tensor, attention: &'a AttentionLayout) -> Self {
        Self { ids, position_ids: None, attention, wanted: None, t: None, dropout_keys: None }
    }

    /// Asks only for the states at `wanted`, see [`DenoiserInput::wanted`].
    #[must_use]
    pub fn at(mut self, wanted: &'a Tensor) -> Self {
        self.wanted = Some(wanted);
        self
    }

    /// Gives each token its rotary position.
    #[must_use]
    pub fn with_positions(mut self, position_ids: &'a Tensor) -> Self {
        self.position_ids = Some(position_ids);
        self
    }

    /// Drops numbers inside the network, see [`DenoiserInput::dropout_keys`].
    #[must_use]
    pub fn with_dropout(mut self, dropout_keys: &'a Tensor) -> Self {
        self.dropout_keys = Some(dropout_keys);
        self
    }

    /// Tells the network each row's timestep.
    #[must_use]
    pub fn with_t(mut self, t: &'a Tensor) -> Self {
        self.t = Some(t);
        self
    }
}

/// A network that predicts clean tokens from noised ones.
///
/// It works in two steps, so that nobody has to form `[batch, seq_len, vocab]`: the hidden states at the wanted positions,
/// then the [`Head`] that scores them. Whether a checkpoint predicts the token at `i` from the state at `i` or, like models
/// adapted from autoregressive ones, from the state before it, is resolved inside: the state given for `i` is the one
/// that predicts `i`.
///
/// A closure from ids `[batch, seq_len]` to logits `[batch, seq_len, vocab]` is a denoiser too. It sees neither attention
/// nor positions, which suits tests and networks that bring their own.
///
/// ```
/// use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
/// use tch::{Kind, Tensor};
///
/// // Predicts token 2 everywhere.
/// let denoiser = |ids: &Tensor| Tensor::from_slice(&[0f32, 0., 9.]).expand([ids.size()[0], ids.size()[1], 3], false);
/// let ids = Tensor::from_slice2(&[[0i64, 1, 1]]);
/// let attention = AttentionLayout::full();
/// let wanted = Tensor::from_slice(&[1i64, 2]);
/// let states = denoiser.hidden_states(&DenoiserInput::new(&ids, &attention).at(&wanted))?;
/// let logits = denoiser.head().logits(&states)?;
/// assert_eq!(logits.size(), [2, 3]);
/// assert_eq!(Vec::<i64>::try_from(logits.argmax(1, false))?, [2, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Denoiser {
    /// The states that predict the wanted positions, `[n, hidden]`, in the order wanted.
    ///
    /// # Errors
    /// What the network refuses, such as a row longer than it can read, as [`DiffusionError::Denoiser`].
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor>;

    /// Scores hidden states.
    fn head(&self) -> &dyn Head;
}

/// Turns hidden states into scores over the vocabulary.
pub trait Head {
    /// Unnormalised scores, `[n, vocab]`, of `hidden`, `[n, hidden]`.
    ///
    /// # Errors
    /// What libtorch refuses, as [`DiffusionError::Torch`].
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Scores `targets` (`[n]` of `Int64`) and sums their negative log-likelihoods times `weights` (`[n]`, constant), in float32.
    ///
    /// # Errors
    /// Those of [`weighted_loss`](Self::weighted_loss).
    fn weighted_nll(&self, hidden: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<TargetScores> {
        self.weighted_loss(hidden, targets, weights, &TokenLoss::default())
    }

    /// Scores `targets` (`[n]` of `Int64`) and sums their losses times `weights` (`[n]`, constant), in float32.
    ///
    /// The default forms `[n, vocab]` once; an implementation may work in chunks, as `dlm-model`'s does.
    ///
    /// # Errors
    /// What libtorch refuses, as [`DiffusionError::Torch`].
    fn weighted_loss(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
        loss: &TokenLoss,
    ) -> Result<TargetScores> {
        let mut logits = self.logits(hidden)?.to_kind(Kind::Float); // [n, vocab]
        let vocab = logits.size().last().copied().unwrap_or(0);
        if let Some(forbidden) = loss.forbidden {
            let column = Tensor::arange(vocab, (Kind::Int64, logits.device())).eq(forbidden);
            logits = logits.f_masked_fill(&column, f64::NEG_INFINITY)?;
        }
        let nll = logits.f_cross_entropy_loss::<Tensor>(targets, None, tch::Reduction::None, -100, 0.0)?; // [n]
        let mut of_token = nll.shallow_clone();
        if loss.label_smoothing > 0.0 || loss.z_loss > 0.0 {
            let log_sum = logits.logsumexp([-1i64].as_slice(), false);
            let (finite, allowed) = match loss.forbidden {
                Some(_) => (logits.f_masked_fill(&logits.isinf(), 0.0)?, vocab - 1),
                None => (logits.shallow_clone(), vocab),
            };
            let mean = finite.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float) / allowed as f64;
            of_token = &nll * (1.0 - loss.label_smoothing)
                + (&log_sum - mean) * loss.label_smoothing
                + log_sum.square() * loss.z_loss;
        }
        let weighted_sum = (of_token * weights).sum(Kind::Float);
        Ok(TargetScores { weighted_sum, nll: nll.detach(), argmax: logits.detach().argmax(-1, false) })
    }
}

/// What a token's loss is made of beside its negative log-likelihood; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenLoss {
    /// Share of the target's place that is given to all tokens alike (label smoothing), in `[0, 1]`.
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's denominator (z-loss), at least 0: it keeps logits from drifting.
    pub z_loss: f64,
    /// A token that is never predicted: MDLM's zero masking probability ([arXiv:2406.07524](https://arxiv.org/abs/2406.07524)) for
    /// the mask token.
    pub forbidden: Option<i64>,
}

/// What a loss and its metrics need to know of the targets, without their logits.
#[derive(Debug)]
pub struct TargetScores {
    /// `sum_i weights_i * loss_i`, a scalar of `Float` with gradients to the states and the head.
    pub weighted_sum: Tensor,
    /// Negative log-likelihood of each target in nats, `[n]` of `Float`, without gradients.
    pub nll: Tensor,
    /// Most likely token at each position, `[n]` of `Int64`.
    pub argmax: Tensor,
}

/// Calls `visit` with the logits of `chunk_len` states at a time and their range, so that `[n, vocab]` never exists at once.
///
/// # Errors
/// Those of [`Head::logits`] and of `visit`.
pub fn for_each_chunk<E: From<DiffusionError>>(
    head: &dyn Head,
    hidden: &Tensor,
    chunk_len: usize,
    mut visit: impl FnMut(Tensor, Range<usize>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let n = hidden.size()[0] as usize;
    for start in (0..n).step_by(chunk_len.max(1)) {
        let range = start..n.min(start + chunk_len.max(1));
        visit(head.logits(&hidden.narrow(0, start as i64, range.len() as i64))?, range)?;
    }
    Ok(())
}

/// The head of a closure: its states are logits already.
#[derive(Debug)]
struct Identity;

impl Head for Identity {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }
}

impl<F: Fn(&Tensor) -> Tensor> Denoiser for F {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor> {
        let logits = self(input.ids);
        let (found, ids) = (logits.size(), input.ids.size());
        if found.len() != 3 || found[..2] != ids {
            let expected = format!("[{}, {}, vocab]", ids[0], ids[1]);
            return Err(DiffusionError::ShapeMismatch { name: "logits", found, expected });
        }
        let states = logits.flatten(0, 1); // [batch * seq_len, vocab]
        Ok(match input.wanted {
            Some(wanted) => states.f_index_select(0, wanted)?,
            None => states,
        })
    }

    fn head(&self) -> &dyn Head {
        &Identity
    }
}
