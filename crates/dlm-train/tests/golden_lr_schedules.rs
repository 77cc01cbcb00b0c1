//! Learning rates of transformers' schedules.

use dlm_golden::{assert_number, number};
use dlm_train::{LrSchedule, LrScheduleConfig, LrScheduler, Warmup};
use serde_json::Value;

/// Whether the case is one of our schedules, without settings of its own.
fn check(case: &Value) -> bool {
    let Ok(scheduler) = case["name"].as_str().unwrap().parse::<LrScheduler>() else { return false };
    if case["kwargs"].as_object().is_some_and(|kwargs| !kwargs.is_empty()) {
        return false;
    }
    let warmup = Warmup::Steps(case["warmup_steps"].as_u64().unwrap());
    let config = LrScheduleConfig { learning_rate: number(&case["lr"]).unwrap(), scheduler, warmup };
    let schedule = LrSchedule::new(&config, case["total_steps"].as_u64().unwrap());
    for (step, expected) in case["lrs"].as_array().unwrap().iter().enumerate() {
        let expected = number(expected).unwrap();
        assert_number(&format!("{scheduler} step {step}"), schedule.rate(step as u64), expected, 1e-20, 1e-9);
    }
    true
}

#[test]
fn golden_rates_of_every_step_are_those_of_transformers() {
    let mut checked = 0;
    for path in dlm_golden::files("train_lr_schedules", "json") {
        let file = dlm_golden::json(&path);
        checked += file["cases"].as_array().unwrap().iter().filter(|case| check(case)).count();
    }
    assert!(checked > 0, "no schedule to compare with");
}
