//! Reading TOML so that a mistake is reported with its line and the name that was probably meant.

use crate::{
    error::{DataError, Result},
    suggest::nearest,
};
use serde::de::DeserializeOwned;

/// Reads a value from TOML text.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let (word, known) = names(error.message());
        // Serde buffers tagged values and reports where they begin: the word itself, from there on, tells the line.
        let line = error.span().map(|span| {
            let within = text.get(span.start..).unwrap_or_default();
            let offset = word.and_then(|word| find_word(within, word)).unwrap_or(0);
            text[..(span.start + offset).min(text.len())].matches('\n').count() + 1
        });
        report(error.message(), word, &known, line)
    })
}

/// Reads a value from parsed TOML, where no lines are known.
pub(crate) fn from_value<T: DeserializeOwned>(value: toml::Value) -> Result<T> {
    value.try_into().map_err(|error: toml::de::Error| {
        let (word, known) = names(error.message());
        report(error.message(), word, &known, None)
    })
}

fn report(message: &str, word: Option<&str>, known: &[&str], line: Option<usize>) -> DataError {
    let nearest = word.and_then(|word| nearest(word, known.iter().copied())).map(str::to_owned);
    DataError::Pipeline { path: None, line, message: message.trim().replace("variant", "name"), nearest }
}

/// The unknown word and the known ones out of serde's "unknown field `a`, expected one of `b`, `c`".
fn names(message: &str) -> (Option<&str>, Vec<&str>) {
    if !message.starts_with("unknown ") {
        return (None, Vec::new());
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    (quoted.next(), quoted.collect())
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .map(|(at, _)| at)
        .find(|at| !letter(text[..*at].chars().next_back()) && !letter(text[at + word.len()..].chars().next()))
}
