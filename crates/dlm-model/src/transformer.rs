//! The whole network: embedding, blocks, final norm.

use crate::{
    attention::{Mask, Pass},
    block::Block,
    config::ModelConfig,
    norm::RmsNorm,
    rotary::Rotary,
    state_dict::Tensors,
};
use dlm_diffusion::AttentionLayout;
use tch::{TchError, Tensor};

/// A pre-norm transformer without its head.
#[derive(Debug)]
pub(crate) struct Transformer {
    embedding: Tensor,
    /// The token whose embedding its lookup never trains; -1 for none, as libtorch has it.
    padding_idx: i64,
    blocks: Vec<Block>,
    norm: RmsNorm,
    rotary: Rotary,
    /// Keys that a causal query sees in the blocks that have a window.
    window: Option<i64>,
}

impl Transformer {
    pub(crate) fn new(config: &ModelConfig, tensors: &Tensors<'_>) -> Self {
        let names = config.family.tensors;
        let embedding = tensors.weight(names.embedding);
        Self {
            window: config.sliding_windows.iter().copied().flatten().next(),
            padding_idx: config.pad_token_id.unwrap_or(-1),
            blocks: (0..config.num_hidden_layers).map(|block| Block::new(config, tensors, block)).collect(),
            norm: RmsNorm::new(tensors.weight(names.final_norm), config.rms_norm_eps),
            rotary: Rotary::new(&config.rotary, config.head_dim, embedding.device()),
            embedding,
        }
    }

    /// The states at `wanted`, `[n, hidden]`, or of every token, `[batch * seq_len, hidden]`.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]` of `Int64`, `position_ids`: `[batch or 1, seq_len]` of `Int64`
    /// - `wanted`: `[n]` of `Int64`, flat indices
    pub(crate) fn forward(
        &self,
        ids: &Tensor,
        position_ids: &Tensor,
        layout: &AttentionLayout,
        wanted: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let (batch, seq_len) = ids.size2()?;
        let (kind, device) = (self.embedding.kind(), self.embedding.device());
        let rotation = self.rotary.rotation(position_ids, kind);
        let windowed = self.window.and_then(|window| Mask::windowed(layout, window, seq_len, kind, device));
        let pass = Pass { batch, seq_len, rotation, mask: Mask::new(layout, seq_len, kind, device), windowed };
        let mut x = Tensor::f_embedding(&self.embedding, &ids.flatten(0, 1), self.padding_idx, false, false)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let wanted = wanted.filter(|_| i + 1 == self.blocks.len());
            x = block.forward(&x, &pass, wanted)?;
        }
        self.norm.forward(&x)
    }

    /// Rows of the embedding.
    pub(crate) fn vocab_size(&self) -> i64 {
        self.embedding.size()[0]
    }
}
