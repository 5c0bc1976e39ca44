//! `hermesflow fetch`: models from the hub, into the cache that other programs use too.

use anyhow::Result;

use crate::models::hub::Hub;
use crate::progress::Progress;

/// Fetch models from the hub before they are needed
///
/// Downloads what is read of each model (configuration, tokenizer, weights) into the hub's ordinary cache and prints
/// its folder; what already exists is not fetched again, and a download that was cut off goes on. HF_HOME or
/// HF_HUB_CACHE say where, HF_TOKEN is the token, HF_ENDPOINT another server, HF_HUB_OFFLINE=1 forbids the network.
///
/// Example: hermesflow fetch bert-large-uncased showlab/magvitv2 microsoft/phi-1_5
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names such as bert-large-uncased or organisation/model@revision, or paths
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let (hub, progress) = (Hub::from_environment()?, Progress::stderr());
    for model in &args.models {
        say!("{}", hub.model(model, None, &progress)?.display())?;
    }
    Ok(())
}
