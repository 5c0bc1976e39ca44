//! `hermesflow random-model`: checkpoints with random weights, for tests, benchmarks and first steps.

use std::path::PathBuf;

use anyhow::Result;

use super::args::count;
use super::convert::Format;
use crate::config::BackboneName;
use crate::files::NewFolder;
use crate::models::backbone;
use crate::models::kind::{RandomModel, Size};

/// Make a checkpoint with random weights, of any size up to the published one
///
/// Writes a checkpoint of the kind of --backbone into FOLDER, in the published layout: everything in one folder, which is
/// used as model.checkpoint=FOLDER, or a folder for each checkpoint that such a model is made of, with the tokenizer.json
/// of its text tokenizer (model.checkpoint, model.vq, model.tokenizer, model.clip). Its replies and pictures make no sense,
/// but every command runs: `tiny` in seconds, `full` with the memory and the speed of the published model (6 or 8 GB on
/// disk).
///
/// Example: hermesflow random-model models/random --size full --format sharded
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the checkpoint; new or empty
    folder: PathBuf,

    /// Kind of the model, as model.backbone names it
    #[arg(long, value_name = "NAME", default_value_t = backbone::usual(), value_parser = backbone::named)]
    backbone: BackboneName,

    /// Size of the model
    #[arg(long, value_enum, default_value_t = Size::Tiny)]
    size: Size,

    /// Side of its pictures in pixels, where the size leaves a choice; a tiny model has 64
    #[arg(long, value_name = "PIXELS")]
    resolution: Option<usize>,

    /// Blocks of the decoder [default: those of --size]
    #[arg(long, value_name = "N", value_parser = count::<1024>)]
    layers: Option<usize>,

    /// Layout of the weights
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    format: Format,

    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Make the variant that understands CLIP features, with its vision tower in clip/
    #[arg(long)]
    clip: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let folder = NewFolder::begin(&args.folder)?;
    let wanted = RandomModel {
        size: args.size,
        resolution: args.resolution,
        layers: args.layers,
        format: args.format.into(),
        seed: args.seed,
        clip: args.clip,
    };
    backbone::random(args.backbone, &wanted, folder.path())?;
    folder.publish()?;
    say!("{}", args.folder.display())?;
    Ok(())
}
