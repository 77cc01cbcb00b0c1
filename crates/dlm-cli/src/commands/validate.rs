//! `dlm data validate`: is prepared data as its manifest says, and as it has to be?

use crate::args::ValidateArgs;
use dlm_data::{Validation, validate};
use indicatif::HumanCount;
use std::io::{Write, stdout};

/// Runs `dlm data validate`: violations on standard output, an error when there are any.
pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<()> {
    let found = validate(&args.data)?;
    let mut out = stdout().lock();
    if args.json {
        let mut object = serde_json::to_value(&found)?;
        object["valid"] = found.is_sound().into();
        writeln!(out, "{object}")?;
    } else {
        write(&mut out, &found)?;
    }
    out.flush()?;
    let count = found.violations.len() as u64 + found.unlisted;
    match count {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("`{}` is not valid: 1 violation", args.data.display())),
        _ => Err(anyhow::anyhow!("`{}` is not valid: {} violations", args.data.display(), HumanCount(count))),
    }
}

fn write(out: &mut impl Write, found: &Validation) -> anyhow::Result<()> {
    for violation in &found.violations {
        match violation.row {
            Some(row) => writeln!(out, "{} row {row}: {}", violation.path, violation.message)?,
            None => writeln!(out, "{}: {}", violation.path, violation.message)?,
        }
    }
    if found.unlisted > 0 {
        writeln!(out, "and {} more", HumanCount(found.unlisted))?;
    }
    for what in &found.unchecked {
        writeln!(out, "not checked: {what}")?;
    }
    writeln!(
        out,
        "{} shards, {} rows, {} tokens read{}",
        HumanCount(found.shards),
        HumanCount(found.rows),
        HumanCount(found.tokens),
        if found.is_sound() { ": all sound" } else { "" }
    )?;
    Ok(())
}
