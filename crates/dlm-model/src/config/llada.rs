//! LLaDA's config.json, whose keys come from OLMo.

use super::{Initializer, KINDS, LARGEST, MOST_LAYERS, ModelConfig, family::Family, keys::Keys, read_diffusion};
use crate::{
    error::Result,
    mlp::Activation,
    rotary::{RotaryConfig, RotaryScaling},
};
use serde_json::{Map, Value, json};

/// What the reference takes an activation to be; its `swiglu` halves the MLP, which these blocks do not do.
const ACTIVATIONS: &[(&str, Activation)] =
    &[("silu", Activation::Silu), ("gelu", Activation::Gelu), ("relu", Activation::Relu)];

const INITIALIZERS: &[(&str, Initializer)] = &[("mitchell", Initializer::Mitchell), ("normal", Initializer::Uniform)];

pub(super) fn read(family: &'static Family, keys: &mut Keys<'_>) -> Result<ModelConfig> {
    read_fixed(keys)?;
    let vocab_size = keys.required_integer("vocab_size", 1..=LARGEST)?;
    let rows = match keys.integer("embedding_size", 1..=LARGEST)? {
        Some(rows) if rows < vocab_size => {
            let accepted = format!("at least `vocab_size`, which is {vocab_size}");
            return Err(keys.refused("embedding_size", &json!(rows), accepted));
        }
        rows => rows.unwrap_or(vocab_size),
    };
    let hidden_size = keys.required_integer("d_model", 1..=LARGEST)?;
    let heads = keys.required_integer("n_heads", 1..=hidden_size)?;
    if hidden_size % (2 * heads) != 0 {
        let accepted = format!("a multiple of twice `n_heads`, which is {heads}");
        return Err(keys.refused("d_model", &json!(hidden_size), accepted));
    }
    let intermediate_size = match keys.integer("mlp_hidden_size", 1..=LARGEST)? {
        Some(size) => size,
        None => hidden_size.saturating_mul(keys.required_integer("mlp_ratio", 1..=1 << 10)?).min(LARGEST),
    };
    keys.integer("mlp_ratio", 1..=1 << 10)?;
    let num_hidden_layers = keys.required_integer("n_layers", 1..=MOST_LAYERS)?;
    let has_qkv_bias = keys.flag("include_qkv_bias")?.unwrap_or(false);
    keys.ids("bos_token_id")?; // only the tokenizer needs it
    let stored_kind = keys.word("dtype", KINDS)?;
    Ok(ModelConfig {
        family,
        vocab_size: rows,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads(keys, heads)?,
        head_dim: hidden_size / heads,
        hidden_act: keys.required_word("activation_type", ACTIVATIONS)?,
        max_position_embeddings: keys.integer("max_sequence_length", 1..=LARGEST)?.unwrap_or(1024),
        initializer_range: keys.number("init_std", "a number of at least 0", |std| std >= 0.0)?.unwrap_or(0.02),
        initializer: keys.word("init_fn", INITIALIZERS)?.unwrap_or(Initializer::Uniform),
        rms_norm_eps: keys.number("rms_norm_eps", "a number of at least 0", |eps| eps >= 0.0)?.unwrap_or(1e-5),
        tie_word_embeddings: keys.required_flag("weight_tying")?,
        rotary: RotaryConfig {
            theta: keys.positive("rope_theta")?.unwrap_or(10_000.0),
            scaling: RotaryScaling::Default,
            full_precision: keys.flag("rope_full_precision")?.unwrap_or(true),
        },
        sliding_windows: vec![None; num_hidden_layers as usize],
        has_qkv_bias,
        has_output_bias: false,
        has_mlp_bias: false,
        has_qk_norm: false,
        // Unlike transformers' embeddings, LLaDA's knows no padding token whose row stands still.
        pad_token_id: None,
        eos_token_ids: keys.ids("eos_token_id")?,
        mask_token_id: keys.integer("mask_token_id", 0..=rows - 1)?,
        stored_kind: stored_kind.or(keys.word("torch_dtype", KINDS)?),
        diffusion: read_diffusion(family, keys, rows)?,
        raw: Map::new(),
    })
}

/// After the vocabulary has grown, both sizes say how many rows there are; else they stay as they were.
pub(super) fn write_sizes(object: &mut Map<String, Value>, rows: i64) {
    let size = |key: &str| object.get(key).and_then(Value::as_i64);
    if size("embedding_size").or(size("vocab_size")) == Some(rows) {
        return;
    }
    if size("embedding_size").is_some() {
        object.insert("embedding_size".to_owned(), json!(rows));
    }
    object.insert("vocab_size".to_owned(), json!(rows));
}

/// `n_kv_heads`, or what the older `multi_query_attention` says; both must agree.
fn kv_heads(keys: &mut Keys<'_>, heads: i64) -> Result<i64> {
    let given = keys.integer("n_kv_heads", 1..=heads)?;
    let implied = keys.flag("multi_query_attention")?.map(|multi| if multi { 1 } else { heads });
    match (given, implied) {
        (Some(given), Some(implied)) if given != implied => {
            let accepted = format!("{implied}, as `multi_query_attention` says");
            Err(keys.refused("n_kv_heads", &json!(given), accepted))
        }
        (Some(given), _) if heads % given != 0 => {
            let accepted = format!("a divisor of `n_heads`, which is {heads}");
            Err(keys.refused("n_kv_heads", &json!(given), accepted))
        }
        (given, implied) => Ok(given.or(implied).unwrap_or(heads)),
    }
}

/// Switches of which one position is computed.
///
/// Those whose absence would mean another computation in the reference, by the defaults of its class, must be there.
fn read_fixed(keys: &mut Keys<'_>) -> Result<()> {
    keys.must("block_type", &json!("llama"))?;
    keys.must("layer_norm_type", &json!("rms"))?;
    keys.must("rope", &json!(true))?;
    keys.must("include_bias", &json!(false))?;
    keys.only("bias_for_layer_norm", &json!(false))?;
    keys.only("layer_norm_with_affine", &json!(true))?;
    keys.only("attention_layer_norm", &json!(false))?;
    keys.only("block_group_size", &json!(1))?;
    keys.only("alibi", &json!(false))?;
    keys.only("input_emb_norm", &json!(false))?;
    keys.only("scale_logits", &json!(false))?;
    keys.only("quantization_config", &Value::Null)?;
    for dropout in ["attention_dropout", "embedding_dropout", "residual_dropout"] {
        keys.only(dropout, &json!(0.0))?;
    }
    keys.value("pad_token_id"); // its row is trained like any other
    for key in HARMLESS {
        keys.value(key);
    }
    Ok(())
}

/// What changes nothing here: parts that are switched off above, where weights were first made, how the reference computes.
const HARMLESS: &[&str] = &[
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "precision",
];
