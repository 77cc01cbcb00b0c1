//! Trains a small tokenizer on the sources of this crate and shows how it cuts text, and what it does with special tokens.
//!
//! `cargo run -p dlm-tokenizer --example train_tokenizer`

use dlm_tokenizer::{KeepSpecials, Specials, Tokenizer, TokenizerError, TrainOptions};
use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            texts.push(fs::read_to_string(path)?);
        }
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    println!("training on {bytes} bytes of Rust");
    for vocab_size in [300, 600, 1200] {
        let tokenizer = Tokenizer::train_bpe(texts.iter().cloned(), &TrainOptions::new(vocab_size))?;
        let mut n_tokens = 0;
        for text in &texts {
            n_tokens += tokenizer.encode(text, Specials::AsText)?.len();
        }
        let bytes_per_token = bytes as f64 / n_tokens as f64;
        println!("\n{} tokens: {bytes_per_token:.2} bytes per token of text", tokenizer.len());
        println!("  {}", pieces(&tokenizer, "The tokenizer reads the chat template.", Specials::AsText)?);
    }

    let tokenizer = Tokenizer::train_bpe(texts.into_iter(), &TrainOptions::new(1200))?;
    let text = "a <|diffusion_mask|> here";
    println!("\nwritten by a template: {}", pieces(&tokenizer, text, Specials::Parse)?);
    println!("written by a user:     {}", pieces(&tokenizer, text, Specials::AsText)?);
    println!("\nsaved beside a model:");
    for (name, content) in tokenizer.files()? {
        println!("  {name}, {} bytes", content.len());
    }
    println!("  sha256 of tokenizer.json {}", tokenizer.hash());
    Ok(())
}

fn pieces(tokenizer: &Tokenizer, text: &str, specials: Specials) -> Result<String, TokenizerError> {
    let ids = tokenizer.encode(text, specials)?;
    let pieces: Result<Vec<_>, _> = ids.iter().map(|&id| tokenizer.decode(&[id], KeepSpecials::Yes)).collect();
    Ok(pieces?.join("|"))
}
