//! Reading TOML so that a mistake is reported with its line and the name that was probably meant.

use crate::{
    error::{DataError, Result},
    step::STEPS,
    suggest::nearest,
};
use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

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

/// Says what is wrong with the first `[[step]]` that is not one step, and on which line it is.
pub(crate) fn odd_step(text: &str) -> Option<DataError> {
    #[derive(Deserialize)]
    struct Steps {
        step: Vec<Spanned<toml::Table>>,
    }
    let steps = toml::from_str::<Steps>(text).ok()?.step;
    let odd = steps.into_iter().find(|step| step.get_ref().len() != 1)?;
    let found: Vec<String> = odd.get_ref().keys().map(|key| format!("`{key}`")).collect();
    let found = match found.as_slice() {
        [] => "a `[[step]]` has no key".to_owned(),
        keys => format!("a `[[step]]` has the keys {}", keys.join(", ")),
    };
    let message = format!(
        "{found}, and has to have one, which says what it does: {}. Options stand in its table, as in `pack = {{ sequence_len = 2048 }}`",
        STEPS.join(", ")
    );
    let line = Some(text[..odd.span().start.min(text.len())].matches('\n').count() + 1);
    Some(DataError::Pipeline { path: None, line, message, nearest: None })
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
