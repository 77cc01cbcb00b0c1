//! Encodes every text of JSON Lines files and prints, per file, how many there are, their tokens, a checksum and the time.
//!
//! `cargo run --release -p dlm-tokenizer --example encode_rows -- TOKENIZER FILE...`
//!
//! The checksum is SHA-256 over each text's number of tokens and its ids, as 32-bit little-endian numbers. With `--library`
//! before the tokenizer the `tokenizers` library encodes, one text after the other, instead of this crate.

use dlm_tokenizer::{Specials, Tokenizer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{error::Error, fs, path::Path, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let by_library = arguments.first().is_some_and(|argument| argument == "--library");
    if by_library {
        arguments.remove(0);
    }
    let Some((tokenizer, files)) = arguments.split_first() else {
        println!("usage: encode_rows [--library] TOKENIZER FILE...");
        return Ok(());
    };
    let tokenizer = Tokenizer::load(tokenizer)?;
    let library = by_library.then(|| library(&tokenizer)).transpose()?;
    for file in files {
        let texts = texts(&fs::read_to_string(file)?)?;
        let started = Instant::now();
        let mut lengths = Vec::new();
        let mut all = Vec::new();
        let mut session = tokenizer.session();
        for text in &texts {
            let before = all.len();
            match &library {
                Some(library) => {
                    all.extend_from_slice(
                        library.encode_fast(text.as_str(), false).map_err(|error| error.to_string())?.get_ids(),
                    );
                }
                None => session.encode_into(text, Specials::AsText, &mut all)?,
            }
            lengths.push(all.len() - before);
        }
        let elapsed_s = started.elapsed().as_secs_f64();
        let mut hash = Sha256::new();
        let mut rest = &all[..];
        for length in lengths {
            let ids;
            (ids, rest) = rest.split_at(length);
            hash.update(u32::try_from(length)?.to_le_bytes());
            ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = Path::new(file).file_name().unwrap_or_default().display();
        println!("{name}\t{} texts\t{} tokens\tsha256 {hash}\t{elapsed_s:.2} s", texts.len(), all.len());
    }
    Ok(())
}

/// Every text in the rows of a file, in order.
fn texts(lines: &str) -> Result<Vec<String>, serde_json::Error> {
    let mut texts = Vec::new();
    for line in lines.lines() {
        let row: Map<String, Value> = serde_json::from_str(line)?;
        texts.extend(row.into_iter().filter_map(|(_, value)| match value {
            Value::String(text) => Some(text),
            _ => None,
        }));
    }
    Ok(texts)
}

/// The library's own tokenizer, to which special tokens that a text spells are text.
fn library(tokenizer: &Tokenizer) -> Result<tokenizers::Tokenizer, Box<dyn Error>> {
    let (_, json) = &tokenizer.files()?[0];
    let mut library = tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
    library.set_encode_special_tokens(true);
    Ok(library)
}
