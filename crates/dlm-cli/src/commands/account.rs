//! The account of tokens as a small table: what came in, what was written, what was dropped and why.

use dlm_data::{Manifest, Split};
use indicatif::HumanCount;
use std::io::{self, Write};

/// Writes the account of prepared data, a line for each way in and out.
pub(crate) fn write(out: &mut impl Write, manifest: &Manifest) -> io::Result<()> {
    for (way, what, tokens) in lines(manifest) {
        writeln!(out, "{:<12}{:>15}  {what}", way, HumanCount(tokens).to_string())?;
    }
    Ok(())
}

/// The lines of the account: the way in or out, what it is, and tokens.
pub(super) fn lines(manifest: &Manifest) -> Vec<(&'static str, String, u64)> {
    let account = &manifest.account;
    let mut lines = vec![("tokens in", format!("of {} documents", HumanCount(account.documents)), account.tokens)];
    let added =
        account.added_tokens.iter().map(|(reason, tokens)| ("tokens in", format!("added by {reason}"), *tokens));
    lines.extend(added);
    for split in [Split::Train, Split::Validation] {
        let side = manifest.split(split);
        lines.extend(side.map(|side| ("tokens out", format!("in {}", split.folder()), side.tokens)));
    }
    let overlong = format!("in {} documents longer than a row", HumanCount(account.dropped_overlong_documents));
    let targetless = format!("in {} documents without a target", HumanCount(account.dropped_targetless_documents));
    let dropped = [
        (overlong, account.dropped_overlong_tokens),
        (targetless, account.dropped_targetless_tokens),
        ("in documents that a condition removed".to_owned(), account.dropped_filtered_tokens),
    ];
    let cut = account.dropped_tokens.iter().map(|(reason, tokens)| (format!("by {reason}"), *tokens));
    let all = dropped.into_iter().chain(cut).filter(|(_, tokens)| *tokens > 0);
    lines.extend(all.map(|(what, tokens)| ("dropped", what, tokens)));
    lines
}
