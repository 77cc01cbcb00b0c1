//! Measures a whole training step (forward, loss, backward, clipping, AdamW) and a denoising pass: medians of several, with the
//! machine's matrix-product rate beside them, since numbers compare within one run only.
//!
//! `make bench` runs it beside Axolotl's diffusion plugin (see `benches/train_step.py`): then it makes one step for each line that it
//! reads, with `MODEL_FOLDER --drive ROWS SEQ_LEN THREADS PRECISION [--checkpointing]`. Alone, with a folder or without, it measures
//! in float32.

use dlm_data::{Cursor, ReaderConfig};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, ForwardProcess, Objective, Timesteps};
use dlm_model::{LoadOptions, Model, ModelConfig};
use dlm_train::{
    AdamW, KeyedNoise, MemoryRows, NoisedWindow, ObjectiveConfig, OptimizerConfig, Precision, RowSource,
    optimizer_step, peak_memory_gib, set_precision,
};
use std::{error::Error, io::Write, path::Path, time::Instant};
use tch::{Device, Kind, Tensor};

const REPEATS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [folder, "--drive", rows, seq_len, threads, precision, ref rest @ ..] => {
            tch::set_num_threads(threads.parse()?);
            let model = Model::load(Path::new(folder), &LoadOptions::default())?;
            let precision = serde_json::from_value(precision.into())?;
            let mut bench = Bench::new(model, rows.parse()?, seq_len.parse()?, precision, rest == ["--checkpointing"])?;
            drive(&mut bench)
        }
        [] => alone(
            "preset small, vocabulary 8192",
            Model::from_config(ModelConfig::preset("small", 8192)?, 1, &LoadOptions::default())?,
        ),
        [folder] => alone(folder, Model::load(Path::new(folder), &LoadOptions::default())?),
        _ => Err("expected nothing, a model folder, or the words that `benches/train_step.py` says".into()),
    }
}

/// A model with an optimiser and a window of rows to step on.
struct Bench {
    model: Model,
    optimizer: AdamW,
    window: dlm_data::Window,
    process: ForwardProcess,
    loss: Objective,
    noise: KeyedNoise,
    step: u64,
}

impl Bench {
    fn new(
        mut model: Model,
        rows: usize,
        seq_len: usize,
        precision: Precision,
        checkpoints: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let vocab_size = i32::try_from(model.vocab_size())?;
        let texts: Vec<Vec<i32>> = (0..rows as i32)
            .map(|row| (0..seq_len as i32).map(|i| (row * 7919 + i * 104_729) % (vocab_size - 1)).collect())
            .collect();
        let texts = MemoryRows::of_texts(seq_len, &texts)?;
        let reader = ReaderConfig { micro_batch_size: rows, seed: 1, shuffle: false, ..ReaderConfig::default() };
        let window = texts.windows(&reader, Cursor::default())?.next_window()?;
        set_precision(&mut model, precision)?;
        model.set_gradient_checkpointing(checkpoints);
        model.train(true);
        let objective = ObjectiveConfig::new(i64::from(vocab_size) - 1);
        Ok(Self {
            optimizer: AdamW::new(model.named_parameters(), &OptimizerConfig::default()),
            window,
            process: objective.process()?,
            loss: objective.loss(),
            noise: KeyedNoise::training(1, Timesteps::Stratified),
            step: 0,
            model,
        })
    }

    /// One step; how many tokens were masked, and the loss.
    fn step(&mut self) -> Result<(u64, f64), Box<dyn Error>> {
        self.step += 1;
        let noised = NoisedWindow::new(&self.window.micro_batches, self.step, &self.process, &self.noise)?;
        let masked = noised.counts().masked;
        let report =
            optimizer_step(&self.model, Device::Cpu, &mut self.optimizer, &noised, &self.loss, 1e-4, self.step)?;
        Ok((masked, report.metrics.loss.value().unwrap_or(f64::NAN)))
    }
}

fn drive(bench: &mut Bench) -> Result<(), Box<dyn Error>> {
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        let (masked, loss) = bench.step()?;
        let elapsed_s = start.elapsed().as_secs_f64();
        let peak_mb = peak_memory_gib().unwrap_or(f64::NAN) * 1.024f64.powi(3) * 1000.0;
        println!("{}", serde_json::json!({"elapsed_s": elapsed_s, "masked": masked, "peak_mb": peak_mb, "loss": loss}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn alone(name: &str, model: Model) -> Result<(), Box<dyn Error>> {
    const ROWS: usize = 4;
    const SEQ_LEN: usize = 256;
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from(threads)?);
    println!(
        "{name}: {} parameters, {ROWS} rows of {SEQ_LEN} tokens, {threads} threads, float32",
        model.parameter_count()
    );
    println!("matrix product of 1024 x 1024: {:.0} GFLOP/s", matmul_gflops());
    let mut bench = Bench::new(model, ROWS, SEQ_LEN, Precision::Float32, false)?;
    let step_s = median(|| bench.step().map(|_| ()))?;
    println!(
        "training step: {step_s:.3} s, {:.0} tokens/s, peak memory {:.2} GiB",
        (ROWS * SEQ_LEN) as f64 / step_s,
        peak_memory_gib().unwrap_or(f64::NAN)
    );

    let Bench { mut model, .. } = bench;
    model.train(false);
    let ids = Tensor::full([1, 128], model.vocab_size() - 1, (Kind::Int64, Device::Cpu));
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
