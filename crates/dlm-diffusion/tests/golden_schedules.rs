//! Schedules equal those of dllm, MDLM and BD3-LM, under names that tell them apart.

use dlm_diffusion::{NoiseSchedule, WeightRule};
use dlm_golden::{files, tensors};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

type Numbers = BTreeMap<String, Vec<f64>>;

/// Our schedule for a recorded one, and what its system adds to the probability that a weight is divided by.
fn ours(system: &str, name: &str) -> Option<(NoiseSchedule, f64)> {
    let eps = 1e-3;
    let sigmas: Vec<f64> = name.split('_').skip(1).filter_map(|number| number.parse().ok()).collect();
    Some(match (system, name) {
        ("dllm", "linear") => (NoiseSchedule::Linear { eps: 0.0 }, 1e-6),
        ("dllm", "cosine") => (NoiseSchedule::Sine { eps: 0.0 }, 1e-6),
        ("mdlm", "loglinear") => (NoiseSchedule::LogLinear { eps }, 0.0),
        ("mdlm", "cosine") => (NoiseSchedule::MdlmCosine { eps }, 0.0),
        ("mdlm", "cosinesqr") => (NoiseSchedule::CosineSquared { eps }, 0.0),
        ("mdlm", name) if name.starts_with("geometric") => {
            (NoiseSchedule::Geometric { sigma_min: sigmas[0], sigma_max: sigmas[1] }, 0.0)
        }
        ("mdlm", name) if name.starts_with("linear_") => {
            (NoiseSchedule::LinearSigma { sigma_min: sigmas[0], sigma_max: sigmas[1] }, 0.0)
        }
        ("bd3lm", "loglinear") => (NoiseSchedule::Linear { eps: 0.0 }, 0.0),
        ("bd3lm", "cosine") => (NoiseSchedule::Cosine { eps }, eps),
        ("bd3lm", "square") => (NoiseSchedule::Square { eps }, 0.0),
        ("bd3lm", "square_root") => (NoiseSchedule::SquareRoot { eps }, 0.0),
        ("bd3lm", "log") => (NoiseSchedule::Logarithmic { eps: 0.0 }, 0.0),
        // How edit flows mix: no schedule of masks.
        ("dllm", name) if name.starts_with("kappa") => return None,
        _ => panic!("no schedule for {system}.{name}"),
    })
}

#[test]
fn golden_schedules_have_our_probabilities_slopes_and_weights() {
    let mut compared = BTreeMap::new();
    for path in files("diffusion_schedules", "safetensors") {
        let numbers: Numbers = tensors(&path)
            .iter()
            .map(|(name, tensor)| (name.clone(), Vec::try_from(tensor.to_kind(Kind::Double)).expect("numbers")))
            .collect();
        let times = &numbers["t"];
        for (key, expected) in numbers.iter().filter(|(key, _)| *key != "t") {
            let (schedule, quantity) = key.rsplit_once('.').expect("schedule.quantity");
            let (system, name) = schedule.split_once('.').expect("system.name");
            let Some((ours, offset)) = ours(system, name) else { continue };
            let largest = compared.entry(quantity.to_owned()).or_insert(0f64);
            if quantity == "reverse_mask_prob_s_prev_t" {
                for (i, &expected) in expected.iter().enumerate() {
                    let found = ours.p_mask(times[i]) / ours.p_mask(times[i + 1]);
                    assert_close(key, &ours, times[i + 1], found, expected, largest);
                }
                continue;
            }
            for (&t, &expected) in times.iter().zip(expected) {
                let sigma = -ours.alpha(t).ln();
                let found = match quantity {
                    "alpha" => ours.alpha(t),
                    "alpha_derivative" => ours.alpha_slope(t),
                    "move_chance" => ours.p_mask(t),
                    "sigma" => sigma,
                    "dsigma" => -ours.alpha_slope(t) / ours.alpha(t),
                    "weight" => WeightRule::elbo().with_offset(offset).at(&ours, t),
                    "loss_scaling" => -WeightRule::elbo().with_offset(offset).at(&ours, t),
                    // Time at which the logarithm of the probability has gone a share `t` of its way.
                    "importance_sampling_transformation" => {
                        let (first, last) = (1.0 - (-1e-3f64).exp(), ours.p_mask(1.0));
                        ours.t_at(NoiseSchedule::Exponential { p_min: first, p_max: last }.p_mask(t))
                    }
                    other => panic!("{key}: {other}"),
                };
                // Their first weight is 0 times infinity or has no meaning: nothing is masked there.
                if !expected.is_nan() && (t != 0.0 || quantity != "loss_scaling") {
                    assert_close(key, &ours, t, found, expected, largest);
                }
            }
        }
    }
    println!("{compared:?}");
    assert!(compared.len() >= 8, "{compared:?}");
}

/// Within `1e-5`, and what it costs to divide by a probability or its complement, which float32 holds to `2e-7`.
fn assert_close(key: &str, ours: &NoiseSchedule, t: f64, found: f64, expected: f64, largest: &mut f64) {
    dlm_golden::record(key, (found - expected).abs() / expected.abs().max(1.0));
    if found == expected {
        return;
    }
    let division = 2e-7 / ours.p_mask(t).max(1e-9) + 2e-7 / ours.alpha(t).max(1e-9);
    let (error, size) = ((found - expected).abs(), expected.abs());
    assert!(error <= 1e-5 * size + division * size.max(1.0), "{key} at {t}: {found}, expected {expected}");
    *largest = largest.max(error / size.max(1.0));
}

#[test]
fn the_cosines_of_three_systems_are_three_curves_in_golden_data() {
    let path = &files("diffusion_schedules", "safetensors")[0];
    let tensors = tensors(path);
    let p = |name: &str| -> Tensor {
        let alpha = tensors.get(&format!("{name}.alpha")).map(|alpha| 1.0 - alpha);
        alpha.unwrap_or_else(|| tensors[&format!("{name}.move_chance")].shallow_clone())
    };
    let distance = |a: &str, b: &str| (p(a) - p(b)).abs().max().double_value(&[]);
    assert!(distance("dllm.cosine", "mdlm.cosine") > 0.4);
    assert!(distance("bd3lm.cosine", "mdlm.cosine") > 9e-4);
}
