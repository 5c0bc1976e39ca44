//! `hermesflow config`: the configurations inside the program.

use anyhow::{Context, Result};

use crate::config::{PRESETS, preset};

/// Print one of the configurations inside this program, to change and keep as your own
///
/// scenes: the whole method on the embedded model and its world of simple scenes. released: 512x512 pictures and the
/// settings of HermesFlow's released code. paper: 256x256 pictures and the settings of the paper. pretrain-scenes: how
/// the embedded model was made. One that is named after another kind of model begins with that one. All commands take
/// these names in place of a file: hermesflow run scenes.
///
/// Example: hermesflow config scenes > my.yaml
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the configuration; without one, all names are printed
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    match &args.name {
        None => say!("{}", names.join("\n"))?,
        Some(name) => {
            let named = || format!("{name:?} is none of {}", names.join(", "));
            let text = preset(name).with_context(named)?;
            // The schema that the first line names is not there beside a copy.
            let text = text
                .strip_prefix("# yaml-language-server:")
                .and_then(|rest| rest.split_once('\n'))
                .map_or(text, |(_, rest)| rest);
            say!("{}", text.trim_end())?;
        }
    }
    Ok(())
}
