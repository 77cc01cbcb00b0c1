//! Writing a model folder that transformers loads.

use crate::{
    checkpoint::{INDEX, SINGLE},
    config::ModelConfig,
    error::{ModelError, Result},
};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};
use tch::{Device, Kind, Tensor};

/// How the weights of a folder are written.
///
/// ```
/// use dlm_model::SaveOptions;
///
/// let options = SaveOptions::from(tch::Kind::BFloat16).with_max_shard_bytes(1 << 30);
/// assert_eq!(options.max_shard_bytes, 1 << 30);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// What they are stored as: `Float`, `BFloat16` or `Half`.
    pub kind: Kind,
    /// Weights larger than this are spread over several files, none of them larger unless one tensor is.
    pub max_shard_bytes: u64,
}

impl SaveOptions {
    /// Five gigabytes, which every file system and hub takes.
    pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

    /// The same with files of at most so many bytes.
    #[must_use]
    pub fn with_max_shard_bytes(mut self, max_shard_bytes: u64) -> Self {
        self.max_shard_bytes = max_shard_bytes;
        self
    }
}

impl From<Kind> for SaveOptions {
    fn from(kind: Kind) -> Self {
        Self { kind, max_shard_bytes: Self::MAX_SHARD_BYTES }
    }
}

/// Writes weights, companions such as tokenizer files, and last config.json, each file whole.
///
/// A folder without config.json is not finished.
pub(crate) fn save(
    folder: &Path,
    config: &ModelConfig,
    parameters: &[(String, Tensor)],
    options: SaveOptions,
    companions: &[(String, Vec<u8>)],
) -> Result<()> {
    let shards = shards(parameters, options);
    let stale = weight_files(folder);
    if shards.len() > 1 || stale.iter().any(|name| name != SINGLE) {
        // Files of the old model and the new one could be taken for one model until all are written.
        remove(&folder.join("config.json"))?;
    }
    let written = write_weights(folder, &shards, options.kind)?;
    for name in stale.iter().filter(|name| !written.contains(name)) {
        remove(&folder.join(name))?;
    }
    for (name, content) in companions {
        dlm_files::write(&folder.join(name), content)?;
    }
    let mut config = config.clone();
    config.stored_kind = Some(options.kind);
    write_json(&folder.join("config.json"), &Value::Object(config.to_json()))
}

/// The parameters in the order given, cut where a file would become too large; at least one file.
fn shards(parameters: &[(String, Tensor)], options: SaveOptions) -> Vec<&[(String, Tensor)]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, (_, tensor)) in parameters.iter().enumerate() {
        let size = (tensor.numel() * options.kind.elt_size_in_bytes()) as u64;
        if i > start && bytes + size > options.max_shard_bytes {
            shards.push(&parameters[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    shards.push(&parameters[start..]);
    shards
}

/// Writes one file, or several and the index that says which holds what; the names of what was written.
fn write_weights(folder: &Path, shards: &[&[(String, Tensor)]], kind: Kind) -> Result<Vec<String>> {
    if let [all] = shards {
        dlm_files::write_with(&folder.join(SINGLE), |path| write_tensors(path, all, kind))?;
        return Ok(vec![SINGLE.to_owned()]);
    }
    let mut names = Vec::new();
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        dlm_files::write_with(&folder.join(&name), |path| write_tensors(path, shard, kind))?;
        for (parameter, tensor) in *shard {
            weight_map.insert(parameter.clone(), json!(name));
            total_size += tensor.numel() * kind.elt_size_in_bytes();
        }
        names.push(name);
    }
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    write_json(&folder.join(INDEX), &index)?;
    names.push(INDEX.to_owned());
    Ok(names)
}

/// The files of weights that a folder holds already, under the names that are written here and by transformers.
fn weight_files(folder: &Path) -> Vec<String> {
    // Where there is no folder yet there are none; writing will say what else is wrong with the path.
    let entries = fs::read_dir(folder).into_iter().flatten();
    let is_shard = |name: &str| {
        name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(|rest| {
            rest.split_once("-of-")
                .is_some_and(|(a, b)| [a, b].iter().all(|part| part.bytes().all(|b| b.is_ascii_digit())))
        })
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name == SINGLE || name == INDEX || is_shard(name)).collect()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ModelError::Write(dlm_files::FileError { action: "remove", path: path.to_owned(), source: error }))
        }
        _ => Ok(()),
    }
}

/// Writes indented JSON, whole.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).expect("a JSON value serialises");
    json.push(b'\n');
    Ok(dlm_files::write(path, &json)?)
}

/// Writes one tensor after the other, so that no more than one is held twice.
pub(crate) fn write_tensors(path: &Path, parameters: &[(String, Tensor)], kind: Kind) -> io::Result<()> {
    let dtype = match kind {
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        _ => Dtype::F32,
    };
    let mut end = 0;
    let infos = parameters.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' '); // tensors begin aligned

    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, tensor) in parameters {
        let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
        let len = tensor.numel() * kind.elt_size_in_bytes();
        // SAFETY: a contiguous tensor on the CPU is that many bytes, and it outlives the slice.
        let bytes = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), len) };
        file.write_all(bytes)?;
    }
    file.flush()
}
