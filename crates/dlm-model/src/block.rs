//! One pre-norm block: attention and MLP, each added to what came in.

use crate::{
    attention::{Attention, Heads, Pass},
    cache::Layer,
    config::ModelConfig,
    mlp::Mlp,
    norm::RmsNorm,
    state_dict::Tensors,
};
use dlm_torch::Normed;
use tch::{Kind, TchError, Tensor};

/// A block of the transformer.
#[derive(Debug)]
pub(crate) struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    pub(crate) fn new(config: &ModelConfig, tensors: &Tensors<'_>, block: i64) -> Self {
        let names = config.family.tensors;
        let full = |part: &str| format!("{}.{block}.{part}", names.blocks);
        let norm = |part: &str| RmsNorm::new(tensors.weight(&full(part)), config.rms_norm_eps);
        let projections = [names.query, names.key, names.value, names.output].map(full);
        let mlp = [names.gate, names.up, names.down].map(full);
        let heads = Heads {
            queries: config.num_attention_heads,
            keys: config.num_key_value_heads,
            dim: config.head_dim,
            has_window: config.sliding_windows[block as usize].is_some(),
        };
        let head_norms = config.has_qk_norm.then(|| [norm(names.query_norm), norm(names.key_norm)]);
        Self {
            attention_norm: norm(names.attention_norm),
            attention: Attention::new(tensors, projections.each_ref().map(String::as_str), head_norms, heads),
            mlp_norm: norm(names.mlp_norm),
            mlp: Mlp::new(tensors, mlp.each_ref().map(String::as_str), config.hidden_act),
        }
    }

    /// The residual stream, `[batch * seq_len, hidden]`, and what the block before adds to it, to the same of this block;
    /// or only for the tokens at `wanted`, `[n]`, `[n, hidden]`. Who comes next adds, for it is one pass with its norm.
    ///
    /// The last block leaves out what nobody wants as soon as attention has mixed the tokens.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        delta: Option<&Tensor>,
        pass: &Pass,
        wanted: Option<&Tensor>,
    ) -> Result<[Tensor; 2], TchError> {
        let keys = match (&pass.dropout_keys, wanted) {
            (Some(keys), Some(wanted)) => Some(keys.f_index_select(0, wanted)?),
            (keys, _) => keys.as_ref().map(Tensor::shallow_clone),
        };
        let Normed { sum: x, normed } = self.attention_norm.forward_sum(x, delta, pass.kind)?;
        let mixed = self.attention.forward(&normed, pass, wanted, keys.as_ref())?;
        let x = match wanted {
            Some(wanted) => x.f_index_select(0, wanted)?,
            None => x,
        };
        let Normed { sum: x, normed } = self.mlp_norm.forward_sum(&x, Some(&mixed), pass.kind)?;
        let added = self.mlp.forward(&normed, keys.as_ref())?;
        Ok([x, added])
    }

    /// The same for a window of tokens that also see the cached ones, with the keys and values of all.
    pub(crate) fn forward_cached(
        &self,
        x: &Tensor,
        pass: &Pass,
        layer: Option<&Layer>,
        start: i64,
    ) -> Result<(Tensor, Layer), TchError> {
        let normed = self.attention_norm.forward_sum(x, None, pass.kind)?.normed;
        let (mixed, layer) = self.attention.forward_cached(&normed, pass, layer, start)?;
        let Normed { sum: x, normed } = self.mlp_norm.forward_sum(x, Some(&mixed), pass.kind)?;
        let added = self.mlp.forward(&normed, None)?;
        Ok((x.f_add(&added)?, layer))
    }

    /// Puts weights that are multiplied by the same input behind each other in memory.
    pub(crate) fn join(&mut self) -> Result<(), TchError> {
        self.attention.join()?;
        self.mlp.join()
    }

    /// Computes linear maps in `kind`.
    pub(crate) fn compute_in(&mut self, kind: Kind) -> Result<(), TchError> {
        self.attention.compute_in(kind)?;
        self.mlp.compute_in(kind)
    }

    /// The same block in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        Self {
            attention_norm: self.attention_norm.share(),
            attention: self.attention.share(),
            mlp_norm: self.mlp_norm.share(),
            mlp: self.mlp.share(),
        }
    }
}
