//! GGUF files, as llama.cpp has them, read into a model and its tokenizer.

mod architecture;
mod dequantize;
mod reader;
mod tokenizer;

use crate::{
    error::{ModelError, Result, TensorDifference},
    model::{LoadOptions, Model},
    state_dict::{Parameter, parameters},
};
use dequantize::Format;
use reader::File;
use std::{collections::BTreeMap, path::Path};
use tch::{Kind, Tensor};

/// A model read from a GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// The model, its weights dequantised.
    pub model: Model,
    /// What its weights are best stored as: the kind they had in the file, or `BFloat16` where they were quantised.
    pub kind: Kind,
    /// Files to save beside it: tokenizer.json and tokenizer_config.json.
    pub companions: Vec<(String, Vec<u8>)>,
}

impl Gguf {
    /// Reads a GGUF file of the architecture `llama`, `qwen2`, `qwen3`, `dream` or `llada`, with a tokenizer of byte-level BPE or
    /// SentencePiece's BPE. Which formats of tensors are read is in `docs/models.md`, and in the error for any other.
    ///
    /// Mistral's models call themselves `llama` there. Nothing of the file is executed or trusted.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::DamagedGguf`], [`ModelError::UnsupportedGguf`] with what the file has and what is
    /// read, [`ModelError::Tensors`], or what [`ModelConfig::from_json`](crate::ModelConfig::from_json) refuses.
    pub fn read(path: &Path, options: &LoadOptions) -> Result<Self> {
        let file = File::open(path)?;
        let (config, architecture) = architecture::config(&file)?;
        let places = architecture::places(&file, &config);
        let parameters = parameters(&config);
        check(path, &file, &parameters, &places)?;
        // Before the weights, which take long and much memory.
        let companions = tokenizer::companions(&file, &config)?;
        let mut kind = Kind::Float;
        let named = parameters.into_iter().map(|parameter| {
            let info = &file.tensors[&places[&parameter.name]];
            // Norms and biases are in float32 whatever the matrices are.
            if parameter.shape.len() > 1 {
                kind = match info.format {
                    Format::F32 => kind,
                    Format::F16 if kind != Kind::BFloat16 => Kind::Half,
                    _ => Kind::BFloat16,
                };
            }
            let numbers = dequantize::dequantize(info.format, file.bytes(info));
            let tensor = Tensor::f_from_slice(&numbers)?.f_view(parameter.shape.as_slice())?;
            let tensor = architecture.restore_rows(&tensor, &parameter.name, &config)?;
            Ok((parameter.name, tensor.f_to_kind(options.kind)?.f_to_device(options.device)?))
        });
        let named = named.collect::<Result<Vec<_>>>()?;
        Ok(Self { model: Model::assemble(config, named, None), kind, companions })
    }
}

/// Refuses a file whose tensors are not those that its metadata asks for.
fn check(path: &Path, file: &File, parameters: &[Parameter], places: &BTreeMap<String, String>) -> Result<()> {
    let mut difference = TensorDifference::default();
    let mut unexpected: BTreeMap<&str, &str> =
        places.iter().map(|(ours, theirs)| (ours.as_str(), theirs.as_str())).collect();
    for Parameter { name, shape, .. } in parameters {
        match unexpected.remove(name.as_str()).and_then(|theirs| file.tensors.get(theirs)) {
            None => difference.missing.push(name.clone()),
            Some(info) if info.shape != *shape => {
                difference.misshapen.push((name.clone(), info.shape.clone(), shape.clone()));
            }
            Some(_) => {}
        }
    }
    difference.unexpected = unexpected.into_values().map(str::to_owned).collect();
    if difference.is_empty() { Ok(()) } else { Err(ModelError::Tensors { folder: path.to_owned(), difference }) }
}
