//! A pipeline in plain words: what is read, what each step does and which columns it leaves, and where the rows go.

use crate::{
    error::{DataError, Result, visible},
    pipeline::Pipeline,
    plan::{Resources, Until, lower},
    source::SourceFile,
    step::{Chunk, Dedup, Found, Overlong, Pack, PackStrategy, Side, Split, Step, Tokenize, Truncate},
};
use datafusion::{
    arrow::datatypes::{DataType, SchemaRef},
    physical_plan::displayable,
};
use std::fmt::Write;

/// The way of the rows in plain words, then the logical and the physical plan of DataFusion, as text.
///
/// # Errors
/// What [`prepare`](crate::Pipeline::prepare) would find wrong before it reads the first row.
pub async fn explain(pipeline: &Pipeline, resources: &Resources) -> Result<String> {
    let plan = lower(pipeline, resources, Until::Packed)?;
    let words = in_words(&pipeline.without_secrets(), &plan.files, &plan.columns)?;
    let failed = |error| DataError::from_datafusion(error, "the pipeline");
    let (state, logical) = plan.frame.into_parts();
    let logical = state.optimize(&logical).map_err(failed)?;
    let physical = state.create_physical_plan(&logical).await.map_err(failed)?;
    let physical = displayable(physical.as_ref()).indent(false).to_string();
    Ok(format!("{words}\nlogical plan\n{}\n\nphysical plan\n{physical}", logical.display_indent()))
}

/// The words. `columns` has the schema of the sources, then that after each step.
fn in_words(pipeline: &Pipeline, files: &[SourceFile], columns: &[SchemaRef]) -> Result<String> {
    let mut text = String::from("sources\n");
    for file in files {
        let rows = if file.rows == 1 { "row" } else { "rows" };
        let _ = writeln!(text, "  {}  {} {rows}, {}", file.name, file.rows, bytes(file.size_bytes));
    }
    let mut schemas = columns.iter();
    let mut before = schemas.next().map(described).unwrap_or_default();
    let _ = writeln!(text, "     columns: {before}\nsteps");
    let width = pipeline.step.iter().map(|step| step.name().len()).max().unwrap_or(0);
    let makes_conversation = pipeline.step.iter().any(|step| matches!(step, Step::Chat(_)));
    for (number, step) in (1..).zip(&pipeline.step) {
        let _ = writeln!(text, "{number:>3}. {:width$}  {}", step.name(), sentence(step, makes_conversation)?);
        let after = schemas.next().map_or_else(|| before.clone(), described);
        if after != before {
            let _ = writeln!(text, "     columns: {after}");
        }
        before = after;
    }
    if let Some(output) = &pipeline.output {
        let _ = writeln!(
            text,
            "output\n  {}  Parquet shards of about {} tokens, and `manifest.json`",
            output.path.display(),
            output.shard_tokens
        );
    }
    Ok(text)
}

/// What a step does, as one would say it.
fn sentence(step: &Step, makes_conversation: bool) -> Result<String> {
    Ok(match step {
        Step::Filter(condition) => format!("keeps the rows for which `{condition}`"),
        Step::Select(expressions) => format!("replaces the columns by {}", quoted(expressions)),
        Step::Rename(names) => {
            let names: Vec<String> = names.iter().map(|(old, new)| format!("`{old}` to `{new}`")).collect();
            format!("renames {}", names.join(", "))
        }
        Step::Map(columns) => {
            let columns: Vec<String> = columns.iter().map(|(name, value)| format!("`{name}` to `{value}`")).collect();
            format!("sets {}", columns.join(", "))
        }
        Step::Sql(query) => format!("gives what `{query}` finds"),
        Step::Limit(rows) => format!("keeps the first {rows} rows"),
        Step::Sample(sample) => {
            let share = sample.share.map(|share| format!("about {} % of the rows", percent(share)));
            let count = sample.count.map(|count| format!("{count} rows"));
            let what: Vec<String> = share.into_iter().chain(count).collect();
            let on = if sample.on.is_empty() { "all columns".to_owned() } else { quoted(&sample.on) };
            format!("keeps {} chosen at random by {on} (seed {})", what.join(", of those "), sample.seed)
        }
        Step::Normalize(_) => format!("gives texts one spelling: {}", options(step)?),
        Step::Quality(_) => format!("leaves out rows that break a rule: {}", options(step)?),
        Step::Dedup(Dedup { near: Some(near), .. }) => format!(
            "keeps the first of rows whose `{}` shares {} % or more of its runs of {} words, found by {} hashes (seed {})",
            near.column,
            percent(near.threshold),
            near.ngram,
            near.permutations,
            near.seed
        ),
        Step::Dedup(Dedup { on, near: None }) => {
            let on = if on.is_empty() { "all columns".to_owned() } else { quoted(on) };
            format!("keeps the first of rows that are equal in {on}")
        }
        Step::Decontaminate(decontaminate) => {
            let found = match decontaminate.action {
                Found::Drop => "leaves out",
                Found::Report => "marks",
            };
            format!(
                "{found} rows that quote runs of {} words of {}: {}",
                decontaminate.ngram,
                quoted(&decontaminate.against),
                options(step)?
            )
        }
        Step::Shuffle(shuffle) => format!("brings all rows into a random order (seed {})", shuffle.seed),
        Step::Split(Split { validation, seed, .. }) => format!(
            "sets {} % of the documents aside for validation by their content, so that equal ones stay together (seed {seed})",
            percent(*validation)
        ),
        Step::Chat(_) => format!("makes conversations of prompts and answers: {}", options(step)?),
        Step::Tokenize(Tokenize { tokenizer, column, add_eos, special_tokens }) => {
            let what = if makes_conversation { "conversations".to_owned() } else { format!("`{column}`") };
            let end = match add_eos {
                Some(true) => ", each document ended by the end token",
                Some(false) => ", no end token added",
                None => "",
            };
            let roles = special_tokens.iter().map(|(role, text)| format!(", with `{text}` as its `{role}`"));
            format!("turns {what} into token ids of `{}`{}{end}", tokenizer.display(), roles.collect::<String>())
        }
        Step::AnswerTail(_) => format!("puts tokens behind answers: {}", options(step)?),
        Step::Truncate(Truncate { max_tokens, side }) => {
            let end = match side {
                Side::Left => "the beginning",
                Side::Right => "the end",
            };
            format!("cuts {end} of documents of more than {max_tokens} tokens off")
        }
        Step::Chunk(Chunk { max_tokens, overlap }) => {
            let overlap =
                if *overlap == 0 { String::new() } else { format!(", each with the last {overlap} of the one before") };
            format!("cuts documents into pieces of {max_tokens} tokens{overlap}")
        }
        Step::Pack(Pack { sequence_len, strategy, overlong, .. }) => {
            let strategy = match strategy {
                PackStrategy::FirstFitDecreasing => "the longest first, each into the first with room",
                PackStrategy::FirstFit => "in their order, each into the first with room",
                PackStrategy::Sequential => "in their order, each into the last or a new one",
                PackStrategy::Concatenate => "in their order, cut wherever a row is full",
                PackStrategy::Alone => "each into one of its own",
            };
            let overlong = match overlong {
                Overlong::Cut => "documents that are longer are cut",
                Overlong::Drop => "documents that are longer are left out",
                Overlong::Raise => "a document that is longer is an error",
            };
            format!("puts documents into rows of {sequence_len} tokens, {strategy}; {overlong}")
        }
    })
}

/// The options of a step as TOML on one line.
fn options(step: &Step) -> Result<String> {
    let value = toml::Value::try_from(step).map_err(|error| DataError::pipeline(error.to_string()))?;
    let options = match value.as_table().and_then(|table| table.values().next()) {
        Some(toml::Value::Table(options)) => options.iter().map(|(key, value)| format!("{key} = {value}")).collect(),
        Some(value) => vec![value.to_string()],
        None => Vec::new(),
    };
    Ok(options.join(", "))
}

/// Columns with the kind of their values.
fn described(schema: &SchemaRef) -> String {
    let names = visible(schema.fields().iter().map(|field| field.name().as_str()));
    let columns: Vec<String> = names
        .iter()
        .map(|name| {
            let kind = schema.column_with_name(name).map_or("", |(_, field)| kind(field.data_type()));
            format!("{name} ({kind})")
        })
        .collect();
    if columns.is_empty() { "none".to_owned() } else { columns.join(", ") }
}

fn kind(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Boolean => "yes or no",
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) | DataType::Time32(_) | DataType::Time64(_) => {
            "time"
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => "list",
        DataType::Struct(_) => "object",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytes",
        DataType::Null => "nothing",
        other if other.is_numeric() => "number",
        _ => "other",
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn percent(share: f64) -> String {
    let percent = format!("{:.4}", 100.0 * share);
    percent.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}
