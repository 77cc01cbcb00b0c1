//! `dlm chat`: prompts, one a line, each with its commands.

use super::{runtime, tell_ignored};
use crate::{
    args::ChatArgs,
    inference::{Inference, Masking},
    paint::paint,
    report::{Style, render},
    settings::resolve,
};
use dlm_sample::{DEFAULT_COMPLETION_TOKENS, PromptCommands, PromptMode, Stats, parse_commands};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, IsTerminal, Write, stdin, stdout};

const INTRODUCTION: &str = "\
Type a prompt and press Enter. Commands before it:
  :complete N   append N tokens (without a command: 64)
  :mask R       mask the share R of its tokens and fill them in again
Ctrl-D ends.";

/// Runs `dlm chat`.
pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let resolved = resolve(&args.settings.sources())?;
    tell_ignored(&resolved);
    let device = runtime::start(&resolved.settings)?;
    let inference = Inference::load(args.model.as_deref(), &args.sampling, &resolved, device)?;
    let interactive = stdin().is_terminal();
    if interactive {
        eprintln!("{INTRODUCTION}");
    }
    let mut lines = stdin().lock().lines();
    let mut n_prompts = 0;
    loop {
        if interactive {
            eprint!("\n> ");
        }
        let Some(line) = lines.next().transpose()? else { break };
        if line.trim().is_empty() {
            continue;
        }
        // Each prompt has draws of its own, and the same prompts in the same order give the same answers.
        let seed = inference.decoding.seed.wrapping_add(n_prompts);
        n_prompts += 1;
        match answer(&inference, &line, seed) {
            Ok(()) => {}
            // A prompt that went wrong does not end the conversation; it does where nobody can type another.
            Err(error) if interactive => eprint!("{}", render(&error, Style::of_stderr())),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the commands of a prompt ask for; none is a completion of the default length.
pub(crate) fn masking(prompt: &PromptCommands<'_>) -> Masking {
    match prompt.mode {
        Some(PromptMode::Mask) => Masking::Ratio(prompt.mask_ratio),
        Some(PromptMode::Complete) | None => {
            Masking::Complete(prompt.completion_tokens.unwrap_or(DEFAULT_COMPLETION_TOKENS))
        }
    }
}

fn answer(inference: &Inference, line: &str, seed: u64) -> anyhow::Result<()> {
    let prompt = parse_commands(line)?;
    let masking = masking(&prompt);
    let mut decoding = inference.decoding;
    decoding.seed = seed;
    let style = Style::of_stdout();
    let mut out = stdout().lock();
    let original = inference.encode(prompt.text)?;
    if matches!(masking, Masking::Ratio(_)) {
        let canvas = inference.canvas(&original, &masking, seed)?;
        let share = 100.0 * canvas.masked_positions().len() as f64 / canvas.ids().len() as f64;
        writeln!(out, "masked ({share:.1} %): {}", paint(&inference.masked_spans(&canvas, &original)?, style))?;
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{bar:30} {pos} of {len} tokens")?);
    let answer = inference.answer(original, &masking, decoding, |event| {
        bar.set_length((event.remaining + event.revealed.len()) as u64 + bar.position());
        bar.inc(event.revealed.len() as u64);
    })?;
    bar.finish_and_clear();
    writeln!(out, "{}", paint(&inference.spans(&answer.generation.ids, &answer)?, style))?;
    eprintln!("{}", Stats::of(std::slice::from_ref(&answer.generation)));
    Ok(())
}
