//! What is trained, as settings: how tokens are masked, and what loss is made of the masked ones.

use crate::error::Result;
use dlm_diffusion::{
    Accumulation, EffectiveRange, ForwardProcess, LossNormalization, LossWeight, MaskPolicy, MaskRange, NoiseSchedule,
    Objective, PackingIsolation, ScheduleName, Timesteps,
};
use serde::{Deserialize, Serialize};

/// Settings of the forward process and of the loss; ids are those of the tokenizer, resolved by the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// How the mask probability grows with `t`.
    pub noise_schedule: ScheduleName,
    /// Mask probability at `t` = 0.
    pub eps: f64,
    /// Smallest mask probability that is trained; `None` for the schedule's.
    pub min_mask_ratio: Option<f64>,
    /// Largest mask probability that is trained; `None` for the schedule's. Below 1 a start from all masks is never trained.
    pub max_mask_ratio: Option<f64>,
    /// How timesteps are drawn.
    pub timesteps: Timesteps,
    /// What a masked token counts.
    pub loss_weight: LossWeight,
    /// What the sum of losses is divided by.
    pub loss_normalization: LossNormalization,
    /// Over what that is counted when gradients accumulate.
    pub accumulation: Accumulation,
    /// What a packed row is.
    pub packing_isolation: PackingIsolation,
    /// Id of the mask token.
    pub mask_token_id: i64,
    /// Ids that always stay as they are, and are never learnt.
    pub never_mask: Vec<i64>,
}

impl ObjectiveConfig {
    /// The bound of the linear schedule, averaged over tokens; every document by itself.
    #[must_use]
    pub fn new(mask_token_id: i64) -> Self {
        Self {
            noise_schedule: ScheduleName::default(),
            eps: 1e-3,
            min_mask_ratio: None,
            max_mask_ratio: None,
            timesteps: Timesteps::default(),
            loss_weight: LossWeight::default(),
            loss_normalization: LossNormalization::Token,
            accumulation: Accumulation::default(),
            packing_isolation: PackingIsolation::default(),
            mask_token_id,
            never_mask: Vec::new(),
        }
    }

    /// How tokens are masked.
    ///
    /// # Errors
    /// [`TrainError::Diffusion`](crate::TrainError::Diffusion) for numbers outside their ranges.
    pub fn process(&self) -> Result<ForwardProcess> {
        let schedule = NoiseSchedule::new(self.noise_schedule, self.eps)?;
        let range = MaskRange::new(&schedule, self.min_mask_ratio, self.max_mask_ratio)?;
        let policy = MaskPolicy::new(self.mask_token_id).sparing(self.never_mask.iter().copied());
        Ok(ForwardProcess::new(schedule, policy).within(range).isolating(self.packing_isolation))
    }

    /// What loss is made of the masked tokens.
    #[must_use]
    pub fn loss(&self) -> Objective {
        Objective::new(self.loss_normalization).weighted(self.loss_weight).accumulated(self.accumulation)
    }

    /// The mask probabilities and weights that are really trained, to be shown at the start of a run.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub fn effective_range(&self) -> Result<EffectiveRange> {
        let process = self.process()?;
        Ok(process.range.effective(&process.schedule, self.loss_weight))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.process().map(|_| ())
    }
}
