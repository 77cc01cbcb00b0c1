//! Generated texts from lines of JSON: `text`, and `expected` where there is something to match.

use super::{
    bound_config,
    documents::{for_each_line, text_of},
    limit, load,
};
use crate::{args::EvalArgs, settings::Resolved};
use dlm_diffusion::evaluate::{
    EvalDocument, autoregressive,
    generation::{entropy, exact_match, repetition},
};
use dlm_model::{LoadOptions, Model};
use dlm_tokenizer::{Specials, Tokenizer};
use serde::Serialize;
use std::{
    io::{Write, stdout},
    path::Path,
};
use tch::Device;

/// Tokens of an n-gram whose return counts as repetition.
const NGRAM: usize = 4;

/// What `--json` promises.
#[derive(Debug, Serialize)]
struct Summary {
    kind: &'static str,
    texts: usize,
    /// Mean entropy of the tokens of a text, in nats.
    entropy: f64,
    /// Mean share of 4-grams that occurred before in their text.
    repetition: f64,
    /// Share of the texts with an `expected` that match it.
    exact_match: Option<f64>,
    /// Perplexity under the autoregressive model of `--ar-model`.
    perplexity: Option<f64>,
}

/// Tokens are those of `--ar-model` where it is given, else of `--model`.
pub(super) fn run(path: &Path, args: &EvalArgs, resolved: &Resolved, device: Device) -> anyhow::Result<()> {
    // A judge need not know of masks.
    let dtype = args.dtype.unwrap_or(resolved.settings.inference_dtype);
    let judge = args.ar_model.as_deref().map(|folder| {
        let options = LoadOptions { device, kind: dtype.kind(folder)? };
        anyhow::Ok((Model::load(folder, &options)?, Tokenizer::load(folder)?))
    });
    let judge = judge.transpose()?;
    let own = if judge.is_none() { Some(load(args, resolved, device)?) } else { None };
    let encode = |text: &str| -> anyhow::Result<Vec<i64>> {
        match (&judge, &own) {
            (Some((_, tokenizer)), _) => {
                let ids = tokenizer.encode_with_post_processor(text, Specials::AsText)?;
                Ok(ids.into_iter().map(i64::from).collect())
            }
            (None, Some(own)) => own.encode(text),
            (None, None) => Ok(Vec::new()),
        }
    };
    let (mut documents, mut sums, mut matches) = (Vec::new(), [0.0; 2], Vec::new());
    for_each_line(path, |line, object| {
        let text = text_of(path, line, &object, &args.field)?;
        let ids = encode(text)?;
        sums[0] += entropy(&ids);
        sums[1] += repetition(&ids, NGRAM);
        if !object["expected"].is_null() {
            matches.push(exact_match(text, text_of(path, line, &object, "expected")?));
        }
        documents.push(EvalDocument::new(documents.len() as i64, ids));
        Ok(documents.len() < limit(args))
    })?;
    let n = documents.len().max(1) as f64;
    let perplexity = match &judge {
        Some((model, _)) => {
            let config = bound_config(args, model, 0)?;
            Some(autoregressive(model, &documents, model.config().logits_shift(), &config)?.perplexity)
        }
        None => None,
    };
    let right = matches.iter().filter(|is_match| **is_match).count() as f64;
    let summary = Summary {
        kind: "generated",
        texts: documents.len(),
        entropy: sums[0] / n,
        repetition: sums[1] / n,
        exact_match: (!matches.is_empty()).then(|| right / matches.len() as f64),
        perplexity,
    };
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        return Ok(());
    }
    writeln!(out, "{} texts", summary.texts)?;
    writeln!(out, "entropy of tokens, nats     {:.4}", summary.entropy)?;
    writeln!(out, "4-grams seen before         {:.4}", summary.repetition)?;
    if let Some(exact_match) = summary.exact_match {
        writeln!(out, "exact match                 {exact_match:.4}")?;
    }
    if let Some(perplexity) = summary.perplexity {
        writeln!(out, "perplexity under the judge  {perplexity:.3}")?;
    }
    Ok(())
}
