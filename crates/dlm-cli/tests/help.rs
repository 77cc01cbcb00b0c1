//! What the binary prints when it is asked for help.

use clap::CommandFactory;
use dlm_cli::args::Cli;

#[test]
fn the_help_of_every_command_reads_as_it_was_reviewed() {
    let mut text = String::new();
    collect(&mut Cli::command().term_width(110), "dlm", &mut text);
    insta::assert_snapshot!(text);
}

fn collect(command: &mut clap::Command, name: &str, text: &mut String) {
    let help = command.render_long_help().to_string();
    let trimmed: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("==== {name}\n{}\n", trimmed.join("\n")));
    for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
        let inner_name = format!("{name} {}", inner.get_name());
        collect(inner, &inner_name, text);
    }
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}
