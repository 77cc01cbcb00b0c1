//! `dlm completions`: what a shell needs to complete our arguments.

use crate::args::Cli;
use clap::CommandFactory;
use std::io::{Write, stdout};

/// Writes the completions of `shell` to standard output.
pub(crate) fn run(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new(); // the generator panics when it cannot write
    clap_complete::generate(shell, &mut Cli::command(), "dlm", &mut script);
    Ok(stdout().write_all(&script)?)
}
