//! Measures a whole training step (forward, loss, backward, clipping, AdamW) and a denoising pass: medians of several, with the
//! machine's matrix-product rate beside them, since numbers compare within one run only.
//!
//! Run with `make bench`, or `cargo run --example bench_step -- MODEL_FOLDER` for a checkpoint of yours.

use dlm_data::{Cursor, ReaderConfig};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, Timesteps};
use dlm_model::{LoadOptions, Model, ModelConfig};
use dlm_train::{
    AdamW, KeyedNoise, MemoryRows, NoisedWindow, ObjectiveConfig, OptimizerConfig, RowSource, optimizer_step,
    peak_memory_gib,
};
use std::{error::Error, path::Path, time::Instant};
use tch::{Device, Kind, Tensor};

const ROWS: usize = 4;
const SEQ_LEN: usize = 256;
const REPEATS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from(threads)?);
    let options = LoadOptions::default();
    let (name, mut model) = match std::env::args().nth(1) {
        Some(folder) => (folder.clone(), Model::load(Path::new(&folder), &options)?),
        None => (
            "preset small, vocabulary 8192".to_owned(),
            Model::from_config(ModelConfig::preset("small", 8192)?, 1, &options)?,
        ),
    };
    model.train(true);
    println!(
        "{name}: {} parameters, {ROWS} rows of {SEQ_LEN} tokens, {threads} threads, float32",
        model.parameter_count()
    );
    println!("matrix product of 1024 x 1024: {:.0} GFLOP/s", matmul_gflops());

    let vocab_size = i32::try_from(model.vocab_size())?;
    let mask_token_id = i64::from(vocab_size) - 1;
    let texts: Vec<Vec<i32>> = (0..ROWS as i32)
        .map(|row| (0..SEQ_LEN as i32).map(|i| (row * 7919 + i * 104_729) % (vocab_size - 1)).collect())
        .collect();
    let rows = MemoryRows::of_texts(SEQ_LEN, &texts)?;
    let reader = ReaderConfig { micro_batch_size: ROWS, seed: 1, shuffle: false, ..ReaderConfig::default() };
    let window = rows.windows(&reader, Cursor::default())?.next_window()?;

    let objective = ObjectiveConfig::new(mask_token_id);
    let (process, loss) = (objective.process()?, objective.loss());
    let noise = KeyedNoise::training(1, Timesteps::Stratified);
    let mut optimizer = AdamW::new(model.named_parameters(), &OptimizerConfig::default());
    let mut step = 0;
    let step_s = median(|| {
        step += 1;
        let noised = NoisedWindow::new(&window.micro_batches, step, &process, &noise)?;
        optimizer_step(&model, Device::Cpu, &mut optimizer, &noised, &loss, 1e-4, step)?;
        Ok(())
    })?;
    println!(
        "training step: {step_s:.3} s, {:.0} tokens/s, peak memory {:.2} GiB",
        (ROWS * SEQ_LEN) as f64 / step_s,
        peak_memory_gib().unwrap_or(f64::NAN)
    );

    model.train(false);
    let ids = Tensor::full([1, 128], mask_token_id, (Kind::Int64, Device::Cpu));
    let (attention, wanted) = (AttentionLayout::full(), Tensor::arange(32, (Kind::Int64, Device::Cpu)));
    let pass_s = median(|| {
        let hidden = tch::no_grad(|| model.hidden_states(&DenoiserInput::new(&ids, &attention).at(&wanted)))?;
        let _logits = model.head().logits(&hidden)?;
        Ok(())
    })?;
    println!("denoising pass: {pass_s:.4} s for 128 tokens with logits at 32");
    Ok(())
}

/// The median time of several calls, after one that warms up.
fn median(mut call: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    call()?;
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}

fn matmul_gflops() -> f64 {
    let a = Tensor::ones([1024, 1024], (Kind::Float, Device::Cpu));
    let _warm = a.matmul(&a);
    let start = Instant::now();
    for _ in 0..REPEATS {
        let _product = a.matmul(&a);
    }
    2.0 * 1024f64.powi(3) * REPEATS as f64 / start.elapsed().as_secs_f64() / 1e9
}
