//! `dlm eval`: how likely a model finds texts, which answers it chooses, and how its own texts read.

mod choices;
mod documents;
mod generated;
mod table;

use super::{runtime, tell_ignored};
use crate::{
    args::{EvalArgs, LongTexts, SamplingArgs},
    error::UsageError,
    inference::Inference,
    settings::{Resolved, resolve},
};
use dlm_diffusion::evaluate::{BoundConfig, BoundReport, EvalDocument, LongDocuments, autoregressive, bound};
use dlm_model::Model;
use serde::Serialize;
use std::io::{Write, stdout};
use tch::Device;

/// What `--json` promises for likelihoods.
#[derive(Debug, Serialize)]
struct Output<'a> {
    kind: &'static str,
    #[serde(flatten)]
    report: &'a BoundReport,
}

/// Runs `dlm eval`.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let resolved = resolve(&args.settings.sources())?;
    tell_ignored(&resolved);
    let device = runtime::start(&resolved.settings)?;
    if let Some(path) = &args.generated {
        return generated::run(path, args, &resolved, device);
    }
    let inference = load(args, &resolved, device)?;
    if let Some(path) = &args.choices {
        return choices::run(path, args, &inference, resolved.settings.seed);
    }
    let documents = match (&args.data, &args.jsonl) {
        (Some(folder), _) => documents::prepared(folder, &inference, limit(args))?,
        (None, Some(path)) => documents::json_lines(path, &args.field, &inference, limit(args))?,
        (None, None) => {
            let help = "give `--data DIR`, `--jsonl FILE`, `--choices FILE` or `--generated FILE`";
            return Err(UsageError::Missing { what: "what to evaluate on", help }.into());
        }
    };
    let report = likelihood(&documents, args, &inference, &resolved)?;
    if let Some(path) = &args.svg {
        dlm_files::write(path, table::svg(&report).as_bytes())?;
    }
    let mut out = stdout().lock();
    if args.json {
        let kind = if args.autoregressive { "likelihood" } else { "bound" };
        writeln!(out, "{}", serde_json::to_string(&Output { kind, report: &report })?)?;
    } else {
        write!(out, "{}", table::text(&report, args.autoregressive))?;
    }
    Ok(())
}

/// The bound of documents, or their exact likelihood under an autoregressive model.
fn likelihood(
    documents: &[EvalDocument],
    args: &EvalArgs,
    inference: &Inference,
    resolved: &Resolved,
) -> anyhow::Result<BoundReport> {
    let diffusion = &resolved.settings.diffusion;
    let model = inference.model();
    let config = BoundConfig {
        never_mask: inference.never_mask().to_vec(),
        block_length: match &diffusion.block_length {
            Some(lengths) => Some(lengths.last()),
            None => model.diffusion().and_then(|info| info.block_length),
        },
        forbid_mask: diffusion.forbid_mask,
        seed: resolved.settings.seed,
        ..bound_config(args, model, inference.mask_token_id())?
    };
    Ok(if args.autoregressive {
        autoregressive(model, documents, model.config().logits_shift(), &config)?
    } else {
        bound(model, documents, &config)?
    })
}

/// What the arguments say of how a likelihood is found.
fn bound_config(args: &EvalArgs, model: &Model, mask_token_id: i64) -> anyhow::Result<BoundConfig> {
    let max_len = match args.max_len {
        Some(len) => usize::try_from(len)?,
        None => usize::try_from(model.max_seq_len())?,
    };
    Ok(BoundConfig {
        passes: usize::try_from(args.passes)?,
        replicates: usize::try_from(args.replicates)?,
        batch_size: usize::try_from(args.batch_size)?,
        max_len: Some(max_len),
        long: match args.long {
            LongTexts::Roll => LongDocuments::Roll { context: max_len / 2 },
            LongTexts::Cut => LongDocuments::Cut,
            LongTexts::Skip => LongDocuments::Skip,
        },
        ..BoundConfig::new(mask_token_id)
    })
}

fn load(args: &EvalArgs, resolved: &Resolved, device: Device) -> anyhow::Result<Inference> {
    let sampling = SamplingArgs { adapter: args.adapter.clone(), dtype: args.dtype, ..SamplingArgs::default() };
    Inference::load(args.model.as_deref(), &sampling, resolved, device)
}

fn limit(args: &EvalArgs) -> usize {
    args.max_documents.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
