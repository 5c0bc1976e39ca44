//! `hermesflow convert`: a checkpoint's weights in another of the published layouts.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hermesflow_models::{DType, Device, FileFormat, Weights};

use crate::config::DTypeName;
use crate::files::{self, NewFolder};
use crate::models::backbone;
use crate::models::hub::{Hub, Parts};
use crate::progress::Progress;

/// Write a checkpoint in another layout: safetensors or .bin, whole or sharded
///
/// Reads any checkpoint that the other commands read (a folder, a name on the hub, a checkpoint-{step} of a training,
/// the final model/), or an image tokenizer that is a checkpoint of its own. The result has the names and the
/// configuration of the published files, so that the Python code that the model was published with loads it. Values stay
/// as they are, bit for bit, unless --dtype is given.
///
/// Example: hermesflow convert models/published models/as-safetensors
///
/// Example: hermesflow convert runs/mine/train/model exported --format bin
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a folder, or a name on the hub
    source: String,

    /// Folder of the result; new or empty
    target: PathBuf,

    /// Layout of the result
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    format: Format,

    /// Type of all floating-point values [default: as they are]
    #[arg(long, value_parser = dtype, value_name = "f32|bf16|f16")]
    dtype: Option<DTypeName>,
}

/// A published layout of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One pytorch_model.safetensors
    Safetensors,
    /// Several of at most 2 GB with an index
    Sharded,
    /// One pytorch_model.bin
    Bin,
    /// Several .bin of at most 2 GB with an index
    BinSharded,
}

/// The largest shard.
const SHARD: u64 = 2_000_000_000;

impl From<Format> for FileFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Safetensors => Self::Safetensors,
            Format::Sharded => Self::ShardedSafetensors(SHARD),
            Format::Bin => Self::Bin,
            Format::BinSharded => Self::ShardedBin(SHARD),
        }
    }
}

fn dtype(text: &str) -> Result<DTypeName> {
    let none = || format!("{text:?} is none of f32, bf16, f16");
    serde_yaml_ng::from_str(text).ok().filter(|dtype| *dtype != DTypeName::Auto).with_context(none)
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let progress = Progress::stderr();
    let source = Hub::from_environment()?.model(&args.source, Some(Parts::Checkpoint), &progress)?;
    ensure!(source.is_dir(), "{}: not a checkpoint's folder; give the folder with its config.json", source.display());
    let folder = NewFolder::begin(&args.target)?;
    let weights = Weights::load_unchanged(&source, &Device::Cpu)?;
    let configs = backbone::small_files(&source, &weights)?;
    if let Some(dtype) = args.dtype {
        weights.check_fit(dtype.into())?;
    }
    for (name, content) in configs {
        files::write_atomically(&folder.path().join(name), &content)?;
    }
    progress.log(format!(
        "convert: {} tensors, {:.2} GB",
        weights.tensors().len(),
        bytes(&weights, args.dtype.map(DType::from)) as f64 / 1e9
    ));
    weights.save_as(folder.path(), args.format.into(), args.dtype.map(DType::from))?;
    folder.publish()?;
    say!("{}", args.target.display())?;
    Ok(())
}

fn bytes(weights: &Weights, dtype: Option<DType>) -> usize {
    let size = |tensor: &hermesflow_models::Tensor| {
        let stored = dtype.filter(|_| tensor.dtype().is_float()).unwrap_or(tensor.dtype());
        tensor.elem_count() * stored.size_in_bytes()
    };
    weights.tensors().values().map(size).sum()
}
