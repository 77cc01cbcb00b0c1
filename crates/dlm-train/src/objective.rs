//! What is trained, as settings: how tokens are masked, and what loss is made of the masked ones.

use crate::{
    config::expect,
    error::{Result, TrainError},
    noise::KeyedNoise,
};
use dlm_diffusion::{
    Accumulation, AutoregressivePart, BlockLengths, DiffusionError, EffectiveRange, ForwardProcess, LastBlock,
    LossNormalization, LossWeight, MaskPolicy, MaskRange, Masking, NoiseKey, NoiseSchedule, Objective,
    PackingIsolation, Purpose, ScheduleConfig, ScheduleName, Timesteps, TokenLoss, Views, Visibility, WeightRule,
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
    /// See [`ScheduleConfig::sigma_min`].
    pub sigma_min: Option<f64>,
    /// See [`ScheduleConfig::sigma_max`].
    pub sigma_max: Option<f64>,
    /// See [`ScheduleConfig::power`].
    pub schedule_power: Option<f64>,
    /// Smallest mask probability that is trained; `None` for the schedule's.
    pub min_mask_ratio: Option<f64>,
    /// Largest mask probability that is trained; `None` for the schedule's. Below 1 a start from all masks is never trained.
    pub max_mask_ratio: Option<f64>,
    /// How timesteps are drawn.
    pub timesteps: Timesteps,
    /// How many tokens a mask probability masks.
    pub masking: Masking,
    /// Whether every batch is masked twice, each token in exactly one of the views.
    pub complementary_masks: bool,
    /// Tokens of a block over the steps of the run, in block diffusion; `None` denoises whole documents.
    pub block_length: Option<BlockLengths>,
    /// What becomes of documents that whole blocks do not fill.
    pub last_block: LastBlock,
    /// Steps over which attention opens from causal to bidirectional; 0 for none.
    pub attention_annealing_steps: u64,
    /// `Some` trains an autoregressive model instead, on unmasked tokens; whether its logits are shifted.
    pub autoregressive: Option<bool>,
    /// An autoregressive loss beside the masked one.
    pub autoregressive_part: Option<AutoregressivePart>,
    /// How likely a document is cut to a random length.
    pub random_length_probability: f64,
    /// How likely the prompt of a document is not shown.
    pub prompt_drop_probability: f64,
    /// What a masked token counts.
    pub loss_weight: LossWeight,
    /// Largest weight; `None` for no limit.
    pub loss_weight_cap: Option<f64>,
    /// Added to the probability that a weight is divided by.
    pub loss_weight_offset: f64,
    /// How fast CART weights fade with the distance.
    pub cart_p: f64,
    /// Share of the target's place that is given to all tokens alike.
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's denominator.
    pub z_loss: f64,
    /// Whether the mask token is never predicted.
    pub forbid_mask: bool,
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
            sigma_min: None,
            sigma_max: None,
            schedule_power: None,
            min_mask_ratio: None,
            max_mask_ratio: None,
            timesteps: Timesteps::default(),
            masking: Masking::default(),
            complementary_masks: false,
            block_length: None,
            last_block: LastBlock::default(),
            attention_annealing_steps: 0,
            autoregressive: None,
            autoregressive_part: None,
            random_length_probability: 0.0,
            prompt_drop_probability: 0.0,
            loss_weight: LossWeight::default(),
            loss_weight_cap: None,
            loss_weight_offset: 0.0,
            cart_p: WeightRule::default().cart_p,
            label_smoothing: 0.0,
            z_loss: 0.0,
            forbid_mask: false,
            loss_normalization: LossNormalization::Token,
            accumulation: Accumulation::default(),
            packing_isolation: PackingIsolation::default(),
            mask_token_id,
            never_mask: Vec::new(),
        }
    }

    /// How tokens are masked at the end of a run: blocks of their last length, attention fully open.
    ///
    /// # Errors
    /// [`TrainError::Diffusion`] for numbers outside their ranges and settings that exclude each other.
    pub fn process(&self) -> Result<ForwardProcess> {
        let schedule = self.schedule()?;
        let range = MaskRange::new(&schedule, self.min_mask_ratio, self.max_mask_ratio)?;
        let policy = MaskPolicy::new(self.mask_token_id).sparing(self.never_mask.iter().copied());
        let views = match self.autoregressive {
            Some(logits_shift) => Views::Autoregressive { logits_shift },
            None if self.complementary_masks => Views::Pair,
            None => Views::One,
        };
        let process = ForwardProcess::new(schedule, policy)
            .within(range)
            .masking(self.masking)
            .isolating(self.packing_isolation)
            .viewed(views);
        let process = match self.autoregressive_part {
            Some(part) => process.beside(part)?,
            None => process,
        };
        Ok(match &self.block_length {
            Some(lengths) => process.in_blocks(lengths.last(), self.last_block)?,
            None => process,
        })
    }

    /// How tokens are masked in a step, counted from 0.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub fn process_at(&self, step: u64, seed: u64) -> Result<ForwardProcess> {
        let process = self.process()?;
        if let Some(lengths) = &self.block_length {
            return Ok(process.in_blocks(lengths.at(step), self.last_block)?);
        }
        let key = NoiseKey::new(seed, Purpose::Annealing, step);
        Ok(process.seen(Visibility::annealed(step, self.attention_annealing_steps, key)))
    }

    /// The draws of a run.
    #[must_use]
    pub fn noise(&self, seed: u64) -> KeyedNoise {
        KeyedNoise::training(seed, self.timesteps)
            .with_random_length(self.random_length_probability)
            .with_prompt_drop(self.prompt_drop_probability)
    }

    /// What loss is made of the masked tokens.
    #[must_use]
    pub fn loss(&self) -> Objective {
        let mut weight =
            WeightRule::from(self.loss_weight).with_offset(self.loss_weight_offset).with_cart_p(self.cart_p);
        weight.cap = self.loss_weight_cap;
        let forbidden = self.forbid_mask.then_some(self.mask_token_id);
        Objective::new(self.loss_normalization)
            .weighted(weight)
            .scoring(TokenLoss { label_smoothing: self.label_smoothing, z_loss: self.z_loss, forbidden })
            .accumulated(self.accumulation)
    }

    /// The mask probabilities and weights that are really trained, to be shown at the start of a run.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub fn effective_range(&self) -> Result<EffectiveRange> {
        let process = self.process()?;
        Ok(process.range.effective(&process.schedule, self.loss().weight))
    }

    fn schedule(&self) -> Result<NoiseSchedule> {
        let config = ScheduleConfig {
            name: self.noise_schedule,
            eps: self.eps,
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
            power: self.schedule_power,
        };
        Ok(config.build()?)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let is_share = |name, value| expect(name, value, "between 0 and 1", |v: f64| (0.0..=1.0).contains(&v));
        is_share("random_length_probability", self.random_length_probability)?;
        is_share("prompt_drop_probability", self.prompt_drop_probability)?;
        let conflicts = [
            (
                self.autoregressive.is_some() && self.block_length.is_some(),
                "an autoregressive objective has no blocks: leave out `block_length`",
            ),
            (
                self.autoregressive.is_some() && self.loss_weight == LossWeight::Cart,
                "an autoregressive objective masks nothing that `loss_weight = \"cart\"` could weigh",
            ),
            (
                self.autoregressive.is_some() && self.complementary_masks,
                "an autoregressive objective masks nothing: leave out `complementary_masks`",
            ),
            (
                self.block_length.is_some()
                    && self.last_block == LastBlock::Whole
                    && self.random_length_probability > 0.0,
                "documents cut to random lengths have no whole blocks: leave out `last_block = \"whole\"` or \
                 `random_length_probability`",
            ),
            (
                self.attention_annealing_steps > 0 && (self.block_length.is_some() || self.autoregressive.is_some()),
                "`attention_annealing_steps` is for masked diffusion of whole texts: block diffusion and autoregressive \
                 objectives say themselves who sees whom",
            ),
        ];
        if let Some((_, what)) = conflicts.into_iter().find(|(clash, _)| *clash) {
            return Err(TrainError::Diffusion(DiffusionError::Conflict { what }));
        }
        self.loss().validate()?;
        self.process().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_objective_changes_what_is_trained() {
        let base = ObjectiveConfig { block_length: None, ..ObjectiveConfig::new(9) };
        let mut changed: Vec<ObjectiveConfig> = Vec::new();
        let mut change = |edit: &dyn Fn(&mut ObjectiveConfig)| {
            let mut config = base.clone();
            edit(&mut config);
            changed.push(config);
        };
        change(&|c| c.eps = 0.01);
        change(&|c| c.noise_schedule = ScheduleName::Sine);
        change(&|c| c.masking = Masking::ExactCount);
        change(&|c| c.complementary_masks = true);
        change(&|c| c.block_length = Some("0:1, 5:4".parse().unwrap()));
        change(&|c| {
            c.block_length = Some("0:1, 5:4".parse().unwrap());
            c.last_block = LastBlock::Whole;
        });
        change(&|c| c.attention_annealing_steps = 10);
        change(&|c| c.autoregressive = Some(true));
        change(&|c| c.autoregressive_part = Some(AutoregressivePart { weight: 0.5, logits_shift: true }));
        change(&|c| c.autoregressive_part = Some(AutoregressivePart { weight: 0.1, logits_shift: true }));
        change(&|c| c.random_length_probability = 0.01);
        change(&|c| c.prompt_drop_probability = 0.1);
        change(&|c| c.loss_weight = LossWeight::Cart);
        change(&|c| c.loss_weight_cap = Some(5.0));
        change(&|c| c.loss_weight_offset = 1e-6);
        change(&|c| c.cart_p = 0.1);
        change(&|c| c.label_smoothing = 0.1);
        change(&|c| c.z_loss = 1e-4);
        change(&|c| c.forbid_mask = true);
        change(&|c| c.timesteps = Timesteps::Independent);
        let of = |c: &ObjectiveConfig| format!("{:?} {:?} {:?}", c.process_at(3, 1).unwrap(), c.loss(), c.noise(1));
        let mut all: Vec<String> = changed.iter().chain([&base]).map(of).collect();
        changed.iter().for_each(|config| config.validate().unwrap());
        all.sort();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
        let sigmas = |sigma_min, sigma_max, schedule_power| ObjectiveConfig {
            sigma_min,
            sigma_max,
            schedule_power,
            ..base.clone()
        };
        for wrong in [sigmas(Some(0.1), None, None), sigmas(None, Some(0.1), None), sigmas(None, None, Some(2.0))] {
            assert!(wrong.validate().is_err(), "the linear schedule has no such parameter");
        }
    }

    #[test]
    fn blocks_and_attention_follow_the_steps_of_the_run() {
        let base = ObjectiveConfig::new(9);
        let blocks = ObjectiveConfig { block_length: Some("0:1, 5:4".parse().unwrap()), ..base.clone() };
        let length = |step| blocks.process_at(step, 1).unwrap().block_length;
        assert_eq!([length(0), length(4), length(5)], [Some(1), Some(1), Some(4)]);
        assert_eq!(blocks.process().unwrap().block_length, Some(4));
        let annealed = ObjectiveConfig { attention_annealing_steps: 4, ..base };
        let visibility = |step| annealed.process_at(step, 1).unwrap().visibility;
        assert_eq!((visibility(0), visibility(4)), (Visibility::Causal, Visibility::Bidirectional));
        assert!(matches!(visibility(1), Visibility::Annealed { share, .. } if share == 0.25));
    }

    #[test]
    fn settings_that_exclude_each_other_are_refused() {
        let base = ObjectiveConfig { autoregressive: Some(false), ..ObjectiveConfig::new(9) };
        let wrong = [
            ObjectiveConfig { block_length: Some("4".parse().unwrap()), ..base.clone() },
            ObjectiveConfig { loss_weight: LossWeight::Cart, ..base.clone() },
            ObjectiveConfig { complementary_masks: true, ..base.clone() },
            ObjectiveConfig {
                autoregressive_part: Some(AutoregressivePart { weight: 0.5, logits_shift: true }),
                ..base.clone()
            },
            ObjectiveConfig { attention_annealing_steps: 3, ..base.clone() },
            ObjectiveConfig { random_length_probability: 1.5, ..base.clone() },
            ObjectiveConfig { prompt_drop_probability: -0.5, ..base.clone() },
            ObjectiveConfig { label_smoothing: 2.0, ..base.clone() },
            ObjectiveConfig { z_loss: -1.0, ..base.clone() },
        ];
        assert!(base.validate().is_ok());
        let blocks = ObjectiveConfig {
            block_length: Some("4".parse().unwrap()),
            last_block: LastBlock::Whole,
            ..ObjectiveConfig::new(9)
        };
        assert!(blocks.validate().is_ok());
        let cut = ObjectiveConfig { random_length_probability: 0.5, ..blocks };
        assert!(cut.validate().unwrap_err().to_string().contains("random_length_probability"));
        assert!(ObjectiveConfig { last_block: LastBlock::Shorter, ..cut }.validate().is_ok());
        wrong.iter().for_each(|config| assert!(config.validate().is_err(), "{config:?}"));
    }
}
