//! Noising a batch: from clean tokens and draws to everything a loss needs to know of the masked ones.

use crate::{
    attention::AttentionLayout,
    batch::CleanBatch,
    check::{expect_kind, expect_per_token_or_row, expect_within},
    error::Result,
    masking::{MaskPolicy, Noised, mask_tokens},
    normalization::WindowCounts,
    packing::{PackingIsolation, Units, segment_positions},
    range::MaskRange,
    schedule::NoiseSchedule,
};
use tch::{Device, Kind, Tensor};

/// The forward process of a run: what is masked how often, and what a sequence is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ForwardProcess {
    /// How the mask probability grows with `t`.
    pub schedule: NoiseSchedule,
    /// Which timesteps are drawn.
    pub range: MaskRange,
    /// Which tokens are masked, and by what.
    pub policy: MaskPolicy,
    /// What a packed row is.
    pub isolation: PackingIsolation,
}

impl ForwardProcess {
    /// The whole range of a schedule, every document by itself.
    #[must_use]
    pub fn new(schedule: NoiseSchedule, policy: MaskPolicy) -> Self {
        Self { schedule, range: MaskRange::default(), policy, isolation: PackingIsolation::default() }
    }

    /// The same process on a part of the timesteps.
    #[must_use]
    pub fn within(mut self, range: MaskRange) -> Self {
        self.range = range;
        self
    }

    /// The same process with other units in a packed row.
    #[must_use]
    pub fn isolating(mut self, isolation: PackingIsolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Masks a batch.
    ///
    /// Meant to run on the CPU, before the batch is copied to the device of the denoiser with
    /// [`NoisedBatch::to_device`]: counting masked tokens elsewhere waits for the device.
    ///
    /// # Shapes
    /// - `t`: `[batch, seq_len]`, each token having the timestep of its document, or `[batch, 1]`; `Float` in [0, 1]
    /// - `uniform`: `[batch, seq_len]` of `Float`, drawn from [0, 1)
    ///
    /// # Errors
    /// Those of [`mask_tokens`], and [`DiffusionError::OutOfRange`](crate::DiffusionError::OutOfRange) for a timestep outside [0, 1].
    pub fn noise(&self, clean: CleanBatch, t: &Tensor, uniform: &Tensor) -> Result<NoisedBatch> {
        let shape = clean.shape();
        expect_per_token_or_row("t", t, shape)?;
        expect_kind("t", t, Kind::Float)?;
        for end in [t.min(), t.max()] {
            expect_within("t", end.double_value(&[]), 0.0..=1.0, "between 0 and 1")?;
        }
        let noised = mask_tokens(&clean, &self.schedule.p_mask_of(t), uniform, &self.policy)?;
        let positions = noised.is_masked.flatten(0, 1).nonzero().flatten(0, 1); // [n]
        let (real, targets) = (clean.is_real(), clean.is_target());
        let units = Units::new(shape, clean.segment_ids(), self.isolation);
        let number = |mask: &Tensor| mask.count_nonzero(None).int64_value(&[]) as u64;
        let counts = WindowCounts {
            micro_batches: 1,
            slots: (shape.0 * shape.1) as u64,
            units: units.count,
            masked: positions.numel() as u64,
            maskable: number(&self.policy.maskable(&clean)),
        };
        let at = |per_token: &Tensor| per_token.flatten(0, 1).index_select(0, &positions);
        Ok(NoisedBatch {
            masked: MaskedTokens {
                targets: at(clean.ids()),
                t: at(&t.expand([shape.0, shape.1], false)),
                p_mask: at(&noised.p_mask),
                unit_targets: units.sizes_at(&targets, &positions),
                positions,
            },
            targets: number(&targets),
            first_real: (number(&real) > 0)
                .then(|| real.flatten(0, 1).to_kind(Kind::Uint8).argmax(0, false).int64_value(&[])),
            counts,
            t: t.shallow_clone(),
            schedule: self.schedule,
            isolation: self.isolation,
            is_whole_range: self.range.is_whole(),
            noised,
            clean,
        })
    }
}

/// What is known of each masked token of a batch; every tensor is `[n]`, in the order of their positions.
#[derive(Debug)]
pub(crate) struct MaskedTokens {
    /// Flat indices `row * seq_len + position`, `Int64`.
    pub(crate) positions: Tensor,
    /// The clean tokens, `Int64`.
    pub(crate) targets: Tensor,
    /// Timesteps, `Float`.
    pub(crate) t: Tensor,
    /// Mask probabilities, `Float`.
    pub(crate) p_mask: Tensor,
    /// How many targets the document or row of each has, `Int64`.
    pub(crate) unit_targets: Tensor,
}

/// A micro-batch after masking, made by [`ForwardProcess::noise`].
#[derive(Debug)]
pub struct NoisedBatch {
    clean: CleanBatch,
    noised: Noised,
    t: Tensor,
    pub(crate) schedule: NoiseSchedule,
    isolation: PackingIsolation,
    pub(crate) is_whole_range: bool,
    pub(crate) masked: MaskedTokens,
    /// Tokens with a label, those that are never masked included.
    pub(crate) targets: u64,
    /// Flat index of the first token that is no padding.
    pub(crate) first_real: Option<i64>,
    counts: WindowCounts,
}

impl NoisedBatch {
    /// The tokens before masking.
    #[must_use]
    pub fn clean(&self) -> &CleanBatch {
        &self.clean
    }

    /// The tokens after masking.
    #[must_use]
    pub fn noised(&self) -> &Noised {
        &self.noised
    }

    /// Where tokens are masked: flat indices `row * seq_len + position`, `[n]` of `Int64`, ascending.
    pub fn masked_positions(&self) -> &Tensor {
        &self.masked.positions
    }

    /// The timestep of each token or row, `[batch, seq_len]` or `[batch, 1]` of `Float`.
    pub fn t(&self) -> &Tensor {
        &self.t
    }

    /// What this batch adds to the counts of its window.
    #[must_use]
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    /// Whether there is nothing but padding.
    #[must_use]
    pub fn is_padding(&self) -> bool {
        self.first_real.is_none()
    }

    /// Who attends to whom: both ways within segments.
    ///
    /// # Errors
    /// Those of [`AttentionLayout::segments`].
    pub fn attention(&self) -> Result<AttentionLayout> {
        self.clean.segment_ids().map_or_else(|| Ok(AttentionLayout::full()), AttentionLayout::segments)
    }

    /// The rotary positions: under document isolation the given ones or else restarting in each segment; `None`, which counts over
    /// whole rows, under row isolation.
    #[must_use]
    pub fn position_ids(&self) -> Option<Tensor> {
        if self.isolation == PackingIsolation::Row {
            return None;
        }
        let given = self.clean.position_ids().map(Tensor::shallow_clone);
        given.or_else(|| self.clean.segment_ids().map(segment_positions))
    }

    /// The same batch on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            clean: self.clean.to_device(device),
            noised: Noised {
                ids: self.noised.ids.to_device(device),
                is_masked: self.noised.is_masked.to_device(device),
                p_mask: self.noised.p_mask.to_device(device),
            },
            t: self.t.to_device(device),
            masked: MaskedTokens {
                positions: self.masked.positions.to_device(device),
                targets: self.masked.targets.to_device(device),
                t: self.masked.t.to_device(device),
                p_mask: self.masked.p_mask.to_device(device),
                unit_targets: self.masked.unit_targets.to_device(device),
            },
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::DiffusionError;

    fn process(isolation: PackingIsolation) -> ForwardProcess {
        let policy = MaskPolicy::new(9).sparing([1]);
        ForwardProcess::new(NoiseSchedule::Linear { eps: 0.0 }, policy).isolating(isolation)
    }

    fn noise(process: &ForwardProcess, t: f32) -> Result<NoisedBatch> {
        let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 5, 6, 1, 7, 0], [1, 5, 6, 7, 0, 0]]))?
            .with_labels(Tensor::from_slice2(&[[1i64, 5, 6, 1, 7, -100], [-100, -100, 6, 7, -100, -100]]))?
            .with_segments(Tensor::from_slice2(&[[1i64, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]))?;
        let uniform = Tensor::from_slice2(&[[0.1f32, 0.9, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.1, 0.1]]);
        process.noise(clean, &Tensor::from_slice2(&[[t], [t]]), &uniform)
    }

    #[test]
    fn a_batch_is_counted_as_its_units_say() {
        let by = |isolation| noise(&process(isolation), 0.5).unwrap();
        let documents = by(PackingIsolation::Document);
        let counts = WindowCounts { micro_batches: 1, slots: 12, units: 3, masked: 3, maskable: 5 };
        assert_eq!(documents.counts(), counts);
        assert_eq!(Vec::<i64>::try_from(documents.masked_positions()).unwrap(), [2, 4, 8]);
        assert_eq!(Vec::<i64>::try_from(&documents.masked.unit_targets).unwrap(), [3, 2, 2]);
        assert_eq!(Vec::<i64>::try_from(&documents.masked.targets).unwrap(), [6, 7, 6]);
        let rows = by(PackingIsolation::Row);
        assert_eq!(rows.counts(), WindowCounts { units: 2, ..counts });
        assert_eq!(Vec::<i64>::try_from(&rows.masked.unit_targets).unwrap(), [5, 5, 2]);
    }

    #[test]
    fn positions_restart_in_documents_and_run_on_in_rows() {
        let positions = noise(&process(PackingIsolation::Document), 0.5).unwrap().position_ids().unwrap();
        assert_eq!(Vec::<i64>::try_from(positions.get(0)).unwrap(), [0, 1, 2, 0, 1, 0]);
        assert!(noise(&process(PackingIsolation::Row), 0.5).unwrap().position_ids().is_none());
    }

    #[test]
    fn a_timestep_outside_the_unit_interval_is_refused() {
        for t in [-0.1, 1.1, f32::NAN] {
            let found = noise(&process(PackingIsolation::Row), t);
            assert!(matches!(found, Err(DiffusionError::OutOfRange { name: "t", .. })), "{t}");
        }
    }
}
