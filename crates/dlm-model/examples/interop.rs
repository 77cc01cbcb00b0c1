//! What other programs need to compare themselves with: logits, folders and adapters written by this crate.
//!
//! ```sh
//! cargo run -p dlm-model --example interop -- logits MODEL ROWS.json OUT.safetensors [ADAPTER]
//! cargo run -p dlm-model --example interop -- convert FILE.gguf FOLDER
//! cargo run -p dlm-model --example interop -- save MODEL FOLDER KIND MAX_SHARD_BYTES
//! cargo run -p dlm-model --example interop -- save-adapter MODEL ADAPTER FOLDER
//! cargo run -p dlm-model --example interop -- merge MODEL ADAPTER FOLDER
//! ```
//!
//! ROWS.json is `{"visibility": "causal" or "bidirectional", "rows": [[1, 2, 3], ...]}`; row `i` becomes the tensor `i`, the
//! logits of its last layer in order, `[len, vocab]`, not shifted.

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_model::{DiffusionInfo, Gguf, LoadOptions, Model, SaveOptions};
use std::{error::Error, fs, path::Path};
use tch::{Kind, Tensor};

#[derive(serde::Deserialize)]
struct Rows {
    visibility: String,
    rows: Vec<Vec<i64>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["logits", model, rows, out] => logits(&mut load(model)?, rows, out),
        ["logits", model, rows, out, adapter] => logits(&mut load_with(model, adapter)?, rows, out),
        ["save-adapter", model, adapter, folder] => {
            Ok(load_with(model, adapter)?.save(Path::new(folder), Kind::Float, &[])?)
        }
        ["merge", model, adapter, folder] => {
            let mut model = load_with(model, adapter)?;
            model.merge_adapter()?;
            Ok(model.save(Path::new(folder), Kind::Float, &[])?)
        }
        ["convert", file, folder] => {
            let gguf = Gguf::read(Path::new(file), &LoadOptions::default())?;
            Ok(gguf.model.save(Path::new(folder), gguf.kind, &gguf.companions)?)
        }
        ["save", model, folder, kind, max_shard_bytes] => {
            let kind = match kind {
                "float32" => Kind::Float,
                "bfloat16" => Kind::BFloat16,
                "float16" => Kind::Half,
                other => return Err(format!("`{other}` is none of float32, bfloat16 and float16").into()),
            };
            let options = SaveOptions::from(kind).with_max_shard_bytes(max_shard_bytes.parse()?);
            Ok(load(model)?.save(Path::new(folder), options, &[])?)
        }
        [] => {
            println!(
                "usage: interop logits|convert|save|save-adapter|merge ARGUMENTS; the first lines of the file have each"
            );
            Ok(())
        }
        _ => Err("see the first lines of this file for what to ask".into()),
    }
}

fn load(folder: &str) -> Result<Model, Box<dyn Error>> {
    Ok(Model::load(Path::new(folder), &LoadOptions::default())?)
}

fn load_with(folder: &str, adapter: &str) -> Result<Model, Box<dyn Error>> {
    Ok(Model::load_with_adapter(Path::new(folder), Path::new(adapter), &LoadOptions::default())?)
}

fn logits(model: &mut Model, rows: &str, out: &str) -> Result<(), Box<dyn Error>> {
    model.set_diffusion(DiffusionInfo::new(0, false))?; // each state where it is
    let Rows { visibility, rows } = serde_json::from_slice(&fs::read(rows)?)?;
    let layout = match visibility.as_str() {
        "causal" => AttentionLayout::causal(),
        "bidirectional" => AttentionLayout::full(),
        other => return Err(format!("`{other}` is neither causal nor bidirectional").into()),
    };
    let mut named = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let states = model.hidden_states(&DenoiserInput::new(&Tensor::from_slice(row).unsqueeze(0), &layout))?;
        named.push((i.to_string(), model.head().logits(&states)?));
    }
    Tensor::write_safetensors(&named, out)?;
    Ok(())
}
