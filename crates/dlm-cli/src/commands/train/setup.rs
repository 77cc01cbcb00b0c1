//! What a run works with: rows, tokenizer, mask token and model, checked against each other.

use super::run_config::shifts_from_scratch;
use crate::{
    error::UsageError,
    inference::expect_rows_for,
    settings::{Adapter, PreparedPath, PreparedPaths, Resolved, Settings},
};
use anyhow::Context;
use dlm_data::{HeldOut, IGNORE_INDEX, Mixture, Part, PreparedData, Split};
use dlm_model::{DiffusionInfo, LoadOptions, LoraConfig, LoraTargets, Model, ModelConfig, SaveOptions};
use dlm_tokenizer::{KeepSpecials, MaskToken, Tokenizer};
use dlm_train::{Interval, LrScheduler, RowSource, RunConfig, Warmup};
use serde_json::Value;
use std::path::Path;
use tch::{Device, Kind};

/// Tokens whose text is measured to turn nats per token into bits per byte.
const MEASURED_TOKENS: usize = 1 << 20;

/// Prepared rows to train and to evaluate on.
pub(super) struct Data {
    pub(super) train: Mixture,
    pub(super) validation: Option<Mixture>,
    /// Whether pieces of one document stand on both sides, since rows were held out of data without a `validation` folder.
    cuts_documents: bool,
}

impl Data {
    /// Opens the prepared data that the settings name, and holds validation rows out where they ask for some.
    pub(super) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let help = "set `dataset_prepared_path` to a folder that `dlm data prepare` wrote";
        let paths = settings.dataset_prepared_path.as_ref();
        let PreparedPaths(paths) = paths.ok_or(UsageError::Missing { what: "`dataset_prepared_path`", help })?;
        let (mut train, mut validation) = (Vec::new(), Vec::new());
        for PreparedPath { path, weight } in paths {
            let data = PreparedData::open(path, Split::Train)?;
            if let Some(wanted) = settings.sequence_len.filter(|wanted| *wanted != data.sequence_len() as u64) {
                return Err(UsageError::Invalid {
                    what: "`sequence_len`".to_owned(),
                    found: wanted.to_string(),
                    expected: format!("{}, with which `{path}` was prepared", data.sequence_len()),
                }
                .into());
            }
            train.push((data, *weight));
            if PreparedData::has(path, Split::Validation)? {
                validation.push(PreparedData::open(path, Split::Validation)?);
            }
        }
        let weighted: Option<Vec<_>> = train.iter().map(|(data, weight)| Some((data.clone(), (*weight)?))).collect();
        let train = match weighted {
            Some(datasets) => Mixture::weighted(datasets)?,
            None => Mixture::new(train.into_iter().map(|(data, _)| data))?,
        };
        if !validation.is_empty() {
            return Ok(Self { train, validation: Some(Mixture::new(validation)?), cuts_documents: false });
        }
        let part = match settings.val_set_size {
            0.0 => return Ok(Self { train, validation: None, cuts_documents: false }),
            share if share < 1.0 => Part::Share(share),
            rows => Part::Rows(rows as u64),
        };
        let HeldOut { rest, part, cuts_documents } = train.hold_out(part, settings.seed)?;
        Ok(Self { train: rest, validation: Some(part), cuts_documents })
    }

    /// Tokens that may be masked in a byte of the validation text; `None` where rows hold prompts, for which bits per byte mean nothing.
    pub(super) fn tokens_per_byte(&self, tokenizer: &Tokenizer, never_mask: &[i64]) -> anyhow::Result<Option<f64>> {
        let Some(validation) = &self.validation else { return Ok(None) };
        let (mut tokens, mut bytes) = (0usize, 0usize);
        for index in 0..validation.rows() {
            if tokens >= MEASURED_TOKENS {
                break;
            }
            let row = validation.read_row(index)?;
            let real = row.segment_ids.iter().position(|segment| *segment == 0).unwrap_or(row.segment_ids.len());
            if row.labels[..real].contains(&IGNORE_INDEX) {
                return Ok(None);
            }
            let ids = &row.input_ids[..real];
            tokens += ids.iter().filter(|id| !never_mask.contains(&i64::from(**id))).count();
            let ids: Vec<u32> = ids.iter().map(|id| id.cast_unsigned()).collect();
            bytes += tokenizer.decode(&ids, KeepSpecials::No)?.len();
        }
        Ok((bytes > 0).then(|| tokens as f64 / bytes as f64))
    }
}

/// How the finished model is written.
pub(super) fn saving(settings: &Settings, model: &Model) -> SaveOptions {
    let kind = settings.save_dtype.map_or_else(|| model.kind(), Kind::from);
    SaveOptions::from(kind).with_max_shard_bytes(settings.max_shard_size.saturating_mul(1_000_000))
}

/// Tokenizer and model, made for each other.
pub(super) struct Setup {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    pub(super) mask: MaskToken,
    pub(super) never_mask: Vec<i64>,
    /// What decides the weights beside the settings of the trainer.
    pub(super) identity: Vec<(&'static str, Value)>,
}

impl Setup {
    /// Loads tokenizer and model, resolves the mask token, and gives it a row in the embedding.
    pub(super) fn new(resolved: &Resolved, data: &Data, device: Device) -> anyhow::Result<Self> {
        let settings = &resolved.settings;
        let mut tokenizer = load_tokenizer(settings, data)?;
        expect_tokens_of_data(&tokenizer, first(&data.train))?;
        let tokens = tokenizer.len();
        let options = LoadOptions { device, kind: Kind::Float };
        let base = settings.base_model.as_deref().map(|folder| Model::load(Path::new(folder), &options)).transpose()?;

        let mask = resolve_mask(resolved, &mut tokenizer, base.as_ref())?;
        let mut model = match base {
            Some(model) => {
                expect_rows_for(tokens, &model)?;
                model
            }
            None if settings.adapter.is_some() => {
                let help =
                    "an adapter stands beside trained weights: set `base_model` to a model folder, or unset `adapter`";
                return Err(UsageError::Missing { what: "`base_model`", help }.into());
            }
            None => from_scratch(settings, &tokenizer, &options)?,
        };
        model.grow_vocabulary(i64::from(mask.id) + 1)?;
        let logits_shift = model.config().logits_shift();
        let mut info = model.diffusion().cloned().unwrap_or_else(|| DiffusionInfo::new(0, logits_shift));
        info.mask_token_id = i64::from(mask.id);
        info.logits_shift = settings.diffusion.logits_shift.unwrap_or(info.logits_shift);
        info.noise_schedule = settings.diffusion.noise_schedule.to_string();
        info.never_mask.clone_from(&settings.diffusion.never_mask);
        info.answer_tail = answer_tail(data)?;
        let knows_mask = model.mask_token_id() == Some(info.mask_token_id);
        // A model that is trained in blocks is one that decodes in blocks of their last length.
        info.block_length = settings.diffusion.block_length.as_ref().map(dlm_diffusion::BlockLengths::last);
        info.block_start = settings.diffusion.block_start.unwrap_or(info.block_start);
        model.set_diffusion(info)?;
        let adapter = adapter(settings, (!knows_mask).then_some(i64::from(mask.id)));
        if let Some(adapter) = &adapter {
            model.add_adapter(adapter, settings.seed)?;
        }

        let never_mask = tokenizer.special_ids(&settings.diffusion.never_mask)?.into_iter().map(i64::from).collect();
        let source = settings.base_model.as_ref().or(settings.model_preset.as_ref()).or(settings.model_config.as_ref());
        let of_data = |value: &dyn Fn(&PreparedData, Option<f64>) -> Value| {
            let mut values: Vec<Value> = data.train.datasets().map(|(data, weight)| value(data, weight)).collect();
            if values.len() == 1 { values.remove(0) } else { Value::from(values) }
        };
        let mut identity = vec![
            ("data.pipeline", of_data(&|data, _| data.manifest().pipeline_hash.clone().into())),
            ("data.inputs", of_data(&|data, _| data.manifest().input_fingerprint.clone().into())),
            ("data.rows", of_data(&|data, _| data.rows().into())),
            ("tokenizer", Value::from(tokenizer.hash())),
            ("model", Value::from(source.cloned())),
            ("adapter", Value::from(adapter.map(|adapter| format!("{adapter:?}")))),
        ];
        if data.train.datasets().len() > 1 {
            identity.push(("data.weights", of_data(&|_, weight| weight.into())));
        }
        Ok(Self { model, tokenizer, mask, never_mask, identity })
    }
}

/// The adapter that the settings ask for; `mask_token` is a mask token whose embedding the model has not learnt.
///
/// A list and `lora_target_linear` exclude each other, and where neither is given, all linear maps are adapted.
fn adapter(settings: &Settings, mask_token: Option<i64>) -> Option<LoraConfig> {
    let Adapter::Lora = settings.adapter?;
    let names = &settings.lora_target_modules;
    let targets = if names.is_empty() || names[..] == ["all-linear"] {
        LoraTargets::AllLinear
    } else {
        LoraTargets::Names(names.clone())
    };
    let rank = i64::try_from(settings.lora_r).unwrap_or(i64::MAX);
    let mut config = LoraConfig::new(rank, settings.lora_alpha)
        .with_targets(targets)
        .with_dropout(settings.lora_dropout)
        .rank_stabilised(settings.peft_use_rslora.unwrap_or(false))
        .with_modules_to_save(settings.lora_modules_to_save.clone());
    // An embedding that is trained as a whole holds the mask token's row already.
    let trains_embedding =
        settings.lora_modules_to_save.iter().any(|name| name.ends_with("embed_tokens") || name.ends_with("wte"));
    if let Some(token) = mask_token.filter(|_| !trains_embedding) {
        config = config.with_trainable_tokens(vec![token]);
    }
    if let Some(base) = &settings.base_model {
        config = config.of_base_model(base);
    }
    Some(config)
}

/// What followed the answers: of datasets that differ in it a list.
fn answer_tail(data: &Data) -> anyhow::Result<Option<Value>> {
    let tails = data.train.datasets().map(|(data, _)| serde_json::to_value(&data.manifest().answer_tail));
    let mut tails = tails.collect::<Result<Vec<_>, _>>()?;
    tails.dedup();
    let tail = if tails.len() == 1 { tails.remove(0) } else { Value::from(tails) };
    Ok(Some(tail).filter(|tail| !tail.is_null()))
}

/// The tokenizer that the settings name, else the base model's, else the one the data was prepared with.
fn load_tokenizer(settings: &Settings, data: &Data) -> anyhow::Result<Tokenizer> {
    Ok(match settings.tokenizer_config.as_ref().or(settings.base_model.as_ref()) {
        Some(path) => Tokenizer::load(path)?,
        None => data.train.tokenizer()?,
    })
}

/// The dataset whose tokenizer stands for all.
fn first(mixture: &Mixture) -> &PreparedData {
    mixture.datasets().next().expect("a mixture has a dataset").0
}

/// Refuses a tokenizer in which an id of the data means another token.
fn expect_tokens_of_data(tokenizer: &Tokenizer, data: &PreparedData) -> anyhow::Result<()> {
    if tokenizer.hash() == data.manifest().tokenizer.hash {
        return Ok(());
    }
    let prepared_with = data.tokenizer()?;
    let token = |of: &Tokenizer, id: u32| {
        of.id_to_token(id).map_or_else(|| "no token".to_owned(), |token| format!("`{token}`"))
    };
    // Further tokens, such as a mask that an earlier run added, do no harm.
    let ids = 0..u32::try_from(prepared_with.len())?;
    match ids.into_iter().find(|&id| tokenizer.id_to_token(id) != prepared_with.id_to_token(id)) {
        None => Ok(()),
        Some(id) => Err(UsageError::Invalid {
            what: format!("token {id} of the model's tokenizer"),
            found: token(tokenizer, id),
            expected: format!(
                "{}, as in the data: prepare `{}` with the model's tokenizer",
                token(&prepared_with, id),
                data.folder().display()
            ),
        }
        .into()),
    }
}

/// The mask token: as the settings say, else as the base model was trained with, else the one of the default text.
fn resolve_mask(resolved: &Resolved, tokenizer: &mut Tokenizer, base: Option<&Model>) -> anyhow::Result<MaskToken> {
    let settings = &resolved.settings.diffusion;
    let given = ["diffusion.mask_token_id", "diffusion.mask_token_str"].iter().any(|key| resolved.is_given(key));
    let id = match base.and_then(Model::mask_token_id) {
        Some(id) if !given => Some(u32::try_from(id)?),
        _ => settings.mask_token_id,
    };
    Ok(tokenizer.resolve_mask_token(id, settings.mask_token_str())?)
}

/// A model without a past, with a row for each token.
fn from_scratch(settings: &Settings, tokenizer: &Tokenizer, options: &LoadOptions) -> anyhow::Result<Model> {
    let tokens = i64::try_from(tokenizer.len())?;
    let mut config = match (&settings.model_preset, &settings.model_config) {
        (Some(preset), _) => ModelConfig::preset(preset, tokens)?,
        (None, Some(path)) => {
            let path = Path::new(path);
            let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let object = serde_json::from_slice(&bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
            ModelConfig::from_json(object, path)?
        }
        (None, None) => {
            let help =
                "set `base_model` to a model folder, or `model_preset` (such as `tiny`) for a model from scratch";
            return Err(UsageError::Missing { what: "`base_model`", help }.into());
        }
    };
    config.vocab_size = config.vocab_size.max(tokens);
    let has_said = config.diffusion.is_some();
    let mut model = Model::from_config(config, settings.seed, options)?;
    if !has_said {
        // It has no autoregressive past from which it would have to be led away.
        model.set_diffusion(DiffusionInfo::new(0, shifts_from_scratch(settings)))?;
    }
    Ok(model)
}

/// Says on standard error what is going to happen.
pub(super) fn tell(data: &Data, model: &Model, mask: &MaskToken, config: &RunConfig) -> anyhow::Result<()> {
    let millions = model.parameter_count() as f64 / 1e6;
    let shift = if model.config().logits_shift() { ", each token predicted from the state before it" } else { "" };
    say!("model: {millions:.2} million parameters, {} rows in the vocabulary{shift}", model.vocab_size());
    if let Some(adapter) = model.adapter() {
        let numbers: usize = model.trainable_parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
        say!(
            "adapter: LoRA of rank {}, {:.3} million parameters, which alone are trained",
            adapter.r,
            numbers as f64 / 1e6
        );
    }
    let validation = data.validation.as_ref().map_or(0, Mixture::rows);
    let evaluated = validation.min(config.evaluation.max_rows.map_or(u64::MAX, |rows| rows as u64));
    let of_all = if evaluated < validation { format!(" of {validation}") } else { String::new() };
    let (rows, seq_len) = (data.train.rows(), RowSource::seq_len(&data.train));
    let to_evaluate = match config.evaluation.every {
        Interval::Never => "none".to_owned(),
        _ => format!("{evaluated}{of_all}"),
    };
    say!("data: {rows} rows of {seq_len} tokens to train on, {to_evaluate} to evaluate on");
    if data.train.datasets().len() > 1 {
        for ((dataset, _), share) in data.train.datasets().zip(data.train.rows_per_epoch()) {
            let (folder, stored) = (dataset.folder().display(), dataset.rows());
            say!("      {share} rows of an epoch are from `{folder}`, which has {stored}");
        }
    }
    if data.cuts_documents {
        say!(
            "warning: parts of the same documents are trained on and evaluated on, since rows cut them; a `split` step in \
             the pipeline keeps documents whole"
        );
    }
    let added = if mask.added { ", added to the tokenizer" } else { "" };
    say!("mask: token {} `{}`{added}", mask.id, mask.text);
    say!("noise: {}", config.objective.effective_range()?);
    if mask.in_text {
        say!("warning: ordinary text can spell the mask token; texts that hold `{}` hold masks", mask.text);
    }
    let schedule = &config.lr_schedule;
    if schedule.scheduler == LrScheduler::Constant && !matches!(schedule.warmup, Warmup::Steps(0) | Warmup::Ratio(0.0))
    {
        say!("warning: `lr_scheduler = \"constant\"` has no warmup; `constant_with_warmup` has");
    }
    if config.objective.max_mask_ratio.is_some_and(|max| max < 1.0) {
        say!("warning: with `max_mask_ratio` below 1, a start from nothing but masks is never trained");
    }
    Ok(())
}
