//! `hermesflow random-model`: checkpoints with random weights, for tests, benchmarks and first steps.

use std::path::{Path, PathBuf};

use crate::models::backbone::ADDED_TOKENS;
use crate::models::backbone::{ClipConfig, MagvitConfig, PhiConfig, ShowoConfig, write_configs, write_json};
use crate::models::backbone::{random_clip, random_magvit, random_projector, random_showo, train_tokenizer};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hermesflow_models::{DType, Device, Weights};
use serde_json::{Map, Value, json};

use super::args::count;
use super::convert::Format;
use crate::files::{self, NewFolder};

/// Make a Show-o checkpoint with random weights, of any size up to the published one
///
/// Writes showo/, vq/ and tokenizer.json (and clip/) into FOLDER, in the published layout. Its replies and pictures make no sense,
/// but every command runs: `tiny` in seconds, `full` with the memory and the speed of the published model (6 GB on disk).
/// Use it as model.showo=FOLDER/showo model.vq=FOLDER/vq model.tokenizer=FOLDER/tokenizer.json.
///
/// Example: hermesflow random-model models/random --size full --resolution 512 --format sharded
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the checkpoint; new or empty
    folder: PathBuf,

    /// Size of the model
    #[arg(long, value_enum, default_value_t = Size::Tiny)]
    size: Size,

    /// Side of its pictures in pixels, 256 or 512; a tiny model has 64
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

/// How large a random model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// Two blocks of width 32, 64×64 pictures of 4×4 tokens
    Tiny,
    /// Eight blocks of width 512 with the published vocabulary and image tokenizer
    Medium,
    /// The published model: 24 blocks of width 2048
    Full,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let folder = NewFolder::begin(&args.folder)?;
    random_model(&args, folder.path())?;
    folder.publish()?;
    say!("{}", args.folder.display())?;
    Ok(())
}

/// The configurations of a model, and its text tokenizer.
struct Parts {
    showo: ShowoConfig,
    phi: PhiConfig,
    vq: MagvitConfig,
    tokenizer: String,
}

impl Parts {
    fn new(args: &Args) -> Result<Self> {
        let (tokenizer, words) = train_tokenizer(&hermesflow_scenes::corpus(200, args.seed), 300)?;
        let (tokenizer, words, bits, side, text, decoder, vq) = match args.size {
            Size::Tiny => {
                ensure!(args.resolution.is_none_or(|side| side == 64), "--resolution: a tiny model has 64");
                let decoder = json!({ "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                      "num_attention_heads": 2 });
                let vq = json!({ "ch": 8, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1, 1],
                                 "z_channels": 6, "resolution": 64, "norm_groups": 4 });
                (tokenizer, words, 6, 4, 64, decoder, vq)
            }
            Size::Medium | Size::Full => {
                let pixels = args.resolution.unwrap_or(256);
                ensure!(pixels == 256 || pixels == 512, "--resolution: {pixels} is neither 256 nor 512");
                let decoder = match args.size {
                    Size::Full => json!({}),
                    _ => json!({ "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
                                 "num_attention_heads": 8 }),
                };
                (widened(&tokenizer, PHI_WORDS)?, PHI_WORDS, 13, pixels / 16, 129, decoder, json!({}))
            }
        };
        let mut decoder: Map<String, Value> = serde_json::from_value(decoder)?;
        if let Some(layers) = args.layers {
            decoder.insert("num_hidden_layers".into(), json!(layers));
        }
        let codebook = 1usize << bits;
        let showo = serde_json::from_value(json!({
            "vocab_size": words + ADDED_TOKENS.len() + codebook + 1, "llm_vocab_size": words,
            "codebook_size": codebook, "num_vq_tokens": side * side, "max_text_len": text, "w_clip_vit": args.clip,
        }))?;
        Ok(Self { showo, phi: serde_json::from_value(decoder.into())?, vq: serde_json::from_value(vq)?, tokenizer })
    }
}

/// Words of Phi-1.5's tokenizer.
const PHI_WORDS: usize = 50_295;

/// A tokenizer with words that no text has, up to `words` of them.
fn widened(tokenizer: &str, words: usize) -> Result<String> {
    let mut json: Value = serde_json::from_str(tokenizer)?;
    let end = json["added_tokens"][0]["content"].as_str().map(str::to_owned).context("no end of text")?;
    let vocabulary = json["model"]["vocab"].as_object_mut().context("no vocabulary")?;
    if !vocabulary.contains_key(&end) {
        vocabulary.insert(end, json!(vocabulary.len()));
    }
    for number in vocabulary.len()..words {
        vocabulary.insert(format!("Ġw{number}"), json!(number));
    }
    Ok(json.to_string())
}

fn random_model(args: &Args, folder: &Path) -> Result<()> {
    let seed = args.seed;
    let parts = Parts::new(args)?;
    files::write_atomically(&folder.join("tokenizer.json"), parts.tokenizer.as_bytes())?;
    write_json(&folder.join("vq/config.json"), &parts.vq)?;
    save(&random_magvit(&parts.vq, seed, &Device::Cpu)?, &folder.join("vq"), args.format)?;
    write_configs(&folder.join("showo"), &parts.showo, &parts.phi)?;
    let mut weights = random_showo(&parts.showo, &parts.phi, seed, &Device::Cpu)?;
    if args.size == Size::Tiny {
        // Larger than where training would begin, so that replies depend on the picture.
        let larger = weights.tensors().iter().map(|(name, tensor)| {
            let scale = if tensor.rank() == 2 { 12.0 } else { 1.0 };
            Ok((name.clone(), tensor.affine(scale, 0.0)?))
        });
        weights = Weights::from_tensors(larger.collect::<Result<Vec<_>>>()?, "random Show-o");
    }
    if args.clip {
        let tower = random_tower(&folder.join("clip"), args.size, seed)?;
        let projector = random_projector(tower.hidden_size, parts.phi.hidden_size, seed, &Device::Cpu)?;
        let tensors = weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
        weights = Weights::from_tensors(tensors.chain(projector), "random Show-o");
    }
    save(&weights, &folder.join("showo"), args.format)
}

fn save(weights: &Weights, folder: &Path, format: Format) -> Result<()> {
    weights.save_as(folder, format.into(), None).with_context(|| folder.display().to_string())?;
    Ok(())
}

/// Writes a vision tower: the published ViT-L/14-336, or 56×56 pictures as 4×4 patches and three blocks of width 24.
fn random_tower(folder: &Path, size: Size, seed: u64) -> Result<ClipConfig> {
    let config: ClipConfig = serde_json::from_value(match size {
        Size::Tiny => json!({ "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
                              "num_attention_heads": 3, "image_size": 56, "patch_size": 14 }),
        Size::Medium | Size::Full => json!({ "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                                             "num_attention_heads": 16, "image_size": 336, "patch_size": 14 }),
    })?;
    write_json(&folder.join("config.json"), &config)?;
    let weights = random_clip(&config, seed, &Device::Cpu)?;
    weights.save(&folder.join("model.safetensors"), DType::F32).context("clip")?;
    Ok(config)
}
