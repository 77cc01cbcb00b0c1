//! What a loss is divided by, counted over everything one optimiser step sees.

use serde::{Deserialize, Serialize};
use std::{
    iter::Sum,
    ops::{Add, AddAssign},
};
use tch::{Kind, Tensor};

/// What the weighted negative log-likelihoods of masked tokens are averaged over.
///
/// A unit is a document, or a row under [`PackingIsolation::Row`](crate::PackingIsolation::Row).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossNormalization {
    /// Tokens that may be masked: every token counts the same (MDLM, SMDM).
    Token,
    /// Tokens that are masked.
    Masked,
    /// Targets of each unit, then the units, those without a target among them: every unit counts the same (LLaDA SFT, Axolotl). Like
    /// theirs it counts targets that are never masked.
    Sequence,
    /// Units.
    Batch,
    /// Every slot of the batch, padding included: `batch * seq_len` (LLaDA pretraining; Axolotl without labels).
    Slots,
}

/// Over what the counts of [`LossNormalization`] run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Accumulation {
    /// The whole optimiser step: how it is cut into micro-batches does not change the gradient.
    #[default]
    Global,
    /// Each micro-batch, whose losses are then averaged, as Axolotl does.
    MicroBatch,
}

/// What one optimiser step sees: the sum over its micro-batches, and over processes where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowCounts {
    /// Micro-batches.
    pub micro_batches: u64,
    /// `batch * seq_len`, padding included.
    pub slots: u64,
    /// Documents or rows.
    pub units: u64,
    /// Masked tokens.
    pub masked: u64,
    /// Tokens that might have been masked.
    pub maskable: u64,
    /// What the autoregressive part of a hybrid loss sees, which is averaged by itself.
    pub beside: PartCounts,
}

/// What the autoregressive part of a hybrid loss sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartCounts {
    /// Micro-batches.
    pub micro_batches: u64,
    /// `batch * seq_len`, padding included.
    pub slots: u64,
    /// Documents or rows.
    pub units: u64,
    /// Tokens that are scored.
    pub scored: u64,
}

impl WindowCounts {
    /// The same counts as those of the autoregressive part of a hybrid loss.
    pub(crate) fn into_beside(self) -> Self {
        let Self { micro_batches, slots, units, masked, .. } = self;
        Self { beside: PartCounts { micro_batches, slots, units, scored: masked }, ..Self::default() }
    }

    /// The counts of the autoregressive part, as if it were a loss by itself.
    pub(crate) fn of_beside(&self) -> Self {
        let PartCounts { micro_batches, slots, units, scored } = self.beside;
        Self { micro_batches, slots, units, masked: scored, maskable: scored, beside: PartCounts::default() }
    }
}

impl Add for WindowCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            micro_batches: self.micro_batches + other.micro_batches,
            slots: self.slots + other.slots,
            units: self.units + other.units,
            masked: self.masked + other.masked,
            maskable: self.maskable + other.maskable,
            beside: PartCounts {
                micro_batches: self.beside.micro_batches + other.beside.micro_batches,
                slots: self.beside.slots + other.beside.slots,
                units: self.beside.units + other.beside.units,
                scored: self.beside.scored + other.beside.scored,
            },
        }
    }
}

impl AddAssign for WindowCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for WindowCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

impl LossNormalization {
    /// The share of each masked token, `[n]` of `Float`: the reciprocal of what its weighted loss is divided by.
    ///
    /// `unit_targets`, `[n]`, is how many targets the unit of each has. Nothing is divided by 0: a count of 0 is taken as 1.
    pub(crate) fn shares(
        self,
        accumulation: Accumulation,
        unit_targets: &Tensor,
        micro_batch: &WindowCounts,
        window: &WindowCounts,
    ) -> Tensor {
        let (counts, micro_batches) = match accumulation {
            Accumulation::Global => (window, 1),
            Accumulation::MicroBatch => (micro_batch, window.micro_batches),
        };
        let denominator = match self {
            Self::Token => counts.maskable,
            Self::Masked => counts.masked,
            Self::Sequence | Self::Batch => counts.units,
            Self::Slots => counts.slots,
        };
        let share = 1.0 / (denominator.max(1) as f64 * micro_batches.max(1) as f64);
        let unit = match self {
            Self::Sequence => unit_targets.clamp_min(1).to_kind(Kind::Double).reciprocal(),
            _ => unit_targets.ones_like().to_kind(Kind::Double),
        };
        (unit * share).to_kind(Kind::Float)
    }
}
