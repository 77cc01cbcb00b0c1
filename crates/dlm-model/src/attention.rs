//! Multi-head attention by the facts of an `AttentionLayout`, with grouped keys and values.

use crate::{
    cache::{Layer, spliced},
    linear::{Linears, torch},
    norm::RmsNorm,
    pieces::pieces,
    state_dict::Tensors,
};
use dlm_diffusion::{AttentionLayout, Visibility};
use dlm_torch::Angles;
use tch::{Device, Kind, TchError, Tensor};

/// What all blocks of one forward pass share.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) batch: i64,
    pub(crate) seq_len: i64,
    pub(crate) angles: Angles,
    /// In which kind blocks compute; the residual stream is of the parameters' kind.
    pub(crate) kind: Kind,
    /// The mask of blocks without a window.
    pub(crate) mask: Mask,
    /// The mask of blocks with a window, where the rows are long enough to notice it.
    pub(crate) windowed: Option<Mask>,
    /// What an adapter's dropout follows from, a number for each token, `[batch * seq_len]`; `None` drops nothing.
    pub(crate) dropout_keys: Option<Tensor>,
}

impl Pass {
    /// The same in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        let Angles { cos, sin } = &self.angles;
        Self {
            batch: self.batch,
            seq_len: self.seq_len,
            angles: Angles { cos: cos.shallow_clone(), sin: sin.shallow_clone() },
            kind: self.kind,
            mask: self.mask.share(),
            windowed: self.windowed.as_ref().map(Mask::share),
            dropout_keys: self.dropout_keys.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// Who attends to whom, in the form that libtorch's fused kernels take without converting it in every block.
#[derive(Debug)]
pub(crate) enum Mask {
    /// Everybody to everybody.
    Full,
    /// Each to itself and to those before, which the kernel knows by itself.
    Causal,
    /// Ranges of tokens to ranges of tokens, as [`dlm_torch::attention`] takes them.
    Pieces(Tensor),
    /// 0 where allowed and minus infinity elsewhere, broadcastable to `[batch, heads, seq_len, seq_len]`.
    Additive(Tensor),
}

impl Mask {
    /// The mask of a layout whose segments, if any, are `[batch, seq_len]`.
    pub(crate) fn new(layout: &AttentionLayout, batch: i64, seq_len: i64, kind: Kind, device: Device) -> Self {
        let one_segment = layout.segment_ids.as_ref().is_none_or(is_one_segment);
        match layout.visibility {
            Visibility::Bidirectional if one_segment => return Self::Full,
            Visibility::Causal if one_segment => return Self::Causal,
            _ => {}
        }
        if device == Device::Cpu
            && kind != Kind::Half
            && let Some(pieces) = pieces(layout, batch, seq_len)
        {
            return Self::Pieces(pieces);
        }
        layout.dense_mask(seq_len, device).map_or(Self::Full, |allowed| Self::additive(&allowed, kind))
    }

    /// The mask of a layout for blocks whose queries see `window` keys; `None` where it is the one without a window.
    ///
    /// A window belongs to causal attention: transformers gives it up as soon as it is handed a mask, and so do the systems
    /// that denoise with such models.
    pub(crate) fn windowed(
        layout: &AttentionLayout,
        window: i64,
        seq_len: i64,
        kind: Kind,
        device: Device,
    ) -> Option<Self> {
        if layout.visibility != Visibility::Causal || seq_len <= window {
            return None;
        }
        let near = Tensor::ones([1, 1, seq_len, seq_len], (Kind::Bool, device)).triu(1 - window);
        let allowed = layout.dense_mask(seq_len, device).map_or(near.shallow_clone(), |mask| mask.logical_and(&near));
        Some(Self::additive(&allowed, kind))
    }

    fn share(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Causal => Self::Causal,
            Self::Pieces(table) => Self::Pieces(table.shallow_clone()),
            Self::Additive(mask) => Self::Additive(mask.shallow_clone()),
        }
    }

    fn additive(allowed: &Tensor, kind: Kind) -> Self {
        let zeros = Tensor::zeros(allowed.size(), (kind, allowed.device()));
        Self::Additive(zeros.masked_fill(&allowed.logical_not(), f64::NEG_INFINITY))
    }
}

/// Whether every row is one document without padding.
fn is_one_segment(segment_ids: &Tensor) -> bool {
    let first = segment_ids.narrow(1, 0, 1.min(segment_ids.size()[1])); // [batch, 1]
    segment_ids.eq_tensor(&first).logical_and(&segment_ids.gt(0)).all().int64_value(&[]) == 1
}

/// One block's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    query_key_value: Linears,
    output: Linears,
    /// Norms of each query and key head, in the families that have them.
    norms: Option<[RmsNorm; 2]>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    /// Whether a causal query sees only some keys back.
    has_window: bool,
}

/// How many heads there are and how wide they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) queries: i64,
    pub(crate) keys: i64,
    pub(crate) dim: i64,
    pub(crate) has_window: bool,
}

impl Attention {
    pub(crate) fn new(
        tensors: &Tensors<'_>,
        [query, key, value, output]: [&str; 4],
        norms: Option<[RmsNorm; 2]>,
        heads: Heads,
    ) -> Self {
        let Heads { queries: heads, keys: kv_heads, dim: head_dim, has_window } = heads;
        Self {
            query_key_value: Linears::new(tensors, &[query, key, value]),
            output: Linears::new(tensors, &[output]),
            norms,
            heads,
            kv_heads,
            head_dim,
            has_window,
        }
    }

    /// What each token gathers from those it attends to, `[batch * seq_len, hidden]` to the same;
    /// or only for the tokens at `wanted`, `[n]`, to `[n, hidden]`. `wanted_keys` are the dropout keys of those.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        wanted: Option<&Tensor>,
        wanted_keys: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let [query, key, value] = self.project(x, pass)?;
        let mask = pass.windowed.as_ref().filter(|_| self.has_window).unwrap_or(&pass.mask);
        let in_ranges = |pieces| -> Result<Tensor, TchError> {
            let mixed = dlm_torch::attention(&query, &key, &value, pieces).map_err(torch)?;
            mixed.f_view([-1, self.heads * self.head_dim])
        };
        let mixed = match mask {
            Mask::Full => in_ranges(None)?,
            Mask::Pieces(table) => in_ranges(Some(table))?,
            Mask::Causal => self.mix(&query, &key, &value, None, true)?,
            Mask::Additive(mask) => self.mix(&query, &key, &value, Some(mask), false)?,
        };
        match wanted {
            Some(wanted) => self.output.forward(&mixed.f_index_select(0, wanted)?, wanted_keys),
            None => self.output.forward(&mixed, wanted_keys),
        }
    }

    /// What each token gathers from itself, the others in `x`, and the cached ones; see [`crate::KvCache`].
    pub(crate) fn forward_cached(
        &self,
        x: &Tensor,
        pass: &Pass,
        layer: Option<&Layer>,
        start: i64,
    ) -> Result<(Tensor, Layer), TchError> {
        let [query, key, value] = self.project(x, pass)?;
        let layer = match layer {
            Some(Layer { key: old_key, value: old_value }) => {
                Layer { key: spliced(old_key, &key, start, 2), value: spliced(old_value, &value, start, 2) }
            }
            None => Layer { key, value },
        };
        let mixed = self.mix(&query, &layer.key, &layer.value, None, false)?;
        Ok((self.output.forward(&mixed, None)?, layer))
    }

    /// Queries, keys and values, rotated, each `[batch, heads, seq_len, head_dim]`.
    fn project(&self, x: &Tensor, pass: &Pass) -> Result<[Tensor; 3], TchError> {
        let mut tokens = self.query_key_value.forward(x, pass.dropout_keys.as_ref())?; // [batch * seq_len, ...]
        if let Some([query_norm, key_norm]) = &self.norms {
            let [queries, keys] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
            let normed = |first, width, norm: &RmsNorm| -> Result<Tensor, TchError> {
                let heads = tokens.f_narrow(1, first, width)?.f_reshape([-1, width / self.head_dim, self.head_dim])?;
                norm.forward(&heads)?.f_view([-1, width])
            };
            let (query, key) = (normed(0, queries, query_norm)?, normed(queries, keys, key_norm)?);
            tokens = Tensor::f_cat(&[query, key, tokens.f_narrow(1, queries + keys, keys)?], 1)?;
        }
        dlm_torch::rotate(&tokens, &pass.angles, pass.batch, self.heads, self.kv_heads).map_err(torch)
    }

    pub(crate) fn join(&mut self) -> Result<(), TchError> {
        self.query_key_value.join()
    }

    pub(crate) fn compute_in(&mut self, kind: Kind) -> Result<(), TchError> {
        self.query_key_value.compute_in(kind)?;
        self.output.compute_in(kind)
    }

    /// The same attention in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        Self {
            query_key_value: self.query_key_value.share(),
            output: self.output.share(),
            norms: self.norms.as_ref().map(|norms| norms.each_ref().map(RmsNorm::share)),
            ..*self
        }
    }

    /// Values by the likeness of queries and keys, `[batch * queries, hidden]`.
    fn mix(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        is_causal: bool,
    ) -> Result<Tensor, TchError> {
        let is_grouped = self.kv_heads < self.heads;
        let mixed = Tensor::f_scaled_dot_product_attention(query, key, value, mask, 0.0, is_causal, None, is_grouped)?;
        Ok(mixed.transpose(1, 2).reshape([-1, self.heads * self.head_dim]))
    }
}
