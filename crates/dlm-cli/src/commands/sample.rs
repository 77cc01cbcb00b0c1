//! `dlm sample`: one prompt, one text.

use super::{runtime, tell_ignored};
use crate::{
    args::SampleArgs,
    error::UsageError,
    inference::{Answer, Decoding, Inference, Masking},
    paint::paint,
    report::Style,
    settings::resolve,
    trace_svg::denoising_svg,
};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write, stdin, stdout};

/// What `--json` promises.
#[derive(Debug, Serialize)]
struct Output<'a> {
    ids: &'a [i64],
    masked_positions: &'a [usize],
    text: String,
    nfe: usize,
    elapsed_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a [Vec<i64>]>,
}

/// Runs `dlm sample`.
pub(crate) fn run(args: &SampleArgs) -> anyhow::Result<()> {
    let resolved = resolve(&args.settings.sources())?;
    tell_ignored(&resolved);
    let device = runtime::start(&resolved.settings)?;
    let inference = Inference::load(args.model.as_deref(), &args.sampling, &resolved, device)?;
    let original = match (&args.input_ids, &args.prompt) {
        (Some(ids), _) => ids.clone(),
        (None, Some(prompt)) => inference.encode(prompt)?,
        (None, None) => inference.encode(&read_prompt()?)?,
    };
    let decoding = Decoding { trace: args.trace, ..inference.decoding };
    let answer = inference.answer(original, &Masking::from_args(&args.masking), decoding, |_| {})?;
    if let Some(path) = &args.svg {
        let pieces = inference.pieces(&answer)?;
        dlm_files::write(path, denoising_svg(&pieces, answer.generation.nfe).as_bytes())?;
    }
    let mut out = stdout().lock();
    if args.json {
        let generation = &answer.generation;
        let output = Output {
            ids: &generation.ids,
            masked_positions: &generation.masked_positions,
            text: inference.text(&generation.ids)?,
            nfe: generation.nfe,
            elapsed_s: generation.elapsed_s,
            trace: args.trace.then_some(generation.trace.as_slice()),
        };
        writeln!(out, "{}", serde_json::to_string(&output)?)?;
    } else {
        write_text(&mut out, &inference, &answer, args.trace)?;
    }
    Ok(())
}

/// Text alone where it goes to a file or a pipe; in colour on a terminal.
fn write_text(out: &mut impl Write, inference: &Inference, answer: &Answer, trace: bool) -> anyhow::Result<()> {
    let style = Style::of_stdout();
    if trace {
        for (step, ids) in answer.generation.trace.iter().take(answer.generation.nfe).enumerate() {
            writeln!(out, "{:>4}  {}", step + 1, paint(&inference.spans(ids, answer)?, style))?;
        }
    }
    match style {
        Style::Colour => writeln!(out, "{}", paint(&inference.spans(&answer.generation.ids, answer)?, style))?,
        Style::Plain => writeln!(out, "{}", inference.text(&answer.generation.ids)?)?,
    }
    Ok(())
}

fn read_prompt() -> anyhow::Result<String> {
    let input = stdin();
    if input.is_terminal() {
        return Err(UsageError::Missing {
            what: "the prompt",
            help: "give `--prompt TEXT` or `--input-ids IDS`, or pipe a text in",
        }
        .into());
    }
    let mut prompt = String::new();
    input.lock().read_to_string(&mut prompt)?;
    // The line end of `echo` belongs to the shell, not to the text.
    let text = prompt.strip_suffix('\n').unwrap_or(&prompt);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
