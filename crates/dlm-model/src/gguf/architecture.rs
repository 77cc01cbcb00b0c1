//! What llama.cpp calls things: metadata to config.json, tensor names to those of the checkpoint.

use super::reader::File;
use crate::{
    config::{
        ModelConfig,
        family::{Biases, FAMILIES, KeyNames},
    },
    diffusion_info::DiffusionInfo,
    error::Result,
    rotary::{Rotary, RotaryConfig, RotaryScaling},
    state_dict::TensorNames,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// An architecture of llama.cpp's that is read: it has the name of a family of ours.
#[derive(Debug)]
pub(super) struct Architecture {
    name: &'static str,
    /// Whether rows of queries and keys are interleaved, as llama.cpp's kernel for Llama wants them.
    interleaves: bool,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", interleaves: true },
    Architecture { name: "qwen2", interleaves: false },
    Architecture { name: "qwen3", interleaves: false },
    Architecture { name: "dream", interleaves: false },
    Architecture { name: "llada", interleaves: true },
];

/// The widest head; those of models that exist stay below a hundredth of it.
const WIDEST_HEAD: i64 = 1 << 16;

/// The keys that LLaDA calls otherwise.
const LLADA_KEYS: &[(&str, &str)] = &[
    ("hidden_act", "activation_type"),
    ("hidden_size", "d_model"),
    ("initializer_range", "init_std"),
    ("intermediate_size", "mlp_hidden_size"),
    ("max_position_embeddings", "max_sequence_length"),
    ("num_attention_heads", "n_heads"),
    ("num_hidden_layers", "n_layers"),
    ("num_key_value_heads", "n_kv_heads"),
    ("tie_word_embeddings", "weight_tying"),
];

/// Frequencies that were stretched for longer texts are stored as factors, one for each pair of dimensions.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The config.json of a file.
pub(super) fn config(file: &File) -> Result<(ModelConfig, &'static Architecture)> {
    let name = file.required("general.architecture", file.text("general.architecture")?)?;
    let architecture = ARCHITECTURES.iter().find(|known| known.name == name);
    let architecture =
        architecture.ok_or_else(|| file.unsupported("architecture", name, "llama, qwen2, qwen3, dream or llada"))?;
    let family = FAMILIES.iter().find(|family| family.name == name).expect("each architecture is one of a family");
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
    if !(2..=WIDEST_HEAD).contains(&head_dim) || head_dim % 2 != 0 {
        return Err(file.damaged(format!("its heads are {head_dim} wide")));
    }
    if let Some(rotated) = integer("rope.dimension_count")?.filter(|rotated| *rotated != head_dim) {
        return Err(file.unsupported("number of rotated dimensions", &rotated.to_string(), &head_dim.to_string()));
    }
    let rows = file.tensors.get("token_embd.weight").and_then(|info| info.shape.first().copied());
    let has_bias = |part: &str| file.tensors.contains_key(&format!("blk.0.{part}.bias"));

    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("architectures", json!([family.architecture]));
    put("model_type", json!(family.model_type));
    match family.biases {
        Biases::ByKeys | Biases::AttentionByKey => put("attention_bias", json!(has_bias("attn_q"))),
        Biases::Never if family.keys == KeyNames::Llada => put("include_qkv_bias", json!(has_bias("attn_q"))),
        Biases::QueryKeyValue | Biases::Never => {}
    }
    if family.biases == Biases::ByKeys {
        put("mlp_bias", json!(has_bias("ffn_gate")));
    }
    put("attention_dropout", json!(0.0));
    let mut ids = vec![("bos_token_id", "bos"), ("eos_token_id", "eos"), ("mask_token_id", "mask")];
    // In the other families' config.json the key means that the token's row never trains, and the file's padding is often the end
    // of documents. What it pads with is in tokenizer_config.json in any case.
    if ["dream", "llada"].contains(&name) {
        ids.push(("pad_token_id", "padding"));
    }
    for (ours, theirs) in ids {
        if let Some(id) = file.integer(&format!("tokenizer.ggml.{theirs}_token_id"))? {
            put(ours, json!(id));
        }
    }
    match family.keys {
        KeyNames::HuggingFace => put("head_dim", json!(head_dim)),
        KeyNames::Llada if head_dim.checked_mul(heads) != Some(hidden) => {
            let expected = format!("{hidden} divided by {heads}");
            return Err(file.unsupported("width of heads", &head_dim.to_string(), &expected));
        }
        KeyNames::Llada => {}
    }
    put("hidden_act", json!("silu"));
    put("hidden_size", json!(hidden));
    put("initializer_range", json!(0.02));
    put("intermediate_size", json!(required("feed_forward_length")?));
    put("max_position_embeddings", json!(required("context_length")?));
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
    if family.keys == KeyNames::Llada {
        for (usual, theirs) in LLADA_KEYS {
            if let Some(value) = object.remove(*usual) {
                object.insert((*theirs).to_owned(), value);
            }
        }
        let fixed = [
            ("block_type", json!("llama")),
            ("layer_norm_type", json!("rms")),
            ("rope", json!(true)),
            ("include_bias", json!(false)),
        ];
        object.extend(fixed.map(|(key, value)| (key.to_owned(), value)));
    }
    let config = ModelConfig::from_json(object.clone(), &file.path)?;
    let Some(shift) = file.flag("diffusion.shift_logits")?.filter(|shift| *shift != config.family.logits_shift) else {
        return Ok((config, architecture));
    };
    // What the class of the model does not say already.
    let mask = file.required("tokenizer.ggml.mask_token_id", config.mask_token_id)?;
    object.insert("diffusion".to_owned(), json!(DiffusionInfo::new(mask, shift)));
    Ok((ModelConfig::from_json(object, &file.path)?, architecture))
}

/// How positions were stretched, if they were.
fn rope_scaling(file: &File, name: &str, theta: f64, head_dim: i64) -> Result<Option<Value>> {
    let key = |part: &str| format!("{name}.rope.scaling.{part}");
    let number = |part: &str| file.number(&key(part));
    let old_factor = format!("{name}.rope.scale_linear");
    let stretches = |factor: Option<f64>| factor.filter(|factor| ![0.0, 1.0].contains(factor));
    let scaling = match file.text(&key("type"))? {
        Some("none") => None,
        // Files of 2023 name a factor alone.
        None => stretches(number("factor")?.or(file.number(&old_factor)?)).map(linear),
        Some("linear") => Some(linear(file.required(&key("factor"), number("factor")?)?)),
        Some("yarn") => Some(yarn(file, &key)?),
        Some(kind) => return Err(file.unsupported("rope scaling", kind, "none, linear or yarn")),
    };
    if let Some(scaling) = scaling {
        if file.tensors.contains_key(ROPE_FACTORS) {
            let found = format!("{} and factors of its own", scaling["rope_type"].as_str().unwrap_or_default());
            return Err(file.unsupported("rope scaling", &found, "either of them"));
        }
        return Ok(Some(scaling));
    }
    let Some(info) = file.tensors.get(ROPE_FACTORS) else { return Ok(None) };
    if info.shape != [head_dim / 2] {
        let expected = format!("[{}]", head_dim / 2);
        return Err(file.unsupported(&format!("shape of `{ROPE_FACTORS}`"), &format!("{:?}", info.shape), &expected));
    }
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

fn linear(factor: f64) -> Value {
    json!({ "rope_type": "linear", "factor": factor })
}

/// The settings of YaRN; what llama.cpp computes by more than the paper's two is refused.
fn yarn(file: &File, key: &impl Fn(&str) -> String) -> Result<Value> {
    let factor = file.required(&key("factor"), file.number(&key("factor"))?)?;
    let original_len = key("original_context_length");
    let original_len = file.required(&original_len, file.integer(&original_len)?)?;
    for part in ["attn_factor", "yarn_ext_factor", "yarn_attn_factor"] {
        if let Some(found) = file.number(&key(part))?.filter(|found| *found != 1.0) {
            return Err(file.unsupported(&key(part), &found.to_string(), "1"));
        }
    }
    if let Some(found) = file.number(&key("yarn_log_multiplier"))? {
        return Err(file.unsupported(&key("yarn_log_multiplier"), &found.to_string(), "nothing there"));
    }
    let mut scaling =
        json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_len });
    for (theirs, ours) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(beta) = file.number(&key(theirs))? {
            scaling[ours] = json!(beta);
        }
    }
    Ok(scaling)
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
