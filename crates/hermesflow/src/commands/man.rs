//! `hermesflow man`: manual pages.

use std::path::PathBuf;

use anyhow::Result;
use clap::CommandFactory;
use clap_mangen::Man;

use super::Cli;
use crate::files;

/// Print the manual page, or write the pages of all commands
///
/// Example: hermesflow man --out ~/.local/share/man/man1, then: man hermesflow-run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write hermesflow.1 and a page for each command, such as hermesflow-run.1, into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut program = Cli::command();
    program.build(); // the names of commands are then whole: hermesflow-run
    let Some(folder) = args.out else {
        return say!("{}", page(program)?.trim_end());
    };
    let commands: Vec<clap::Command> =
        program.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help").cloned().collect();
    for command in std::iter::once(program).chain(commands) {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let path = folder.join(format!("{name}.1"));
        files::write_atomically(&path, page(command)?.as_bytes())?;
        say!("{}", path.display())?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
