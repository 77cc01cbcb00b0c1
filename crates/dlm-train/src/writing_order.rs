//! Samples in the order that a model was trained to write in: anywhere, block by block, or token by token.

use crate::{error::Result, objective::ObjectiveConfig};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, DiffusionError, Head, Visibility};
use dlm_sample::{Canvas, Draws, SamplerConfig, sample};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};
use tch::{Kind, Tensor};

/// In which order masks are filled, and what a token then looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WritingOrder {
    /// The surest first, wherever they are; every token looks at all of the text.
    Anywhere,
    /// Block by block; inside a block the surest first. A block looks at itself and at the blocks before it, as it was trained.
    Blocks(i64),
    /// Token by token, each given those before it.
    LeftToRight {
        /// Whether the denoiser predicts a token from the state before it by itself.
        logits_shift: bool,
    },
}

/// A canvas that was filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) ids: Vec<i64>,
    pub(crate) nfe: usize,
}

impl WritingOrder {
    /// The order that fits what is trained in a step, counted from 0.
    pub(crate) fn of(objective: &ObjectiveConfig, step: u64) -> Self {
        match (objective.autoregressive, &objective.block_length) {
            (Some(logits_shift), _) => Self::LeftToRight { logits_shift },
            (None, Some(lengths)) => Self::Blocks(lengths.at(step)),
            (None, None) => Self::Anywhere,
        }
    }

    /// Fills canvases of one document each.
    ///
    /// In blocks the configured steps are shared out by the number of masks, at least one to a block; token by token every mask takes one.
    pub(crate) fn write(
        self,
        denoiser: &dyn Denoiser,
        canvases: &[Canvas],
        config: &SamplerConfig,
        draws: &mut dyn Draws,
    ) -> Result<Vec<Written>> {
        let mut fill = |denoiser: &dyn Denoiser, canvases: &[Canvas], config: &SamplerConfig| {
            sample(denoiser, canvases, config, draws, &mut |_| ControlFlow::Continue(()))
        };
        let (block_length, seen) = match self {
            Self::Anywhere => {
                let filled = fill(denoiser, canvases, config)?.into_iter();
                return Ok(filled.map(|filled| Written { ids: filled.ids, nfe: filled.nfe }).collect());
            }
            Self::Blocks(block_length) => (block_length as usize, Seen { denoiser, order: self }),
            Self::LeftToRight { .. } => (1, Seen { denoiser, order: self }),
        };
        let of_block = |canvas: &Canvas, block: usize| -> Vec<usize> {
            canvas.masked_positions().iter().copied().filter(|position| position / block_length == block).collect()
        };
        let blocks: BTreeSet<usize> =
            canvases.iter().flat_map(Canvas::masked_positions).map(|position| position / block_length).collect();
        let mut written: Vec<Written> =
            canvases.iter().map(|canvas| Written { ids: canvas.ids().to_vec(), nfe: 0 }).collect();
        for block in blocks {
            // By the number of steps, so that what becomes of a canvas does not depend on the others.
            let mut groups: BTreeMap<usize, (Vec<usize>, Vec<Canvas>)> = BTreeMap::new();
            for (row, canvas) in canvases.iter().enumerate() {
                let positions = of_block(canvas, block);
                if positions.is_empty() {
                    continue;
                }
                // What comes later is not looked at.
                let end = written[row].ids.len().min((block + 1) * block_length);
                let share = (config.steps * positions.len()).div_ceil(canvas.masked_positions().len());
                let (rows, parts) = groups.entry(share.min(positions.len())).or_default();
                parts.push(Canvas::mask_positions(&written[row].ids[..end], &positions, config.mask_token_id)?);
                rows.push(row);
            }
            for (steps, (rows, parts)) in groups {
                let filled = fill(&seen, &parts, &config.clone().with_steps(steps))?;
                for (row, filled) in rows.into_iter().zip(filled) {
                    written[row].nfe += filled.nfe;
                    written[row].ids[..filled.ids.len()].copy_from_slice(&filled.ids);
                }
            }
        }
        Ok(written)
    }
}

/// A denoiser that is shown a canvas as it was shown texts in training.
struct Seen<'a> {
    denoiser: &'a dyn Denoiser,
    order: WritingOrder,
}

impl Denoiser for Seen<'_> {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> std::result::Result<Tensor, DiffusionError> {
        let (batch, seq_len) = input.ids.size2()?;
        let every = || Tensor::arange(batch * seq_len, (Kind::Int64, input.ids.device()));
        let wanted = input.wanted.map_or_else(every, Tensor::shallow_clone);
        let layout = |segment_ids: Option<&Tensor>| {
            segment_ids.map_or_else(|| Ok(AttentionLayout::full()), AttentionLayout::segments)
        };
        let segment_ids = input.attention.segment_ids.as_ref();
        let (ids, positions, attention, wanted) = match self.order {
            WritingOrder::Anywhere => return self.denoiser.hidden_states(input),
            WritingOrder::LeftToRight { logits_shift } => {
                let attention = layout(segment_ids)?.with_visibility(Visibility::Causal);
                let wanted = if logits_shift { wanted } else { (wanted - 1).clamp_min(0) };
                let positions = input.position_ids.map(Tensor::shallow_clone);
                (input.ids.shallow_clone(), positions, attention, wanted)
            }
            WritingOrder::Blocks(block_length) => {
                // Noised and clean halves, as in training; of the clean one a block sees the blocks before it, which are written.
                let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 1);
                let counted =
                    || Tensor::arange(seq_len, (Kind::Int64, input.ids.device())).expand([batch, seq_len], false);
                let positions = twice(&input.position_ids.map_or_else(counted, Tensor::shallow_clone));
                let attention = layout(segment_ids.map(twice).as_ref())?
                    .with_visibility(Visibility::NoisyAndClean { block_length, seq_len });
                let wanted = &wanted + wanted.floor_divide_scalar(seq_len) * seq_len;
                (twice(input.ids), Some(positions), attention, wanted)
            }
        };
        let mut shown = DenoiserInput::new(&ids, &attention).at(&wanted);
        shown.position_ids = positions.as_ref();
        self.denoiser.hidden_states(&shown)
    }

    fn head(&self) -> &dyn Head {
        self.denoiser.head()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_sample::KeyedDraws;
    use std::cell::RefCell;

    const MASK: i64 = 9;

    /// Predicts at each wanted place one more than the sum of what it sees there, modulo 9, and keeps what it was shown.
    #[derive(Default)]
    struct Counting(RefCell<Vec<(Vec<i64>, Vec<i64>)>>);

    impl Denoiser for Counting {
        fn hidden_states(&self, input: &DenoiserInput<'_>) -> std::result::Result<Tensor, DiffusionError> {
            let (_, width) = input.ids.size2()?;
            let ids: Vec<Vec<i64>> = Vec::try_from(input.ids).unwrap();
            let wanted: Vec<i64> = Vec::try_from(input.wanted.unwrap()).unwrap();
            self.0.borrow_mut().push((ids.concat(), wanted.clone()));
            let next = wanted.iter().map(|&flat| {
                let (row, query) = (flat / width, flat % width);
                let seen = (0..width).filter(|&key| input.attention.allow(row, query, key));
                (1 + seen.map(|key| ids[row as usize][key as usize]).filter(|&id| id != MASK).sum::<i64>()) % MASK
            });
            let next: Vec<i64> = next.collect();
            Ok(Tensor::from_slice(&next).one_hot(MASK + 1).to_kind(Kind::Float) * 9.0)
        }

        fn head(&self) -> &dyn Head {
            &Plain
        }
    }

    struct Plain;

    impl Head for Plain {
        fn logits(&self, hidden: &Tensor) -> std::result::Result<Tensor, DiffusionError> {
            Ok(hidden.shallow_clone())
        }
    }

    /// The ids that the denoiser was shown, and the positions that were wanted of it.
    type Shown = (Vec<i64>, Vec<i64>);

    fn write(order: WritingOrder, canvases: &[Canvas]) -> (Vec<Written>, Vec<Shown>) {
        let denoiser = Counting::default();
        let config = SamplerConfig::new(MASK).with_steps(2);
        let written = order.write(&denoiser, canvases, &config, &mut KeyedDraws::new(1)).unwrap();
        (written, denoiser.0.into_inner())
    }

    #[test]
    fn token_by_token_each_follows_from_those_before_it() {
        let canvas = Canvas::completion(&[1, 2], 3, MASK).unwrap();
        // The state at a mask sees what is before it; the state before the mask sees the same.
        for logits_shift in [false, true] {
            let (written, shown) = write(WritingOrder::LeftToRight { logits_shift }, std::slice::from_ref(&canvas));
            assert_eq!(written, [Written { ids: vec![1, 2, 4, 8, 7], nfe: 3 }]);
            let asked: Vec<i64> = shown.iter().map(|(_, wanted)| wanted[0]).collect();
            assert_eq!(asked, if logits_shift { [2, 3, 4] } else { [1, 2, 3] });
        }
    }

    #[test]
    fn blocks_are_written_in_order_each_given_itself_and_the_clean_ones_before_it() {
        let canvas = Canvas::mask_positions(&[1, 2, 3, 4, 5], &[1, 3, 4], MASK).unwrap();
        let (written, shown) = write(WritingOrder::Blocks(2), &[canvas]);
        // 1 + 1 = 2 in the first block; 1 + (1 + 2) + 3 = 7; 1 + (1 + 2 + 3 + 7) modulo 9 = 5.
        assert_eq!(written, [Written { ids: vec![1, 2, 3, 7, 5], nfe: 3 }]);
        assert_eq!(shown[0], (vec![1, 9, 1, 9], vec![1]));
        assert_eq!(shown[1], (vec![1, 2, 3, 9, 1, 2, 3, 9], vec![3]));
    }

    #[test]
    fn canvases_of_different_lengths_are_written_as_each_by_itself() {
        let canvases = [
            Canvas::completion(&[1, 2], 5, MASK).unwrap(),
            Canvas::completion(&[3], 2, MASK).unwrap(),
            Canvas::mask_positions(&[4, 5, 6, 7], &[3], MASK).unwrap(),
        ];
        for order in
            [WritingOrder::Blocks(2), WritingOrder::Blocks(3), WritingOrder::LeftToRight { logits_shift: true }]
        {
            let (together, _) = write(order, &canvases);
            for (canvas, together) in canvases.iter().zip(together) {
                assert_eq!(write(order, std::slice::from_ref(canvas)).0[0].ids, together.ids, "{order:?}");
                assert!(!together.ids.contains(&MASK));
            }
        }
    }

    #[test]
    fn the_order_follows_from_what_is_trained() {
        let base = ObjectiveConfig::new(MASK);
        assert_eq!(WritingOrder::of(&base, 0), WritingOrder::Anywhere);
        let blocks = ObjectiveConfig { block_length: Some("0:1, 5:4".parse().unwrap()), ..base.clone() };
        assert_eq!([0, 4, 5].map(|step| WritingOrder::of(&blocks, step)), [1, 1, 4].map(WritingOrder::Blocks));
        let causal = ObjectiveConfig { autoregressive: Some(true), ..base };
        assert_eq!(WritingOrder::of(&causal, 0), WritingOrder::LeftToRight { logits_shift: true });
    }
}
