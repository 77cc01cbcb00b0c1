//! The `dlm` command: it only composes what the other crates do.
//!
//! The library behind the binary, so that tests and other programs can read settings the way `dlm` does:
//!
//! ```
//! use dlm_cli::settings::{Sources, resolve};
//!
//! let sources = Sources {
//!     profile: Some("sft".to_owned()),
//!     assignments: vec!["diffusion.eps=1e-2".to_owned()],
//!     ..Sources::default()
//! };
//! let resolved = resolve(&sources)?;
//! assert_eq!(resolved.settings.diffusion.eps, 0.01);
//! assert_eq!(resolved.origin("diffusion.eps"), "--set");
//! assert_eq!(resolved.origin("learning_rate"), "profile sft");
//! # Ok::<(), dlm_cli::settings::SettingsError>(())
//! ```

mod allocator;
pub mod args;
mod commands;
pub mod error;
mod inference;
mod paint;
mod progress;
pub mod report;
pub mod settings;
mod trace_svg;
mod tracking;

use args::{Cli, Command};

/// Runs one call of `dlm`.
///
/// # Errors
/// What the command refuses or fails at; [`report::exit_code`] tells it and chooses the exit code.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    start_log();
    match cli.command {
        Command::Data(command) => commands::data::run(command),
        Command::Tokenizer(command) => commands::tokenizer::run(command),
        Command::Train(args) => commands::train::run(&args),
        Command::Model(command) => commands::model::run(command),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Config(command) => commands::config::run(command),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Sample(args) => commands::sample::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Serve(args) => commands::serve::run(&args),
        Command::Completions { shell } => commands::completions::run(shell),
    }
}

/// Sends the log to standard error: warnings, or what `DLM_LOG` asks for, such as `debug` or `dlm_train=trace`.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("DLM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // A second call in one process, as tests make, keeps the first log.
    let _ = format.with_target(false).try_init();
}
