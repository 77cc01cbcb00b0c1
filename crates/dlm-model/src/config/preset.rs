//! Sizes for models from scratch.

use crate::{
    config::{ModelConfig, keys::listed},
    error::{ModelError, Result},
};
use serde_json::{Value, json};
use std::path::Path;

/// The sizes of a model from scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Its name in settings.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Inner width of the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// Heads of queries, keys and values alike.
    pub num_attention_heads: i64,
}

/// The presets, smallest first. All tie the head to the embedding and read 2048 tokens.
///
/// | name | blocks | hidden | heads | parameters without embedding | for each 1000 tokens of vocabulary |
/// |---|---|---|---|---|---|
/// | `tiny` | 6 | 192 | 6 | 2.7 million | 0.2 million |
/// | `small` | 8 | 384 | 6 | 14 million | 0.4 million |
/// | `base` | 12 | 768 | 12 | 85 million | 0.8 million |
/// | `large` | 24 | 1024 | 16 | 308 million | 1.0 million |
///
/// `tiny` learns something from a few million tokens within minutes on two cores; `base` has the shape of GPT-2's smallest.
pub const PRESETS: &[Preset] = &[
    Preset { name: "tiny", hidden_size: 192, intermediate_size: 512, num_hidden_layers: 6, num_attention_heads: 6 },
    Preset { name: "small", hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 8, num_attention_heads: 6 },
    Preset { name: "base", hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 12, num_attention_heads: 12 },
    Preset {
        name: "large",
        hidden_size: 1024,
        intermediate_size: 2816,
        num_hidden_layers: 24,
        num_attention_heads: 16,
    },
];

impl ModelConfig {
    /// The config of a model from scratch, of the llama family; see [`PRESETS`].
    ///
    /// # Errors
    /// [`ModelError::UnknownPreset`], or [`ModelError::Value`] for a `vocab_size` below 1.
    pub fn preset(name: &str, vocab_size: i64) -> Result<Self> {
        let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) else {
            let known = listed(PRESETS.iter().map(|preset| preset.name)).replace(" or ", " and ");
            return Err(ModelError::UnknownPreset { name: name.to_owned(), known });
        };
        let object = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": preset.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": preset.intermediate_size,
            "max_position_embeddings": 2048,
            "mlp_bias": false,
            "num_attention_heads": preset.num_attention_heads,
            "num_hidden_layers": preset.num_hidden_layers,
            "num_key_value_heads": preset.num_attention_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "torch_dtype": "float32",
            "vocab_size": vocab_size,
        });
        let Value::Object(object) = object else { unreachable!("`json!` was given an object") };
        Self::from_json(object, Path::new("the preset's config.json"))
    }
}
