//! One pre-norm block: attention and MLP, each added to what came in.

use crate::{
    attention::{Attention, Heads, Pass},
    cache::Layer,
    config::ModelConfig,
    mlp::Mlp,
    norm::RmsNorm,
    state_dict::Tensors,
};
use tch::{TchError, Tensor};

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

    /// `[batch * seq_len, hidden]` to the same; or only the tokens at `wanted`, `[n]`, to `[n, hidden]`.
    ///
    /// The last block leaves out what nobody wants as soon as attention has mixed the tokens.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass, wanted: Option<&Tensor>) -> Result<Tensor, TchError> {
        let keys = match (&pass.dropout_keys, wanted) {
            (Some(keys), Some(wanted)) => Some(keys.f_index_select(0, wanted)?),
            (keys, _) => keys.as_ref().map(Tensor::shallow_clone),
        };
        let mixed = self.attention.forward(&self.attention_norm.forward(x)?, pass, wanted, keys.as_ref())?;
        let x = match wanted {
            Some(wanted) => x.f_index_select(0, wanted)? + mixed,
            None => x + mixed,
        };
        let added = self.mlp.forward(&self.mlp_norm.forward(&x)?, keys.as_ref())?;
        Ok(x + added)
    }

    /// The same for a window of tokens that also see the cached ones, with the keys and values of all.
    pub(crate) fn forward_cached(
        &self,
        x: &Tensor,
        pass: &Pass,
        layer: Option<&Layer>,
        start: i64,
    ) -> Result<(Tensor, Layer), TchError> {
        let (mixed, layer) = self.attention.forward_cached(&self.attention_norm.forward(x)?, pass, layer, start)?;
        let x = x + mixed;
        let added = self.mlp.forward(&self.mlp_norm.forward(&x)?, None)?;
        Ok((x + added, layer))
    }
}
