//! How fast prepared data opens and rows are read: `cargo run --example bench_reader -- DIR`.
//!
//! Measures the folder as it is, and as if its shards were repeated to a million rows.

use dlm_data::{Cursor, Manifest, PreparedData, Reader, ReaderConfig, Split};
use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

const MILLION: u64 = 1_000_000;
const READ: u64 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args().nth(1).ok_or("name a folder of prepared data")?.into();
    measure("as it is", &folder)?;
    let repeated = std::env::temp_dir().join(format!("dlm-bench-reader-{}", std::process::id()));
    repeat(&folder, &repeated)?;
    let measured = measure("repeated to a million rows", &repeated);
    fs::remove_dir_all(&repeated)?;
    measured
}

fn measure(name: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let data = PreparedData::open(folder, Split::Train)?;
    let mut reader = Reader::new(&data, ReaderConfig::default(), Cursor::default())?;
    println!("{name}: {} rows of {} tokens, opened in {:.1?}", data.rows(), data.sequence_len(), start.elapsed());

    let start = Instant::now();
    reader.next_window()?;
    println!("  first row, with the checksum of its shard  {:.1?}", start.elapsed());
    let start = Instant::now();
    data.verify()?;
    println!("  checksums of all shards                    {:.1?}", start.elapsed());
    let start = Instant::now();
    data.document_count()?;
    println!("  documents of all rows                      {:.1?}", start.elapsed());
    let start = Instant::now();
    reader.skip_to(Cursor::at(3, data.rows() / 2))?;
    println!("  skip to the middle of epoch 3              {:.1?}", start.elapsed());
    let start = Instant::now();
    reader.next_window()?;
    println!("  first window there, documents counted      {:.1?}", start.elapsed());
    for (way, shuffle) in [("in order", false), ("shuffled", true)] {
        let config = ReaderConfig { shuffle, ..ReaderConfig::default() };
        let mut reader = Reader::new(&PreparedData::open(folder, Split::Train)?, config, Cursor::default())?;
        // Once over the same rows, so that checksums are compared before.
        let read = READ.min(data.rows());
        for _ in 0..read {
            reader.next_window()?;
        }
        let start = Instant::now();
        for _ in 0..read {
            reader.next_window()?;
        }
        let rows = read as f64 / start.elapsed().as_secs_f64();
        println!("  {way:<43}{rows:.0} rows/s, {:.2} million tokens/s", rows * data.sequence_len() as f64 / 1e6);
    }
    Ok(())
}

/// A folder whose manifest names the shards of another over and over.
fn repeat(folder: &Path, repeated: &Path) -> Result<(), Box<dyn Error>> {
    let mut manifest = Manifest::read(folder)?;
    fs::create_dir_all(repeated.join("train"))?;
    copy(&folder.join("tokenizer"), &repeated.join("tokenizer"))?;
    let shards = std::mem::take(&mut manifest.train.shards);
    let source = folder.canonicalize()?;
    manifest.train.rows = 0;
    while manifest.train.rows < MILLION {
        for shard in &shards {
            let path = format!("train/{}.parquet", manifest.train.shards.len());
            std::os::unix::fs::symlink(source.join(&shard.path), repeated.join(&path))?;
            manifest.train.rows += shard.rows;
            manifest.train.shards.push(dlm_data::ShardInfo { path, ..shard.clone() });
        }
    }
    Ok(fs::write(repeated.join("manifest.json"), serde_json::to_vec(&manifest)?)?)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
