//! The whole network: embedding, blocks, final norm.

use crate::{
    attention::{Mask, Pass},
    block::Block,
    cache::Layer,
    config::ModelConfig,
    linear::torch,
    norm::RmsNorm,
    rotary::Rotary,
    state_dict::Tensors,
};
use dlm_diffusion::AttentionLayout;
use tch::{Device, Kind, TchError, Tensor};

/// A pre-norm transformer without its head.
#[derive(Debug)]
pub(crate) struct Transformer {
    embedding: Tensor,
    /// The token whose embedding its lookup never trains; -1 for none, as libtorch has it.
    padding_idx: i64,
    blocks: Vec<Block>,
    norm: RmsNorm,
    rotary: Rotary,
    /// Tokens whose embeddings an adapter trains, and those.
    token_rows: Option<(Vec<i64>, Tensor)>,
    /// Keys that a causal query sees in the blocks that have a window.
    window: Option<i64>,
    /// In which kind blocks compute.
    kind: Kind,
    /// Whether training forgets what happens inside a block and computes it again.
    checkpoints: bool,
}

impl Transformer {
    pub(crate) fn new(config: &ModelConfig, tensors: &Tensors<'_>) -> Self {
        let names = config.family.tensors;
        let embedding = tensors.weight(names.embedding);
        Self {
            token_rows: tensors.token_rows(names.embedding),
            window: config.sliding_windows.iter().copied().flatten().next(),
            padding_idx: config.pad_token_id.unwrap_or(-1),
            blocks: (0..config.num_hidden_layers).map(|block| Block::new(config, tensors, block)).collect(),
            norm: RmsNorm::new(tensors.weight(names.final_norm), config.rms_norm_eps),
            rotary: Rotary::new(&config.rotary, config.head_dim, embedding.device()),
            kind: embedding.kind(),
            checkpoints: false,
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
        dropout_keys: Option<Tensor>,
    ) -> Result<Tensor, TchError> {
        let (batch, seq_len) = ids.size2()?;
        let (kind, device) = (self.kind, self.embedding.device());
        let angles = self.rotary.rotation(position_ids, layout.segment_ids.as_ref(), self.embedding.kind())?;
        let windowed = self.window.and_then(|window| Mask::windowed(layout, window, seq_len, kind, device));
        let mask = Mask::new(layout, batch, seq_len, kind, device);
        let pass = Pass { batch, seq_len, angles, kind, mask, windowed, dropout_keys };
        let mut x = self.embed(&ids.flatten(0, 1))?;
        let mut delta = None;
        let padded = wanted.map(|wanted| few_lengths(wanted, batch * seq_len, kind)).transpose()?;
        for (i, block) in self.blocks.iter().enumerate() {
            let wanted = padded.as_ref().filter(|_| i + 1 == self.blocks.len());
            let added;
            [x, added] = if self.checkpoints {
                self.forgetful(block, x, delta, &pass, wanted)?
            } else {
                block.forward(&x, delta.as_ref(), &pass, wanted)?
            };
            delta = Some(added);
        }
        let states = self.norm.forward_sum(&x, delta.as_ref(), kind)?.normed;
        match wanted {
            Some(wanted) => states.f_narrow(0, 0, wanted.size()[0]),
            None => Ok(states),
        }
    }

    /// A block of which nothing but its inputs is kept for the backward pass.
    ///
    /// It is computed again to the bit: whatever is random in it follows from keys that are kept.
    fn forgetful(
        &self,
        block: &Block,
        x: Tensor,
        delta: Option<Tensor>,
        pass: &Pass,
        wanted: Option<&Tensor>,
    ) -> Result<[Tensor; 2], TchError> {
        let (block, pass, wanted) = (block.share(), pass.share(), wanted.map(Tensor::shallow_clone));
        let inputs: Vec<Tensor> = std::iter::once(x).chain(delta).collect();
        let outputs = dlm_torch::checkpoint(&inputs, 2, move |inputs| {
            block.forward(&inputs[0], inputs.get(1), &pass, wanted.as_ref()).map(Vec::from)
        });
        let outputs = outputs.map_err(torch)?;
        Ok(outputs.try_into().expect("two tensors were asked for"))
    }

    /// Whether training keeps of each block only its inputs and computes it once more for the backward pass.
    pub(crate) fn set_checkpoints(&mut self, checkpoints: bool) {
        self.checkpoints = checkpoints;
    }

    pub(crate) fn checkpoints(&self) -> bool {
        self.checkpoints
    }

    /// Puts weights that are multiplied by the same input behind each other in memory.
    pub(crate) fn join(&mut self) -> Result<(), TchError> {
        self.blocks.iter_mut().try_for_each(Block::join)
    }

    /// Computes blocks in `kind`; the residual stream stays in that of the parameters.
    pub(crate) fn compute_in(&mut self, kind: Kind) -> Result<(), TchError> {
        self.kind = kind;
        self.blocks.iter_mut().try_for_each(|block| block.compute_in(kind))
    }

    /// The states of a window of tokens, `[batch * window, hidden]`, that also see the cached ones; see [`crate::KvCache`].
    pub(crate) fn forward_cached(
        &self,
        ids: &Tensor,
        position_ids: &Tensor,
        layers: &mut Vec<Layer>,
        start: i64,
        keeps: bool,
    ) -> Result<Tensor, TchError> {
        let (batch, seq_len) = ids.size2()?;
        let (angles, kind) = (self.rotary.rotation(position_ids, None, self.embedding.kind())?, self.kind);
        let pass = Pass { batch, seq_len, angles, kind, mask: Mask::Full, windowed: None, dropout_keys: None };
        let mut x = self.embed(&ids.flatten(0, 1))?;
        let mut kept = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let layer;
            (x, layer) = block.forward_cached(&x, &pass, layers.get(i), start)?;
            if keeps {
                kept.push(layer);
            }
        }
        if keeps {
            *layers = kept;
        }
        Ok(self.norm.forward_sum(&x, None, kind)?.normed)
    }

    /// The embeddings of tokens, `[n]` to `[n, hidden]`.
    fn embed(&self, ids: &Tensor) -> Result<Tensor, TchError> {
        let trained = self.token_rows.as_ref().filter(|(_, rows)| rows.requires_grad());
        if trained.is_some() {
            self.write_token_rows()?;
        }
        let mut x = Tensor::f_embedding(&self.embedding, ids, self.padding_idx, false, false)?;
        // The rows are in the embedding already; this is the way that their gradients take.
        for (i, id) in trained.iter().flat_map(|(tokens, _)| tokens.iter().enumerate()) {
            let row = trained.expect("the loop is over it").1.get(i as i64);
            x = row.f_where_self(&ids.eq(*id).unsqueeze(1), &x)?;
        }
        Ok(x)
    }

    /// Puts the rows that an adapter has trained into the embedding, and so into a head tied to it.
    pub(crate) fn write_token_rows(&self) -> Result<(), TchError> {
        let Some((tokens, rows)) = &self.token_rows else { return Ok(()) };
        let at = Tensor::from_slice(tokens).to_device(self.embedding.device());
        tch::no_grad(|| self.embedding.shallow_clone().f_index_copy_(0, &at, &rows.detach())).map(|_| ())
    }

    /// Rows of the embedding.
    pub(crate) fn vocab_size(&self) -> i64 {
        self.embedding.size()[0]
    }
}

/// Flat indices `[n]` and as many more as make one of few lengths: a sixteenth of all tokens, or 64, times a whole number.
///
/// For each number of rows in half precision oneDNN compiles kernels and keeps them, half a megabyte for each product, and results of ever
/// other sizes leave holes in memory. Masks hit another number of tokens at every step, and a run over SmolLM2-135M held 18 MB more
/// after each. What is computed for more is thrown away.
fn few_lengths(wanted: &Tensor, tokens: i64, kind: Kind) -> Result<Tensor, TchError> {
    let len = wanted.size()[0];
    let unit = tokens.div_euclid(16).max(64);
    let more = len.unsigned_abs().next_multiple_of(unit.unsigned_abs()).cast_signed() - len;
    if more == 0 || wanted.device() != Device::Cpu || !matches!(kind, Kind::BFloat16 | Kind::Half) {
        return Ok(wanted.shallow_clone());
    }
    Tensor::f_cat(&[wanted.shallow_clone(), Tensor::f_zeros([more], (Kind::Int64, Device::Cpu))?], 0)
}
