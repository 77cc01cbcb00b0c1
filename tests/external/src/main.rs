//! Uses `dlm-diffusion` from outside: a schedule, a mask and a loss over a closure, no other crate of dlm.

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, NoiseKey, NoiseSchedule, Purpose};
use tch::Tensor;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schedule = NoiseSchedule::Linear { eps: 1e-3 };
    let t = f64::from(NoiseKey::new(42, Purpose::Timestep, 0).uniform(0));
    println!("t = {t:.4}, p_mask = {:.4}, ELBO weight = {:.4}", schedule.p_mask(t), schedule.elbo_weight(t));

    // A denoiser that always believes in token 2.
    let denoiser = |ids: &Tensor| Tensor::from_slice(&[0f32, 0., 9.]).expand([ids.size()[0], ids.size()[1], 3], false);
    let (ids, attention) = (Tensor::from_slice2(&[[0i64, 1, 1]]), AttentionLayout::full());
    let states = denoiser.hidden_states(&DenoiserInput::new(&ids, &attention))?;
    println!("{:?}", Vec::<i64>::try_from(denoiser.head().logits(&states)?.argmax(1, false))?);
    Ok(())
}
