//! How a model from scratch begins.

use crate::{
    config::ModelConfig,
    state_dict::{Init, Parameter, parameters},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tch::{Device, Kind, TchError, Tensor};

/// The parameters of a model from scratch, as the family's reference begins them: normal with the standard deviation
/// `initializer_range` (LLaDA's by [`Initializer`](crate::Initializer)), norms at one, biases and the padding token's embedding at zero.
///
/// Every number follows from `seed`, the parameter's place in the list and its place in the parameter: the same on every
/// device, with any number of threads, whatever was drawn before.
pub(crate) fn from_scratch(
    config: &ModelConfig,
    seed: u64,
    kind: Kind,
    device: Device,
) -> Result<Vec<(String, Tensor)>, TchError> {
    let embedding = format!("{}.weight", config.family.tensors.embedding);
    let named = parameters(config).into_iter().enumerate().map(|(i, Parameter { name, shape, init })| {
        let options = (Kind::Float, Device::Cpu);
        let tensor = match init {
            Init::Ones => Tensor::f_ones(&shape, options)?,
            Init::Zeros => Tensor::f_zeros(&shape, options)?,
            Init::Normal { std } => normal(seed, i as u64, &shape, std, f64::INFINITY)?,
            Init::Truncated { std } => normal(seed, i as u64, &shape, std, 3.0 * std)?,
        };
        if let Some(pad) = config.pad_token_id.filter(|_| name == embedding) {
            let _ = tensor.get(pad).f_zero_()?;
        }
        Ok((name, tensor.f_to_device(device)?.f_to_kind(kind)?))
    });
    named.collect()
}

/// Uniform numbers within `bound` of zero.
pub(crate) fn uniform(seed: u64, stream: u64, shape: &[i64], bound: f64) -> Result<Tensor, TchError> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    let len = shape.iter().product::<i64>() as usize;
    let mut draw = || (generator.next_u64() >> 11) as f64 * f64::powi(2.0, -53);
    let values: Vec<f32> = (0..len).map(|_| (bound * (2.0 * draw() - 1.0)) as f32).collect();
    Tensor::f_from_slice(&values)?.f_view(shape)
}

/// Normal numbers by Box and Muller, two from each pair of uniforms of 53 bits; those beyond `cut` are drawn again.
fn normal(seed: u64, stream: u64, shape: &[i64], std: f64, cut: f64) -> Result<Tensor, TchError> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    let len = shape.iter().product::<i64>() as usize;
    let mut values = Vec::with_capacity(len + 1);
    let mut uniform = || (generator.next_u64() >> 11) as f64 * f64::powi(2.0, -53);
    while values.len() < len {
        let radius = std * (-2.0 * (1.0 - uniform()).ln()).sqrt(); // 1 - u lies in (0, 1]
        let (sin, cos) = (std::f64::consts::TAU * uniform()).sin_cos();
        values
            .extend([radius * cos, radius * sin].iter().filter(|value| value.abs() <= cut).map(|&value| value as f32));
    }
    Tensor::f_from_slice(&values[..len])?.f_view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal_and_depend_on_the_seed_and_the_parameter() {
        let draw = |seed, stream| normal(seed, stream, &[101, 99], 0.5, f64::INFINITY).unwrap();
        let x = draw(3, 0);
        let count = 101.0 * 99.0;
        let mean = x.mean(Kind::Double).double_value(&[]);
        let std = x.std(true).double_value(&[]);
        let within_one_std = x.abs().lt(0.5).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!(mean.abs() < 4.0 * 0.5 / f64::sqrt(count), "{mean}");
        assert!((std - 0.5).abs() < 4.0 * 0.5 / f64::sqrt(2.0 * count), "{std}");
        assert!((within_one_std - 0.6827).abs() < 0.02, "{within_one_std}");
        assert_eq!(x, draw(3, 0));
        assert_ne!(x, draw(4, 0));
        assert_ne!(x, draw(3, 1));
        let cut = normal(3, 0, &[101, 99], 0.5, 0.75).unwrap();
        assert!(x.abs().max().double_value(&[]) > 0.75 && cut.abs().max().double_value(&[]) <= 0.75);
    }
}
