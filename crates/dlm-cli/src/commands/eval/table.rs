//! A report for people: a table for the terminal, and the loss by mask ratio as a picture.

use dlm_diffusion::evaluate::BoundReport;
use std::fmt::Write as _;

/// Characters of the longest bar.
const BAR: f64 = 30.0;

/// The table of a report.
pub(super) fn text(report: &BoundReport, is_exact: bool) -> String {
    let mut out = String::new();
    let bound = if is_exact { "" } else { "at most " };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<28}{value}");
    };
    let error = report.standard_error.map_or_else(String::new, |error| format!(" ± {error:.4} over documents"));
    let of_masks = if is_exact { String::new() } else { format!(", ± {:.4} from masks", report.monte_carlo_error) };
    line("nats per token", format!("{bound}{:.4}{error}{of_masks}", report.nats_per_token));
    line("perplexity", format!("{bound}{:.3}", report.perplexity));
    if let Some(bits) = report.bits_per_byte {
        line("bits per byte", format!("{bound}{bits:.4}"));
    }
    line("accuracy", format!("{:.4}", report.accuracy));
    line("scored", format!("{} tokens of {} documents in {} rows", report.tokens, report.documents, report.rows));
    let excluded = &report.excluded;
    let left_out = [
        (excluded.prompt_tokens, "prompt tokens"),
        (excluded.never_masked_tokens, "tokens that are never masked"),
        (excluded.cut_tokens, "tokens beyond the longest length"),
        (excluded.long_documents, "documents that are too long"),
        (excluded.empty_documents, "documents without a token to score"),
    ];
    let left_out: Vec<String> =
        left_out.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    line("left out", if left_out.is_empty() { "nothing".to_owned() } else { left_out.join(", ") });
    if report.by_mask_ratio.is_empty() {
        return out;
    }
    let largest = report.by_mask_ratio.iter().filter_map(|bin| bin.nats).fold(0.0, f64::max);
    let _ = writeln!(out, "\nmasked        tokens   nats  accuracy");
    for bin in &report.by_mask_ratio {
        let (Some(nats), Some(accuracy)) = (bin.nats, bin.accuracy) else { continue };
        let range = format!("{:.0}-{:.0} %", 100.0 * bin.above, 100.0 * bin.to);
        let bar = "█".repeat((BAR * nats / largest.max(f64::MIN_POSITIVE)).round() as usize);
        let _ = writeln!(out, "{range:<10}{:>10}{nats:>7.3}{accuracy:>10.3}  {bar}", bin.tokens);
    }
    out
}

/// The loss of masked tokens by how much is masked, as SVG.
pub(super) fn svg(report: &BoundReport) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 56.0;
    const TOP: f64 = 40.0;
    const BOTTOM: f64 = 46.0;
    let points: Vec<(f64, f64)> =
        report.by_mask_ratio.iter().filter_map(|bin| Some((0.5 * (bin.above + bin.to), bin.nats?))).collect();
    let largest = points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let x = |ratio: f64| LEFT + ratio * (WIDTH - LEFT - 20.0);
    let y = |nats: f64| HEIGHT - BOTTOM - nats / largest * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">loss of masked tokens by the share that is masked; bound {:.3} nats per token</text>\n",
        report.nats_per_token
    );
    for step in 0..=5 {
        let (share, nats) = (f64::from(step) / 5.0, largest * f64::from(step) / 5.0);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{nats:.1}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} %</text>\n",
            x(1.0),
            y(nats),
            y(nats),
            LEFT - 6.0,
            y(nats) + 4.0,
            x(share),
            HEIGHT - BOTTOM + 18.0,
            100.0 * share
        );
    }
    let path: Vec<String> = points.iter().map(|&(share, nats)| format!("{:.1},{:.1}", x(share), y(nats))).collect();
    let _ =
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1668b8\" stroke-width=\"2\"/>", path.join(" "));
    for point in &path {
        if let Some((x, y)) = point.split_once(',') {
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"#1668b8\"/>");
        }
    }
    out.push_str("</svg>\n");
    out
}
