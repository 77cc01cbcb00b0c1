//! `dlm config`: settings with their origins, and files checked before a run needs them.

use super::tell_ignored;
use crate::{
    args::ConfigCommand,
    settings::{resolve, resolve_file},
};
use std::io::{Write, stdout};

/// Runs `dlm config ...`.
pub(crate) fn run(command: ConfigCommand) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match command {
        ConfigCommand::Show { json, settings } => {
            let resolved = resolve(&settings.sources())?;
            tell_ignored(&resolved);
            for entry in resolved.entries() {
                if json {
                    writeln!(out, "{}", serde_json::to_string(&entry)?)?;
                } else {
                    writeln!(out, "{entry}")?;
                }
            }
        }
        ConfigCommand::Check { files } => {
            for file in files {
                let resolved = resolve_file(&file)?;
                tell_ignored(&resolved);
                let given = resolved.entries().iter().filter(|entry| resolved.is_given(&entry.key)).count();
                writeln!(out, "{}: fine, {given} settings", file.display())?;
            }
        }
    }
    Ok(())
}
