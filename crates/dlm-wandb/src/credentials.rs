//! The API key: where it comes from, and that it is never shown.

use std::{fmt, fs, io, path::Path};

use crate::error::{Result, WandbError};

/// A W&B API key; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Checks the shape of a key: at least 40 letters, digits, `_` or `-`.
    ///
    /// `origin` says in errors where it came from.
    ///
    /// # Errors
    /// [`WandbError::MalformedKey`], which does not repeat it.
    pub fn new(text: &str, origin: &str) -> Result<Self> {
        let text = text.trim();
        let clean = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if clean && text.len() >= 40 {
            return Ok(Self(text.to_owned()));
        }
        Err(WandbError::MalformedKey { origin: origin.to_owned(), length: text.chars().count() })
    }

    /// The key itself, for the Authorization header alone.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// `text` without the key, for messages that a server wrote.
    pub(crate) fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

/// The password of `machine` (host, with its port if the address has one) in a netrc file; none if there is no file.
pub(crate) fn from_netrc(path: &Path, machine: &str) -> Result<Option<ApiKey>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| WandbError::Netrc { path: path.to_owned(), source })?,
    };
    let origin = format!("`{}`", path.display());
    netrc_password(&text, machine).map(|password| ApiKey::new(password, &origin)).transpose()
}

fn netrc_password<'a>(text: &'a str, machine: &str) -> Option<&'a str> {
    let mut words = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let mut here = false;
    while let Some(word) = words.next() {
        match word {
            "machine" => here = words.next() == Some(machine),
            "default" => here = true,
            "password" if here => return words.next(),
            "login" | "account" | "password" => {
                words.next();
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn keys_of_old_and_new_shape_are_taken_and_others_are_not() {
        for good in [KEY.to_owned(), format!("local-{KEY}"), format!("wandb_v1_{KEY}_{KEY}")] {
            assert!(ApiKey::new(&good, "a test").is_ok(), "{good}");
        }
        for bad in ["", "short", &KEY[1..], &format!("{KEY} x"), &format!("{KEY}é")] {
            assert!(ApiKey::new(bad, "a test").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_shown_neither_by_debug_nor_by_an_error() {
        let key = ApiKey::new(KEY, "a test").unwrap();
        assert_eq!(format!("{key:?}"), "ApiKey(***)");
        assert_eq!(key.redact(&format!("wrong key {KEY}")), "wrong key ***");
        let error = ApiKey::new("not-a-key", "`WANDB_API_KEY`").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("not-a-key"));
    }

    #[test]
    fn netrc_finds_the_machine_with_its_port() {
        let text = "# comment machine x password y\nmachine other login user password one\n\
                    machine 127.0.0.1:8080\n  login user\n  password two\nmachine api.wandb.ai login user password three";
        assert_eq!(netrc_password(text, "127.0.0.1:8080"), Some("two"));
        assert_eq!(netrc_password(text, "api.wandb.ai"), Some("three"));
        assert_eq!(netrc_password(text, "127.0.0.1"), None);
        assert_eq!(netrc_password("default login user password four", "any"), Some("four"));
    }
}
