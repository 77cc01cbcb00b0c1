//! A batch after masking: what a denoiser is given of it, and what the loss needs to know of its masked tokens.

use crate::{
    attention::{AttentionLayout, Visibility},
    batch::CleanBatch,
    error::Result,
    masking::Noised,
    normalization::WindowCounts,
    packing::{PackingIsolation, segment_positions},
    schedule::NoiseSchedule,
};
use tch::{Device, Kind, Tensor};

/// What is known of each masked token of a batch; every tensor is `[n]`, in the order of their positions.
#[derive(Debug)]
pub(crate) struct MaskedTokens {
    /// Flat indices `row * seq_len + position`, `Int64`.
    pub(crate) positions: Tensor,
    /// The clean tokens, `Int64`.
    pub(crate) targets: Tensor,
    /// Mask probabilities, `Float`.
    pub(crate) p_mask: Tensor,
    /// How fast they grow with `t`, `Float`: over the probability, the weight of the bound.
    pub(crate) slope: Tensor,
    /// How many targets the document or row of each has, `Int64`.
    pub(crate) unit_targets: Tensor,
}

/// A micro-batch after masking, made by [`ForwardProcess::noise`](crate::ForwardProcess::noise).
#[derive(Debug)]
pub struct NoisedBatch {
    pub(crate) clean: CleanBatch,
    pub(crate) noised: Noised,
    pub(crate) t: Tensor,
    pub(crate) schedule: NoiseSchedule,
    pub(crate) isolation: PackingIsolation,
    pub(crate) is_bound: bool,
    pub(crate) block_length: Option<i64>,
    pub(crate) visibility: Visibility,
    /// How far before a token the state is asked for that predicts it.
    pub(crate) asks_before: i64,
    /// Of the autoregressive part of a hybrid loss, what it counts.
    pub(crate) beside_weight: Option<f64>,
    pub(crate) mask_token_id: i64,
    pub(crate) masked: MaskedTokens,
    /// Tokens with a label, those that are never masked included.
    pub(crate) targets: u64,
    /// Flat index of the first token that is no padding.
    pub(crate) first_real: Option<i64>,
    pub(crate) counts: WindowCounts,
}

/// What a denoiser is given for a batch, and where its states are wanted.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelInput {
    /// Tokens, `[batch, seq_len]`; in block diffusion noised and then clean, `[batch, 2 * seq_len]`.
    pub ids: Tensor,
    /// Rotary positions of those tokens; `None` counts over each row.
    pub position_ids: Option<Tensor>,
    /// Who attends to whom.
    pub attention: AttentionLayout,
    /// Flat indices into the rows of `ids`, `[n]`.
    pub wanted: Tensor,
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

    /// What this batch counts of its own loss, whichever part of a hybrid that is.
    pub(crate) fn own_counts(&self) -> WindowCounts {
        if self.beside_weight.is_some() { self.counts.of_beside() } else { self.counts }
    }

    /// Whether there is nothing but padding.
    #[must_use]
    pub fn is_padding(&self) -> bool {
        self.first_real.is_none()
    }

    /// What to give the denoiser to predict the tokens at `positions`, flat indices into the rows of the text.
    ///
    /// # Errors
    /// Those of [`AttentionLayout::segments`].
    pub fn model_input(&self, positions: &Tensor) -> Result<ModelInput> {
        let layout = |ids: Option<&Tensor>| ids.map_or_else(|| Ok(AttentionLayout::full()), AttentionLayout::segments);
        let segment_ids = self.clean.segment_ids();
        let Some(block_length) = self.block_length else {
            return Ok(ModelInput {
                ids: self.noised.ids.shallow_clone(),
                position_ids: self.position_ids(),
                attention: layout(segment_ids)?.with_visibility(self.visibility),
                // The token that ties a loss without scored tokens to the denoiser may be the first of all.
                wanted: if self.asks_before == 0 {
                    positions.shallow_clone()
                } else {
                    (positions - self.asks_before).clamp_min(0)
                },
            });
        };
        let (batch, seq_len) = self.clean.shape();
        let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 1);
        let counted = || Tensor::arange(seq_len, (Kind::Int64, positions.device())).expand([batch, seq_len], false);
        let segment_ids = segment_ids.map(twice);
        let visibility = Visibility::NoisyAndClean { block_length, seq_len };
        Ok(ModelInput {
            ids: Tensor::cat(&[&self.noised.ids, &self.clean.shown(self.mask_token_id)], 1),
            position_ids: Some(twice(&self.position_ids().unwrap_or_else(counted))),
            attention: layout(segment_ids.as_ref())?.with_visibility(visibility),
            wanted: positions + positions.floor_divide_scalar(seq_len) * seq_len,
        })
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

    /// The documents that CART weights stay inside of; rows under row isolation.
    pub(crate) fn borders(&self) -> Option<&Tensor> {
        self.clean.segment_ids().filter(|_| self.isolation == PackingIsolation::Document)
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
                p_mask: self.masked.p_mask.to_device(device),
                slope: self.masked.slope.to_device(device),
                unit_targets: self.masked.unit_targets.to_device(device),
            },
            schedule: self.schedule.clone(),
            ..*self
        }
    }
}
