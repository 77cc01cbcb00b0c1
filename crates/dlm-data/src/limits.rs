//! How much of the machine a pipeline may use, as it is written in a pipeline file.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// Limits of the machine: `[resources]` in a pipeline file. They decide nothing about the bytes that come out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory, as a number or as in `"512MiB"`; 1 GiB where unset. Sorts beyond their share of it spill to the folder for
    /// temporary files.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "read_size")]
    pub memory_limit: Option<usize>,
}

impl Limits {
    pub(crate) fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no size: a size is a number of bytes, or as in `512MiB`, `2GiB`, `1.5GB`")]
pub struct SizeError {
    /// What was given.
    pub text: String,
}

/// Reads a size: a number, and a unit of 1000 (`kB`, `MB`, `GB`, `TB`) or of 1024 (`KiB`, `MiB`, `GiB`, `TiB`).
///
/// ```
/// assert_eq!(dlm_data::parse_size("1.5 GiB"), Ok(3 << 29));
/// assert!(dlm_data::parse_size("1 gig").is_err());
/// ```
///
/// # Errors
/// [`SizeError`] when it is none, or none that this machine can address.
pub fn parse_size(text: &str) -> Result<usize, SizeError> {
    const UNITS: [(&str, f64); 10] = [
        ("", 1.0),
        ("b", 1.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("tib", 1_099_511_627_776.0),
    ];
    let error = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(known, _)| *known == unit).ok_or_else(error)?;
    let bytes = number.parse::<f64>().map_err(|_| error())? * factor;
    // Beyond 2^53 a float counts no single bytes, and no machine has as many.
    if (1.0..9e15).contains(&bytes) { Ok(bytes as usize) } else { Err(error()) }
}

fn read_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size is a number of bytes, or a text such as `512MiB`")]
    enum Size {
        Bytes(usize),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(0) => Err(D::Error::custom("a memory limit of 0 bytes leaves no room for anything")),
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse_size(&text).map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let sizes = [("7", 7), ("2kB", 2000), ("512MiB", 512 << 20), (" 1 GiB ", 1 << 30), ("0.5mib", 1 << 19)];
        for (text, size) in sizes {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "MiB", "0", "-1", "1e9", "1 gig", "1.2.3", "99999999TiB", "0.1"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
