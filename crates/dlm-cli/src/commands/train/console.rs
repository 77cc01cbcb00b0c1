//! A run as a person watches it: one calm line, samples between, plain lines where there is no terminal.

use crate::{inference::Span, paint::paint, report::Style};
use dlm_sample::TokenOutcome;
use dlm_train::{MetricSink, Outcome, Piece, Preview, PreviewMode, Progress, metric};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Without a terminal, lines that say nothing new are at least so far apart.
const QUIET: Duration = Duration::from_secs(5);
/// Weight of the past in the loss shown; single steps are too noisy to read.
const SMOOTHING: f64 = 0.9;

/// The sink that people watch, on standard error.
pub(super) struct Console {
    style: Style,
    bar: ProgressBar,
    last: Option<Progress>,
    smoothed: Option<f64>,
    told: Option<Instant>,
}

impl Console {
    pub(super) fn new() -> Self {
        let style = Style::of_stderr();
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
        let template = ProgressStyle::with_template("{bar:24} {msg}").expect("the template is a constant");
        bar.set_style(template.progress_chars("━╸─"));
        Self { style, bar, last: None, smoothed: None, told: None }
    }

    /// The line: step, loss, speed, time left.
    fn line(&self, progress: &Progress) -> String {
        let name = if progress.nelbo.is_some() { "nelbo" } else { "loss" };
        format!(
            "step {}/{}  {name} {:.3}  {:.0} tokens/s  {} left",
            progress.step,
            progress.total_steps,
            self.smoothed.unwrap_or_default(),
            progress.tokens_per_s,
            time(progress.time_left)
        )
    }

    fn tell(&mut self, line: &str) {
        self.told = Some(Instant::now());
        self.bar.suspend(|| say!("{line}"));
    }
}

impl MetricSink for Console {
    fn begin(&mut self, progress: &Progress) -> dlm_train::Result<()> {
        self.bar.set_length(progress.total_steps);
        self.bar.set_position(progress.step);
        if progress.step > 0 {
            self.tell(&format!("going on after step {} of {}", progress.step, progress.total_steps));
        }
        Ok(())
    }

    fn progress(&mut self, progress: &Progress) {
        let value = progress.nelbo.unwrap_or(progress.loss);
        let smoothed = self.smoothed.map_or(value, |before| SMOOTHING * before + (1.0 - SMOOTHING) * value);
        self.smoothed = Some(smoothed);
        self.bar.set_position(progress.step);
        self.bar.set_message(self.line(progress));
        self.last = Some(progress.clone());
    }

    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        let Some(progress) = self.last.clone() else { return Ok(()) };
        let name = if progress.nelbo.is_some() { "nelbo" } else { "loss" };
        let evaluated = metric(metrics, &format!("eval/{name}"));
        if let Some(value) = evaluated {
            let accuracy = metric(metrics, "eval/accuracy").unwrap_or_default();
            let bits = metric(metrics, "eval/bits_per_byte")
                .map_or(String::new(), |bits| format!(", {bits:.3} bits per byte"));
            self.tell(&format!("step {step}: eval {name} {value:.4}, accuracy {:.1} %{bits}", 100.0 * accuracy));
        }
        let is_due = self.told.is_none_or(|told| told.elapsed() >= QUIET) || step == progress.total_steps;
        if self.bar.is_hidden() && is_due && evaluated.is_none() {
            self.tell(&self.line(&progress));
        }
        Ok(())
    }

    fn samples(&mut self, step: u64, previews: &[Preview]) -> dlm_train::Result<()> {
        if previews.is_empty() {
            let why = "no document looked at is long enough, or its prompt alone fills `generation_max_length`";
            self.tell(&format!("no sample after step {step}: {why}"));
        }
        for preview in previews {
            let what = match preview.mode {
                PreviewMode::Answer => "the answer".to_owned(),
                PreviewMode::Continuation => format!("the last {:.0} % of the tokens", 100.0 * preview.mask_ratio),
                PreviewMode::Random => format!("{:.0} % of the tokens", 100.0 * preview.mask_ratio),
            };
            let right = (preview.accuracy * preview.num_masked as f64).round();
            let head = format!("sample after step {step}: {what} masked, {right} of {} right", preview.num_masked);
            let spans: Vec<Span> = preview.pieces.iter().map(span).collect();
            let text = paint(&spans, self.style);
            self.tell(&format!("{head}\n  {}", text.trim_end().replace('\n', "\n  ")));
        }
        Ok(())
    }

    fn finish(&mut self, _outcome: &Outcome) -> dlm_train::Result<()> {
        self.bar.finish_and_clear();
        Ok(())
    }
}

/// A piece of a sample; line ends that the model chose are shown rather than made.
fn span(piece: &Piece) -> Span {
    let given = piece.outcome == TokenOutcome::Unchanged;
    let text = if given { piece.text.clone() } else { piece.text.replace('\n', "⏎") };
    Span { text, outcome: piece.outcome }
}

/// A duration in its two largest units.
fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_their_two_largest_units() {
        let of = |seconds| time(Duration::from_secs(seconds));
        assert_eq!([of(9), of(130), of(7384)], ["9 s", "2 min 10 s", "2 h 3 min"]);
    }
}
