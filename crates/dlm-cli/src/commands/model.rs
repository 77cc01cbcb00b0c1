//! `dlm model`: what a folder holds, and folders made of GGUF files and of adapters.

use crate::{
    args::{ModelCommand, WritingArgs},
    error::UsageError,
};
use dlm_model::{Gguf, LoadOptions, Model, ModelConfig, ModelInfo, SaveOptions};
use dlm_tokenizer::Tokenizer;
use std::{
    io::{Write, stdout},
    path::Path,
};
use tch::Kind;

/// Runs `dlm model ...`.
pub(crate) fn run(command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::Info { folder, check, json } => info(&folder, check, json),
        ModelCommand::Convert { gguf, output, writing } => {
            expect_new(&output)?;
            let read = Gguf::read(&gguf, &LoadOptions::default())?;
            read.model.save(&output, save_options(writing, read.kind), &read.companions)?;
            told(&output, &read.model)
        }
        ModelCommand::Merge { adapter, output, base, writing } => merge(&adapter, &output, base.as_deref(), writing),
    }
}

fn info(folder: &Path, check: bool, json: bool) -> anyhow::Result<()> {
    let info = ModelInfo::of_folder(folder)?;
    let mut out = stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&info)?)?;
    } else {
        let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
        let unknown = || "not said".to_owned();
        let shift = if info.logits_shift { "the state before it" } else { "its own state" };
        let mut lines = vec![
            ("architecture", format!("{} ({})", info.architecture, info.family)),
            ("parameters", format!("{:.2} million", info.parameters as f64 / 1e6)),
            ("blocks", format!("{} of width {}", info.num_hidden_layers, info.hidden_size)),
            ("vocabulary", format!("{} rows", info.vocab_size)),
            ("longest text", format!("{} tokens", info.max_seq_len)),
            ("stored as", info.stored_as.map_or_else(unknown, str::to_owned)),
            (
                "inference",
                format!(
                    "{} for weights in float32, {} in half precision",
                    gigabytes(info.inference_bytes),
                    gigabytes(info.inference_bytes / 2)
                ),
            ),
            (
                "training",
                format!("{} for weights, gradients and moments, without activations", gigabytes(info.training_bytes)),
            ),
            ("mask token", info.mask_token_id.map_or_else(unknown, |id| id.to_string())),
            ("prediction", format!("a token from {shift}")),
        ];
        if let Some(base) = &info.base_model {
            lines.push(("base model", base.display().to_string()));
        }
        lines.push((
            "complete",
            info.problem.clone().map_or_else(|| "yes".to_owned(), |problem| format!("no: {problem}")),
        ));
        for (name, value) in lines {
            writeln!(out, "{name:<13} {value}")?;
        }
    }
    if check && info.problem.is_none() {
        Model::load(folder, &LoadOptions::default())?.check_finite()?;
        if !json {
            writeln!(out, "{:<13} all finite", "weights")?;
        }
    }
    Ok(())
}

fn merge(adapter: &Path, output: &Path, base: Option<&Path>, writing: WritingArgs) -> anyhow::Result<()> {
    expect_new(output)?;
    let options = LoadOptions::default();
    let mut model = match base {
        Some(base) => Model::load_with_adapter(base, adapter, &options)?,
        None => Model::load(adapter, &options)?,
    };
    if model.adapter().is_none() {
        return Err(UsageError::Invalid {
            what: format!("`{}`", adapter.display()),
            found: "a whole model".to_owned(),
            expected: "an adapter: a folder with adapter_config.json".to_owned(),
        }
        .into());
    }
    model.merge_adapter()?;
    let tokenizer_folder = match base {
        Some(base) if !adapter.join("tokenizer.json").is_file() => base.to_owned(),
        None if !adapter.join("tokenizer.json").is_file() => {
            ModelInfo::of_folder(adapter)?.base_model.unwrap_or_else(|| adapter.to_owned())
        }
        _ => adapter.to_owned(),
    };
    let stored = ModelConfig::from_folder(&tokenizer_folder).ok().and_then(|config| config.stored_kind);
    let companions = Tokenizer::load(&tokenizer_folder)?.files()?;
    model.save(output, save_options(writing, stored.unwrap_or(Kind::Float)), &companions)?;
    told(output, &model)
}

fn save_options(writing: WritingArgs, stored: Kind) -> SaveOptions {
    let kind = writing.dtype.map_or(stored, Kind::from);
    SaveOptions::from(kind).with_max_shard_bytes(writing.max_shard_size.saturating_mul(1_000_000))
}

/// Nobody's model is overwritten.
fn expect_new(output: &Path) -> Result<(), UsageError> {
    if !output.join("config.json").exists() {
        return Ok(());
    }
    Err(UsageError::Invalid {
        what: "the folder to write".to_owned(),
        found: format!("`{}`, which holds a model", output.display()),
        expected: "a new or empty one".to_owned(),
    })
}

fn told(output: &Path, model: &Model) -> anyhow::Result<()> {
    let millions = model.parameter_count() as f64 / 1e6;
    writeln!(stdout(), "{} is ready: {millions:.2} million parameters", output.display())?;
    Ok(())
}
