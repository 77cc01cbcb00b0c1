//! The learning rate of each optimiser step: a warmup, then a decay, as transformers computes them.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::{f64::consts::PI, fmt, str::FromStr};

/// How the rate falls after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine.
    #[default]
    Cosine,
    /// Never, and without a warmup.
    Constant,
    /// Never, after the warmup.
    ConstantWithWarmup,
}

impl LrScheduler {
    const ALL: [Self; 4] = [Self::Linear, Self::Cosine, Self::Constant, Self::ConstantWithWarmup];

    /// The name in settings, that of transformers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
        }
    }
}

impl fmt::Display for LrScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LrScheduler {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|scheduler| scheduler.name() == text);
        found.ok_or_else(|| TrainError::UnknownScheduler { found: text.to_owned(), known: Self::ALL.map(Self::name) })
    }
}

/// How long the rate rises before it falls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// This many optimiser steps.
    Steps(u64),
    /// This share of all optimiser steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    /// The steps of the warmup in a run of `total_steps`.
    #[must_use]
    pub fn steps(self, total_steps: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (total_steps as f64 * ratio).ceil() as u64,
        }
    }
}

/// Settings of [`LrSchedule`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrScheduleConfig {
    /// The rate at the end of the warmup, the largest of the run.
    pub learning_rate: f64,
    /// How it falls afterwards.
    pub scheduler: LrScheduler,
    /// How long it rises before.
    pub warmup: Warmup,
}

impl Default for LrScheduleConfig {
    fn default() -> Self {
        Self { learning_rate: 1e-4, scheduler: LrScheduler::Cosine, warmup: Warmup::Steps(0) }
    }
}

impl LrScheduleConfig {
    /// Refuses rates and warmups that mean nothing.
    ///
    /// # Errors
    /// [`TrainError::Setting`] with the value.
    pub fn validate(&self) -> Result<()> {
        crate::config::expect("learning_rate", self.learning_rate, "above 0 and finite", |v| v > 0.0 && v.is_finite())?;
        if let Warmup::Ratio(ratio) = self.warmup {
            crate::config::expect("warmup_ratio", ratio, "between 0 and 1", |v| (0.0..=1.0).contains(&v))?;
        }
        Ok(())
    }
}

/// The rate of each optimiser step, a function of the step alone.
///
/// The first step of a warmup has rate 0: its gradient only feeds the moments of the optimiser.
///
/// ```
/// use dlm_train::{LrSchedule, LrScheduleConfig, LrScheduler, Warmup};
///
/// let config = LrScheduleConfig { learning_rate: 1.0, scheduler: LrScheduler::Linear, warmup: Warmup::Steps(2) };
/// let schedule = LrSchedule::new(&config, 6);
/// let rates: Vec<f64> = (0..6).map(|step| schedule.rate(step)).collect();
/// assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LrSchedule {
    learning_rate: f64,
    scheduler: LrScheduler,
    warmup_steps: u64,
    total_steps: u64,
}

impl LrSchedule {
    /// The schedule of a run of `total_steps`.
    #[must_use]
    pub fn new(config: &LrScheduleConfig, total_steps: u64) -> Self {
        let warmup_steps = match config.scheduler {
            LrScheduler::Constant => 0,
            _ => config.warmup.steps(total_steps),
        };
        Self { learning_rate: config.learning_rate, scheduler: config.scheduler, warmup_steps, total_steps }
    }

    /// The rate of optimiser step `step`, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        let length = |from: u64, to: u64| to as f64 - from as f64;
        if step < self.warmup_steps {
            return self.learning_rate * (step as f64 / self.warmup_steps as f64);
        }
        let decay_steps = length(self.warmup_steps, self.total_steps).max(1.0);
        let factor = match self.scheduler {
            LrScheduler::Constant | LrScheduler::ConstantWithWarmup => 1.0,
            LrScheduler::Linear => (length(step, self.total_steps) / decay_steps).max(0.0),
            LrScheduler::Cosine => {
                let progress = length(self.warmup_steps, step) / decay_steps;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        };
        self.learning_rate * factor
    }

    /// The steps of the warmup.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }

    /// The steps of the run where they shape the rate; `None` for a rate that stays.
    #[must_use]
    pub fn decay_end(&self) -> Option<u64> {
        match self.scheduler {
            LrScheduler::Linear | LrScheduler::Cosine => Some(self.total_steps),
            LrScheduler::Constant | LrScheduler::ConstantWithWarmup => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_of_a_warmup_is_rounded_up() {
        assert_eq!(Warmup::Ratio(0.03).steps(100), 3);
        assert_eq!(Warmup::Ratio(0.03).steps(101), 4);
        assert_eq!(Warmup::Ratio(0.0).steps(101), 0);
    }

    #[test]
    fn an_unknown_scheduler_is_refused_with_those_there_are() {
        let error = "cosine_with_restarts".parse::<LrScheduler>().unwrap_err();
        assert!(error.to_string().contains("constant_with_warmup"), "{error}");
    }

    #[test]
    fn names_in_settings_and_in_serde_are_the_same() {
        for scheduler in LrScheduler::ALL {
            assert_eq!(serde_json::to_value(scheduler).unwrap(), scheduler.name());
            assert_eq!(scheduler.name().parse::<LrScheduler>().unwrap(), scheduler);
        }
    }
}
