//! What llama.cpp calls things: metadata to config.json, tensor names to those of the checkpoint.

use super::reader::File;
use crate::{
    config::ModelConfig,
    error::Result,
    rotary::{Rotary, RotaryConfig, RotaryScaling},
    state_dict::TensorNames,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// An architecture of llama.cpp's that is read.
#[derive(Debug)]
pub(super) struct Architecture {
    name: &'static str,
    class: &'static str,
    /// Whether rows of queries and keys are interleaved, as llama.cpp's kernel for Llama wants them.
    interleaves: bool,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", class: "LlamaForCausalLM", interleaves: true },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", interleaves: false },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", interleaves: false },
];

/// Frequencies that were stretched for longer texts are stored as factors, one for each pair of dimensions.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The config.json of a file.
pub(super) fn config(file: &File) -> Result<(ModelConfig, &'static Architecture)> {
    let name = file.required("general.architecture", file.text("general.architecture")?)?;
    let architecture = ARCHITECTURES.iter().find(|known| known.name == name);
    let architecture = architecture.ok_or_else(|| file.unsupported("architecture", name, "llama, qwen2 or qwen3"))?;
    let key = |part: &str| format!("{name}.{part}");
    let integer = |part: &str| file.integer(&key(part));
    let required = |part: &str| file.required(&key(part), integer(part)?);
    if let Some(experts) = integer("expert_count")?.filter(|count| *count > 0) {
        return Err(file.unsupported("number of experts", &experts.to_string(), "none: the MLP here is one"));
    }
    let (hidden, heads) = (required("embedding_length")?, required("attention.head_count")?);
    let head_dim = match integer("attention.key_length")?.or(integer("rope.dimension_count")?) {
        Some(head_dim) => head_dim,
        None if heads > 0 => hidden / heads,
        None => return Err(file.damaged("it has no attention heads")),
    };
    if let Some(rotated) = integer("rope.dimension_count")?.filter(|rotated| *rotated != head_dim) {
        return Err(file.unsupported("number of rotated dimensions", &rotated.to_string(), &head_dim.to_string()));
    }
    let rows = file.tensors.get("token_embd.weight").and_then(|info| info.shape.first().copied());
    let has_bias = |part: &str| file.tensors.contains_key(&format!("blk.0.{part}.bias"));

    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("architectures", json!([architecture.class]));
    put("model_type", json!(name));
    if name != "qwen2" {
        put("attention_bias", json!(has_bias("attn_q")));
    }
    put("attention_dropout", json!(0.0));
    let ids = [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")];
    for (ours, theirs) in ids {
        if let Some(id) = file.integer(&format!("tokenizer.ggml.{theirs}_token_id"))? {
            put(ours, json!(id));
        }
    }
    put("head_dim", json!(head_dim));
    put("hidden_act", json!("silu"));
    put("hidden_size", json!(hidden));
    put("initializer_range", json!(0.02));
    put("intermediate_size", json!(required("feed_forward_length")?));
    put("max_position_embeddings", json!(required("context_length")?));
    if name == "llama" {
        put("mlp_bias", json!(has_bias("ffn_gate")));
    }
    put("num_attention_heads", json!(heads));
    put("num_hidden_layers", json!(required("block_count")?));
    put("num_key_value_heads", json!(integer("attention.head_count_kv")?.unwrap_or(heads)));
    let eps = key("attention.layer_norm_rms_epsilon");
    put("rms_norm_eps", json!(file.required(&eps, file.number(&eps)?)?));
    let theta = file.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    put("rope_theta", json!(theta));
    if let Some(scaling) = rope_scaling(file, name, theta, head_dim)? {
        put("rope_scaling", scaling);
    }
    put("tie_word_embeddings", json!(!file.tensors.contains_key("output.weight")));
    put("torch_dtype", json!("bfloat16"));
    put("vocab_size", json!(file.required("token_embd.weight", rows)?));
    Ok((ModelConfig::from_json(object, &file.path)?, architecture))
}

/// How positions were stretched, if they were.
fn rope_scaling(file: &File, name: &str, theta: f64, head_dim: i64) -> Result<Option<Value>> {
    let kind = file.text(&format!("{name}.rope.scaling.type"))?;
    let factor = file.number(&format!("{name}.rope.scaling.factor"))?;
    match (kind, factor) {
        (None | Some("none"), _) => {}
        (Some("linear"), Some(factor)) => return Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
        (Some(kind), _) => return Err(file.unsupported("rope scaling", kind, "none or linear")),
    }
    let Some(info) = file.tensors.get(ROPE_FACTORS) else { return Ok(None) };
    let found = super::dequantize::dequantize(info.format, file.bytes(info));
    // The factors do not tell the four settings they were made of; those of published models are few.
    for factor in [8.0, 32.0] {
        let scaling = RotaryScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 8192 };
        let frequencies = |scaling| {
            Rotary::new(&RotaryConfig { theta, scaling, full_precision: false }, head_dim, Device::Cpu)
                .into_frequencies()
        };
        let ratio = frequencies(RotaryScaling::Default) / frequencies(scaling);
        let expected = Vec::<f32>::try_from(ratio.to_kind(Kind::Float))?;
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b;
        if found.len() == expected.len() && found.iter().zip(&expected).all(close) {
            return Ok(Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            })));
        }
    }
    Err(file.unsupported("rope scaling", "its own factors", "Llama 3.1's or 3.2's"))
}

/// For each of our names, the name of the tensor in the file; tensors of no known name are listed under it.
pub(super) fn places(file: &File, config: &ModelConfig) -> BTreeMap<String, String> {
    let names = config.family.tensors;
    let mut places = BTreeMap::new();
    for theirs in file.tensors.keys().filter(|name| *name != ROPE_FACTORS) {
        let ours = our_name(names, theirs).unwrap_or_else(|| theirs.clone());
        places.insert(ours, theirs.clone());
    }
    places
}

fn our_name(names: &TensorNames, theirs: &str) -> Option<String> {
    let (stem, part) = theirs.rsplit_once('.')?;
    let whole = match stem {
        "token_embd" => Some(names.embedding),
        "output_norm" => Some(names.final_norm),
        "output" => Some(names.head),
        _ => None,
    };
    if let Some(ours) = whole {
        return Some(format!("{ours}.{part}"));
    }
    let (block, inner) = stem.strip_prefix("blk.")?.split_once('.')?;
    let ours = match inner {
        "attn_norm" => names.attention_norm,
        "ffn_norm" => names.mlp_norm,
        "attn_q" => names.query,
        "attn_k" => names.key,
        "attn_v" => names.value,
        "attn_output" => names.output,
        "attn_q_norm" => names.query_norm,
        "attn_k_norm" => names.key_norm,
        "ffn_gate" => names.gate,
        "ffn_up" => names.up,
        "ffn_down" => names.down,
        _ => return None,
    };
    Some(format!("{}.{block}.{ours}.{part}", names.blocks))
}

impl Architecture {
    /// Brings back the two halves of each query and key head, whose rows llama.cpp interleaves.
    pub(super) fn restore_rows(&self, tensor: &Tensor, name: &str, config: &ModelConfig) -> Result<Tensor> {
        let names = config.family.tensors;
        let (stem, _) = name.rsplit_once('.').unwrap_or((name, ""));
        let heads = if stem.ends_with(names.query) {
            config.num_attention_heads
        } else if stem.ends_with(names.key) {
            config.num_key_value_heads
        } else {
            return Ok(tensor.shallow_clone());
        };
        if !self.interleaves {
            return Ok(tensor.shallow_clone());
        }
        let size = tensor.size();
        let split = tensor.f_view([heads, size[0] / heads / 2, 2, -1])?;
        Ok(split.f_transpose(1, 2)?.f_reshape(size.as_slice())?)
    }
}
