//! stub
use super::StageArgs;
use crate::{config::RunConfig, layout::RunLayout, progress::Progress};
use anyhow::Result;
/// Pair
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
}
pub fn run(args: Args) -> Result<()> {
    let (c, l, p) = args.stage.open()?;
    println!("{}", pair(&c, &l, &p)?);
    Ok(())
}
pub fn pair(_: &RunConfig, _: &RunLayout, _: &Progress) -> Result<String> {
    anyhow::bail!("pair")
}
