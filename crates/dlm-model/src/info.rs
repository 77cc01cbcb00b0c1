//! `ModelInfo`: what a folder holds, told without reading its weights.

use crate::{
    adapter::{ADAPTER_CONFIG, base_folder},
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::Result,
    model::open_checked,
    state_dict::parameters,
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What `dlm model info` tells of a folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// What config.json calls the architecture.
    pub architecture: &'static str,
    /// The family it is read as.
    pub family: &'static str,
    /// Numbers in all parameters; those of a tied head count once.
    pub parameters: u64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// The length that config.json names, in tokens.
    pub max_position_embeddings: i64,
    /// The longest document that it reads, in tokens: the same, or more by the scaling of positions.
    pub max_seq_len: i64,
    /// What the weights are stored as, where config.json says it.
    pub stored_as: Option<&'static str>,
    /// The mask token, where the folder says it.
    pub mask_token_id: Option<i64>,
    /// Whether the token at `i` is predicted from the state before it.
    pub logits_shift: bool,
    /// Bytes of the weights in float32.
    pub inference_bytes: u64,
    /// Bytes of weights, gradients and AdamW's two moments in float32; activations come on top.
    pub training_bytes: u64,
    /// The base model, where the folder holds an adapter.
    pub base_model: Option<PathBuf>,
    /// Why the folder cannot be loaded; `None` where it can.
    pub problem: Option<String>,
}

impl ModelInfo {
    /// Reads config.json and the headers of the weights.
    ///
    /// # Errors
    /// What is wrong with config.json; what is wrong with the weights is in [`problem`](Self::problem).
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let is_adapter = folder.join(ADAPTER_CONFIG).is_file() && !Checkpoint::is_in(folder);
        let base_model = is_adapter.then(|| base_folder(folder)).transpose()?;
        let weights = base_model.as_deref().unwrap_or(folder);
        let config = ModelConfig::from_folder(weights)?;
        let problem = open_checked(weights, &config).err().map(|error| error.to_string());
        let own = if is_adapter && folder.join("config.json").is_file() {
            ModelConfig::from_folder(folder)?
        } else {
            config.clone()
        };
        let parameters: u64 = parameters(&own).iter().map(|p| p.shape.iter().product::<i64>().unsigned_abs()).sum();
        Ok(Self {
            architecture: own.family.architecture,
            family: own.family.name,
            parameters,
            num_hidden_layers: own.num_hidden_layers,
            hidden_size: own.hidden_size,
            vocab_size: own.vocab_size,
            max_position_embeddings: own.max_position_embeddings,
            max_seq_len: own.max_seq_len(),
            stored_as: config.stored_kind_name(),
            mask_token_id: own.diffusion.as_ref().map(|info| info.mask_token_id).or(own.mask_token_id),
            logits_shift: own.logits_shift(),
            inference_bytes: 4 * parameters,
            training_bytes: 16 * parameters,
            base_model,
            problem,
        })
    }
}
