//! A writer of GGUF files, to have something to read.

use dlm_model::Model;
use std::{collections::BTreeMap, path::Path};
use tch::{Kind, Tensor};

/// A value of the metadata.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// What a file holds; tensors as name, number of the format, shape with rows first, and bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: Vec<(String, u32, Vec<i64>, Vec<u8>)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Contents {
    /// A model as llama.cpp's converter writes it, in float32, with a tokenizer of single letters.
    pub(crate) fn of(model: &Model, architecture: &str) -> Self {
        let config = model.config();
        let mut contents = Self::default();
        let mut put = |key: &str, value: Value| contents.metadata.insert(key.replace("ARCH", architecture), value);
        let int = |n: i64| Value::U32(n as u32);
        put("general.architecture", Value::Text(architecture.to_owned()));
        put("ARCH.block_count", int(config.num_hidden_layers));
        put("ARCH.context_length", int(config.max_position_embeddings));
        put("ARCH.embedding_length", int(config.hidden_size));
        put("ARCH.feed_forward_length", int(config.intermediate_size));
        put("ARCH.attention.head_count", int(config.num_attention_heads));
        put("ARCH.attention.head_count_kv", int(config.num_key_value_heads));
        put("ARCH.attention.key_length", int(config.head_dim));
        put("ARCH.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
        put("ARCH.rope.freq_base", Value::F32(config.rotary.theta as f32));
        put("tokenizer.ggml.model", Value::Text("gpt2".to_owned()));
        put("tokenizer.ggml.pre", Value::Text("smollm".to_owned()));
        let mut tokens = ["<end>", "a", "b", "ab", "<pad>"].map(str::to_owned).to_vec();
        let mut kinds = vec![3, 1, 1, 1, 5];
        if let Some(mask) = config.mask_token_id {
            put("tokenizer.ggml.mask_token_id", int(mask));
            tokens.extend((5..mask).map(|id| format!("[PAD{id}]")).chain(["<mask>".to_owned()]));
            kinds.extend((5..mask).map(|_| 5).chain([3]));
        }
        put("tokenizer.ggml.tokens", Value::Texts(tokens));
        put("tokenizer.ggml.token_type", Value::I32s(kinds));
        put("tokenizer.ggml.merges", Value::Texts(vec!["a b".to_owned()]));
        put("tokenizer.ggml.eos_token_id", Value::U32(0));
        put("tokenizer.ggml.add_eos_token", Value::Bool(false));
        put("tokenizer.chat_template", Value::Text("{{ messages }}".to_owned()));
        for (name, tensor) in model.named_parameters() {
            let tensor = tensor.detach().to_kind(Kind::Float);
            let heads = match name {
                _ if !["llama", "llada"].contains(&architecture) => None,
                _ if name.contains("q_proj") => Some(config.num_attention_heads),
                _ if name.contains("k_proj") => Some(config.num_key_value_heads),
                _ => None,
            };
            let tensor = heads.map_or(tensor.shallow_clone(), |heads| interleave(&tensor, heads));
            let mut bytes = vec![0; tensor.numel() * 4];
            tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
            contents.tensors.push((their_name(name), 0, tensor.size(), bytes));
        }
        contents
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
                out.extend(9u32.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend((len as u64).to_le_bytes());
            };
            match value {
                Value::U32(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
                Value::F32(n) => out.extend([6u32.to_le_bytes(), n.to_le_bytes()].concat()),
                Value::Bool(flag) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*flag)]].concat()),
                Value::Text(value) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, value);
                }
                Value::Texts(values) => {
                    list(&mut out, 8, values.len());
                    values.iter().for_each(|value| text(&mut out, value));
                }
                Value::I32s(values) => {
                    list(&mut out, 5, values.len());
                    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
                }
                Value::F32s(values) => {
                    list(&mut out, 6, values.len());
                    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
                }
            }
        }
        let mut data = Vec::new();
        for (name, format, shape, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// As llama.cpp's converter does: from two halves of each head to pairs of neighbours.
fn interleave(tensor: &Tensor, heads: i64) -> Tensor {
    let size = tensor.size();
    tensor.view([heads, 2, size[0] / heads / 2, -1]).transpose(1, 2).reshape(size.as_slice())
}

fn their_name(name: &str) -> String {
    [
        ("model.transformer.blocks.", "blk."),
        ("model.transformer.wte", "token_embd"),
        ("model.transformer.ln_f", "output_norm"),
        ("model.transformer.ff_out", "output"),
        ("attn_out", "attn_output"),
        ("ff_proj", "ffn_gate"),
        ("ff_out", "ffn_down"),
        ("ff_norm", "ffn_norm"),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("q_proj", "attn_q"),
        ("k_proj", "attn_k"),
        ("v_proj", "attn_v"),
        ("up_proj", "ffn_up"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.norm", "output_norm"),
        ("model.embed_tokens", "token_embd"),
        ("lm_head", "output"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}
