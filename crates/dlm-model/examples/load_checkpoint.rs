//! Loads a model folder, lists its parameters, and lets it fill a masked position.
//!
//! ```text
//! cargo run -p dlm-model --example load_checkpoint [MODEL_DIR]
//! ```

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_model::{LoadOptions, Model};
use std::{error::Error, path::PathBuf};
use tch::{Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/llama");
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from(default), PathBuf::from);
    let model = Model::load(&folder, &LoadOptions::default())?;

    let config = model.config();
    println!("{}: {} blocks of width {}", config.family.name, config.num_hidden_layers, config.hidden_size);
    for (name, tensor) in model.named_parameters() {
        println!("  {name:50} {:?}", tensor.size());
    }
    println!("{} parameters; logits shift: {}", model.parameter_count(), config.logits_shift());

    // Any token can stand for the mask in a model that was never trained to denoise; the last one is as good as another.
    let mask_token_id = model.mask_token_id().unwrap_or(model.vocab_size() - 1);
    let ids = Tensor::from_slice2(&[[5, 6, mask_token_id, 8]]);
    let (attention, wanted) = (AttentionLayout::full(), Tensor::from_slice(&[2i64]));
    let states = model.hidden_states(&DenoiserInput::new(&ids, &attention).at(&wanted))?; // [1, hidden]
    let logits = model.head().logits(&states)?; // [1, vocab], not [4, vocab]
    let (probability, token) = logits.softmax(-1, Kind::Float).max_dim(-1, false);
    let (token, probability) = (token.int64_value(&[0]), probability.double_value(&[0]));
    println!("of 5 6 [mask] 8 the mask is most likely token {token} (probability {probability:.4})");
    Ok(())
}
