//! Builds a pipeline in Rust, runs it on a few lines, and reads the result as a training loop would.
//!
//! `cargo run -p dlm-data --example pipeline_in_rust [TOKENIZER]`

use dlm_data::{
    Cursor, InspectOptions, Pack, Pipeline, PrepareOptions, PreparedData, Reader, ReaderConfig, Split, Tokenize,
    inspect,
};
use std::{error::Error, fs, path::PathBuf};

const LINES: &str = r#"
{"text": "The tide comes in twice a day.", "language": "en"}
{"text": "Die Flut kommt zweimal am Tag.", "language": "de"}
{"text": "Gulls wait on the harbour wall.", "language": "en"}
{"text": "The tide comes in twice a day.", "language": "en"}
{"text": "A long sentence is cut when a row is shorter than it, and each piece remembers where it began.", "language": "en"}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
    let tokenizer = std::env::args().nth(1).map_or(golden, PathBuf::from);
    let folder = std::env::temp_dir().join(format!("dlm-pipeline-in-rust-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("lines.jsonl"), LINES)?;

    // The same could stand in a TOML file: `Pipeline::from_file`.
    let pipeline = Pipeline::new()
        .relative_to(&folder)
        .source("lines.jsonl")
        .filter("language = 'en'")
        .dedup(["text"])
        .tokenize(Tokenize::new(fs::canonicalize(tokenizer)?))
        .pack(Pack::new(40))
        .output("prepared");
    println!("--- the pipeline as TOML\n{}", pipeline.to_toml()?);

    let options = PrepareOptions::default();
    println!("--- the plan DataFusion runs\n{}", pipeline.explain(&options.resources)?);

    let report = pipeline.prepare(&options, |_| ())?;
    let account = &report.manifest.account;
    println!("--- {} rows, {} documents, {} tokens", account.rows, account.documents, account.tokens);
    for row in &inspect(&report.output, &InspectOptions { samples: 9, ..InspectOptions::default() })?.sides[0].samples {
        println!("row with {} padding tokens", row.padding);
        for segment in &row.segments {
            let text: String = segment.spans.iter().map(|span| span.text.as_str()).collect();
            println!("  document {} from token {}: {text:?}", segment.document, segment.offset);
        }
    }

    let data = PreparedData::open(&report.output, Split::Train)?;
    let config = ReaderConfig { micro_batch_size: 2, micro_batches_per_window: 2, ..ReaderConfig::default() };
    let mut reader = Reader::new(&data, config, Cursor::default())?;
    for _ in 0..2 * reader.windows_per_epoch() {
        let window = reader.next_window()?;
        let rows: usize = window.micro_batches.iter().map(|batch| batch.rows).sum();
        println!("epoch {}: a window of {rows} rows; go on at {:?}", window.epoch, window.cursor);
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}
