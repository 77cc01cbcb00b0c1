//! From the start of a process to the first logits of a model folder: what `benches/model_load.py` times.
//!
//! ```sh
//! cargo run -p dlm-model --example first_logits -- MODEL [float32|bfloat16|float16] [IDS]
//! ```

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_model::{DiffusionInfo, LoadOptions, Model};
use std::{error::Error, path::PathBuf};
use tch::{Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/llama");
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(|| PathBuf::from(default), PathBuf::from);
    let kind = match args.next().as_deref() {
        None | Some("float32") => Kind::Float,
        Some("bfloat16") => Kind::BFloat16,
        Some("float16") => Kind::Half,
        Some(other) => return Err(format!("`{other}` is none of float32, bfloat16 and float16").into()),
    };
    let ids = args.next().unwrap_or_else(|| "5,6,7,8".to_owned());
    let ids: Vec<i64> = ids.split(',').map(str::parse).collect::<Result<_, _>>()?;

    let mut model = Model::load(&folder, &LoadOptions { kind, ..LoadOptions::default() })?;
    model.set_diffusion(DiffusionInfo::new(0, false))?; // the state where it is, as an autoregressive reader has it
    let (row, attention) = (Tensor::from_slice(&ids).unsqueeze(0), AttentionLayout::causal());
    let last = Tensor::from_slice(&[ids.len() as i64 - 1]);
    let states = tch::no_grad(|| model.hidden_states(&DenoiserInput::new(&row, &attention).at(&last)))?;
    let logits = model.head().logits(&states)?.to_kind(Kind::Float);
    let (largest, token) = logits.max_dim(-1, false);
    println!("{} {:.4}", token.int64_value(&[0]), largest.double_value(&[0]));
    Ok(())
}
