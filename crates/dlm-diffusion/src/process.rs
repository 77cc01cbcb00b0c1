//! Noising a batch: from clean tokens and draws to everything a loss needs to know of the masked ones.

use crate::{
    attention::Visibility,
    batch::CleanBatch,
    blocks::{LastBlock, expect_block_length, expect_whole_blocks},
    check::{expect_kind, expect_mask_token, expect_per_token_or_row, expect_uniform, expect_unit, expect_within},
    error::{DiffusionError, Result},
    exact_count::{Count, Masking, smallest},
    masking::{MaskPolicy, Noised, mask_tokens},
    noised_batch::{MaskedTokens, NoisedBatch},
    normalization::WindowCounts,
    packing::{PackingIsolation, Units, segment_starts},
    range::MaskRange,
    schedule::NoiseSchedule,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How often a batch is looked at in one step, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Views {
    /// Masked once.
    #[default]
    One,
    /// Masked twice, each token in exactly one of the views: [`ForwardProcess::noise_pair`].
    Pair,
    /// Not masked: [`ForwardProcess::autoregressive`].
    Autoregressive {
        /// Whether the denoiser predicts a token from the state before it by itself.
        logits_shift: bool,
    },
}

/// An autoregressive loss beside the masked one: each token given those before it, in a second look at the same batch.
///
/// For hybrids that keep, or regain, the likelihood of an autoregressive model while they learn to denoise. Each of the two losses is
/// averaged over its own tokens; this one is then multiplied by the weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoregressivePart {
    /// What the autoregressive loss counts beside the masked one, above 0.
    pub weight: f64,
    /// Whether the denoiser predicts a token from the state before it by itself.
    pub logits_shift: bool,
}

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
    /// How many of them.
    pub masking: Masking,
    /// What a packed row is.
    pub isolation: PackingIsolation,
    /// Tokens of a block in block diffusion; `None` denoises whole texts.
    pub block_length: Option<i64>,
    /// What becomes of texts that whole blocks do not fill.
    pub last_block: LastBlock,
    /// In which directions the denoiser looks, but for block diffusion, which says so itself.
    pub visibility: Visibility,
    /// What [`noise_views`](Self::noise_views) makes of a batch.
    pub views: Views,
    /// An autoregressive loss beside the masked one, as one view more.
    pub beside: Option<AutoregressivePart>,
}

impl ForwardProcess {
    /// The whole range of a schedule, every document by itself.
    #[must_use]
    pub fn new(schedule: NoiseSchedule, policy: MaskPolicy) -> Self {
        Self {
            schedule,
            range: MaskRange::default(),
            policy,
            masking: Masking::default(),
            isolation: PackingIsolation::default(),
            block_length: None,
            last_block: LastBlock::default(),
            visibility: Visibility::Bidirectional,
            views: Views::One,
            beside: None,
        }
    }

    /// The same process on a part of the timesteps.
    #[must_use]
    pub fn within(mut self, range: MaskRange) -> Self {
        self.range = range;
        self
    }

    /// The same process masking another number of tokens.
    #[must_use]
    pub fn masking(mut self, masking: Masking) -> Self {
        self.masking = masking;
        self
    }

    /// The same process with other units in a packed row.
    #[must_use]
    pub fn isolating(mut self, isolation: PackingIsolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Block diffusion (BD3-LM, [arXiv:2503.09573](https://arxiv.org/abs/2503.09573)): each block is denoised given the clean ones
    /// before it. Blocks are counted from the beginning of each document; what becomes of one that they do not fill is said here.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a length below 1.
    pub fn in_blocks(mut self, block_length: i64, last_block: LastBlock) -> Result<Self> {
        expect_block_length(block_length)?;
        self.block_length = Some(block_length);
        self.last_block = last_block;
        Ok(self)
    }

    /// The same process for a denoiser that looks in these directions: an annealed one while it turns from causal to bidirectional.
    #[must_use]
    pub fn seen(mut self, visibility: Visibility) -> Self {
        self.visibility = visibility;
        self
    }

    /// The same process with other [`views`](Self::views).
    #[must_use]
    pub fn viewed(mut self, views: Views) -> Self {
        self.views = views;
        self
    }

    /// The same process with an autoregressive loss [`beside`](Self::beside) the masked one.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a weight that is not above 0 and finite, [`DiffusionError::Conflict`] for a process that masks
    /// nothing.
    pub fn beside(mut self, part: AutoregressivePart) -> Result<Self> {
        expect_within("autoregressive_weight", part.weight, f64::MIN_POSITIVE..=f64::MAX, "above 0")?;
        if matches!(self.views, Views::Autoregressive { .. }) {
            let what = "the loss is autoregressive already: leave out `autoregressive_weight`";
            return Err(DiffusionError::Conflict { what });
        }
        self.beside = Some(part);
        Ok(self)
    }

    /// The micro-batches that [`views`](Self::views) and [`beside`](Self::beside) make of a batch.
    ///
    /// # Errors
    /// Those of [`noise`](Self::noise) and [`autoregressive`](Self::autoregressive).
    pub fn noise_views(&self, clean: CleanBatch, t: &Tensor, uniform: &Tensor) -> Result<Vec<NoisedBatch>> {
        let beside = match self.beside {
            Some(part) => {
                // The text is continued as a whole, in whatever blocks it is denoised.
                let whole = Self { block_length: None, ..self.clone() };
                let mut view = whole.autoregressive(clean.share(), part.logits_shift)?;
                view.counts = view.counts.into_beside();
                view.beside_weight = Some(part.weight);
                Some(view)
            }
            None => None,
        };
        let mut views = match self.views {
            Views::One => vec![self.noise(clean, t, uniform)?],
            Views::Pair => self.noise_pair(clean, t, uniform)?.into(),
            Views::Autoregressive { logits_shift } => vec![self.autoregressive(clean, logits_shift)?],
        };
        views.extend(beside);
        Ok(views)
    }

    /// Masks a batch.
    ///
    /// Meant to run on the CPU, before the batch is copied to the device of the denoiser with
    /// [`NoisedBatch::to_device`]: counting masked tokens elsewhere waits for the device.
    ///
    /// # Shapes
    /// - `t`: `[batch, seq_len]`, each token having the timestep of its document or block, or `[batch, 1]`; `Float` in [0, 1]
    /// - `uniform`: `[batch, seq_len]` of `Float`, drawn from [0, 1)
    ///
    /// # Errors
    /// Those of [`mask_tokens`], [`DiffusionError::OutOfRange`] for a timestep outside [0, 1], and [`DiffusionError::UnevenBlocks`] for a
    /// document that does not divide into [whole blocks](LastBlock::Whole).
    pub fn noise(&self, clean: CleanBatch, t: &Tensor, uniform: &Tensor) -> Result<NoisedBatch> {
        let draw = self.draw(&clean, t, uniform, false)?;
        Ok(self.assemble(clean, draw))
    }

    /// Masks a batch twice: the second view masks exactly the maskable tokens that the first one does not, so that together every
    /// token is scored once (Fast-dLLM v2 and LLaDA2.0 train so).
    ///
    /// Masked with probability `1 - p`, a token of the second view has the weight `p' / (1 - p)` or `1 / (1 - p)`: each view by itself
    /// is as unbiased as a plain draw. Both are micro-batches of one window.
    ///
    /// # Errors
    /// Those of [`noise`](Self::noise).
    pub fn noise_pair(&self, clean: CleanBatch, t: &Tensor, uniform: &Tensor) -> Result<[NoisedBatch; 2]> {
        let first = self.draw(&clean, t, uniform, true)?;
        let is_masked = self.policy.maskable(&clean).logical_and(&first.noised.is_masked.logical_not());
        // 0 on padding, where both are.
        let p_mask = clean.is_real().to_kind(Kind::Float) - &first.noised.p_mask;
        let mut times: Vec<f32> = vec![0.0; p_mask.numel()];
        p_mask.to_device(Device::Cpu).contiguous().copy_data(&mut times, p_mask.numel());
        times.iter_mut().for_each(|p| *p = self.schedule.t_at(f64::from(*p)) as f32);
        let times = Tensor::from_slice(&times).view_as(&p_mask).to_device(p_mask.device());
        let per_row = t.size()[1] == 1;
        let second = Draw {
            t: if per_row { times.amax(1, true) } else { times },
            slope: first.slope.shallow_clone(),
            noised: Noised::new(&clean, is_masked, p_mask, &self.policy),
        };
        Ok([self.assemble(clean.share(), first), self.assemble(clean, second)])
    }

    /// No noise at all: every target is scored given the tokens before it, the loss of an autoregressive model.
    ///
    /// The first token of a text, which nothing predicts, is left out; every weight is 1. `logits_shift` says whether the denoiser
    /// predicts a token from the state before it by itself; if not, it is asked for that state. Spared ids are scored like others.
    ///
    /// # Errors
    /// [`DiffusionError::Conflict`] for a process in blocks.
    pub fn autoregressive(&self, clean: CleanBatch, logits_shift: bool) -> Result<NoisedBatch> {
        if self.block_length.is_some() {
            let what = "an autoregressive loss has no blocks: leave out `block_length`";
            return Err(DiffusionError::Conflict { what });
        }
        let (batch, seq_len) = clean.shape();
        let device = clean.ids().device();
        let columns = Tensor::arange(seq_len, (Kind::Int64, device)).expand([batch, seq_len], false);
        let is_first = match clean.segment_ids() {
            Some(ids) if self.isolation == PackingIsolation::Document => columns.eq_tensor(&segment_starts(ids)),
            _ => columns.eq(0),
        };
        let is_scored = clean.is_target().logical_and(&clean.is_real()).logical_and(&is_first.logical_not());
        let noised = Noised {
            ids: clean.shown(self.policy.mask_token_id),
            p_mask: is_scored.to_kind(Kind::Float),
            is_masked: is_scored,
        };
        let ones = Tensor::ones([batch, 1], (Kind::Float, device));
        let slope = ones.expand([batch, seq_len], false);
        let mut noised = self.assemble(clean, Draw { t: ones, noised, slope });
        noised.visibility = Visibility::Causal;
        noised.is_bound = true;
        noised.counts.maskable = noised.counts.masked;
        noised.asks_before = if logits_shift { 0 } else { 1 };
        Ok(noised)
    }

    fn draw(&self, clean: &CleanBatch, t: &Tensor, uniform: &Tensor, pair: bool) -> Result<Draw> {
        let shape = clean.shape();
        if let (Some(block_length), LastBlock::Whole) = (self.block_length, self.last_block) {
            expect_whole_blocks(clean, block_length)?;
        }
        expect_per_token_or_row("t", t, shape)?;
        expect_kind("t", t, Kind::Float)?;
        expect_unit("t", t)?;
        let (noised, slope) = match self.masking {
            Masking::Bernoulli => {
                let noised = mask_tokens(clean, &self.schedule.p_mask_of(t), uniform, &self.policy)?;
                (noised, -self.schedule.alpha_slope_of(t).expand([shape.0, shape.1], false))
            }
            Masking::ExactCount => self.mask_counts(clean, t, uniform, pair)?,
        };
        Ok(Draw { t: t.shallow_clone(), noised, slope })
    }

    /// Masks an exact number of each run of tokens that share segment and timestep; of each row under row isolation.
    fn mask_counts(&self, clean: &CleanBatch, t: &Tensor, uniform: &Tensor, pair: bool) -> Result<(Noised, Tensor)> {
        let (batch, seq_len) = clean.shape();
        expect_uniform(uniform, (batch, seq_len))?;
        expect_mask_token(self.policy.mask_token_id)?;
        let n = (batch * seq_len) as usize;
        let (mut draws, mut times) = (vec![0f32; n], vec![0f32; n]);
        uniform.to_device(Device::Cpu).contiguous().copy_data(&mut draws, n);
        t.expand([batch, seq_len], false).to_device(Device::Cpu).contiguous().copy_data(&mut times, n);
        let mut maskable = vec![false; n];
        self.policy.maskable(clean).to_device(Device::Cpu).contiguous().copy_data(&mut maskable, n);
        let mut segments = vec![1i64; n];
        if let Some(ids) = clean.segment_ids().filter(|_| self.isolation == PackingIsolation::Document) {
            ids.to_device(Device::Cpu).contiguous().copy_data(&mut segments, n);
        }
        let (mut masked, mut p_mask, mut slope) = (vec![false; n], vec![0f32; n], vec![0f32; n]);
        let mut begin = 0;
        for end in 1..=n {
            let same_row = end % seq_len as usize != 0;
            if end < n && same_row && segments[end] == segments[begin] && times[end] == times[begin] {
                continue;
            }
            let candidates: Vec<usize> = (begin..end).filter(|&i| maskable[i]).collect();
            if !candidates.is_empty() {
                let t = f64::from(times[begin]);
                let count = Count::new(&self.schedule, &self.range, t, candidates.len(), pair);
                smallest(&candidates, &draws, count.masked).into_iter().for_each(|i| masked[i] = true);
                p_mask[begin..end].fill(count.p_mask as f32);
                slope[begin..end].fill(count.slope as f32);
            }
            begin = end;
        }
        let device = clean.ids().device();
        let float = |values: &[f32]| Tensor::from_slice(values).view([batch, seq_len]).to_device(device);
        let is_masked = Tensor::from_slice(&masked).view([batch, seq_len]).to_device(device);
        let p_mask = float(&p_mask) * clean.is_real().to_kind(Kind::Float);
        Ok((Noised::new(clean, is_masked, p_mask, &self.policy), float(&slope)))
    }

    fn assemble(&self, clean: CleanBatch, draw: Draw) -> NoisedBatch {
        let Draw { t, noised, slope } = draw;
        let shape = clean.shape();
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
            ..WindowCounts::default()
        };
        let at = |per_token: &Tensor| per_token.flatten(0, 1).index_select(0, &positions);
        NoisedBatch {
            masked: MaskedTokens {
                targets: at(clean.ids()),
                p_mask: at(&noised.p_mask),
                slope: at(&slope),
                unit_targets: units.sizes_at(&targets, &positions),
                positions,
            },
            targets: number(&targets),
            first_real: (number(&real) > 0)
                .then(|| real.flatten(0, 1).to_kind(Kind::Uint8).argmax(0, false).int64_value(&[])),
            counts,
            t,
            schedule: self.schedule.clone(),
            isolation: self.isolation,
            is_bound: self.range.is_bound(&self.schedule),
            block_length: self.block_length,
            visibility: self.visibility,
            asks_before: 0,
            beside_weight: None,
            mask_token_id: self.policy.mask_token_id,
            noised,
            clean,
        }
    }
}

/// What was drawn for a batch.
struct Draw {
    t: Tensor,
    noised: Noised,
    /// How fast the mask probability grew, `[batch, seq_len]`.
    slope: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let counts =
            WindowCounts { micro_batches: 1, slots: 12, units: 3, masked: 3, maskable: 5, ..WindowCounts::default() };
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
