//! The loss over many masked positions and a large vocabulary: ours in chunks, and the plain one that holds all scores.
//!
//! `cargo run --release -p dlm-torch --example bench_loss -- [POSITIONS] [VOCAB] [WIDTH] [chunked|plain|both] [ROUNDS]`
//!
//! Without arguments 8192 positions over 151,936 tokens in float32, once each: some minutes, and 14 GiB for the plain one. Each runs in a
//! process of its own, in turn, so that its peak memory is its own; memory is the peak above what inputs and gradients take.

use std::{process::Command, time::Instant};
use tch::{Device, Kind, Reduction, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, usual: i64| arguments.get(i).map_or(Ok(usual), |text| text.parse());
    let (n, vocab, width, rounds) = (number(0, 8192)?, number(1, 151_936)?, number(2, 1024)?, number(4, 1)?);
    match arguments.get(3).map_or("both", String::as_str) {
        "both" => compare(n, vocab, width, rounds.max(1)),
        which => {
            let Measured { seconds, mib, loss } = measure(n, vocab, width, which == "chunked")?;
            println!("{seconds} {mib} {loss}");
            Ok(())
        }
    }
}

/// One step: seconds, peak memory above inputs and gradients, and the loss.
#[derive(Clone, Copy)]
struct Measured {
    seconds: f64,
    mib: f64,
    loss: f64,
}

/// Runs both in turn and prints what each needs, the best of its rounds.
fn compare(n: i64, vocab: i64, width: i64, rounds: i64) -> Result<()> {
    println!("{n} positions, {vocab} tokens, {width} wide, float32, {} threads\n", tch::get_num_threads());
    // Scores, their logarithms and the gradient of both, which the plain one holds at once, beside inputs and gradients.
    let gib = (3 * n * vocab + 2 * (n + vocab) * width) as f64 * 4.0 / f64::from(1 << 30);
    let free = mib_of("/proc/meminfo", "MemAvailable:") / 1024.0;
    let has_room = free >= gib;
    let mut best: [Option<Measured>; 2] = [None, None];
    for _ in 0..rounds {
        for (which, best) in ["plain", "chunked"].into_iter().zip(&mut best) {
            if which == "plain" && !has_room {
                continue;
            }
            let arguments = [n, vocab, width].map(|number| number.to_string());
            let child = Command::new(std::env::current_exe()?).args(arguments).arg(which).output()?;
            let text = String::from_utf8_lossy(&child.stdout);
            let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [seconds, mib, loss] = numbers[..] else {
                return Err(format!("{which}: {} {}", child.status, String::from_utf8_lossy(&child.stderr)).into());
            };
            let before = best.map_or(f64::INFINITY, |measured| measured.seconds);
            *best = Some(Measured { seconds: seconds.min(before), mib, loss });
        }
    }
    println!("| loss | seconds | peak MiB above inputs and gradients | value |\n|---|---|---|---|");
    for (name, measured) in [("all scores at once", best[0]), ("in chunks", best[1])] {
        match measured {
            Some(Measured { seconds, mib, loss }) => println!("| {name} | {seconds:.1} | {mib:.0} | {loss:.3} |"),
            None => println!("| {name} | not run: needs about {gib:.0} GiB, {free:.0} are free | | |"),
        }
    }
    if let [Some(plain), Some(chunked)] = best {
        let (memory, time) = (plain.mib / chunked.mib, chunked.seconds / plain.seconds);
        println!("\n1/{memory:.0} of the memory in {time:.2} of the time");
    }
    Ok(())
}

fn measure(n: i64, vocab: i64, width: i64, in_chunks: bool) -> Result<Measured> {
    tch::manual_seed(1);
    let float = (Kind::Float, Device::Cpu);
    let hidden = Tensor::randn([n, width], float).set_requires_grad(true);
    let weight = (Tensor::randn([vocab, width], float) * 0.02).set_requires_grad(true);
    let targets = Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu));
    let weights = Tensor::rand([n], float);
    // Gradients are held from the beginning, as an optimiser holds them.
    let held = mib_of("/proc/self/status", "VmRSS:") + (n + vocab) as f64 * width as f64 * 4.0 / f64::from(1 << 20);
    let start = Instant::now();
    let loss = if in_chunks {
        let chunk_len = dlm_torch::chunk_rows(n as usize, vocab as usize);
        dlm_torch::linear_cross_entropy(&hidden, &weight, None, &targets, &weights, chunk_len, &Default::default())?
            .weighted_sum
    } else {
        let logits = hidden.matmul(&weight.tr());
        (logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::None, -100, 0.0) * &weights).sum(Kind::Float)
    };
    let grads = Tensor::run_backward(&[&loss], &[&hidden, &weight], false, false);
    let loss = loss.double_value(&[]) + 0.0 * grads[1].get(0).get(0).double_value(&[]);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Measured { seconds, mib: mib_of("/proc/self/status", "VmHWM:") - held, loss })
}

/// A number of a file under `/proc` in MiB; 0 where there is none.
fn mib_of(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
