//! The families of checkpoints: what each is called, and where it differs from Llama.

use crate::{
    config::keys::listed,
    error::{ModelError, Result},
    state_dict::{HUGGING_FACE, LLADA as LLADA_NAMES, TensorNames},
};
use serde_json::{Map, Value};
use std::path::Path;

/// A family of checkpoints: one transformer under other names and switches.
#[derive(Debug)]
#[non_exhaustive]
pub struct Family {
    /// Its name in messages.
    pub name: &'static str,
    /// What config.json calls it under `architectures`.
    pub architecture: &'static str,
    /// What config.json calls it under `model_type`.
    pub model_type: &'static str,
    /// Whether its models predict the token at `i` from the state before it, where a folder does not say.
    pub logits_shift: bool,
    /// What the keys of its config.json are called.
    pub(crate) keys: KeyNames,
    /// What its tensors are called.
    pub(crate) tensors: &'static TensorNames,
    /// Which projections add a bias.
    pub(crate) biases: Biases,
    /// Whether queries and keys are normalised per head before they are rotated.
    pub(crate) qk_norm: bool,
    /// Window of keys that a query sees where config.json does not say.
    pub(crate) sliding_window: Window,
    /// Whether config.json may leave out `num_key_value_heads`.
    pub(crate) kv_heads_may_be_absent: bool,
}

/// In whose words a config.json is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyNames {
    /// Those that most families of transformers share.
    HuggingFace,
    /// Those of LLaDA, which come from OLMo.
    Llada,
}

/// Which projections of a family add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Biases {
    /// As `attention_bias` (all four) and `mlp_bias` (all three) say.
    ByKeys,
    /// As `attention_bias` says in the attention, none in the MLP.
    AttentionByKey,
    /// Queries, keys and values always, the others never.
    QueryKeyValue,
    /// None.
    Never,
}

/// What a family says about sliding windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// It has none.
    Never,
    /// `sliding_window` is one; this long where the key is absent.
    Key(i64),
    /// `sliding_window` is one if `use_sliding_window` says so, in the blocks from `max_window_layers` on or those that
    /// `layer_types` names.
    Switched,
}

const LLAMA: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    logits_shift: true,
    keys: KeyNames::HuggingFace,
    tensors: &HUGGING_FACE,
    biases: Biases::ByKeys,
    qk_norm: false,
    sliding_window: Window::Never,
    kv_heads_may_be_absent: true,
};

const MISTRAL: Family = Family {
    name: "mistral",
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    biases: Biases::Never,
    sliding_window: Window::Key(4096),
    kv_heads_may_be_absent: false,
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    biases: Biases::QueryKeyValue,
    sliding_window: Window::Switched,
    kv_heads_may_be_absent: false,
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    biases: Biases::AttentionByKey,
    qk_norm: true,
    ..QWEN2
};

/// Dream ([arXiv:2508.15487](https://arxiv.org/abs/2508.15487)): Qwen 2 that sees both ways and still shifts.
const DREAM: Family = Family { name: "dream", architecture: "DreamModel", model_type: "Dream", ..QWEN2 };

/// LLaDA ([arXiv:2502.09992](https://arxiv.org/abs/2502.09992)): Llama's blocks under the names of OLMo, trained to denoise.
const LLADA: Family = Family {
    name: "llada",
    architecture: "LLaDAModelLM",
    model_type: "llada",
    logits_shift: false,
    keys: KeyNames::Llada,
    tensors: &LLADA_NAMES,
    biases: Biases::Never,
    ..LLAMA
};

/// Every family there is.
///
/// The `a2d` ones were adapted from autoregressive models to see both ways: the same tensors, but no shift.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    LLADA,
    DREAM,
    Family {
        name: "a2d-llama",
        architecture: "A2DLlamaLMHeadModel",
        model_type: "a2d-llama",
        logits_shift: false,
        ..LLAMA
    },
    Family {
        name: "a2d-qwen2",
        architecture: "A2DQwen2LMHeadModel",
        model_type: "a2d-qwen2",
        logits_shift: false,
        ..QWEN2
    },
    Family {
        name: "a2d-qwen3",
        architecture: "A2DQwen3LMHeadModel",
        model_type: "a2d-qwen3",
        logits_shift: false,
        ..QWEN3
    },
];

/// The family whose names config.json gives; where it gives both, they must agree.
///
/// `model_type` alone does not decide: LLaDA's mixture of experts, for one, calls itself `llada` too.
pub(super) fn find(path: &Path, object: &Map<String, Value>) -> Result<&'static Family> {
    let architectures: Option<Vec<&str>> = object
        .get("architectures")
        .and_then(Value::as_array)
        .map(|list| list.iter().map(|item| item.as_str().unwrap_or_default()).collect());
    let model_type = object.get("model_type").and_then(Value::as_str);
    let fits = |family: &&Family| {
        architectures.as_ref().is_none_or(|list| list[..] == [family.architecture])
            && model_type.is_none_or(|name| name == family.model_type)
    };
    let named = architectures.is_some() || model_type.is_some();
    let experts = EXPERT_KEYS.iter().find(|key| object.get(**key).is_some_and(|value| !value.is_null()));
    let found = named.then(|| FAMILIES.iter().find(fits)).flatten();
    if let (Some(family), None) = (found, experts) {
        return Ok(family);
    }
    let differs = if let Some(key) = experts {
        format!("its `{key}` asks for a mixture of experts, where the MLP here is one")
    } else {
        let near = |family: &&Family| {
            model_type == Some(family.model_type)
                || architectures.as_ref().is_some_and(|list| list.contains(&family.architecture))
        };
        match FAMILIES.iter().find(near) {
            Some(Family { architecture, model_type, .. }) => {
                format!("`model_type` `{model_type}` goes with the architecture `{architecture}`")
            }
            None => "neither of its names is one of theirs".to_owned(),
        }
    };
    let found = match (&architectures, model_type) {
        (Some(list), Some(name)) => format!("{} ({name})", list.join(", ")),
        (Some(list), None) => list.join(", "),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "nothing: neither `architectures` nor `model_type`".to_owned(),
    };
    let known = listed(FAMILIES.iter().map(|family| family.architecture)).replace(" or ", " and ");
    Err(ModelError::UnknownFamily { path: path.to_owned(), found, known, differs })
}

/// Keys of which each says that tokens are routed to some of many MLPs.
const EXPERT_KEYS: &[&str] = &["num_experts", "num_local_experts", "n_routed_experts", "moe_layer_freq"];
