//! `dlm` itself, built beside the tests so that cargo hands them an up-to-date program.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    dlm_cli::report::exit_code(dlm_cli::run(dlm_cli::args::Cli::parse()))
}
