//! One file for each command.

pub(crate) mod account;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
mod from_axolotl;
pub(crate) mod model;
pub(crate) mod runtime;
pub(crate) mod sample;
pub(crate) mod serve;
pub(crate) mod tokenizer;
pub(crate) mod train;
pub(crate) mod validate;

use crate::settings::{Ignored, Resolved};

/// Tells on standard error which keys of the settings have no effect, once for each reason.
pub(crate) fn tell_ignored(resolved: &Resolved) {
    tell_keys(&resolved.ignored);
}

/// Tells on standard error which keys have no effect, once for each reason.
pub(crate) fn tell_keys(ignored: &[Ignored]) {
    let mut told: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for ignored in ignored {
        let same = told.iter_mut().find(|(origin, reason, _)| *origin == ignored.origin && *reason == ignored.reason);
        match same {
            Some((_, _, keys)) => keys.push(format!("`{}`", ignored.key)),
            None => told.push((&ignored.origin, &ignored.reason, vec![format!("`{}`", ignored.key)])),
        }
    }
    for (origin, reason, keys) in told {
        eprintln!("without effect in {origin}: {} ({reason})", keys.join(", "));
    }
}
