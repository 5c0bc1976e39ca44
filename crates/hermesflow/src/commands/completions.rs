//! `hermesflow completions`: completion scripts for shells.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Print a script that completes hermesflow's commands and options in a shell
///
/// bash: hermesflow completions bash > ~/.local/share/bash-completion/completions/hermesflow
///
/// zsh: hermesflow completions zsh > DIR/_hermesflow, where DIR is one of $fpath
///
/// fish: hermesflow completions fish > ~/.config/fish/completions/hermesflow.fish
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hermesflow", &mut script);
    say!("{}", String::from_utf8(script)?.trim_end())
}
