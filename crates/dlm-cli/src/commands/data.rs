//! `dlm data`: run a pipeline, show its plan, look at what came out.

mod inspect;
mod inspect_page;

use super::from_axolotl;
use crate::{
    args::{DataCommand, PrepareArgs},
    progress::PrepareProgress,
};
use dlm_data::{Existing, Manifest, Pipeline, PrepareOptions, Resources, Split};
use indicatif::HumanCount;
use std::{
    io::{Write, stdout},
    path::{Component, Path, PathBuf},
};

/// Runs `dlm data ...`.
pub(crate) fn run(command: DataCommand) -> anyhow::Result<()> {
    match command {
        DataCommand::Prepare(args) => prepare(args),
        DataCommand::Explain(args) => {
            let plan = pipeline(&args.pipeline, &args.set)?.explain(&Resources::default())?;
            Ok(writeln!(stdout(), "{plan}")?)
        }
        DataCommand::Inspect(args) => inspect::run(&args),
        DataCommand::Validate(args) => super::validate::run(&args),
    }
}

/// A pipeline file with its overrides.
pub(crate) fn pipeline(file: &Path, overrides: &[String]) -> anyhow::Result<Pipeline> {
    with_overrides(Pipeline::from_file(file)?, overrides)
}

/// A pipeline with overrides.
pub(crate) fn with_overrides(mut pipeline: Pipeline, overrides: &[String]) -> anyhow::Result<Pipeline> {
    for argument in overrides {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| crate::settings::SettingsError::NoAssignment { argument: argument.clone() })?;
        pipeline = pipeline.with_override(key.trim(), value.trim())?;
    }
    Ok(pipeline)
}

fn prepare(args: PrepareArgs) -> anyhow::Result<()> {
    let pipeline = match (&args.pipeline, &args.config) {
        (Some(file), _) => pipeline(file, &args.set)?,
        (None, Some(file)) => from_axolotl::pipeline(file, &args.set, args.output.as_deref(), args.json)?,
        (None, None) => unreachable!("one of the two is required"),
    };
    let mut resources = Resources::default();
    if let Some(threads) = args.threads {
        resources.threads = usize::try_from(threads)?;
    }
    resources.memory_limit = args.memory_limit;
    let existing = if args.overwrite { Existing::Overwrite } else { Existing::Refuse };
    let options = PrepareOptions { output: args.output, resources, existing };
    crate::allocator::share_pools();
    let mut progress = PrepareProgress::new()?;
    let report = pipeline.prepare(&options, |state| progress.show(state));
    progress.finish();
    let report = report?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report.manifest)?)?;
        return Ok(());
    }
    // Behind a printed pipeline it stands in comments, so that the whole output is one.
    let mut out = Prefixed { out, prefix: if args.config.is_some() { "# " } else { "" }, at_start: true };
    let state = if report.already_prepared { "was there already" } else { "is ready" };
    writeln!(out, "{} {state}", tidy(&report.output).display())?;
    write_counts(&mut out, &report.manifest)?;
    Ok(())
}

/// Writes a prefix before every line.
struct Prefixed<W> {
    out: W,
    prefix: &'static str,
    at_start: bool,
}

impl<W: Write> Write for Prefixed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.at_start {
                self.out.write_all(self.prefix.as_bytes())?;
            }
            self.out.write_all(line)?;
            self.at_start = line.ends_with(b"\n");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// `pipelines/../data` as a person would write it, for display only: a link in between may lead elsewhere.
fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        let steps_back =
            part == Component::ParentDir && matches!(tidied.components().next_back(), Some(Component::Normal(_)));
        if steps_back {
            tidied.pop();
        } else {
            tidied.push(part);
        }
    }
    tidied
}

fn write_counts(out: &mut impl Write, manifest: &Manifest) -> anyhow::Result<()> {
    let account = &manifest.account;
    let documents = HumanCount(account.documents);
    writeln!(out, "{:<12}{documents} documents of {} rows read", "sources", HumanCount(account.rows))?;
    for split in [Split::Train, Split::Validation] {
        if let Some(side) = manifest.split(split) {
            let full = 100.0 * side.packing_efficiency(manifest.sequence_len);
            writeln!(
                out,
                "{:<12}{} rows of {}, {} tokens ({full:.1} % full), {} to learn",
                split.folder(),
                HumanCount(side.rows),
                manifest.sequence_len,
                HumanCount(side.tokens),
                HumanCount(side.label_tokens),
            )?;
        }
    }
    for step in &account.steps {
        let reasons = step.reasons.iter().map(|(reason, rows)| format!("{reason} {}", HumanCount(*rows)));
        let reasons = reasons.collect::<Vec<_>>().join(", ");
        let reasons = if reasons.is_empty() { reasons } else { format!(" ({reasons})") };
        writeln!(out, "{:<12}{} rows behind {}{reasons}", "left", HumanCount(step.rows), step.step)?;
    }
    for source in manifest.sources.iter().filter(|source| source.quarantined > 0) {
        let count = HumanCount(source.quarantined);
        writeln!(
            out,
            "{:<12}{count} rows and files of `{}` that cannot be read: see `quarantine.jsonl`",
            "left out", source.path
        )?;
    }
    if account.dropped_empty_documents > 0 {
        writeln!(out, "{:<12}{} rows: empty documents", "left out", HumanCount(account.dropped_empty_documents))?;
    }
    Ok(super::account::write(out, manifest)?)
}
