//! `dlm data inspect`: prepared data as numbers, bars and text; as JSON; or as a page.

use super::{inspect_page::page, write_counts};
use crate::{args::InspectArgs, report::Style};
use dlm_data::{DecodedRow, InspectOptions, SideInspection, inspect};
use dlm_files::FileError;
use indicatif::HumanCount;
use std::{
    io::{self, Write, stdout},
    path::Path,
};

/// The longest bar, in characters.
const WIDEST: u64 = 40;

/// Runs `dlm data inspect`.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.html {
        expect_folder(path)?;
    }
    let options = InspectOptions { samples: args.rows, split: args.split.map(Into::into) };
    let inspection = inspect(&args.data, &options)?;
    if let Some(path) = &args.html {
        dlm_files::write(path, page(&args.data, &inspection).as_bytes())?;
    }
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&inspection)?)?;
        return Ok(());
    }
    write_counts(&mut out, &inspection.manifest)?;
    if inspection.manifest.sources.len() > 1 {
        for source in &inspection.manifest.sources {
            let (rows, share) = (HumanCount(source.rows), 100.0 * source.share);
            writeln!(out, "{:<12}{rows} rows ({share:.1} %) from {}", "", source.path)?;
        }
    }
    for side in &inspection.sides {
        write_side(&mut out, side, Style::of_stdout())?;
    }
    if let Some(path) = &args.html {
        writeln!(out, "\nthe page is `{}`", path.display())?;
    }
    Ok(())
}

/// A page goes to a folder that is there: a new one is more likely a slip. Said before everything is read.
fn expect_folder(page: &Path) -> Result<(), FileError> {
    let folder = page.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(FileError { action: "write", path: page.to_owned(), source: io::ErrorKind::NotFound.into() })
}

fn write_side(out: &mut impl Write, side: &SideInspection, style: Style) -> io::Result<()> {
    let name = side.split.folder();
    let length = &side.length;
    writeln!(out, "\n{name}")?;
    writeln!(out, "  {:<22}{:.1} % of the tokens are to learn", "labels", 100.0 * side.label_share)?;
    writeln!(
        out,
        "  {:<22}{:.1} % of the places hold tokens, {} are padding",
        "packing",
        100.0 * side.packing_efficiency,
        HumanCount(side.padding_tokens)
    )?;
    if let Some(tokens) = side.tokens_per_character {
        writeln!(out, "  {:<22}{tokens:.3} ({:.2} characters in a token)", "tokens per character", 1.0 / tokens)?;
    }
    writeln!(
        out,
        "  {:<22}{} to {}, mean {:.1}, median {}, nine in ten up to {}\n",
        "lengths", length.min, length.max, length.mean, length.median, length.p90
    )?;
    writeln!(out, "  documents and pieces by their number of tokens")?;
    let most = side.lengths.iter().map(|bucket| bucket.segments).max().unwrap_or(1).max(1);
    for bucket in &side.lengths {
        let bar = bar(bucket.segments, most, style);
        let count = HumanCount(bucket.segments).to_string();
        writeln!(out, "{:>8} to {:<8}{count:>10} {bar}", bucket.from, bucket.to)?;
    }
    for (row, sample) in side.samples.iter().enumerate() {
        writeln!(out, "\n{name} row {row}")?;
        write_row(out, sample, style)?;
    }
    Ok(())
}

/// A bar that is empty only for 0.
fn bar(count: u64, most: u64, style: Style) -> String {
    let mark = if style == Style::Colour { "█" } else { "#" };
    mark.repeat((WIDEST * count).div_ceil(most.max(1)) as usize)
}

/// Text without control characters that a terminal would obey: `\u{1b}` is spelled.
fn visible(text: &str) -> String {
    let obeyed = |character: char| character.is_control() && !['\n', '\t'].contains(&character);
    text.chars().fold(String::with_capacity(text.len()), |mut visible, character| {
        if obeyed(character) {
            visible.extend(character.escape_unicode());
        } else {
            visible.push(character);
        }
        visible
    })
}

/// A row as text: each segment begins with a line that says what it is.
fn write_row(out: &mut impl Write, row: &DecodedRow, style: Style) -> io::Result<()> {
    let colour = console::Style::new().force_styling(style == Style::Colour);
    for segment in &row.segments {
        let piece = if segment.offset > 0 { format!(", from its token {}", segment.offset) } else { String::new() };
        let head = format!("── document {}{piece}, {} tokens ", segment.document, segment.tokens);
        let rule = "─".repeat(60usize.saturating_sub(head.chars().count()));
        writeln!(out, "{}", colour.clone().cyan().apply_to(format!("{head}{rule}")))?;
        let mut last = None;
        for span in &segment.spans {
            let text = visible(&span.text);
            match style {
                Style::Colour if span.is_answer => {
                    write!(out, "{}", colour.clone().green().bright().apply_to(&text))?;
                }
                Style::Colour => write!(out, "{}", colour.clone().dim().apply_to(&text))?,
                // Without colour, what is to be learnt stands between marks.
                Style::Plain if span.is_answer => write!(out, "«{text}»")?,
                Style::Plain => write!(out, "{text}")?,
            }
            last = span.text.chars().next_back();
        }
        if last != Some('\n') || style == Style::Plain {
            writeln!(out)?;
        }
    }
    if row.padding > 0 {
        writeln!(out, "── {} padding tokens", row.padding)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_data::{DecodedSegment, Span};

    fn row() -> DecodedRow {
        let span = |text: &str, is_answer| Span { text: text.to_owned(), is_answer };
        let segment = |document, offset, spans| DecodedSegment { document, offset, tokens: 9, spans };
        let segments = vec![
            segment(4, 0, vec![span("Why?\n", false), span("Because.", true)]),
            segment(7, 12, vec![span("So be it.\n", true)]),
        ];
        DecodedRow { segments, padding: 3 }
    }

    #[test]
    fn control_characters_of_the_data_do_not_reach_the_terminal() {
        assert_eq!(visible("a\u{1b}[31mb\tc\n\u{9b}"), "a\\u{1b}[31mb\tc\n\\u{9b}");
    }

    #[test]
    fn segments_stand_apart_and_answers_are_marked_without_colour() {
        let mut out = Vec::new();
        write_row(&mut out, &row(), Style::Plain).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @"
        ── document 4, 9 tokens ────────────────────────────────────
        Why?
        «Because.»
        ── document 7, from its token 12, 9 tokens ─────────────────
        «So be it.
        »
        ── 3 padding tokens
        ");
    }

    #[test]
    fn with_colour_prompts_are_dim_and_answers_bright() {
        let mut out = Vec::new();
        write_row(&mut out, &row(), Style::Colour).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\u{1b}[2mWhy?\n\u{1b}[0m"), "{text:?}");
        assert!(text.contains("Because.\u{1b}[0m") && !text.contains('«'), "{text:?}");
    }

    #[test]
    fn every_count_but_0_has_a_bar_and_the_largest_the_longest() {
        assert_eq!([0, 1, 500, 1000].map(|count| bar(count, 1000, Style::Plain).len()), [0, 1, 20, 40]);
    }
}
