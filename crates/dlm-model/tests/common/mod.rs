//! Small models and folders for the tests of this crate.

#![allow(dead_code)] // each test file uses some of it

use dlm_model::{LoadOptions, Model, ModelConfig};
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Map, Value, json};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// A config of two blocks, with grouped heads and a head of its own.
pub(crate) fn config_json() -> Map<String, Value> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3, // large enough for attention to matter
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "tie_word_embeddings": false,
        "vocab_size": 50,
    });
    config.as_object().unwrap().clone()
}

/// The config with other values for some keys.
pub(crate) fn config_with(changes: &[(&str, Value)]) -> dlm_model::Result<ModelConfig> {
    let mut object = config_json();
    object.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    ModelConfig::from_json(object, Path::new("config.json"))
}

pub(crate) fn model_with(changes: &[(&str, Value)]) -> Model {
    Model::from_config(config_with(changes).unwrap(), 7, &LoadOptions::default()).unwrap()
}

/// A saved model in a temporary folder, to be damaged by tests.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn with(changes: &[(&str, Value)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        model_with(changes).save(folder.path(), Kind::Float, &[]).unwrap();
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn weights(&self) -> PathBuf {
        self.path().join("model.safetensors")
    }

    pub(crate) fn load(&self) -> dlm_model::Result<Model> {
        Model::load(self.path(), &LoadOptions::default())
    }

    /// Rewrites the weights with changes.
    pub(crate) fn edit_weights(&self, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let mut tensors = dlm_golden::tensors(&self.weights());
        edit(&mut tensors);
        write_tensors(&self.weights(), &tensors);
    }

    /// Rewrites config.json with changes.
    pub(crate) fn edit_config(&self, changes: &[(&str, Value)]) {
        let path = self.path().join("config.json");
        let mut object = dlm_golden::json(&path);
        for (key, value) in changes {
            object[*key] = value.clone();
        }
        fs::write(path, object.to_string()).unwrap();
    }
}

/// A tensor as `safetensors` writes it.
struct Bytes(Dtype, Vec<usize>, Vec<u8>);

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn shape(&self) -> &[usize] {
        &self.1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }

    fn data_len(&self) -> usize {
        self.2.len()
    }
}

pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let views = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Int64 => Dtype::I64,
            other => panic!("{other:?}"),
        };
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        (name.clone(), Bytes(dtype, tensor.size().iter().map(|&size| size as usize).collect(), bytes))
    });
    serialize_to_file(views, None, path).unwrap();
}

pub(crate) fn assert_same_parameters(found: &Model, expected: &Model) {
    let (found, expected) = (found.named_parameters(), expected.named_parameters());
    assert_eq!(found.len(), expected.len());
    for ((found_name, found), (name, expected)) in found.iter().zip(expected) {
        assert_eq!(found_name, name);
        assert_eq!(found, expected, "{name}");
    }
}
