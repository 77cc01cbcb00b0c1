//! `dlm data`: run a pipeline, show its plan, look at what came out.

mod inspect;
mod inspect_page;

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
    let mut pipeline = Pipeline::from_file(file)?;
    for argument in overrides {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| crate::settings::SettingsError::NoAssignment { argument: argument.clone() })?;
        pipeline = pipeline.with_override(key.trim(), value.trim())?;
    }
    Ok(pipeline)
}

fn prepare(args: PrepareArgs) -> anyhow::Result<()> {
    let pipeline = pipeline(&args.pipeline, &args.set)?;
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
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report.manifest)?)?;
        return Ok(());
    }
    let state = if report.already_prepared { "was there already" } else { "is ready" };
    writeln!(out, "{} {state}", tidy(&report.output).display())?;
    write_counts(&mut out, &report.manifest)?;
    Ok(())
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
    let empty = ("empty documents", account.dropped_empty_documents);
    let by_steps = account.dropped_rows.iter().map(|(reason, rows)| (reason.as_str(), *rows));
    for (what, count) in by_steps.chain([empty]).filter(|(_, count)| *count > 0) {
        writeln!(out, "{:<12}{} rows: {what}", "left out", HumanCount(count))?;
    }
    Ok(super::account::write(out, manifest)?)
}
