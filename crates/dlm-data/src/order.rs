//! Which steps can stand where, and what their options may be.

use crate::{
    error::{DataError, Result},
    step::Step,
};

/// Checks the steps on rows and texts.
pub(crate) fn check(steps: &[Step]) -> Result<()> {
    let tokenize = steps.iter().position(|step| step.name() == "tokenize");
    for (i, step) in steps.iter().enumerate() {
        let name = step.name();
        let is_behind = tokenize.is_some_and(|tokenize| i > tokenize);
        // What comes behind it has ids and labels alone; a query or expression there could make tokens that nobody counted.
        let works_on_rows = matches!(
            step,
            Step::Select(_)
                | Step::Rename(_)
                | Step::Map(_)
                | Step::Sql(_)
                | Step::Limit(_)
                | Step::Normalize(_)
                | Step::Quality(_)
                | Step::Decontaminate(_)
        );
        let is_near = matches!(step, Step::Dedup(dedup) if dedup.near.is_some());
        if is_behind && (works_on_rows || is_near) {
            let name = if is_near { "dedup.near" } else { name };
            return Err(DataError::pipeline(format!("the step `{name}` comes before `tokenize`")));
        }
        if matches!(step, Step::Truncate(_) | Step::Chunk(_)) && !is_behind {
            return Err(DataError::pipeline(format!("the step `{name}` comes after `tokenize`: it cuts tokens")));
        }
        check_values(step)?;
    }
    Ok(())
}

/// The step behind which a document's tokens decide about its side: the last `truncate` before any `chunk` or `answer_tail`, or
/// `tokenize`. Equal documents may get different tails, and still have to stand on one side.
pub(crate) fn decides_split(steps: &[Step]) -> Option<usize> {
    let tokenize = steps.iter().position(|step| matches!(step, Step::Tokenize(_)))?;
    let end = steps.iter().position(|step| matches!(step, Step::Chunk(_) | Step::AnswerTail(_))).unwrap_or(steps.len());
    let truncate = steps[..end].iter().rposition(|step| matches!(step, Step::Truncate(_)));
    Some(truncate.unwrap_or(tokenize))
}

fn check_values(step: &Step) -> Result<()> {
    let empty = |what: &str, range: &str| Err(DataError::pipeline(format!("`{what}` is empty, and has to be {range}")));
    match step {
        Step::Rename(names) if names.is_empty() => empty("rename", "a table of old and new names"),
        Step::Rename(names) => {
            names.iter().flat_map(|(old, new)| [old, new]).try_for_each(|name| check_name("rename", name))
        }
        Step::Map(columns) if columns.is_empty() => empty("map", "a table of columns and expressions"),
        Step::Map(columns) => columns.keys().try_for_each(|name| check_name("map", name)),
        Step::Limit(0) => Err(DataError::pipeline("`limit` is 0, and has to be 1 or more")),
        Step::Sample(sample) => sample.check(),
        Step::Normalize(normalize) if normalize.columns.is_empty() => empty("normalize.columns", "a list of columns"),
        Step::Quality(quality) => quality.check(),
        Step::Dedup(dedup) => match &dedup.near {
            Some(_) if !dedup.on.is_empty() => Err(DataError::pipeline(
                "the step `dedup` takes either `on` or `near`, which has a `column` of its own",
            )),
            Some(near) => near.check(),
            None => Ok(()),
        },
        Step::Decontaminate(decontaminate) => decontaminate.check(),
        Step::Truncate(truncate) => truncate.check(),
        Step::Chunk(chunk) => chunk.check(),
        _ => Ok(()),
    }
}

/// Names with two underscores in front are ours.
fn check_name(step: &str, name: &str) -> Result<()> {
    if name.starts_with("__") {
        return Err(DataError::pipeline(taken(step, name)));
    }
    Ok(())
}

/// Says that a name is none that a user can give.
pub(crate) fn taken(step: &str, name: &str) -> String {
    format!("{step}: the name `{name}` is taken: choose one without `__` in front")
}
