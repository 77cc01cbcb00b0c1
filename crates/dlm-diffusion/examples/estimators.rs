//! How far an estimate of a likelihood bound is off: plain masks, and exact counts spread evenly. The table of the crate's docs.
//!
//! The denoiser knows the distribution that its texts come from, so the bound is tight and the truth is known. Once each position has odds of
//! its own; once all have the same, so that tokens differ by nothing but what they are and what else is masked.

use dlm_diffusion::{
    CleanBatch, ForwardProcess, LossNormalization, MaskPolicy, NoiseKey, NoiseSchedule, Objective, Purpose, Result,
    WeightRule, diffusion_loss,
    evaluate::{BoundConfig, EvalDocument, bound},
};
use tch::Tensor;

const MASK: i64 = 2;
const LEN: usize = 32;
const SEEDS: u64 = 400;

fn main() -> Result<()> {
    // Tensors are too small to be shared out.
    tch::set_num_threads(1);
    for toy in [Toy::mixed(), Toy::alike()] {
        // A text that the first cause would give.
        let ids: Vec<i64> =
            NoiseKey::new(1, Purpose::Preview, 0).uniforms(0, LEN).iter().map(|u| i64::from(*u < 0.2)).collect();
        println!("{}: -log p of a text of {LEN} tokens is {:.3} nats\n", toy.name, -toy.log_likelihood(&ids));
        println!("| estimate | passes | mean | standard deviation |\n|---|---|---|---|");
        for passes in [8, 64] {
            let estimates: Result<Vec<f64>> = (0..SEEDS).map(|seed| plain(&toy, &ids, passes, seed)).collect();
            report("Bernoulli masks, `t` uniform, weight `1/p`", passes, &estimates?);
        }
        for passes in [4, 8, 16] {
            let config = |seed| BoundConfig { passes: passes / 2, replicates: 2, seed, ..BoundConfig::new(MASK) };
            let document = [EvalDocument::new(0, ids.clone())];
            let denoiser = |ids: &Tensor| toy.denoise(ids);
            let of_seed = |seed| Ok(bound(&denoiser, &document, &config(seed))?.nats_per_token * LEN as f64);
            let estimates: Result<Vec<f64>> = (0..SEEDS).map(of_seed).collect();
            report("exact counts, spread evenly, balanced shares", passes, &estimates?);
        }
        println!();
    }
    Ok(())
}

fn report(what: &str, passes: usize, estimates: &[f64]) {
    let n = estimates.len() as f64;
    let mean = estimates.iter().sum::<f64>() / n;
    let deviation = (estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    println!("| {what} | {passes} | {mean:.3} | {deviation:.3} |");
}

/// The training loss of so many copies of a text, in nats.
fn plain(toy: &Toy, ids: &[i64], passes: usize, seed: u64) -> Result<f64> {
    let key = |purpose| NoiseKey::new(seed, purpose, 0);
    let shape = [passes as i64, LEN as i64];
    let clean = CleanBatch::new(Tensor::from_slice(ids).unsqueeze(0).repeat([passes as i64, 1]))?;
    let t = Tensor::from_slice(&key(Purpose::Timestep).uniforms(0, passes)).unsqueeze(1);
    let uniform = Tensor::from_slice(&key(Purpose::Mask).uniforms(0, passes * LEN)).view(shape);
    let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK));
    let batch = process.noise(clean, &t, &uniform)?;
    let objective = Objective::new(LossNormalization::Token).weighted(WeightRule::elbo());
    let denoiser = |ids: &Tensor| toy.denoise(ids);
    Ok(diffusion_loss(&denoiser, &batch, &objective, &batch.counts())?.loss.double_value(&[]) * LEN as f64)
}

/// Texts of tokens 0 and 1 that depend on one of two causes, each as likely.
struct Toy {
    name: &'static str,
    /// How likely token 1 is at each position under either cause.
    odds: Vec<[f64; 2]>,
}

impl Toy {
    /// Each position has odds of its own.
    fn mixed() -> Self {
        let draws = |position| NoiseKey::new(2, Purpose::Preview, position).uniforms_f64(0, 2);
        let odds = |position| [0, 1].map(|cause: usize| 0.03 + 0.94 * draws(position)[cause]);
        Self { name: "each position with odds of its own", odds: (0..LEN as u64).map(odds).collect() }
    }

    /// All positions have the same.
    fn alike() -> Self {
        Self { name: "all positions alike", odds: vec![[0.2, 0.8]; LEN] }
    }

    fn joint(&self, ids: &[i64]) -> [f64; 2] {
        let seen = ids.iter().zip(&self.odds).filter(|(id, _)| **id != MASK);
        seen.fold([0.5, 0.5], |joint, (&id, odds)| {
            let p = odds.map(|p| if id == 1 { p } else { 1.0 - p });
            [joint[0] * p[0], joint[1] * p[1]]
        })
    }

    fn log_likelihood(&self, ids: &[i64]) -> f64 {
        self.joint(ids).iter().sum::<f64>().ln()
    }

    /// The exact conditional of every token given those that are seen.
    fn denoise(&self, ids: &Tensor) -> Tensor {
        let rows: Vec<Vec<i64>> = Vec::try_from(ids).expect("a matrix of ids");
        let mut logits = Vec::with_capacity(ids.numel() * 3);
        for row in &rows {
            let [a, b] = self.joint(row);
            for odds in &self.odds {
                let p = (a * odds[0] + b * odds[1]) / (a + b);
                logits.extend([(1.0 - p).ln() as f32, p.ln() as f32, -1e4]);
            }
        }
        Tensor::from_slice(&logits).view([rows.len() as i64, ids.size()[1], 3])
    }
}
