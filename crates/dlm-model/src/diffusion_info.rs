//! What a model folder says about diffusion: the `diffusion` object of config.json.

use dlm_diffusion::BlockStart;
use serde::{Deserialize, Serialize};

/// How a model was trained to denoise, kept in its config.json under `diffusion`.
///
/// ```
/// use dlm_model::DiffusionInfo;
///
/// let info = DiffusionInfo::new(49_152, true);
/// assert_eq!(info.noise_schedule, "linear");
/// assert_eq!(serde_json::to_value(&info)?["mask_token_id"], 49_152);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionInfo {
    /// Id of the mask token.
    pub mask_token_id: i64,
    /// Whether the token at `i` is predicted from the state before it; where a folder does not say, the family decides.
    pub logits_shift: bool,
    /// Name of the noise schedule.
    #[serde(default = "linear")]
    pub noise_schedule: String,
    /// Which special tokens are never masked.
    #[serde(default = "bos")]
    pub never_mask: Vec<String>,
    /// What followed the answers in training, as the data preparation describes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tail: Option<serde_json::Value>,
    /// Tokens per block, for models trained block by block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_length: Option<i64>,
    /// With a logits shift, which state predicts the first token of a block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub block_start: BlockStart,
}

impl DiffusionInfo {
    /// The defaults for a mask token: a linear schedule, BOS never masked, no blocks.
    #[must_use]
    pub fn new(mask_token_id: i64, logits_shift: bool) -> Self {
        Self {
            mask_token_id,
            logits_shift,
            noise_schedule: linear(),
            never_mask: bos(),
            answer_tail: None,
            block_length: None,
            block_start: BlockStart::default(),
        }
    }
}

fn is_default(start: &BlockStart) -> bool {
    *start == BlockStart::default()
}

fn linear() -> String {
    "linear".to_owned()
}

fn bos() -> Vec<String> {
    vec!["bos".to_owned()]
}
