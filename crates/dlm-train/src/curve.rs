//! The loss curve of a run: read from `metrics.jsonl`, drawn as SVG or for the terminal.

use crate::{
    error::{Result, TrainError},
    metrics::metric,
    sink::read_metrics,
};
use std::{fmt::Write as _, path::Path};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const MARGIN: Margin = Margin { left: 62.0, right: 18.0, top: 34.0, bottom: 46.0 };

struct Margin {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Points of a loss over the steps of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossCurve {
    /// What is drawn: `nelbo`, or `loss` for a run that has no bound because its mask ratio is restricted.
    pub name: String,
    /// `(step, value)` of training, in order.
    pub train: Vec<(f64, f64)>,
    /// `(step, value)` of evaluation, in order.
    pub eval: Vec<(f64, f64)>,
}

impl LossCurve {
    /// Reads the curve of a run folder from its `metrics.jsonl`.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Json`] when the file cannot be read.
    pub fn of_run(output_dir: &Path) -> Result<Self> {
        let lines = read_metrics(&output_dir.join(crate::sink::METRICS_FILE))?;
        let points = |name: &str| -> Vec<(f64, f64)> {
            lines.iter().filter_map(|(step, metrics)| Some((*step as f64, metric(metrics, name)?))).collect()
        };
        let name = if points("train/nelbo").is_empty() { "loss" } else { "nelbo" };
        Ok(Self {
            name: name.to_owned(),
            train: points(&format!("train/{name}")),
            eval: points(&format!("eval/{name}")),
        })
    }

    /// Whether there is nothing to draw.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.train.is_empty() && self.eval.is_empty()
    }

    /// Training values smoothed by an exponential mean over about a fiftieth of the run; single steps are too noisy to read.
    #[must_use]
    pub fn smoothed(&self) -> Vec<(f64, f64)> {
        let keep = 1.0 - 1.0 / (self.train.len() as f64 / 50.0).max(1.0);
        let (mut sum, mut weight) = (0.0, 0.0);
        let smooth = |&(step, value): &(f64, f64)| {
            sum = keep * sum + value;
            weight = keep * weight + 1.0;
            (step, sum / weight)
        };
        self.train.iter().map(smooth).collect()
    }

    /// An SVG picture that is readable on light and on dark ground.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let smoothed = self.smoothed();
        let (x, y) = self.axes(&smoothed);
        let plot = Plot { x, y };
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} over optimiser steps">
<style>
  text {{ font: 12px system-ui, sans-serif; fill: #57606a }}
  .axis {{ stroke: #8c959f }} .grid {{ stroke: #8c959f; stroke-opacity: .25 }}
  .raw {{ fill: none; stroke: #2f6fdb; stroke-opacity: .22 }} .train {{ fill: none; stroke: #2f6fdb; stroke-width: 2 }}
  .eval {{ fill: none; stroke: #d9730d; stroke-width: 1.5 }} .point {{ fill: #d9730d }}
  .name-train {{ fill: #2f6fdb }} .name-eval {{ fill: #d9730d }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #9da7b3 }} .raw, .train {{ stroke: #6ea8fe }} .eval {{ stroke: #ffa657 }} .point, .name-eval {{ fill: #ffa657 }} .name-train {{ fill: #6ea8fe }}
  }}
</style>
"#,
            name = self.name,
        );
        plot.draw_axes(&mut svg, &self.name);
        plot.draw_line(&mut svg, "raw", &self.train);
        plot.draw_line(&mut svg, "train", &smoothed);
        plot.draw_line(&mut svg, "eval", &self.eval);
        for &(step, value) in &self.eval {
            line(
                &mut svg,
                format_args!(r#"<circle class="point" cx="{:.1}" cy="{:.1}" r="3"/>"#, plot.x(step), plot.y(value)),
            );
        }
        let legend = [("train", &self.train), ("eval", &self.eval)];
        let mut left = MARGIN.left;
        for (kind, points) in legend {
            if let Some((_, last)) = points.last() {
                let last = if kind == "train" { smoothed.last().map_or(*last, |p| p.1) } else { *last };
                let label = format!("{kind}/{} {last:.3}", self.name);
                line(&mut svg, format_args!(r#"<text class="name-{kind}" x="{left:.0}" y="20">{label}</text>"#));
                left += 8.0 * label.len() as f64 + 16.0;
            }
        }
        svg + "</svg>\n"
    }

    /// A plot of braille dots for a terminal: `width` by `height` characters and axes around them.
    #[must_use]
    pub fn to_terminal(&self, width: usize, height: usize) -> String {
        let smoothed = self.smoothed();
        let (x, y) = self.axes(&smoothed);
        let (columns, rows) = (width.max(10) * 2, height.max(3) * 4);
        let mut dots = vec![vec![false; columns]; rows];
        let place = |step: f64, value: f64| {
            let column = x.share(step) * (columns - 1) as f64;
            let row = (1.0 - y.share(value)) * (rows - 1) as f64;
            (column, row)
        };
        for pair in smoothed.windows(2) {
            let (from, to) = (place(pair[0].0, pair[0].1), place(pair[1].0, pair[1].1));
            let count = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil().max(1.0);
            for i in 0..=count as usize {
                let share = i as f64 / count;
                let (column, row) = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
                dots[row.round() as usize][column.round() as usize] = true;
            }
        }
        let mut cells: Vec<Vec<char>> =
            (0..rows / 4).map(|row| (0..columns / 2).map(|column| braille(&dots, column, row)).collect()).collect();
        for &(step, value) in &self.eval {
            let (column, row) = place(step, value);
            cells[row.round() as usize / 4][column.round() as usize / 2] = '●';
        }
        let mut text = String::new();
        for (row, cells) in cells.iter().enumerate() {
            let value = y.max - (y.max - y.min) * (row as f64 + 0.5) / (rows / 4) as f64;
            let label = if row % 3 == 0 { format!("{value:8.3}") } else { " ".repeat(8) };
            line(&mut text, format_args!("{label} │{}", cells.iter().collect::<String>()));
        }
        let end = format!("{:.0}", x.max);
        line(&mut text, format_args!("{} └{}", " ".repeat(8), "─".repeat(columns / 2)));
        let gap = (columns / 2).saturating_sub(end.len() + 1);
        line(&mut text, format_args!("{} {:<gap$.0} {end}", " ".repeat(9), x.min));
        let eval = if self.eval.is_empty() { String::new() } else { format!("   ● eval/{}", self.name) };
        line(&mut text, format_args!("{}⣀ train/{} (smoothed){eval}   x: optimiser steps", " ".repeat(10), self.name));
        text
    }

    /// The ranges drawn; the smoothed curve and the evaluations decide the height, so that one spike does not flatten the rest.
    fn axes(&self, smoothed: &[(f64, f64)]) -> (Axis, Axis) {
        let all = || smoothed.iter().chain(&self.eval);
        (Axis::around(all().map(|p| p.0)), Axis::around(all().map(|p| p.1)).padded())
    }
}

/// A range of numbers and how they are marked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    min: f64,
    max: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (min, max) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)));
        match (min.is_finite(), max > min) {
            (false, _) => Self { min: 0.0, max: 1.0 },
            (true, false) => Self { min: min - 0.5, max: max + 0.5 },
            (true, true) => Self { min, max },
        }
    }

    fn padded(self) -> Self {
        let margin = 0.05 * (self.max - self.min);
        Self { min: self.min - margin, max: self.max + margin }
    }

    /// Where a value lies between the ends, in [0, 1].
    fn share(self, value: f64) -> f64 {
        if value.is_finite() { ((value - self.min) / (self.max - self.min)).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// Round numbers (1, 2 or 5 times a power of ten) inside the range, about `wanted` of them.
    fn ticks(self, wanted: f64) -> Vec<f64> {
        let raw = (self.max - self.min) / wanted;
        let power = 10f64.powf(raw.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw).unwrap_or(10.0 * power);
        let first = (self.min / step).ceil() as i64;
        let last = (self.max / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// The axes of an SVG picture in pixels.
struct Plot {
    x: Axis,
    y: Axis,
}

impl Plot {
    fn x(&self, step: f64) -> f64 {
        MARGIN.left + self.x.share(step) * (WIDTH - MARGIN.left - MARGIN.right)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - MARGIN.bottom - self.y.share(value) * (HEIGHT - MARGIN.top - MARGIN.bottom)
    }

    fn draw_axes(&self, svg: &mut String, name: &str) {
        let (left, right, top, bottom) = (MARGIN.left, WIDTH - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom);
        for value in self.y.ticks(5.0) {
            let y = self.y(value);
            line(svg, format_args!(r#"<line class="grid" x1="{left}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#));
            let (x, y, text) = (left - 8.0, y + 4.0, number(value));
            line(svg, format_args!(r#"<text x="{x}" y="{y:.1}" text-anchor="end">{text}</text>"#));
        }
        for value in self.x.ticks(8.0) {
            let x = self.x(value);
            line(
                svg,
                format_args!(r#"<line class="axis" x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{}"/>"#, bottom + 5.0),
            );
            let (y, text) = (bottom + 19.0, number(value));
            line(svg, format_args!(r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{text}</text>"#));
        }
        line(svg, format_args!(r#"<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>"#));
        let middle = (left + right) / 2.0;
        let below = HEIGHT - 8.0;
        line(svg, format_args!(r#"<text x="{middle}" y="{below}" text-anchor="middle">optimiser step</text>"#));
        let unit = if name == "nelbo" { "nats per token" } else { name };
        let y = (top + bottom) / 2.0;
        line(
            svg,
            format_args!(r#"<text transform="translate(15 {y}) rotate(-90)" text-anchor="middle">{unit}</text>"#),
        );
    }

    fn draw_line(&self, svg: &mut String, class: &str, points: &[(f64, f64)]) {
        if points.len() < 2 {
            return;
        }
        let coordinates: Vec<String> =
            points.iter().map(|&(step, value)| format!("{:.1},{:.1}", self.x(step), self.y(value))).collect();
        line(svg, format_args!(r#"<polyline class="{class}" points="{}"/>"#, coordinates.join(" ")));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a String takes whatever is written");
}

/// A number without the digits that rounding leaves behind.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The braille character of the 2 x 4 dots of a cell.
fn braille(dots: &[Vec<bool>], column: usize, row: usize) -> char {
    const BITS: [[u32; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
    let mut code = 0x2800;
    for (i, bits) in BITS.iter().enumerate() {
        for (j, bit) in bits.iter().enumerate() {
            code |= if dots[4 * row + i][2 * column + j] { *bit } else { 0 };
        }
    }
    char::from_u32(code).unwrap_or(' ')
}

/// Writes `loss_curve.svg` into the run folder and gives the curve.
///
/// # Errors
/// Those of [`LossCurve::of_run`], or [`TrainError::File`] when the picture cannot be written.
pub fn write_loss_curve(output_dir: &Path) -> Result<LossCurve> {
    let curve = LossCurve::of_run(output_dir)?;
    dlm_files::write(&output_dir.join("loss_curve.svg"), curve.to_svg().as_bytes()).map_err(TrainError::File)?;
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling() -> LossCurve {
        let train = (1..=200).map(|i| (f64::from(i), 6.0 - f64::from(i) / 50.0)).collect();
        LossCurve { name: "nelbo".to_owned(), train, eval: vec![(100.0, 4.1), (200.0, 2.2)] }
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(Axis { min: 0.0, max: 200.0 }.ticks(8.0), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(Axis { min: 1.93, max: 6.1 }.ticks(5.0), [2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn a_picture_has_a_point_for_each_evaluation_and_works_on_dark_ground() {
        let svg = falling().to_svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("prefers-color-scheme: dark") && svg.contains("eval/nelbo 2.200"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_falling_loss_runs_from_the_upper_left_to_the_lower_right() {
        let text = falling().to_terminal(40, 10);
        let lines: Vec<&str> = text.lines().collect();
        let dot = |line: &str| line.chars().skip(10).position(|c| c > '\u{2800}' && c <= '\u{28ff}').unwrap();
        assert!(dot(lines[0]) < 5 && dot(lines[9]) > 30, "{text}");
        assert_eq!(text.matches('●').count(), 3, "{text}");
    }

    #[test]
    fn an_empty_run_and_a_single_point_are_drawn_without_fuss() {
        let one = LossCurve { train: vec![(1.0, 5.0)], ..LossCurve::default() };
        for curve in [LossCurve::default(), one] {
            assert!(!curve.to_svg().contains("NaN"));
            assert!(!curve.to_terminal(30, 5).contains("NaN"));
        }
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        let train = (0..500).map(|i| (f64::from(i), 3.0)).collect();
        let curve = LossCurve { train, ..LossCurve::default() };
        assert!(curve.smoothed().iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
    }
}
