//! Which modules an adapter concerns, and which tensors it therefore has.

use super::{LoraConfig, LoraTargets, PREFIX, token_rows_name};
use crate::{
    config::ModelConfig,
    error::{ModelError, Result},
    state_dict::{Parameter, TensorNames, parameters},
};
use std::collections::BTreeSet;

/// One tensor of an adapter.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) role: Role,
}

/// What a tensor of an adapter is, and so how it begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `lora_A`, of so many inputs.
    Down { inputs: i64 },
    /// `lora_B`.
    Up,
    /// In the place of that parameter.
    Whole { parameter: String },
    /// Rows of the embedding.
    Rows,
}

/// The tensors of an adapter, in the order of the model's parameters.
pub(super) fn pieces(config: &ModelConfig, lora: &LoraConfig) -> Result<Vec<Piece>> {
    let names = config.family.tensors;
    let parameters = with_tied_head(config);
    let mut pieces = Vec::new();
    let mut found = BTreeSet::new();
    for Parameter { name, shape, .. } in &parameters {
        let module = module_of(name);
        let saved: Vec<&String> = lora.modules_to_save.iter().filter(|end| module.ends_with(end.as_str())).collect();
        if !saved.is_empty() {
            found.extend(saved);
            let role = Role::Whole { parameter: name.clone() };
            pieces.push(Piece { name: format!("{PREFIX}{name}"), shape: shape.clone(), role });
            continue;
        }
        if name.ends_with(".bias") || shape.len() != 2 {
            continue;
        }
        let is_linear = module != names.embedding && module != names.head;
        let targets: Vec<&String> = match &lora.targets {
            LoraTargets::AllLinear => Vec::new(),
            LoraTargets::Names(targets) => targets.iter().filter(|target| is_named(module, target)).collect(),
        };
        if let Some(target) = targets.first().filter(|_| !is_linear) {
            let accepted = "a linear map of the blocks: the embedding and the head are trained as `modules_to_save`";
            return Err(setting("target_modules", target, accepted.to_owned()));
        }
        if !is_linear || (targets.is_empty() && lora.targets != LoraTargets::AllLinear) {
            continue;
        }
        found.extend(targets);
        let (outputs, inputs) = (shape[0], shape[1]);
        let down = Piece {
            name: format!("{PREFIX}{module}.lora_A.weight"),
            shape: vec![lora.r, inputs],
            role: Role::Down { inputs },
        };
        let up =
            Piece { name: format!("{PREFIX}{module}.lora_B.weight"), shape: vec![outputs, lora.r], role: Role::Up };
        pieces.extend([down, up]);
    }
    let asked = match &lora.targets {
        LoraTargets::AllLinear => Vec::new(),
        LoraTargets::Names(targets) => targets.iter().map(|target| ("target_modules", target)).collect(),
    };
    let asked = asked.into_iter().chain(lora.modules_to_save.iter().map(|module| ("modules_to_save", module)));
    for (key, name) in asked {
        if !found.contains(name) {
            return Err(setting(key, name, format!("the end of a module's name, such as {}", known(names))));
        }
    }
    if !lora.trainable_tokens.is_empty() {
        if let Some(id) = lora.trainable_tokens.iter().find(|id| !(0..config.vocab_size).contains(*id)) {
            let accepted = format!("among the {} rows of the embedding", config.vocab_size);
            return Err(setting("trainable_token_indices", &id.to_string(), accepted));
        }
        let shape = vec![lora.trainable_tokens.len() as i64, config.hidden_size];
        pieces.push(Piece { name: token_rows_name(names.embedding), shape, role: Role::Rows });
    }
    Ok(pieces)
}

/// The names under which peft finds the targets again: the last part, where nothing else ends in it.
pub(super) fn target_names(config: &ModelConfig, lora: &LoraConfig) -> Vec<String> {
    match &lora.targets {
        LoraTargets::Names(targets) => targets.clone(),
        LoraTargets::AllLinear => {
            let names = config.family.tensors;
            let linear = [names.query, names.key, names.value, names.output, names.gate, names.up, names.down];
            let ends = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
            let is_ambiguous = |end: &str| is_named(names.head, end) || is_named(names.embedding, end);
            let of = |part: &str| -> Vec<String> {
                if is_ambiguous(&ends(part)) {
                    (0..config.num_hidden_layers).map(|block| format!("{}.{block}.{part}", names.blocks)).collect()
                } else {
                    vec![ends(part)]
                }
            };
            linear.into_iter().flat_map(of).collect()
        }
    }
}

fn with_tied_head(config: &ModelConfig) -> Vec<Parameter> {
    let mut parameters = parameters(config);
    if config.tie_word_embeddings {
        // A tied head can be saved as a module of its own, which unties it.
        let name = format!("{}.weight", config.family.tensors.head);
        parameters.push(Parameter { name, ..parameters[0].clone() });
    }
    parameters
}

fn module_of(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or(parameter, |(module, _)| module)
}

fn is_named(module: &str, target: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

fn known(names: &TensorNames) -> String {
    let linear = [names.query, names.key, names.value, names.output, names.gate, names.up, names.down, names.head];
    let ends = linear.map(|name| format!("`{}`", name.rsplit('.').next().unwrap_or(name)));
    ends.join(", ")
}

fn setting(name: &'static str, value: &str, accepted: String) -> ModelError {
    ModelError::LoraSetting { name, value: format!("`{value}`"), accepted }
}
