use super::*;
use crate::error::DiffusionError;
use proptest::prelude::*;

fn schedules() -> impl Strategy<Value = NoiseSchedule> {
    let named = (proptest::sample::select(&ScheduleName::ALL[..]), 1e-4f64..0.5)
        .prop_map(|(name, eps)| NoiseSchedule::new(name, eps).unwrap());
    prop_oneof![13 => named, 1 => Just(NoiseSchedule::custom("smoothstep", |t| t * t * (3.0 - 2.0 * t)).unwrap())]
}

/// Where the curve is cut off it is flat, and its slope is by definition not its derivative.
fn is_cut_off(schedule: &NoiseSchedule, t: f64) -> bool {
    matches!(schedule, NoiseSchedule::Square { eps } | NoiseSchedule::SquareRoot { eps } if schedule.p_mask(t) <= *eps)
}

proptest! {
    /// Trap 2: by finite differences, for every schedule.
    #[test]
    fn the_slope_is_the_derivative_of_alpha(schedule in schedules(), t in 0.01f64..0.99) {
        prop_assume!(!is_cut_off(&schedule, t - 1e-4) || is_cut_off(&schedule, t + 1e-4));
        prop_assume!(!is_cut_off(&schedule, t));
        let h = 1e-5;
        let difference = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2.0 * h);
        let tolerance = 1e-6 * (1.0 + difference.abs());
        prop_assert!((schedule.alpha_slope(t) - difference).abs() < tolerance, "{difference}");
    }

    /// Trap 2: the weight is `-alpha' / (1 - alpha)`.
    #[test]
    fn the_elbo_weight_is_the_derivative_of_the_logarithm_of_p_mask(schedule in schedules(), t in 0.05f64..0.95) {
        prop_assume!(!is_cut_off(&schedule, t - 1e-4));
        let h = 1e-6;
        let difference = (schedule.p_mask(t + h).ln() - schedule.p_mask(t - h).ln()) / (2.0 * h);
        prop_assert!((schedule.elbo_weight(t) - difference).abs() < 1e-5 * schedule.elbo_weight(t) + 1e-8);
    }

    #[test]
    fn the_inverse_gives_the_time_back(schedule in schedules(), t in 0.0f64..=1.0) {
        prop_assume!(!is_cut_off(&schedule, t) && schedule.p_mask(t) < 0.999);
        prop_assert!((schedule.t_at(schedule.p_mask(t)) - t).abs() < 1e-7);
    }

    #[test]
    fn tensors_hold_what_the_scalar_functions_say(schedule in schedules(), t in 0.001f64..=1.0) {
        let tensor = Tensor::from_slice(&[t]);
        let close = |tensor: &Tensor, scalar: f64| (tensor.double_value(&[0]) - scalar).abs() <= 1e-12 * scalar.abs().max(1.0);
        prop_assert!(close(&schedule.p_mask_of(&tensor), schedule.p_mask(t)));
        prop_assert!(close(&schedule.alpha_of(&tensor), schedule.alpha(t)));
        prop_assert!(close(&schedule.alpha_slope_of(&tensor), schedule.alpha_slope(t)));
        prop_assert!(close(&schedule.elbo_weight_of(&tensor), schedule.elbo_weight(t)));
    }

    #[test]
    fn more_is_masked_as_time_goes_on(schedule in schedules(), a in 0.0f64..=1.0, b in 0.0f64..=1.0) {
        prop_assert!(!(a < b && schedule.p_mask(a) > schedule.p_mask(b) + 1e-15));
        prop_assert!((0.0..=1.0).contains(&schedule.p_mask(a)));
    }

    #[test]
    fn in_float32_a_probability_stays_a_probability(schedule in schedules(), t in 0.0f32..=1.0) {
        let p_mask = schedule.p_mask_of(&Tensor::from_slice(&[t])).double_value(&[0]);
        prop_assert!((0.0..=1.0).contains(&p_mask), "{p_mask}");
    }

    #[test]
    fn a_function_that_falls_anywhere_is_no_schedule(from in 0.0f64..0.99) {
        let falling = move |t: f64| if t < from { 0.5 * t } else { 0.5 * from - 0.01 * (t - from) };
        let found = NoiseSchedule::custom("falling", move |t| falling(t).max(0.0));
        prop_assert_eq!(matches!(found, Err(DiffusionError::NotMonotone { .. })), from > 1e-3 || found.is_err(), "{:?}", found);
    }
}

/// Trap 2: all masks at the end, or all but `eps`, as declared.
#[test]
fn every_schedule_begins_and_ends_where_its_table_says() {
    let eps = 0.003;
    let sigma = |sigma: f64| 1.0 - (-sigma).exp();
    for name in ScheduleName::ALL {
        let schedule = NoiseSchedule::new(name, eps).unwrap();
        let (first, last) = match name {
            ScheduleName::LogLinear | ScheduleName::MdlmCosine | ScheduleName::CosineSquared => (0.0, 1.0 - eps),
            ScheduleName::LinearSigma => (0.0, sigma(10.0)),
            ScheduleName::Geometric => (sigma(1e-3), sigma(20.0)),
            _ => (eps, 1.0),
        };
        assert!((schedule.p_mask(0.0) - first).abs() < 1e-12, "{name}");
        assert!((schedule.p_mask(1.0) - last).abs() < 1e-12, "{name}");
    }
}

/// Trap 2: the cosines of three systems are three curves.
#[test]
fn no_two_names_stand_for_the_same_curve() {
    let curves = ScheduleName::ALL.map(|name| {
        let schedule = NoiseSchedule::new(name, 0.003).unwrap();
        [0.1, 0.5, 0.9].map(|t| schedule.p_mask(t))
    });
    for (i, a) in curves.iter().enumerate() {
        for b in &curves[..i] {
            // `polynomial` of power 2 is `square` but for `eps`.
            assert!(a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-4), "{}", ScheduleName::ALL[i]);
        }
    }
}

#[test]
fn at_half_time_linear_masks_half_and_cosine_less_than_a_third() {
    let half = |name| NoiseSchedule::new(name, 0.0).unwrap().p_mask(0.5);
    assert!((half(ScheduleName::Linear) - 0.5).abs() < 1e-15);
    assert!((half(ScheduleName::Cosine) - (1.0 - 0.5f64.sqrt())).abs() < 1e-15);
    assert!((half(ScheduleName::Sine) - 0.5f64.sqrt()).abs() < 1e-15, "the mirror image");
}

#[test]
fn eps_outside_the_unit_interval_is_refused_and_its_ends_are_not() {
    for eps in [-0.1, 1.5, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            NoiseSchedule::new(ScheduleName::Linear, eps),
            Err(DiffusionError::OutOfRange { name: "eps", .. })
        ));
    }
    for eps in [0.0, 1.0] {
        assert!(NoiseSchedule::new(ScheduleName::Cosine, eps).is_ok());
    }
}

#[test]
fn a_parameter_of_another_schedule_is_refused() {
    let linear = ScheduleConfig::new(ScheduleName::Linear, 1e-3);
    let refused = |config: ScheduleConfig| matches!(config.build(), Err(DiffusionError::ForeignParameter { .. }));
    assert!(refused(ScheduleConfig { sigma_min: Some(0.1), ..linear }));
    assert!(refused(ScheduleConfig { sigma_max: Some(0.1), ..linear }));
    assert!(refused(ScheduleConfig { power: Some(2.0), ..linear }));
    let geometric = ScheduleConfig::new(ScheduleName::Geometric, 1e-3);
    for (sigma_min, sigma_max) in [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (f64::NAN, 1.0), (0.1, f64::INFINITY)] {
        let config = ScheduleConfig { sigma_min: Some(sigma_min), sigma_max: Some(sigma_max), ..geometric };
        assert!(matches!(config.build(), Err(DiffusionError::OutOfRange { .. })), "{sigma_min} {sigma_max}");
    }
}

#[test]
fn parameters_shape_their_schedule() {
    let at_half = |config: ScheduleConfig| config.build().unwrap().p_mask(0.5);
    let power = ScheduleConfig { power: Some(3.0), ..ScheduleConfig::new(ScheduleName::Polynomial, 0.0) };
    assert!((at_half(power) - 0.125).abs() < 1e-15);
    let sigmas = |name| ScheduleConfig { sigma_min: Some(0.5), sigma_max: Some(2.0), ..ScheduleConfig::new(name, 0.0) };
    assert!((at_half(sigmas(ScheduleName::Geometric)) - (1.0 - (-1.0f64).exp())).abs() < 1e-15);
    assert!((at_half(sigmas(ScheduleName::LinearSigma)) - (1.0 - (-1.25f64).exp())).abs() < 1e-15);
}

#[test]
fn a_schedule_is_named_as_in_settings() {
    for name in ScheduleName::ALL {
        assert_eq!(name.as_str().parse::<ScheduleName>().unwrap(), name);
        assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
    }
    let error = "loglinear".parse::<ScheduleName>().unwrap_err();
    assert!(error.help().unwrap().contains("`log_linear`"));
}
