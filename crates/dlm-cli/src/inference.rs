//! A model folder at work: from a prompt to a canvas to text.

use crate::{
    args::{MaskingArgs, SamplingArgs},
    error::UsageError,
    settings::Resolved,
    trace_svg::Piece,
};
use dlm_diffusion::{NoiseKey, Purpose};
use dlm_model::{LoadOptions, Model};
use dlm_sample::{
    Canvas, DEFAULT_COMPLETION_TOKENS, Generation, KeyedDraws, SamplerConfig, StepEvent, TokenOutcome, outcomes,
    preview_mask_ratio, sample, spans,
};
use dlm_tokenizer::{KeepSpecials, MaskToken, Specials, Tokenizer};
use serde::Serialize;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tch::Device;

/// What to turn into masks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Masking {
    /// Masks behind the prompt.
    Complete(usize),
    /// A share of the prompt's tokens, or a random share.
    Ratio(Option<f64>),
    /// These positions of the prompt.
    Positions(Vec<usize>),
}

impl Masking {
    /// What the arguments ask for; nothing is a completion of the default length.
    pub(crate) fn from_args(args: &MaskingArgs) -> Self {
        match (args.complete, args.mask, &args.mask_positions) {
            (Some(tokens), ..) => Self::Complete(usize::try_from(tokens).unwrap_or(usize::MAX)),
            (_, Some(ratio), _) => Self::Ratio(Some(ratio)),
            (_, _, Some(positions)) => Self::Positions(positions.clone()),
            _ => Self::Complete(DEFAULT_COMPLETION_TOKENS),
        }
    }
}

/// How to decode, for one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decoding {
    pub(crate) steps: usize,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    pub(crate) trace: bool,
}

/// A stretch of text and what became of its tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Span {
    pub(crate) text: String,
    pub(crate) outcome: TokenOutcome,
}

/// A canvas, the tokens it was made from, and what came of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) original: Vec<i64>,
    pub(crate) canvas: Canvas,
    pub(crate) generation: Generation,
}

/// A model and its tokenizer, ready to denoise.
#[derive(Debug)]
pub(crate) struct Inference {
    model: Model,
    tokenizer: Tokenizer,
    mask: MaskToken,
    keep: Vec<i64>,
    pub(crate) decoding: Decoding,
}

impl Inference {
    /// Loads the model folder that the arguments or the settings name.
    ///
    /// What the folder says of itself comes first, then the settings of a run, then flags.
    pub(crate) fn load(
        model: Option<&Path>,
        sampling: &SamplingArgs,
        resolved: &Resolved,
        device: Device,
    ) -> anyhow::Result<Self> {
        let folder = model_folder(model, resolved)?;
        let dtype = sampling.dtype.unwrap_or(resolved.settings.inference_dtype);
        let options = LoadOptions { device, kind: dtype.kind(&folder)? };
        let (model, tokenizer) = match &sampling.adapter {
            Some(adapter) => {
                let has_tokenizer = adapter.join("tokenizer.json").is_file();
                let tokenizer = Tokenizer::load(if has_tokenizer { adapter } else { &folder })?;
                (Model::load_with_adapter(&folder, adapter, &options)?, tokenizer)
            }
            None => (Model::load(&folder, &options)?, Tokenizer::load(&folder)?),
        };
        expect_rows_for(tokenizer.len(), &model)?;
        let settings = &resolved.settings.diffusion;
        let given = ["diffusion.mask_token_id", "diffusion.mask_token_str"].iter().any(|key| resolved.is_given(key));
        let mask_token_id = match model.mask_token_id() {
            Some(id) if !given => Some(u32::try_from(id)?),
            _ => settings.mask_token_id,
        };
        let mask = tokenizer.find_mask_token(mask_token_id, settings.mask_token_str())?;
        let never_mask = match model.diffusion() {
            Some(info) if !resolved.is_given("diffusion.never_mask") => &info.never_mask,
            _ => &settings.never_mask,
        };
        let keep = tokenizer.special_ids(never_mask)?.into_iter().map(i64::from).collect();
        let decoding = Decoding {
            steps: usize::try_from(sampling.steps.unwrap_or(settings.num_diffusion_steps))?,
            temperature: sampling.temperature.unwrap_or(settings.generation_temperature),
            seed: sampling.seed.unwrap_or(resolved.settings.seed),
            trace: false,
        };
        Ok(Self { model, tokenizer, mask, keep, decoding })
    }

    /// The ids of a prompt, as the tokenizer frames a text; nothing in it becomes a special token.
    pub(crate) fn encode(&self, prompt: &str) -> anyhow::Result<Vec<i64>> {
        let mut ids = self.tokenizer.encode_with_post_processor(prompt, Specials::AsText)?;
        // A text that ends here would not be continued.
        let eos = self.tokenizer.special().eos.as_ref().map(|token| token.id);
        if eos.is_some() && ids.last().copied() == eos {
            ids.pop();
        }
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// The ids of a text that continues another one: nothing is put around it.
    pub(crate) fn encode_bare(&self, text: &str) -> anyhow::Result<Vec<i64>> {
        Ok(self.tokenizer.encode(text, Specials::AsText)?.into_iter().map(i64::from).collect())
    }

    /// The network.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Id of the mask token.
    pub(crate) fn mask_token_id(&self) -> i64 {
        self.mask.id.into()
    }

    /// Ids that are never masked.
    pub(crate) fn never_mask(&self) -> &[i64] {
        &self.keep
    }

    /// Masks `ids` as asked; random choices follow from `seed`.
    pub(crate) fn canvas(&self, ids: &[i64], masking: &Masking, seed: u64) -> anyhow::Result<Canvas> {
        let mask = i64::from(self.mask.id);
        let key = NoiseKey::new(seed, Purpose::Mask, 0);
        Ok(match masking {
            Masking::Complete(tokens) => Canvas::completion(ids, *tokens, mask)?,
            Masking::Ratio(ratio) => {
                let drawn = || preview_mask_ratio(NoiseKey::new(seed, Purpose::Length, 0).uniform(0).into());
                Canvas::random_masks(ids, ratio.unwrap_or_else(drawn), &self.keep, &key.permutation(ids.len()), mask)?
            }
            Masking::Positions(positions) => Canvas::mask_positions(ids, positions, mask)?,
        })
    }

    /// Masks `original` and fills the masks; `observer` sees every step.
    pub(crate) fn answer(
        &self,
        original: Vec<i64>,
        masking: &Masking,
        decoding: Decoding,
        mut observer: impl FnMut(&StepEvent<'_>),
    ) -> anyhow::Result<Answer> {
        let canvas = self.canvas(&original, masking, decoding.seed)?;
        let mut config = SamplerConfig::new(self.mask.id.into())
            .with_steps(decoding.steps)
            .with_temperature(decoding.temperature)
            .with_vocab_size(self.tokenizer.len() as i64);
        config.trace = decoding.trace;
        let mut draws = KeyedDraws::new(decoding.seed);
        let mut observe = |event: &StepEvent<'_>| {
            observer(event);
            ControlFlow::Continue(())
        };
        let generations = sample(&self.model, std::slice::from_ref(&canvas), &config, &mut draws, &mut observe)?;
        let generation =
            generations.into_iter().next().ok_or_else(|| anyhow::anyhow!("the sampler gave no canvas back"))?;
        Ok(Answer { original, canvas, generation })
    }

    /// Text without special tokens.
    pub(crate) fn text(&self, ids: &[i64]) -> anyhow::Result<String> {
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.tokenizer.decode(&ids, KeepSpecials::No)?)
    }

    /// What became of each stretch of a canvas on its way or at its end; a mask is shown as `[MASK]`.
    pub(crate) fn spans(&self, ids: &[i64], answer: &Answer) -> anyhow::Result<Vec<Span>> {
        self.spans_of(ids, answer.canvas.masked_positions(), &answer.original)
    }

    /// The canvas before the first step.
    pub(crate) fn masked_spans(&self, canvas: &Canvas, original: &[i64]) -> anyhow::Result<Vec<Span>> {
        self.spans_of(canvas.ids(), canvas.masked_positions(), original)
    }

    /// The finished canvas token by token, each with the step that revealed it.
    pub(crate) fn pieces(&self, answer: &Answer) -> anyhow::Result<Vec<Piece>> {
        let generation = &answer.generation;
        let mut pieces = Vec::with_capacity(generation.ids.len());
        let mut before = String::new();
        for position in 0..generation.ids.len() {
            let until = self.text(&generation.ids[..=position])?;
            // A token that is a part of a character shows with the one that completes it.
            let text = until.strip_prefix(&before).unwrap_or_default().to_owned();
            let revealed = generation.reveals.iter().find(|reveal| reveal.position == position);
            pieces.push(Piece { text, revealed_at: revealed.map(|reveal| reveal.step) });
            before = until;
        }
        Ok(pieces)
    }

    fn spans_of(&self, ids: &[i64], masked: &[usize], original: &[i64]) -> anyhow::Result<Vec<Span>> {
        let outcomes = outcomes(ids, masked, original, self.mask.id.into());
        let mut all = Vec::new();
        let mut before = String::new();
        for (outcome, range) in spans(&outcomes) {
            if outcome == TokenOutcome::Masked {
                all.push(Span { text: dlm_sample::MASK_TEXT.repeat(range.len()), outcome });
                continue;
            }
            // What a token looks like may depend on those before it, as the space at the beginning of a word does.
            let known: Vec<i64> =
                ids[..range.end].iter().copied().filter(|&id| id != i64::from(self.mask.id)).collect();
            let until = self.text(&known)?;
            let text = match until.strip_prefix(&before) {
                Some(text) => text.to_owned(),
                None => self.text(&ids[range])?,
            };
            before = until;
            all.push(Span { text, outcome });
        }
        Ok(all)
    }
}

/// Refuses a tokenizer with more tokens than the model has rows for.
pub(crate) fn expect_rows_for(tokens: usize, model: &Model) -> anyhow::Result<()> {
    let rows = model.vocab_size();
    if tokens as i64 <= rows {
        return Ok(());
    }
    Err(UsageError::Invalid {
        what: "the number of tokens in the tokenizer".to_owned(),
        found: tokens.to_string(),
        expected: format!("at most {rows}, the rows of the model's embedding: they do not belong together"),
    }
    .into())
}

fn model_folder(given: Option<&Path>, resolved: &Resolved) -> Result<PathBuf, UsageError> {
    match given {
        Some(folder) => Ok(folder.to_owned()),
        None if resolved.is_given("output_dir") => Ok(PathBuf::from(&resolved.settings.output_dir)),
        None => Err(UsageError::Missing {
            what: "the model",
            help: "give `--model DIR`, or `--config FILE` with the `output_dir` of a training run",
        }),
    }
}
