//! Addresses, and what of them may be shown.

use crate::error::{DataError, Result};
use url::Url;

/// What addresses begin with.
const SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https", "hf"];

/// Whether a path is an address on another machine.
pub(crate) fn is_remote(path: &str) -> bool {
    path.split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// A path or address without what is nobody's business: no user, no password, no values in a query.
pub(crate) fn redacted(path: &str) -> String {
    if !is_remote(path) {
        return path.to_owned();
    }
    let (whole, query) = path.split_once('?').map_or((path, None), |(whole, query)| (whole, Some(query)));
    let (scheme, rest) = whole.split_once("://").unwrap_or(("", whole));
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let start = rest[..authority_end].rfind('@').map_or(0, |at| at + 1);
    // In `hf://datasets/OWNER/NAME@REVISION` the sign comes later and is no secret.
    let shown = format!("{scheme}://{}", &rest[start..]);
    // Without a query a `?` stands for any one character.
    match query {
        Some(query) if scheme.starts_with("http") => {
            let keys = query.split('&').filter_map(|pair| pair.split('=').next());
            format!("{shown}?{}", keys.map(|key| format!("{key}=...")).collect::<Vec<_>>().join("&"))
        }
        Some(query) => format!("{shown}?{query}"),
        None => shown,
    }
}

/// The path in an address, whose end tells the format.
pub(crate) fn path_of(address: &str) -> String {
    let whole = if address.starts_with("http") { address.split('?').next().unwrap_or(address) } else { address };
    whole.split_once("://").map_or(whole, |(_, path)| path).to_owned()
}

/// An address that carries no user or password: those come from the environment.
pub(crate) fn parse(address: &str) -> Result<Url> {
    let shown = redacted(address);
    let invalid = |message: String| DataError::Invalid(format!("the address `{shown}`: {message}"));
    let url = Url::parse(address).map_err(|error| invalid(error.to_string()))?;
    if !SCHEMES.contains(&url.scheme()) {
        let known = SCHEMES.map(|scheme| format!("`{scheme}://`")).join(", ");
        return Err(invalid(format!("its scheme is not known; known are {known}")));
    }
    if url.password().is_some() || (!url.username().is_empty() && !url.scheme().starts_with("abfs")) {
        return Err(invalid("user and password do not belong in an address: put them into the environment".to_owned()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_user_nor_password_nor_signature_is_shown() {
        let shown = redacted("https://me:secret@host/a/b.jsonl?X-Amz-Signature=secret&id=3");
        assert_eq!(shown, "https://host/a/b.jsonl?X-Amz-Signature=...&id=...");
        assert_eq!(redacted("s3://bucket/a?.jsonl"), "s3://bucket/a?.jsonl");
        assert_eq!(redacted("hf://datasets/o/n@main/*.parquet"), "hf://datasets/o/n@main/*.parquet");
        assert_eq!(redacted("data/a?b=c.jsonl"), "data/a?b=c.jsonl");
        assert_eq!(path_of("https://host/a/b.jsonl.gz?token=1"), "host/a/b.jsonl.gz");
    }

    #[test]
    fn an_address_with_a_password_or_of_an_unknown_kind_is_refused_without_repeating_it() {
        let error = parse("https://me:secret@host/a").unwrap_err().to_string();
        assert!(error.contains("environment") && !error.contains("secret"), "{error}");
        assert!(parse("ftp://host/a").unwrap_err().to_string().contains("`s3://`"));
    }
}
