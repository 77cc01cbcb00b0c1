//! A sampler without weights: the "network" is a closure that has read one sentence.
//!
//! It gives a letter the more probability the nearer a known letter is, as a network is surer beside what it can see.
//! So one watches the reveal order of a masked diffusion model: text grows outwards from what is known, and fewer steps
//! fill more letters in each.
//!
//! Run it with `cargo run -p dlm-sample --example sampler_over_a_closure`.

use dlm_sample::{Canvas, KeyedDraws, SamplerConfig, Stats, sample};
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

const SENTENCE: &str = "masks turn into text, the surest first.";
const MASK: i64 = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ids: Vec<i64> = SENTENCE.bytes().map(i64::from).collect();
    // Everything but two islands is masked.
    let masked: Vec<usize> = (0..ids.len()).filter(|position| !(6..10).contains(position) && *position != 30).collect();

    for (steps, temperature) in [(34, 0.0), (6, 0.0), (6, 1.0)] {
        println!("\n{steps} steps at temperature {temperature}");
        let canvas = Canvas::mask_positions(&ids, &masked, MASK)?;
        println!("       {}", text(canvas.ids()));
        let config = SamplerConfig::new(MASK).with_steps(steps).with_temperature(temperature);
        let mut show = |event: &dlm_sample::StepEvent<'_>| {
            if event.step.is_multiple_of(steps / 6) || event.remaining == 0 {
                println!("  {:>3}  {}", event.step + 1, text(event.ids));
            }
            ControlFlow::Continue(())
        };
        let generations = sample(&denoiser, &[canvas], &config, &mut KeyedDraws::new(42), &mut show)?;
        println!("  {}", Stats::of(&generations));
    }
    Ok(())
}

/// Logits `[batch, seq_len, 129]` for ids `[batch, seq_len]`: the sentence's letter at each position, the surer the
/// nearer a known letter is.
fn denoiser(ids: &Tensor) -> Tensor {
    let (batch, seq_len) = ids.size2().expect("ids are [batch, seq_len]");
    let logits = Tensor::zeros([batch, seq_len, MASK + 1], (Kind::Float, tch::Device::Cpu));
    for row in 0..batch {
        let known: Vec<i64> = (0..seq_len).filter(|&position| ids.int64_value(&[row, position]) != MASK).collect();
        for (position, letter) in (0..seq_len).zip(SENTENCE.bytes()) {
            let distance = known.iter().map(|other| (other - position).abs()).min().unwrap_or(seq_len);
            let score = 9.0 / (distance.max(1) as f64).sqrt();
            let _ = logits.get(row).get(position).get(i64::from(letter)).fill_(score);
        }
    }
    logits
}

fn text(ids: &[i64]) -> String {
    let letter = |&id: &i64| u8::try_from(id).ok().filter(|byte| (b' '..127).contains(byte)).map_or('·', char::from);
    ids.iter().map(letter).collect()
}
