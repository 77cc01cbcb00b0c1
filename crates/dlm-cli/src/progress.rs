//! The live line of a preparation: rows, tokens, speed and time left; plain lines where there is no terminal.

use dlm_data::Progress;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a preparation has come, on standard error.
pub(crate) struct PrepareProgress {
    bar: Option<ProgressBar>,
    started: Instant,
    written: Instant,
    phase: Phase,
    has_said_resumed: bool,
}

/// Which rows tell how much is left.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Those that are read.
    Reading,
    /// Those that are tokenized, once all were read and sorted.
    Tokenizing { since: Instant },
}

impl PrepareProgress {
    /// Begins to watch.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let bar = stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.set_style(ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}")?);
        }
        let now = Instant::now();
        Ok(Self { bar, started: now, written: now, phase: Phase::Reading, has_said_resumed: false })
    }

    /// Shows the state.
    pub(crate) fn show(&mut self, progress: &Progress) {
        if progress.resumed_shards > 0 && !std::mem::replace(&mut self.has_said_resumed, true) {
            self.say(&resumed(progress.resumed_shards));
        }
        let all_read = progress.rows_read >= progress.source_rows;
        if matches!(self.phase, Phase::Reading) && all_read && progress.documents == 0 {
            self.phase = Phase::Tokenizing { since: Instant::now() };
        }
        let (done, elapsed) = match self.phase {
            Phase::Reading => (progress.rows_read, self.started.elapsed()),
            Phase::Tokenizing { since } => (progress.documents, since.elapsed()),
        };
        let line = line(progress, done, elapsed, self.started.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None if self.written.elapsed() >= PLAIN_EVERY => {
                self.written = Instant::now();
                eprintln!("{line}");
            }
            None => {}
        }
    }

    /// Takes the live line away.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

/// Says that a killed preparation is continued.
pub(crate) fn resumed(shards: usize) -> String {
    let plural = if shards == 1 { "" } else { "s" };
    format!("continuing behind {shards} shard{plural} that an interrupted preparation had finished")
}

/// One line: what is done, how fast, and how long it still takes, where `done` rows of all took `elapsed`.
fn line(progress: &Progress, done: u64, elapsed: Duration, running: Duration) -> String {
    let share = done as f64 / progress.source_rows.max(1) as f64;
    let read = progress.rows_read as f64 / progress.source_rows.max(1) as f64;
    let megabytes = read * progress.source_bytes as f64 / 1e6;
    let mut line = format!(
        "{} of {} rows, {} tokens, {} packed rows, {:.1} MB/s",
        HumanCount(done),
        HumanCount(progress.source_rows),
        HumanCount(progress.tokens),
        HumanCount(progress.packed_rows),
        megabytes / running.as_secs_f64().max(1e-3),
    );
    // A guess from the first moments would only mislead.
    if share > 0.01 && share < 1.0 && elapsed >= Duration::from_secs(1) {
        let left = elapsed.as_secs_f64() * (1.0 - share) / share;
        line += &format!(", {} left", HumanDuration(Duration::from_secs(left.ceil() as u64)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_rows_tokens_speed_and_time_left() {
        let progress = Progress {
            source_rows: 1000,
            source_bytes: 40_000_000,
            rows_read: 250,
            documents: 240,
            tokens: 12_345,
            packed_rows: 6,
            resumed_shards: 0,
        };
        let ten = Duration::from_secs(10);
        let expected = "250 of 1,000 rows, 12,345 tokens, 6 packed rows, 1.0 MB/s, 30 seconds left";
        assert_eq!(line(&progress, 250, ten, ten), expected);
        assert!(!line(&progress, 1000, ten, ten).contains("left"));
        assert!(!line(&progress, 0, ten, ten).contains("left"));
    }
}
