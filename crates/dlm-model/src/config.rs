//! `ModelConfig`: a Hugging Face config.json of which every key is honoured or refused.

pub(crate) mod family;
mod harmless;
mod keys;
mod llada;
mod preset;
mod rope;
mod window;

pub use family::{FAMILIES, Family};
pub use preset::{PRESETS, Preset};

use crate::{
    diffusion_info::DiffusionInfo,
    error::{ModelError, Result},
    mlp::Activation,
    rotary::RotaryConfig,
};
use family::{Biases, KeyNames};
use keys::Keys;
use serde_json::{Map, Value, json};
use std::{fs, path::Path};
use tch::Kind;

/// The sizes and switches of a transformer, named like the keys of config.json.
///
/// Keys that ask for a computation which is not done here are refused when the file is read, as are keys that nobody knows;
/// keys that change nothing in the model are kept and written back as they were.
///
/// ```
/// use dlm_model::ModelConfig;
///
/// let config = ModelConfig::preset("tiny", 8192)?;
/// assert_eq!(config.head_dim * config.num_attention_heads, config.hidden_size);
/// assert!(ModelConfig::preset("enormous", 8192).unwrap_err().to_string().contains("`tiny`"));
/// # Ok::<(), dlm_model::ModelError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Which family of checkpoints this is.
    pub family: &'static Family,
    /// Rows of the embedding; may be more than the tokenizer has tokens.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Inner width of the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// What the gate of the MLP goes through.
    pub hidden_act: Activation,
    /// The length that config.json names; what the model reads is [`max_seq_len`](Self::max_seq_len).
    pub max_position_embeddings: i64,
    /// Standard deviation of weights from scratch.
    pub initializer_range: f64,
    /// How the standard deviations of weights from scratch are spread over the blocks.
    pub initializer: Initializer,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// How positions rotate queries and keys.
    pub rotary: RotaryConfig,
    /// For each block, how many keys back a causal query looks, itself included; `None` is all of them.
    ///
    /// As in transformers, a mask that is given, and so bidirectional attention, knows no window.
    pub sliding_windows: Vec<Option<i64>>,
    /// Whether queries, keys and values have a bias.
    pub has_qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub has_output_bias: bool,
    /// Whether the MLP's projections have a bias.
    pub has_mlp_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub has_qk_norm: bool,
    /// The padding token; as in transformers, looking it up never trains its embedding.
    pub pad_token_id: Option<i64>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<i64>,
    /// The mask token, where the family's own files say it outside of `diffusion`.
    pub mask_token_id: Option<i64>,
    /// What the weights are stored as, where the file says it.
    pub stored_kind: Option<Kind>,
    /// The `diffusion` object, in models that were trained to denoise.
    pub diffusion: Option<DiffusionInfo>,
    /// The file's object as it was read.
    raw: Map<String, Value>,
}

/// How the standard deviations of weights from scratch are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Initializer {
    /// `initializer_range` everywhere.
    Uniform,
    /// By the widths of the matrices and, for those that write to the residual stream, smaller with depth; cut at three
    /// standard deviations. LLaDA's, `init_fn: mitchell`; `initializer_range` has no part in it.
    Mitchell,
}

/// No model that fits a machine has sizes above; keeps products of two from overflowing.
const LARGEST: i64 = 1 << 30;
const MOST_LAYERS: i64 = 4096;

const KINDS: &[(&str, Kind)] = &[("float32", Kind::Float), ("bfloat16", Kind::BFloat16), ("float16", Kind::Half)];

impl ModelConfig {
    /// Reads the config.json of a model folder.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Json`], or those of [`from_json`](Self::from_json).
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let object =
            serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        Self::from_json(object, &path)
    }

    /// Reads the object of a config.json; `path` is what messages call it.
    ///
    /// # Errors
    /// [`ModelError::UnknownFamily`], [`ModelError::MissingKey`], [`ModelError::Value`] or [`ModelError::UnknownKey`].
    pub fn from_json(object: Map<String, Value>, path: &Path) -> Result<Self> {
        let family = family::find(path, &object)?;
        let mut keys = Keys::new(path, &object);
        for key in ["architectures", "model_type"] {
            keys.value(key); // `find` has read them
        }
        let mut config = match family.keys {
            KeyNames::HuggingFace => Self::read(family, &mut keys)?,
            KeyNames::Llada => llada::read(family, &mut keys)?,
        };
        keys.finish(family.name, harmless::KEYS)?;
        config.raw = object;
        Ok(config)
    }

    /// The object of a config.json: what was read, with `architectures`, `vocab_size`, the stored kind and `diffusion` as they are now.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut object = self.raw.clone();
        object.insert("architectures".to_owned(), json!([self.family.architecture]));
        object.insert("model_type".to_owned(), json!(self.family.model_type));
        if self.family.keys == KeyNames::Llada {
            llada::write_sizes(&mut object, self.vocab_size);
        } else {
            object.insert("vocab_size".to_owned(), json!(self.vocab_size));
        }
        let tying = if self.family.keys == KeyNames::Llada { "weight_tying" } else { "tie_word_embeddings" };
        if object.get(tying).and_then(Value::as_bool).unwrap_or(false) != self.tie_word_embeddings {
            object.insert(tying.to_owned(), json!(self.tie_word_embeddings));
        }
        if let Some(name) = self.stored_kind_name() {
            // Each generation of transformers has its own key; a file keeps the one it has.
            let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            object.insert(key.to_owned(), json!(name));
        }
        if let Some(info) = &self.diffusion {
            object.insert("diffusion".to_owned(), json!(info));
            // The family's own key, where a file has it, must not say another.
            if object.get("mask_token_id").is_some_and(Value::is_i64) {
                object.insert("mask_token_id".to_owned(), json!(info.mask_token_id));
            }
        }
        object
    }

    /// What the weights are stored as, in the words of config.json.
    pub(crate) fn stored_kind_name(&self) -> Option<&'static str> {
        KINDS.iter().find(|(_, kind)| Some(*kind) == self.stored_kind).map(|(name, _)| *name)
    }

    /// Whether the token at `i` is predicted from the state before it: what `diffusion` says, else what is usual in the family.
    #[must_use]
    pub fn logits_shift(&self) -> bool {
        self.diffusion.as_ref().map_or(self.family.logits_shift, |info| info.logits_shift)
    }

    /// The longest document that the model reads, in tokens: `max_position_embeddings`, or more by
    /// [`RotaryScaling`](crate::RotaryScaling).
    #[must_use]
    pub fn max_seq_len(&self) -> i64 {
        self.rotary.scaling.max_seq_len(self.max_position_embeddings)
    }

    fn read(family: &'static Family, keys: &mut Keys<'_>) -> Result<Self> {
        let vocab_size = keys.required_integer("vocab_size", 1..=LARGEST)?;
        let hidden_size = keys.required_integer("hidden_size", 1..=LARGEST)?;
        let num_attention_heads = keys.required_integer("num_attention_heads", 1..=hidden_size.max(1 << 16))?;
        let kv_heads = 1..=num_attention_heads;
        let num_key_value_heads = match keys.integer("num_key_value_heads", kv_heads.clone())? {
            Some(heads) if num_attention_heads % heads == 0 => heads,
            Some(heads) => {
                let accepted = format!("a divisor of `num_attention_heads`, which is {num_attention_heads}");
                return Err(keys.refused("num_key_value_heads", &json!(heads), accepted));
            }
            None if family.kv_heads_may_be_absent => num_attention_heads,
            None => keys.required_integer("num_key_value_heads", kv_heads)?,
        };
        let head_dim = match keys.integer("head_dim", 1..=1 << 16)? {
            Some(head_dim) if head_dim % 2 == 0 => head_dim,
            Some(head_dim) => return Err(keys.refused("head_dim", &json!(head_dim), "even, to be rotated in pairs")),
            None if hidden_size % (2 * num_attention_heads) == 0 => hidden_size / num_attention_heads,
            None => {
                let accepted = format!("a multiple of twice `num_attention_heads`, which is {num_attention_heads}");
                return Err(keys.refused("hidden_size", &json!(hidden_size), accepted));
            }
        };
        let max_position_embeddings = keys.integer("max_position_embeddings", 1..=LARGEST)?.unwrap_or(2048);
        let (has_qkv_bias, has_output_bias, has_mlp_bias) = match family.biases {
            Biases::ByKeys => {
                let attention = keys.flag("attention_bias")?.unwrap_or(false);
                (attention, attention, keys.flag("mlp_bias")?.unwrap_or(false))
            }
            Biases::AttentionByKey => {
                let attention = keys.flag("attention_bias")?.unwrap_or(false);
                (attention, attention, false)
            }
            Biases::QueryKeyValue => (true, false, false),
            Biases::Never => (false, false, false),
        };
        let num_hidden_layers = keys.required_integer("num_hidden_layers", 1..=MOST_LAYERS)?;
        let rotary = rope::read(keys, family.name, rope::Sizes { head_dim, max_position_embeddings })?;
        let max_seq_len = rotary.scaling.max_seq_len(max_position_embeddings);
        read_fixed(keys)?;
        keys.ids("bos_token_id")?; // only the tokenizer needs it
        let stored_kind = keys.word("dtype", KINDS)?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: keys.required_integer("intermediate_size", 1..=LARGEST)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            hidden_act: keys.word("hidden_act", Activation::NAMES)?.unwrap_or(Activation::Silu),
            max_position_embeddings,
            initializer_range: keys
                .number("initializer_range", "a number of at least 0", |std| std >= 0.0)?
                .unwrap_or(0.02),
            initializer: Initializer::Uniform,
            rms_norm_eps: keys.number("rms_norm_eps", "a number of at least 0", |eps| eps >= 0.0)?.unwrap_or(1e-6),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            rotary,
            sliding_windows: window::read(family.sliding_window, keys, num_hidden_layers, max_seq_len)?,
            has_qkv_bias,
            has_output_bias,
            has_mlp_bias,
            has_qk_norm: family.qk_norm,
            // Old files write -1 for none.
            pad_token_id: keys.integer("pad_token_id", -1..=vocab_size - 1)?.filter(|&id| id >= 0),
            eos_token_ids: keys.ids("eos_token_id")?,
            mask_token_id: keys.integer("mask_token_id", 0..=vocab_size - 1)?,
            stored_kind: stored_kind.or(keys.word("torch_dtype", KINDS)?),
            diffusion: read_diffusion(family, keys, vocab_size)?,
            raw: Map::new(),
        })
    }
}

/// Keys of which one value is computed; elsewhere they would change the outcome.
fn read_fixed(keys: &mut Keys<'_>) -> Result<()> {
    keys.only("attention_dropout", &json!(0.0))?;
    keys.only("quantization_config", &Value::Null)?;
    keys.only("rope_interleaved", &json!(false))?;
    keys.only("use_mrope", &json!(false))?; // of Qwen 2.5
    keys.only("is_encoder_decoder", &json!(false))?;
    keys.only("add_cross_attention", &json!(false))?;
    keys.only("pruned_heads", &json!({}))
}

fn read_diffusion(family: &'static Family, keys: &mut Keys<'_>, vocab_size: i64) -> Result<Option<DiffusionInfo>> {
    let Some(value) = keys.value("diffusion") else { return Ok(None) };
    let mut filled = value.clone();
    if let Value::Object(object) = &mut filled {
        object.entry("logits_shift").or_insert(json!(family.logits_shift));
    }
    let info: DiffusionInfo = serde_json::from_value(filled)
        .map_err(|error| keys.refused("diffusion", value, format!("an object of the known keys: {error}")))?;
    if !(0..vocab_size).contains(&info.mask_token_id) {
        let accepted = format!("one of the {vocab_size} rows of the embedding");
        return Err(keys.refused("diffusion.mask_token_id", &json!(info.mask_token_id), accepted));
    }
    Ok(Some(info))
}
