//! `dlm tokenizer`: a tokenizer for pretraining from scratch.

use super::data::pipeline;
use crate::args::{TokenizerCommand, TokenizerTrainArgs};
use dlm_data::{DataError, Resources};
use dlm_tokenizer::{Tokenizer, TrainOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{Write, stdout},
    sync::Mutex,
};

/// Runs `dlm tokenizer ...`.
pub(crate) fn run(command: TokenizerCommand) -> anyhow::Result<()> {
    match command {
        TokenizerCommand::Train(args) => train(&args),
    }
}

fn train(args: &TokenizerTrainArgs) -> anyhow::Result<()> {
    let texts = pipeline(&args.pipeline, &args.set)?.texts(&Resources::default())?;
    let bar = ProgressBar::new(texts.source_rows());
    bar.set_style(ProgressStyle::with_template("{elapsed_precise} {bar:30} {human_pos} of {human_len} texts")?);
    // The trainer takes texts alone, so an error on the way ends them and is told afterwards.
    let failure: Mutex<Option<DataError>> = Mutex::new(None);
    let sound = texts.map_while(|text| {
        bar.inc(1);
        text.map_err(|error| *failure.lock().expect("no other thread writes to it") = Some(error)).ok()
    });
    let options = TrainOptions::new(usize::try_from(args.vocab_size)?);
    let tokenizer = Tokenizer::train_bpe(sound, &options);
    bar.finish_and_clear();
    if let Some(error) = failure.into_inner().expect("no other thread writes to it") {
        return Err(error.into());
    }
    let tokenizer = tokenizer?;
    tokenizer.save(&args.output)?;
    writeln!(stdout(), "{} is ready: {} tokens", args.output.display(), tokenizer.len())?;
    Ok(())
}
