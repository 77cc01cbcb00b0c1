//! Two schedules, what they mask and weigh, and what a loss estimates: without a model.
//!
//! Tokens are drawn from a skewed distribution, and the denoiser knows exactly that distribution and nothing else. So the true
//! negative log-likelihood is the entropy, and one can watch how well each schedule and each way of drawing `t` estimates it.
//! To such a denoiser every moment of the linear schedule costs the same, so only under the cosine does spreading `t` evenly help.

use dlm_diffusion::{
    CleanBatch, ForwardProcess, LossNormalization, LossWeight, MaskPolicy, MaskRange, NoiseKey, NoiseSchedule,
    Objective, Purpose, Result, ScheduleName, Timesteps, diffusion_loss,
};
use tch::{Kind, Tensor};

const PROBABILITIES: [f64; 4] = [0.5, 0.25, 0.15, 0.1];
const MASK: i64 = 4;
const ROWS: usize = 16;
const SEQ_LEN: usize = 64;
const STEPS: u64 = 200;

fn main() -> Result<()> {
    let entropy: f64 = PROBABILITIES.iter().map(|p| -p * p.ln()).sum();
    println!("true entropy: {entropy:.4} nats per token");
    for name in ScheduleName::ALL {
        let schedule = NoiseSchedule::new(name, 1e-3)?;
        println!("\n{name}: {}", MaskRange::default().effective(&schedule, LossWeight::Auto));
        println!("     t   p_mask   weight");
        for t in [0.05, 0.25, 0.5, 0.75, 1.0] {
            println!("  {t:.2}   {:.4}   {:.4}", schedule.p_mask(t), schedule.elbo_weight(t));
        }
        for timesteps in [Timesteps::Independent, Timesteps::Stratified] {
            let (mean, deviation) = estimate(&schedule, timesteps)?;
            println!("  nelbo with {timesteps:?} timesteps: {mean:.4}, and {deviation:.4} the spread of single steps");
        }
    }
    Ok(())
}

/// Mean and standard deviation of the bound over optimiser steps.
fn estimate(schedule: &NoiseSchedule, timesteps: Timesteps) -> Result<(f64, f64)> {
    let process = ForwardProcess::new(schedule.clone(), MaskPolicy::new(MASK));
    let log_probabilities = Tensor::from_slice(&PROBABILITIES.map(|p| p.ln() as f32));
    let denoiser = |ids: &Tensor| log_probabilities.expand([ids.size()[0], ids.size()[1], MASK], false);
    let mut bounds = Vec::new();
    for step in 0..STEPS {
        let documents: Vec<u64> = (step * ROWS as u64..(step + 1) * ROWS as u64).collect();
        let key = |purpose, document| NoiseKey::new(7, purpose, 0).of_document(document, 0);
        let rows = |purpose| -> Vec<f32> {
            documents.iter().flat_map(|&document| key(purpose, document).uniforms(0, SEQ_LEN)).collect()
        };
        let t: Vec<f32> =
            documents.iter().map(|&document| timesteps.draw(&key(Purpose::Timestep, document), document)).collect();
        let ids: Vec<i64> = rows(Purpose::Length).into_iter().map(token).collect();
        let shape = [ROWS as i64, SEQ_LEN as i64];
        let clean = CleanBatch::new(Tensor::from_slice(&ids).view(shape))?;
        let uniform = Tensor::from_slice(&rows(Purpose::Mask)).view(shape);
        let batch = process.noise(clean, &Tensor::from_slice(&t).unsqueeze(1), &uniform)?;
        let output = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts())?;
        bounds.extend(output.metrics.nelbo.and_then(|nelbo| nelbo.value()));
    }
    let bounds = Tensor::from_slice(&bounds);
    Ok((bounds.mean(Kind::Double).double_value(&[]), bounds.std(true).double_value(&[])))
}

/// The token whose share of [0, 1) holds `uniform`.
fn token(uniform: f32) -> i64 {
    let mut end = 0.0;
    let below = PROBABILITIES.iter().take_while(|&&p| {
        end += p;
        f64::from(uniform) >= end
    });
    (below.count() as i64).min(MASK - 1)
}
