//! Errors for people: what went wrong, why, and what to do about it; then the exit code.

use crate::{error::UsageError, settings::SettingsError};
use dlm_data::DataError;
use dlm_diffusion::DiffusionError;
use dlm_model::ModelError;
use dlm_sample::SampleError;
use dlm_tokenizer::TokenizerError;
use dlm_train::TrainError;
use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal},
    process::ExitCode,
};

/// Exit code of a work that failed.
const FAILED: u8 = 1;
/// Exit code of bad usage or settings.
const MISUSED: u8 = 2;
/// Exit code of a work that was interrupted, after saving what there was.
const INTERRUPTED: u8 = 130;

/// The work was interrupted by Ctrl-C, after saving what there was.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Reports an error on standard error and gives the exit code: 0 done, 1 failed, 2 bad usage or settings, 130 interrupted.
#[must_use]
pub fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // Whoever reads our output may stop at any line, as `head` does.
    if error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
    {
        return ExitCode::SUCCESS;
    }
    if error.is::<Interrupted>() {
        return ExitCode::from(INTERRUPTED);
    }
    eprint!("{}", render(&error, Style::of_stderr()));
    ExitCode::from(if is_misuse(&error) { MISUSED } else { FAILED })
}

fn is_misuse(error: &anyhow::Error) -> bool {
    let is_pipeline = |error: &DataError| {
        use DataError::{AmbiguousOverride, Pipeline, UnknownOverride};
        matches!(error, Pipeline { .. } | UnknownOverride { .. } | AmbiguousOverride { .. })
    };
    error.chain().any(|cause| {
        cause.is::<SettingsError>() || cause.is::<UsageError>() || cause.downcast_ref().is_some_and(is_pipeline)
    })
}

/// How a report looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// In colour, for a terminal.
    Colour,
    /// In plain characters.
    Plain,
}

impl Style {
    /// Colour for a terminal, unless `NO_COLOR` is set.
    #[must_use]
    pub fn of(stream: &impl IsTerminal) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && stream.is_terminal() { Self::Colour } else { Self::Plain }
    }

    /// The style of standard error.
    #[must_use]
    pub fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    /// The style of standard output.
    #[must_use]
    pub fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }
}

/// The report of an error.
#[must_use]
pub fn render(error: &anyhow::Error, style: Style) -> String {
    let theme = match style {
        Style::Colour => miette::GraphicalTheme::unicode(),
        Style::Plain => miette::GraphicalTheme::none(),
    };
    let mut text = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(theme).with_width(110).with_links(false);
    let problem = Problem::new(error);
    match handler.render_report(&mut text, &problem) {
        Ok(()) => text,
        Err(fmt::Error) => format!("{error:#}\n"),
    }
}

/// The advice of an error that any of our crates made.
pub(crate) fn help(error: &(dyn Error + 'static)) -> Option<String> {
    macro_rules! first_help {
        ($($kind:ty),* $(,)?) => {
            None$(.or_else(|| error.downcast_ref::<$kind>().and_then(<$kind>::help)))*
        };
    }
    first_help!(
        SettingsError,
        UsageError,
        ModelError,
        TokenizerError,
        SampleError,
        DataError,
        TrainError,
        DiffusionError
    )
}

/// An error as miette wants it: messages that a message above them already holds are left out.
#[derive(Debug)]
struct Problem {
    message: String,
    cause: Option<Box<Problem>>,
    help: Option<String>,
}

impl Problem {
    fn new(error: &anyhow::Error) -> Self {
        let mut messages: Vec<String> = Vec::new();
        for message in error.chain().map(ToString::to_string) {
            if messages.last().is_none_or(|above| !above.contains(&message)) {
                messages.push(message);
            }
        }
        let below = |cause, message| Some(Box::new(Self { message, cause, help: None }));
        let mut messages = messages.into_iter();
        let message = messages.next().unwrap_or_default();
        let cause = messages.rev().fold(None, below);
        Self { message, cause, help: error.chain().find_map(help) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

impl miette::Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.help.as_deref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_report_says_what_why_and_what_to_do_without_saying_anything_twice() {
        let read = SettingsError::Read { path: "run.toml".into(), source: io::Error::other("the disk is gone") };
        let error = Err::<(), _>(read).context("cannot start the run").unwrap_err();
        insta::assert_snapshot!(render(&error, Style::Plain), @r"
          x cannot start the run
          `-> cannot read `run.toml`: the disk is gone
          help: name a TOML or YAML file that exists and can be read
        ");
    }

    #[test]
    fn settings_are_misuse_however_deep_they_lie() {
        let error = anyhow::Error::new(SettingsError::NoAssignment { argument: "x".to_owned() });
        assert!(is_misuse(&error.context("above")));
        assert!(!is_misuse(&anyhow::anyhow!("the work failed")));
    }
}
