//! Hugging Face checkpoints as libtorch modules that denoise.
//!
//! - [`ModelConfig`]: a config.json, or a [preset](PRESETS), of which every key is honoured or refused;
//! - [`Model`]: loaded from a folder or begun from scratch, a [`Denoiser`](dlm_diffusion::Denoiser), saved as a folder that
//!   transformers loads;
//! - [`DiffusionInfo`]: what such a folder says about denoising.
//!
//! Weights are mapped, checked against config.json, and converted while they are read, each once: to float32, or for inference to
//! bfloat16 or float16 ([`LoadOptions::kind`]; [`Model::stored_kind`] says how they are stored). Positions are turned as any
//! [`RotaryScaling`] says that Llama's, Qwen's and Mistral's folders ask for. [`Gguf`] reads llama.cpp's files, tokenizer included.
//!
//! The logits shift of models adapted from autoregressive ones is resolved here: the state given for a position is the one that
//! predicts it. Logits exist only where they are asked for, and in training never all at once.
//!
//! ```
//! use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
//! use dlm_model::{DiffusionInfo, LoadOptions, Model, ModelConfig};
//! use tch::Tensor;
//!
//! // A model from scratch that learns to fill masks; token 99 is the mask.
//! let config = ModelConfig::preset("tiny", 99)?;
//! let mut model = Model::from_config(config, 42, &LoadOptions::default())?;
//! model.grow_vocabulary(100)?;
//! model.set_diffusion(DiffusionInfo::new(99, false))?;
//!
//! let ids = Tensor::from_slice2(&[[1i64, 99, 3, 4]]);
//! let wanted = Tensor::from_slice(&[1i64]);
//! let attention = AttentionLayout::full();
//! let states = model.hidden_states(&DenoiserInput::new(&ids, &attention).at(&wanted))?;
//! assert_eq!(model.head().logits(&states)?.size(), [1, 100]);
//!
//! // Saved and loaded, it gives the same states.
//! let folder = std::env::temp_dir().join(format!("dlm-model-doc-{}", std::process::id()));
//! model.save(&folder, tch::Kind::Float, &[])?;
//! let loaded = Model::load(&folder, &LoadOptions::default())?;
//! assert_eq!(loaded.hidden_states(&DenoiserInput::new(&ids, &attention).at(&wanted))?, states);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod attention;
mod block;
mod cache;
mod card;
mod checkpoint;
mod compute_copy;
mod config;
mod diffusion_info;
mod error;
mod gguf;
mod head;
mod info;
mod init;
mod linear;
mod mlp;
mod model;
mod norm;
mod pieces;
mod rotary;
mod save;
mod state_dict;
mod transformer;

pub use adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraConfig, LoraTargets};
pub use cache::{CacheUse, KvCache};
pub use card::ModelCard;
pub use config::{FAMILIES, Family, Initializer, ModelConfig, PRESETS, Preset};
pub use diffusion_info::DiffusionInfo;
pub use dlm_diffusion::PackingIsolation;
pub use error::{ModelError, Result, TensorDifference};
pub use gguf::Gguf;
pub use info::ModelInfo;
pub use mlp::Activation;
pub use model::{LoadOptions, Model};
pub use rotary::{RotaryConfig, RotaryScaling};
pub use save::SaveOptions;
