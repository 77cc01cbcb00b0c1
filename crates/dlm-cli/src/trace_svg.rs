//! A denoising trace as an SVG that plays it: masks turn into text in the order in which the model decided.

use std::fmt::Write as _;

/// A token of the finished text and when it appeared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The token as text, white space included.
    pub(crate) text: String,
    /// The step that revealed it, from 0; `None` for what was given.
    pub(crate) revealed_at: Option<usize>,
}

const COLUMNS: usize = 88;
const CHAR_WIDTH: f64 = 7.8;
const LINE_HEIGHT: f64 = 21.0;
const MARGIN: f64 = 14.0;
/// Seconds that the denoising takes, and that the finished text then stays before it starts again.
const PLAY_S: f64 = 6.0;
const REST_S: f64 = 4.0;

/// Draws `pieces`, which took `steps` steps to reveal; plays in every browser, and shows the finished text where nothing plays.
pub(crate) fn denoising_svg(pieces: &[Piece], steps: usize) -> String {
    let mut body = String::new();
    let (mut line, mut column) = (0usize, 0usize);
    for piece in pieces {
        for part in piece.text.split_inclusive('\n') {
            let shown = part.trim_end_matches('\n');
            let width = shown.chars().count();
            if column > 0 && column + width > COLUMNS {
                (line, column) = (line + 1, 0);
            }
            if width > 0 {
                draw(&mut body, shown, piece.revealed_at.map(|step| (step, steps)), line, column);
            }
            column += width;
            if part.ends_with('\n') {
                (line, column) = (line + 1, 0);
            }
        }
    }
    let width = 2.0 * MARGIN + COLUMNS as f64 * CHAR_WIDTH;
    let height = 2.0 * MARGIN + (line + 1) as f64 * LINE_HEIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\">\n\
         <style>\n\
         rect.page {{ fill: #ffffff }} text {{ font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #6b7280 }}\n\
         text.new {{ fill: #15803d }} rect.mask {{ fill: #d1d5db }}\n\
         @media (prefers-color-scheme: dark) {{ rect.page {{ fill: #0d1117 }} text {{ fill: #8b949e }} text.new {{ fill: #4ade80 }} rect.mask {{ fill: #30363d }} }}\n\
         </style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n{body}</svg>\n"
    )
}

fn draw(body: &mut String, text: &str, revealed: Option<(usize, usize)>, line: usize, column: usize) {
    let x = MARGIN + column as f64 * CHAR_WIDTH;
    let y = MARGIN + line as f64 * LINE_HEIGHT;
    let width = text.chars().count() as f64 * CHAR_WIDTH;
    let baseline = y + 15.0;
    let escaped = escape(text);
    let fits = format!("x=\"{x:.1}\" y=\"{baseline:.1}\" textLength=\"{width:.1}\" xml:space=\"preserve\"");
    let Some((step, steps)) = revealed else {
        let _ = writeln!(body, "<text {fits}>{escaped}</text>"); // writing to a String cannot fail
        return;
    };
    let at = (step + 1) as f64 / steps.max(1) as f64 * PLAY_S / (PLAY_S + REST_S);
    let animate = |values: &str| {
        format!(
            "<animate attributeName=\"opacity\" calcMode=\"discrete\" values=\"{values}\" keyTimes=\"0;{at:.4}\" dur=\"{:.1}s\" repeatCount=\"indefinite\"/>",
            PLAY_S + REST_S
        )
    };
    let _ = writeln!(body, "<text class=\"new\" {fits}>{escaped}{}</text>", animate("0;1"));
    let _ = writeln!(
        body,
        "<rect class=\"mask\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"15\" rx=\"3\" opacity=\"0\">{}</rect>",
        x + 0.8,
        y + 3.0,
        (width - 1.6).max(3.0),
        animate("1;0")
    );
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // Other control characters are not allowed in XML.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, revealed_at: Option<usize>) -> Piece {
        Piece { text: text.to_owned(), revealed_at }
    }

    #[test]
    fn given_text_stands_still_and_each_revealed_token_appears_at_its_step() {
        let svg = denoising_svg(&[piece("A <b> &", None), piece(" cat", Some(1)), piece("\nsat", Some(0))], 2);
        assert!(svg.contains(">A &lt;b&gt; &amp;</text>"), "{svg}");
        // Two steps share the six of ten seconds that it plays: 0.3 and 0.6 of the whole.
        assert_eq!(svg.matches("keyTimes=\"0;0.3000\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("keyTimes=\"0;0.6000\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("class=\"mask\"").count(), 2);
    }

    #[test]
    fn long_text_wraps_and_newlines_break_lines() {
        let long: Vec<Piece> = (0..40).map(|_| piece(" word", None)).collect();
        let lines = |svg: &str| {
            let mut baselines: Vec<&str> = svg
                .lines()
                .filter_map(|l| l.split_once(" y=\""))
                .map(|(_, rest)| rest.split('"').next().unwrap())
                .collect();
            baselines.dedup();
            baselines.len()
        };
        assert_eq!(lines(&denoising_svg(&long, 1)), 3); // 200 columns of text in lines of 88
        assert_eq!(lines(&denoising_svg(&[piece("a\nb\nc", None)], 1)), 3);
    }
}
