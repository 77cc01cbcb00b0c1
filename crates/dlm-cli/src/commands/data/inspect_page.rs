//! Prepared data as one page that needs nothing else: plots as SVG, rows as text, light or dark as the reader's screen is.

use crate::commands::account;
use dlm_data::{DecodedRow, FillBucket, Inspection, LengthBucket, Manifest, SideInspection};
use indicatif::HumanCount;
use std::{fmt::Write, path::Path};

/// The style sheet.
const STYLE: &str = include_str!("inspect_page.css");
/// Size of a plot, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
/// Room for the labels below and the counts above the bars.
const BELOW: f64 = 36.0;
const ABOVE: f64 = 18.0;

/// The whole page.
pub(super) fn page(folder: &Path, inspection: &Inspection) -> String {
    let manifest = &inspection.manifest;
    let title = text(&folder.display().to_string());
    let sides: String = inspection.sides.iter().map(|side| side_section(side, manifest)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header><p class=\"kind\">prepared data</p><h1>{title}</h1></header>\n\
         {sides}{}</main>\n</body>\n</html>\n",
        origin_section(manifest)
    )
}

fn side_section(side: &SideInspection, manifest: &Manifest) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut tiles = vec![
        ("rows", count(side.rows), format!("of {} tokens", count(manifest.sequence_len as u64))),
        (
            "documents",
            count(side.segments),
            format!("and pieces, {:.1} in a row", side.segments as f64 / side.rows.max(1) as f64),
        ),
        ("tokens", count(side.tokens), format!("{} to learn", count(side.label_tokens))),
        ("label share", percent(side.label_share), "of the tokens are to learn".to_owned()),
        ("packing", percent(side.packing_efficiency), format!("{} padding tokens", count(side.padding_tokens))),
    ];
    if let Some(tokens) = side.tokens_per_character {
        tiles.push((
            "tokens per character",
            format!("{tokens:.3}"),
            format!("{:.2} characters in a token", 1.0 / tokens),
        ));
    }
    let tiles: String = tiles
        .into_iter()
        .map(|(name, value, note)| {
            format!("<div class=\"tile\"><p class=\"name\">{name}</p><p class=\"value\">{value}</p><p class=\"note\">{note}</p></div>\n")
        })
        .collect();
    let length = &side.length;
    let note = format!(
        "{} to {} tokens, mean {:.1}, median {}, nine in ten up to {}",
        count(length.min as u64),
        count(length.max as u64),
        length.mean,
        count(length.median as u64),
        count(length.p90 as u64)
    );
    let lengths =
        plot("Lengths of documents and pieces", &note, "tokens", "documents and pieces", &length_bars(&side.lengths));
    let note = "how many rows are how full";
    let fill =
        plot("How full the rows are", note, "share of a row's places that hold tokens", "rows", &fill_bars(&side.fill));
    let samples: String = side.samples.iter().enumerate().map(|(number, row)| sample(number, row)).collect();
    let legend = "<p class=\"legend\"><span class=\"prompt\">given</span> <span class=\"answer\">to learn</span></p>";
    let samples = if samples.is_empty() { samples } else { format!("<h3>Rows as text</h3>\n{legend}\n{samples}") };
    format!(
        "<section>\n<h2>{}</h2>\n<div class=\"tiles\">\n{tiles}</div>\n<div class=\"plots\">\n{lengths}{fill}</div>\n{samples}</section>\n",
        side.split.folder()
    )
}

/// A bar of a plot: its label, what it counts in words, and how many.
struct Bar {
    label: String,
    what: String,
    count: u64,
}

fn length_bars(buckets: &[LengthBucket]) -> Vec<Bar> {
    let bar = |bucket: &LengthBucket| Bar {
        label: if bucket.from == bucket.to {
            bucket.from.to_string()
        } else {
            format!("{}–{}", short(bucket.from), short(bucket.to))
        },
        what: format!("{} to {} tokens", count(bucket.from as u64), count(bucket.to as u64)),
        count: bucket.segments,
    };
    buckets.iter().map(bar).collect()
}

fn fill_bars(buckets: &[FillBucket]) -> Vec<Bar> {
    let bar = |bucket: &FillBucket| {
        let (from, to) = (100.0 * bucket.from, 100.0 * bucket.to);
        Bar { label: format!("{to:.0} %"), what: format!("{from:.0} to {to:.0} % full"), count: bucket.rows }
    };
    buckets.iter().map(bar).collect()
}

/// A figure with bars of one kind; each says what it is when it is pointed at.
fn plot(title: &str, note: &str, axis: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(1).max(1);
    let step = WIDTH / bars.len().max(1) as f64;
    let thick = (step - 6.0).clamp(4.0, 48.0);
    let base = HEIGHT - BELOW;
    let mut marks = String::new();
    for (number, bar) in bars.iter().enumerate() {
        let middle = step * (number as f64 + 0.5);
        let height = (base - ABOVE) * bar.count as f64 / most as f64;
        // A bar that is there can be seen.
        let height = if bar.count > 0 { height.max(1.5) } else { 0.0 };
        let (left, top) = (middle - thick / 2.0, base - height);
        let what = format!("{}: {} {unit}", bar.what, count(bar.count));
        // Rounded at its end alone.
        let r = height.min(3.0);
        let shape = format!(
            "M{left:.1} {base:.1}v{:.1}q0 {:.1} {r:.1} {:.1}h{:.1}q{r:.1} 0 {r:.1} {r:.1}v{:.1}z",
            r - height,
            -r,
            -r,
            thick - 2.0 * r,
            height - r
        );
        let _ = write!(
            marks,
            "<g><title>{what}</title><rect class=\"reach\" x=\"{:.1}\" y=\"0\" width=\"{step:.1}\" height=\"{base:.1}\"/>",
            middle - step / 2.0
        );
        if bar.count > 0 {
            let _ = write!(marks, "<path class=\"bar\" d=\"{shape}\"/>");
            let _ = write!(
                marks,
                "<text class=\"count\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
                top - 5.0,
                short(usize::try_from(bar.count).unwrap_or(usize::MAX))
            );
        }
        let _ = writeln!(
            marks,
            "<text class=\"label\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text></g>",
            base + 15.0,
            bar.label
        );
    }
    format!(
        "<figure><figcaption><b>{title}</b><span>{note}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}: {note}\">\n\
         <line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{base}\" y2=\"{base}\"/>\n{marks}\
         <text class=\"unit\" x=\"{:.1}\" y=\"{:.1}\">{axis}</text>\n</svg></figure>\n",
        WIDTH / 2.0,
        HEIGHT - 4.0
    )
}

fn sample(number: usize, row: &DecodedRow) -> String {
    let mut segments = String::new();
    for segment in &row.segments {
        let piece = if segment.offset > 0 {
            format!(", from its token {}", count(segment.offset.unsigned_abs()))
        } else {
            String::new()
        };
        let _ = write!(
            segments,
            "<div class=\"segment\"><p class=\"head\">document {}{piece} · {} tokens</p><pre>",
            segment.document,
            count(segment.tokens as u64)
        );
        for span in &segment.spans {
            let class = if span.is_answer { "answer" } else { "prompt" };
            let _ = write!(segments, "<span class=\"{class}\">{}</span>", text(&span.text));
        }
        segments.push_str("</pre></div>\n");
    }
    if row.padding > 0 {
        let _ = writeln!(segments, "<p class=\"padding\">{} padding tokens</p>", count(row.padding as u64));
    }
    let open = if number == 0 { " open" } else { "" };
    let documents = match row.segments.len() {
        1 => "1 document".to_owned(),
        count => format!("{count} documents and pieces"),
    };
    format!("<details{open}><summary>row {number} <small>{documents}</small></summary>\n{segments}</details>\n")
}

/// Where the data came from, and what became of its tokens.
fn origin_section(manifest: &Manifest) -> String {
    let account = &manifest.account;
    let mut rows: Vec<(String, String)> = vec![
        ("rows read".to_owned(), count(account.rows)),
        ("documents".to_owned(), count(account.documents)),
        ("documents without a token".to_owned(), count(account.dropped_empty_documents)),
    ];
    let tokens = account::lines(manifest).into_iter();
    rows.extend(tokens.map(|(way, what, tokens)| (text(&format!("{way} {what}")), count(tokens))));
    rows.push(("tokens in the vocabulary".to_owned(), count(manifest.tokenizer.vocab_size as u64)));
    let rows: String =
        rows.into_iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n")).collect();
    let mut steps = String::new();
    for step in &account.steps {
        let _ = writeln!(steps, "<tr><th>{}</th><td>{}</td></tr>", text(&step.step), count(step.rows));
        for (reason, rows) in &step.reasons {
            let _ = writeln!(steps, "<tr><th><small>{}</small></th><td>{}</td></tr>", text(reason), count(*rows));
        }
    }
    if !steps.is_empty() {
        steps = format!("<table><caption>Rows that steps left, and why others went</caption>\n{steps}</table>\n");
    }
    let mut sources = String::new();
    for source in &manifest.sources {
        let share = format!("{} ({:.1} %)", count(source.rows), 100.0 * source.share);
        let _ = writeln!(sources, "<tr><th>{}</th><td>{share}</td></tr>", text(&source.path));
    }
    if !sources.is_empty() {
        sources = format!("<table><caption>Rows of each source</caption>\n{sources}</table>\n");
    }
    let mut files = String::new();
    for input in &manifest.inputs {
        let _ = writeln!(files, "<tr><th>{}</th><td>{}</td></tr>", text(&input.path), count(input.rows));
    }
    format!(
        "<section>\n<h2>origin</h2>\n<div class=\"tables\">\n<table><caption>What became of rows and tokens</caption>\n{rows}</table>\n\
         {steps}{sources}<table><caption>Rows of each file</caption>\n{files}</table>\n</div>\n\
         <details><summary>pipeline</summary><pre>{}</pre></details>\n</section>\n",
        text(&manifest.pipeline)
    )
}

fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A number in at most four characters, such as 1.2k.
fn short(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..10_000 => format!("{:.1}k", number as f64 / 1e3),
        10_000..1_000_000 => format!("{}k", number / 1_000),
        1_000_000..10_000_000 => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// Text that stays text in a page.
fn text(raw: &str) -> String {
    let mut escaped = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Of the others that a page may not hold only their sign is shown.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_row_cannot_end_its_element() {
        assert_eq!(text("</pre><script>\"&\u{1b}"), "&lt;/pre&gt;&lt;script&gt;&quot;&amp;\u{fffd}");
    }

    #[test]
    fn large_numbers_are_short() {
        let numbers = [7, 999, 1_500, 65_535, 2_000_000, 45_000_000];
        assert_eq!(numbers.map(short), ["7", "999", "1.5k", "65k", "2.0M", "45M"]);
    }
}
