//! Which tensors a model has: their names in its checkpoints, family by family, their shapes and how they begin.

use crate::{
    adapter::{Adapter, LowRank},
    config::{Initializer, ModelConfig},
};
use std::collections::HashMap;
use tch::Tensor;

/// What a family calls its tensors; `.weight` and `.bias` are appended.
#[derive(Debug)]
pub(crate) struct TensorNames {
    pub(crate) embedding: &'static str,
    /// Stands before the block's number and the names below.
    pub(crate) blocks: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
}

/// The names that most families of transformers share.
pub(crate) const HUGGING_FACE: TensorNames = TensorNames {
    embedding: "model.embed_tokens",
    blocks: "model.layers",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.o_proj",
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    final_norm: "model.norm",
    head: "lm_head",
};

/// The names of LLaDA, which come from OLMo.
pub(crate) const LLADA: TensorNames = TensorNames {
    embedding: "model.transformer.wte",
    blocks: "model.transformer.blocks",
    query: "q_proj",
    key: "k_proj",
    value: "v_proj",
    output: "attn_out",
    query_norm: "q_norm",
    key_norm: "k_norm",
    gate: "ff_proj",
    up: "up_proj",
    down: "ff_out",
    attention_norm: "attn_norm",
    mlp_norm: "ff_norm",
    final_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
};

/// How a parameter begins in a model from scratch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// Normal with a standard deviation.
    Normal { std: f64 },
    /// The same, but nothing beyond three standard deviations.
    Truncated { std: f64 },
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// One parameter of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) init: Init,
}

/// The parameters that `config` asks for, in the order in which transformers registers them; a tied head is none of them.
pub(crate) fn parameters(config: &ModelConfig) -> Vec<Parameter> {
    let names = config.family.tensors;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let (qkv, output, mlp) = (config.has_qkv_bias, config.has_output_bias, config.has_mlp_bias);

    let stds = Deviations { config };
    let mut list = List(Vec::new());
    list.weight(names.embedding, &[config.vocab_size, hidden], stds.of(hidden));
    for block in 0..config.num_hidden_layers {
        let name = |part: &str| format!("{}.{block}.{part}", names.blocks);
        list.linear(&name(names.query), queries, hidden, qkv, stds.of(hidden));
        list.linear(&name(names.key), keys, hidden, qkv, stds.of(hidden));
        list.linear(&name(names.value), keys, hidden, qkv, stds.of(hidden));
        list.linear(&name(names.output), hidden, queries, output, stds.of_residual(queries, block));
        if config.has_qk_norm {
            list.weight(&name(names.query_norm), &[config.head_dim], Init::Ones);
            list.weight(&name(names.key_norm), &[config.head_dim], Init::Ones);
        }
        list.linear(&name(names.gate), inner, hidden, mlp, stds.of(hidden));
        list.linear(&name(names.up), inner, hidden, mlp, stds.of(hidden));
        list.linear(&name(names.down), hidden, inner, mlp, stds.of_residual(inner, block));
        list.weight(&name(names.attention_norm), &[hidden], Init::Ones);
        list.weight(&name(names.mlp_norm), &[hidden], Init::Ones);
    }
    list.weight(names.final_norm, &[hidden], Init::Ones);
    if !config.tie_word_embeddings {
        list.weight(names.head, &[config.vocab_size, hidden], stds.of(hidden));
    }
    list.0
}

/// The standard deviations of matrices from scratch.
struct Deviations<'a> {
    config: &'a ModelConfig,
}

impl Deviations<'_> {
    /// Of a matrix that reads from so many numbers.
    fn of(&self, inner: i64) -> Init {
        match self.config.initializer {
            Initializer::Uniform => Init::Normal { std: self.config.initializer_range },
            Initializer::Mitchell => Init::Truncated { std: (inner as f64).sqrt().recip() },
        }
    }

    /// Of a matrix whose output is added to the residual stream: smaller with depth.
    fn of_residual(&self, inner: i64, block: i64) -> Init {
        match self.config.initializer {
            Initializer::Uniform => self.of(inner),
            Initializer::Mitchell => Init::Truncated { std: (2.0 * inner as f64 * (block + 1) as f64).sqrt().recip() },
        }
    }
}

struct List(Vec<Parameter>);

impl List {
    fn weight(&mut self, name: &str, shape: &[i64], init: Init) {
        self.0.push(Parameter { name: format!("{name}.weight"), shape: shape.to_vec(), init });
    }

    fn linear(&mut self, name: &str, out: i64, inner: i64, has_bias: bool, init: Init) {
        self.weight(name, &[out, inner], init);
        if has_bias {
            self.0.push(Parameter { name: format!("{name}.bias"), shape: vec![out], init: Init::Zeros });
        }
    }
}

/// The tensors that modules are made of, by name; modules share them with the model's list of parameters.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    named: HashMap<&'a str, &'a Tensor>,
    adapter: Option<&'a Adapter>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(named: &'a [(String, Tensor)], adapter: Option<&'a Adapter>) -> Self {
        Self { named: named.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect(), adapter }
    }

    /// A weight that [`parameters`] names, or what an adapter puts in its place.
    pub(crate) fn weight(&self, name: &str) -> Tensor {
        self.find(name, "weight").expect("modules ask only for what `parameters` lists")
    }

    /// A weight that [`parameters`] names, whatever an adapter puts in its place.
    pub(crate) fn base_weight(&self, name: &str) -> Tensor {
        let tensor = self.named.get(format!("{name}.weight").as_str());
        tensor.expect("modules ask only for what `parameters` lists").shallow_clone()
    }

    /// What an adapter puts in the place of a weight.
    pub(crate) fn replacement(&self, name: &str) -> Option<Tensor> {
        self.adapter.and_then(|adapter| adapter.replacement(&format!("{name}.weight")))
    }

    /// A bias, where the model has it.
    pub(crate) fn bias(&self, name: &str) -> Option<Tensor> {
        self.find(name, "bias")
    }

    /// What an adapter puts beside a linear map.
    pub(crate) fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.adapter.and_then(|adapter| adapter.low_rank(name))
    }

    /// The tokens whose embeddings an adapter trains, and those.
    pub(crate) fn token_rows(&self, embedding: &str) -> Option<(Vec<i64>, Tensor)> {
        self.adapter.and_then(|adapter| adapter.token_rows(embedding))
    }

    fn find(&self, name: &str, part: &str) -> Option<Tensor> {
        let name = format!("{name}.{part}");
        let replacement = self.adapter.and_then(|adapter| adapter.replacement(&name));
        replacement.or_else(|| self.named.get(name.as_str()).map(|tensor| tensor.shallow_clone()))
    }
}
