//! The `dlm` binary: parse, run, exit code.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = dlm_cli::args::Cli::parse();
    dlm_cli::report::exit_code(dlm_cli::run(cli))
}
