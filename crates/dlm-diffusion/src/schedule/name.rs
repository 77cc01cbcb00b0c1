//! What schedules are called in settings, and the parameters each of them has.

use super::NoiseSchedule;
use crate::{
    check::expect_within,
    error::{DiffusionError, Result},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What a [`NoiseSchedule`] is called in settings, `noise_schedule = "linear"`, and in a model folder.
///
/// Two curves never share a name: what MDLM, BD3-LM and dllm all call `cosine` are three of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScheduleName {
    /// [`NoiseSchedule::Linear`].
    #[default]
    Linear,
    /// [`NoiseSchedule::Cosine`].
    Cosine,
    /// [`NoiseSchedule::LogLinear`].
    LogLinear,
    /// [`NoiseSchedule::LinearSigma`].
    LinearSigma,
    /// [`NoiseSchedule::MdlmCosine`].
    MdlmCosine,
    /// [`NoiseSchedule::CosineSquared`].
    CosineSquared,
    /// [`NoiseSchedule::Sine`].
    Sine,
    /// [`NoiseSchedule::Geometric`].
    Geometric,
    /// [`NoiseSchedule::Exponential`].
    Exponential,
    /// [`NoiseSchedule::Polynomial`].
    Polynomial,
    /// [`NoiseSchedule::Square`].
    Square,
    /// [`NoiseSchedule::SquareRoot`].
    SquareRoot,
    /// [`NoiseSchedule::Logarithmic`].
    Logarithmic,
}

impl ScheduleName {
    /// Every schedule that has a name.
    pub const ALL: [Self; 13] = [
        Self::Linear,
        Self::Cosine,
        Self::LogLinear,
        Self::LinearSigma,
        Self::MdlmCosine,
        Self::CosineSquared,
        Self::Sine,
        Self::Geometric,
        Self::Exponential,
        Self::Polynomial,
        Self::Square,
        Self::SquareRoot,
        Self::Logarithmic,
    ];

    /// The name as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::LogLinear => "log_linear",
            Self::LinearSigma => "linear_sigma",
            Self::MdlmCosine => "mdlm_cosine",
            Self::CosineSquared => "cosine_squared",
            Self::Sine => "sine",
            Self::Geometric => "geometric",
            Self::Exponential => "exponential",
            Self::Polynomial => "polynomial",
            Self::Square => "square",
            Self::SquareRoot => "square_root",
            Self::Logarithmic => "logarithmic",
        }
    }

    fn has_sigma(self) -> bool {
        matches!(self, Self::LinearSigma | Self::Geometric)
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScheduleName {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| DiffusionError::UnknownSchedule { found: name.to_owned() })
    }
}

/// A schedule as settings describe it: its name and the parameters that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Which curve.
    pub name: ScheduleName,
    /// Smallest mask probability; of no account to `linear_sigma` and `geometric`, which begin where `sigma_min` says.
    pub eps: f64,
    /// Noise at `t` = 0, of `linear_sigma` (0 where unset) and `geometric` (0.001); `alpha` is `exp(-sigma)`.
    pub sigma_min: Option<f64>,
    /// Noise at `t` = 1, of `linear_sigma` (10 where unset) and `geometric` (20).
    pub sigma_max: Option<f64>,
    /// The exponent of `polynomial`; 2 where unset.
    pub power: Option<f64>,
}

impl ScheduleConfig {
    /// A schedule of that name with the parameters it usually has.
    #[must_use]
    pub fn new(name: ScheduleName, eps: f64) -> Self {
        Self { name, eps, sigma_min: None, sigma_max: None, power: None }
    }

    /// The schedule.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a number outside its range, [`DiffusionError::ForeignParameter`] for a parameter that the
    /// schedule does not have.
    pub fn build(&self) -> Result<NoiseSchedule> {
        let eps = self.eps;
        expect_within("eps", eps, 0.0..=1.0, "between 0 and 1")?;
        let parameters = [
            ("sigma_min", self.sigma_min, self.name.has_sigma()),
            ("sigma_max", self.sigma_max, self.name.has_sigma()),
            ("schedule_power", self.power, self.name == ScheduleName::Polynomial),
        ];
        if let Some((parameter, ..)) = parameters.iter().find(|(_, value, belongs)| value.is_some() && !belongs) {
            return Err(DiffusionError::ForeignParameter { parameter, schedule: self.name });
        }
        Ok(match self.name {
            ScheduleName::Linear => NoiseSchedule::Linear { eps },
            ScheduleName::Cosine => NoiseSchedule::Cosine { eps },
            ScheduleName::LogLinear => NoiseSchedule::LogLinear { eps },
            ScheduleName::MdlmCosine => NoiseSchedule::MdlmCosine { eps },
            ScheduleName::CosineSquared => NoiseSchedule::CosineSquared { eps },
            ScheduleName::Sine => NoiseSchedule::Sine { eps },
            ScheduleName::Square => NoiseSchedule::Square { eps },
            ScheduleName::SquareRoot => NoiseSchedule::SquareRoot { eps },
            ScheduleName::Logarithmic => NoiseSchedule::Logarithmic { eps },
            ScheduleName::Exponential => {
                expect_within("eps", eps, 1e-12..=1.0, "above 0 for the `exponential` schedule")?;
                NoiseSchedule::Exponential { p_min: eps, p_max: 1.0 }
            }
            ScheduleName::Polynomial => {
                let power = self.power.unwrap_or(2.0);
                expect_within("schedule_power", power, 0.01..=100.0, "between 0.01 and 100")?;
                NoiseSchedule::Polynomial { eps, power }
            }
            ScheduleName::LinearSigma => {
                let (sigma_min, sigma_max) = self.sigmas(0.0, 10.0, 0.0)?;
                NoiseSchedule::LinearSigma { sigma_min, sigma_max }
            }
            ScheduleName::Geometric => {
                let (sigma_min, sigma_max) = self.sigmas(1e-3, 20.0, 1e-12)?;
                NoiseSchedule::Geometric { sigma_min, sigma_max }
            }
        })
    }

    fn sigmas(&self, usual_min: f64, usual_max: f64, smallest: f64) -> Result<(f64, f64)> {
        let (min, max) = (self.sigma_min.unwrap_or(usual_min), self.sigma_max.unwrap_or(usual_max));
        expect_within("sigma_min", min, smallest..=1e3, "at least 0, above it for `geometric`, and at most 1000")?;
        expect_within("sigma_max", max, min..=1e3, "above `sigma_min` and at most 1000")?;
        if max == min {
            let expected = "above `sigma_min` and at most 1000";
            return Err(DiffusionError::OutOfRange { name: "sigma_max", value: max, expected });
        }
        Ok((min, max))
    }
}
