//! Multiple-choice questions from lines of JSON: `context`, `choices`, `answer` (the index of the right one, from 0).

use super::{
    documents::{for_each_line, text_of, wrong},
    limit,
};
use crate::{
    args::{ChoiceMethod, EvalArgs},
    inference::Inference,
};
use dlm_diffusion::evaluate::{Chosen, LikelihoodConfig, Order, Question, choose};
use serde::Serialize;
use std::{
    io::{Write, stdout},
    path::Path,
};

/// What `--json` promises: one object for each question, and one for all.
#[derive(Debug, Serialize)]
struct Answered<'a> {
    kind: &'static str,
    log_likelihoods: &'a [f64],
    chosen: usize,
    chosen_by_length: usize,
    answer: usize,
}

#[derive(Debug, Serialize)]
struct Summary {
    kind: &'static str,
    questions: usize,
    accuracy: f64,
    accuracy_by_length: f64,
    standard_error: f64,
    chance: f64,
}

pub(super) fn run(path: &Path, args: &EvalArgs, inference: &Inference, seed: u64) -> anyhow::Result<()> {
    let config = LikelihoodConfig {
        samples: usize::try_from(args.samples)?.max(usize::try_from(args.batch_size)?),
        batch_size: usize::try_from(args.batch_size)?,
        guidance: args.guidance,
        ..LikelihoodConfig::new(inference.mask_token_id())
    };
    let order = (args.method == ChoiceMethod::Chain).then_some(Order::LeftToRight);
    let (mut right, mut right_by_length, mut count, mut chance) = (0, 0, 0, 0.0);
    let mut out = stdout().lock();
    for_each_line(path, |line, object| {
        let context = text_of(path, line, &object, "context")?;
        let texts: Option<Vec<&str>> =
            object["choices"].as_array().map(|list| list.iter().filter_map(|choice| choice.as_str()).collect());
        let texts =
            texts.filter(|texts| !texts.is_empty() && texts.len() == object["choices"].as_array().map_or(0, Vec::len));
        let texts =
            texts.ok_or_else(|| wrong(path, line, "choices", &object["choices"].to_string(), "a list of texts"))?;
        let answer = object["answer"].as_u64().and_then(|answer| usize::try_from(answer).ok());
        let answer = answer.filter(|answer| *answer < texts.len()).ok_or_else(|| {
            let expected = format!("the number of a choice, from 0 to {}", texts.len() - 1);
            wrong(path, line, "answer", &object["answer"].to_string(), &expected)
        })?;
        let question = Question {
            id: line as u64,
            context: inference.encode(context)?,
            choices: texts.iter().map(|text| inference.encode_bare(text)).collect::<anyhow::Result<_>>()?,
            lengths: texts.iter().map(|text| text.len() as u64).collect(),
        };
        let found: Chosen = choose(inference.model(), &question, order.as_ref(), &config, seed)?;
        count += 1;
        right += usize::from(found.by_likelihood == answer);
        right_by_length += usize::from(found.by_length == answer);
        chance += 1.0 / texts.len() as f64;
        if args.json {
            let answered = Answered {
                kind: "question",
                log_likelihoods: &found.log_likelihoods,
                chosen: found.by_likelihood,
                chosen_by_length: found.by_length,
                answer,
            };
            writeln!(out, "{}", serde_json::to_string(&answered)?)?;
        }
        Ok(count < limit(args))
    })?;
    let n = count.max(1) as f64;
    let accuracy = right as f64 / n;
    let summary = Summary {
        kind: "choices",
        questions: count,
        accuracy,
        accuracy_by_length: right_by_length as f64 / n,
        standard_error: (accuracy * (1.0 - accuracy) / n).sqrt(),
        chance: chance / n,
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
    } else {
        writeln!(out, "{count} questions")?;
        writeln!(out, "accuracy                    {accuracy:.4} ± {:.4}", summary.standard_error)?;
        writeln!(out, "accuracy by likelihood/byte {:.4}", summary.accuracy_by_length)?;
        writeln!(out, "chance                      {:.4}", summary.chance)?;
    }
    Ok(())
}
