//! The loss over many masked positions and a large vocabulary: ours in chunks, and the plain one that holds all scores.
//!
//! `cargo run --release -p dlm-torch --example bench_loss -- [POSITIONS] [VOCAB] [WIDTH] [chunked|plain|both] [REPEATS]`
//!
//! Each runs in a process of its own, so that its peak memory is its own; memory is the peak above what inputs and gradients take.

use std::{process::Command, time::Instant};
use tch::{Device, Kind, Reduction, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, usual: i64| arguments.get(i).map_or(Ok(usual), |text| text.parse());
    let (n, vocab, width, repeats) = (number(0, 8192)?, number(1, 151_936)?, number(2, 1024)?, number(4, 3)?);
    let which = arguments.get(3).map_or("both", String::as_str);
    if which == "both" {
        println!("{n} positions, {vocab} tokens, {width} wide, float32, {} threads", tch::get_num_threads());
        // In turn, so that both see the same machine.
        for which in ["plain", "chunked", "plain", "chunked"] {
            let arguments = [n, vocab, width].map(|number| number.to_string());
            let child =
                Command::new(std::env::current_exe()?).args(arguments).args([which, &repeats.to_string()]).status()?;
            if !child.success() {
                println!("{which}: failed ({child}); too little memory?");
            }
        }
        return Ok(());
    }
    tch::manual_seed(1);
    let float = (Kind::Float, Device::Cpu);
    let hidden = Tensor::randn([n, width], float).set_requires_grad(true);
    let weight = (Tensor::randn([vocab, width], float) * 0.02).set_requires_grad(true);
    let targets = Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu));
    let weights = Tensor::rand([n], float);
    // Gradients are held from the beginning, as an optimiser holds them.
    let step = || -> Result<f64, Box<dyn std::error::Error>> {
        let loss = if which == "chunked" {
            let chunk_len = dlm_torch::chunk_rows(n as usize, vocab as usize);
            dlm_torch::linear_cross_entropy(&hidden, &weight, &targets, &weights, chunk_len, &Default::default())?
                .weighted_sum
        } else {
            let logits = hidden.matmul(&weight.tr());
            (logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::None, -100, 0.0) * &weights)
                .sum(Kind::Float)
        };
        let grads = Tensor::run_backward(&[&loss], &[&hidden, &weight], false, false);
        Ok(loss.double_value(&[]) + 0.0 * grads[1].get(0).get(0).double_value(&[]))
    };
    let held = resident_mib("VmRSS:") + (n + vocab) as f64 * width as f64 * 4.0 / f64::from(1 << 20);
    let mut best = f64::INFINITY;
    let mut loss = 0.0;
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        loss = step()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let peak = resident_mib("VmHWM:") - held;
    println!("{which:<8} {best:>8.2} s, peak {peak:>8.0} MiB above inputs and gradients, loss {loss:.4}");
    Ok(())
}

/// A number of `/proc/self/status` in MiB; 0 where there is none.
fn resident_mib(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
