//! `dlm train`: settings, data, tokenizer and model to a run.

/// A line on standard error, as `eprintln!`, but without its panic: a run must not die because nobody reads on.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*); // there is no one left to tell
    }};
}
pub(crate) use say;

mod console;
mod log_file;
mod run_config;
mod setup;

use super::{runtime, tell_ignored};
use crate::{
    args::TrainArgs,
    report::Interrupted,
    settings::{Settings, resolve},
    tracking::Tracking,
};
use anyhow::Context;
use console::Console;
use dlm_data::unigram_entropy;
use dlm_model::{Model, ModelCard};
use dlm_tokenizer::{KeepSpecials, Tokenizer};
use dlm_train::{
    LossCurve, METRICS_FILE, MetricSink, Outcome, Progress, Start, TrainError, Trainer, existing_run, metric,
    read_metrics,
};
use log_file::LogFile;
use setup::{Data, Setup};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Runs `dlm train`.
pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let resolved = resolve(&args.settings.sources())?;
    tell_ignored(&resolved);
    let output_dir = PathBuf::from(&resolved.settings.output_dir);
    let start = if args.resume { Start::Resume } else { Start::New };
    // Before anything large is loaded.
    if let (Start::New, Some(found)) = (start, existing_run(&output_dir)?) {
        return Err(TrainError::RunExists { path: output_dir, found }.into());
    }
    let device = runtime::start(&resolved.settings)?;
    let data = Data::open(&resolved.settings)?;
    let Setup { model, tokenizer, mask, never_mask, identity } = Setup::new(&resolved, &data, device)?;
    let config = run_config::run_config(
        &resolved.settings,
        &data,
        &tokenizer,
        &mask,
        &never_mask,
        model.config().logits_shift(),
    )?;
    setup::tell(&data, &model, &mask, &config)?;

    let settings_file = SettingsFile { path: output_dir.join("settings.toml"), content: resolved.to_toml() };
    let text_of = |ids: &[i64]| text_of(&tokenizer, &mask.text, ids);
    let saving = setup::saving(&resolved.settings, &model);
    let mut trainer = Trainer::new(config, model, &data.train)?
        .with_companions(tokenizer.files()?)
        .with_saving(saving)
        .with_text(text_of)
        .with_stop(stop_on_signals()?);
    // First of all sinks: a tracker that refuses the run leaves no folder behind.
    if let Some(tracking) = Tracking::new(&resolved, &output_dir, start)? {
        trainer = trainer.with_sink(tracking);
    }
    trainer = trainer.with_sink(settings_file).with_sink(LogFile::new(&output_dir)).with_sink(Console::new());
    for (name, value) in identity {
        trainer = trainer.with_identity(name, value);
    }
    if let Some(validation) = &data.validation {
        trainer = trainer.with_validation(validation)?;
    }
    let (outcome, model) = trainer.run(start)?;
    match outcome {
        Outcome::Interrupted { step, checkpoint } => {
            say!("stopped after step {step}; `--resume` goes on from `{}`", checkpoint.display());
            Err(Interrupted.into())
        }
        _ => {
            show_curve(&output_dir)?;
            tell_worth(&data, &output_dir)?;
            write_card(&resolved.settings, &model, &output_dir)?;
            say!("the model is in `{}`", output_dir.display());
            Ok(())
        }
    }
}

/// Writes the folder's README.md, unless a person wrote one.
fn write_card(settings: &Settings, model: &Model, output_dir: &Path) -> anyhow::Result<()> {
    let path = output_dir.join(ModelCard::FILE);
    if std::fs::read_to_string(&path).is_ok_and(|text| !ModelCard::is_generated(&text)) {
        return Ok(());
    }
    let name = output_dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let mut card = ModelCard::new(name);
    if let Some(base) = &settings.base_model {
        card = card.with_base_model(base).with_fact("began as", base);
    }
    if let Some((step, metrics)) = read_metrics(&output_dir.join(METRICS_FILE))?.last() {
        card = card.with_fact("optimiser steps", step);
        for name in ["train/loss", "eval/nelbo", "eval/bits_per_byte"] {
            if let Some(value) = metric(metrics, name) {
                card = card.with_fact(name, format!("{value:.4}"));
            }
        }
    }
    card = card
        .with_fact("rows in a step", settings.micro_batch_size * settings.gradient_accumulation_steps)
        .with_fact("learning rate", settings.learning_rate)
        .with_fact("seed", settings.seed);
    Ok(dlm_files::write(&path, card.render(model).as_bytes())?)
}

fn show_curve(output_dir: &Path) -> anyhow::Result<()> {
    let curve = LossCurve::of_run(output_dir)?;
    if !curve.is_empty() {
        say!("\n{}\nalso as a picture: `{}`", curve.to_terminal(72, 12), output_dir.join("loss_curve.svg").display());
    }
    Ok(())
}

/// Says what the bound is worth: beside it stands what token frequencies alone would reach.
fn tell_worth(data: &Data, output_dir: &Path) -> anyhow::Result<()> {
    let logged = read_metrics(&output_dir.join(METRICS_FILE))?;
    let nelbo = logged.iter().rev().find_map(|(_, metrics)| metric(metrics, "eval/nelbo"));
    let (Some(validation), Some(nelbo)) = (&data.validation, nelbo) else { return Ok(()) };
    let unigram = unigram_entropy(&data.train, validation)?;
    say!(
        "held-out tokens: NELBO {nelbo:.3} nats per token; entropy under the training text's frequencies {unigram:.3}"
    );
    let learnt = unigram - nelbo;
    if learnt > 0.0 {
        say!("the model has learnt {learnt:.3} nats per token from context");
    } else {
        say!("the model has learnt nothing from context yet, only how frequent tokens are at best: train longer");
    }
    Ok(())
}

/// Ids as a reader sees them: special tokens spelled, masks as `[MASK]`.
fn text_of(tokenizer: &Tokenizer, mask: &str, ids: &[i64]) -> String {
    let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
    // Ids of a padded vocabulary have no text; they are never predicted and never in the data.
    let text = tokenizer.decode(&ids, KeepSpecials::Yes).unwrap_or_default();
    text.replace(mask, dlm_sample::MASK_TEXT)
}

/// Becomes true when the process is asked to end; asked again, it ends at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let stop_too = Arc::clone(&stop);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot watch for signals")?;
    let mut terminate = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("cannot watch for SIGTERM")?
    };
    let watch = async move {
        loop {
            let heard = tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted.is_ok(),
                terminated = terminate.recv() => terminated.is_some(),
            };
            if !heard {
                return;
            }
            if stop_too.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            say!("saving a checkpoint after this step; once more ends at once");
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(watch))?;
    Ok(stop)
}

/// Writes `settings.toml` once everything is checked, so that a refused run changes nothing.
struct SettingsFile {
    path: PathBuf,
    content: String,
}

impl MetricSink for SettingsFile {
    fn begin(&mut self, _progress: &Progress) -> dlm_train::Result<()> {
        Ok(dlm_files::write(&self.path, self.content.as_bytes())?)
    }

    fn log(&mut self, _step: u64, _metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        Ok(())
    }
}
