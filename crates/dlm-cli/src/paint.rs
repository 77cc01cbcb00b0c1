//! Generated text for a terminal: green right, red wrong, plain what was appended, dim what was there.

use crate::{inference::Span, report::Style};
use dlm_sample::TokenOutcome;

/// The spans in colour; without colour, what was filled in stands in brackets, and what came out wrong has a mark.
pub(crate) fn paint(spans: &[Span], style: Style) -> String {
    let paint_one = |span: &Span| match style {
        Style::Colour => in_colour(span),
        Style::Plain => in_brackets(span),
    };
    spans.iter().map(paint_one).collect()
}

fn in_colour(span: &Span) -> String {
    let colour = console::Style::new().force_styling(true);
    let colour = match span.outcome {
        TokenOutcome::Right => colour.green(),
        TokenOutcome::Wrong => colour.red(),
        TokenOutcome::Masked => colour.yellow(),
        TokenOutcome::Unchanged => colour.dim(),
        TokenOutcome::Generated => return span.text.clone(),
    };
    colour.apply_to(&span.text).to_string()
}

fn in_brackets(span: &Span) -> String {
    match span.outcome {
        TokenOutcome::Right => format!("[{}]", span.text),
        TokenOutcome::Wrong => format!("[{}]!", span.text),
        TokenOutcome::Masked | TokenOutcome::Unchanged | TokenOutcome::Generated => span.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_and_wrong_differ_without_colour() {
        let span = |text: &str, outcome| Span { text: text.to_owned(), outcome };
        let spans = [
            span("The", TokenOutcome::Unchanged),
            span(" quick", TokenOutcome::Right),
            span(" fox", TokenOutcome::Wrong),
            span(" runs", TokenOutcome::Generated),
        ];
        assert_eq!(paint(&spans, Style::Plain), "The[ quick][ fox]! runs");
        assert!(paint(&spans, Style::Colour).contains("\u{1b}[32m quick\u{1b}[0m"));
    }
}
