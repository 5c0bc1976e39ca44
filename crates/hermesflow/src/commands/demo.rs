//! `hermesflow demo`.

/// The whole loop on the embedded world and model: no arguments, no network, no files
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
