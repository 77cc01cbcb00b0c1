//! Writing a model folder that transformers loads.

use crate::{checkpoint::SINGLE, config::ModelConfig, error::Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};
use tch::{Device, Kind, Tensor};

/// Writes weights, companions such as tokenizer files, and last config.json, each file whole.
///
/// A folder without config.json is not finished.
pub(crate) fn save(
    folder: &Path,
    config: &ModelConfig,
    parameters: &[(String, Tensor)],
    kind: Kind,
    companions: &[(String, Vec<u8>)],
) -> Result<()> {
    dlm_files::write_with(&folder.join(SINGLE), |path| write_tensors(path, parameters, kind))?;
    for (name, content) in companions {
        dlm_files::write(&folder.join(name), content)?;
    }
    let mut config = config.clone();
    config.stored_kind = Some(kind);
    let mut json = serde_json::to_vec_pretty(&config.to_json()).expect("a JSON object serialises");
    json.push(b'\n');
    dlm_files::write(&folder.join("config.json"), &json)?;
    Ok(())
}

/// Writes one tensor after the other, so that no more than one is held twice.
fn write_tensors(path: &Path, parameters: &[(String, Tensor)], kind: Kind) -> io::Result<()> {
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
