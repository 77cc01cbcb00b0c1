//! Named numbers: what a step says of itself, averaged between two log lines.

use serde::{Deserialize, Serialize};

/// Numbers by name, in the order they are shown; names are those of the user's guide, such as `train/loss`.
pub type Metrics = Vec<(String, f64)>;

/// The value of the metric `name`.
#[must_use]
pub fn metric(metrics: &[(String, f64)], name: &str) -> Option<f64> {
    metrics.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// Puts `prefix/` before each name.
#[must_use]
pub fn prefixed<N: AsRef<str>>(prefix: &str, metrics: impl IntoIterator<Item = (N, f64)>) -> Metrics {
    metrics.into_iter().map(|(name, value)| (format!("{prefix}/{}", name.as_ref()), value)).collect()
}

/// Numbers between two log lines: means over the steps, counts summed.
///
/// Part of a checkpoint, so that a run resumed between two log lines writes the line that an unbroken run writes. The sums are kept as the
/// bits of the float, because decimal text does not bring every float back exactly.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Accumulator {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    name: String,
    sum_bits: u64,
    count: u64,
}

impl Accumulator {
    /// Adds the numbers of one step.
    pub fn add(&mut self, metrics: &[(String, f64)]) {
        for (name, value) in metrics {
            match self.entries.iter_mut().find(|entry| &entry.name == name) {
                Some(entry) => {
                    entry.sum_bits = (f64::from_bits(entry.sum_bits) + value).to_bits();
                    entry.count += 1;
                }
                None => self.entries.push(Entry { name: name.clone(), sum_bits: value.to_bits(), count: 1 }),
            }
        }
    }

    /// The numbers of the steps since the last call, and forgets them.
    ///
    /// A metric that some of these steps lack, such as the accuracy of a step without masks, is averaged over those that have it.
    pub fn take(&mut self) -> Metrics {
        let number = |entry: Entry| {
            let sum = f64::from_bits(entry.sum_bits);
            let is_count = entry.name.ends_with("num_masked_tokens");
            (entry.name, if is_count { sum } else { sum / entry.count as f64 })
        };
        std::mem::take(&mut self.entries).into_iter().map(number).collect()
    }
}

/// The largest resident memory that this process has had, in GiB; `None` where the system does not tell.
#[must_use]
pub fn peak_memory_gib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(values: &[(&str, f64)]) -> Metrics {
        values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn means_are_over_steps_and_counts_are_summed() {
        let mut between = Accumulator::default();
        between.add(&named(&[("train/loss", 1.0), ("train/num_masked_tokens", 3.0)]));
        between.add(&named(&[("train/loss", 2.0), ("train/num_masked_tokens", 4.0), ("train/accuracy", 0.5)]));
        let expected = [("train/loss", 1.5), ("train/num_masked_tokens", 7.0), ("train/accuracy", 0.5)];
        assert_eq!(between.take(), named(&expected));
        assert_eq!(between.take(), []);
    }

    #[test]
    fn sums_survive_json_to_the_bit() {
        let mut between = Accumulator::default();
        for i in 1..200 {
            between.add(&named(&[("train/loss", 1.0 / f64::from(i))]));
        }
        let text = serde_json::to_string(&between).unwrap();
        assert_eq!(serde_json::from_str::<Accumulator>(&text).unwrap(), between);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_has_needed_some_memory() {
        assert!(peak_memory_gib().unwrap() > 1e-4);
    }
}
