//! `hermesflow random-model` (hidden): a tiny checkpoint with random weights, for tests and first steps.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_models::showo::config::ADDED_TOKENS;
use hermesflow_models::showo::pretrain::{random_clip, random_magvit, random_projector, random_showo, train_tokenizer};
use hermesflow_models::showo::{ClipConfig, MagvitConfig, PhiConfig, ShowoConfig, write_json};
use hermesflow_models::{DType, Device, Weights};
use serde_json::json;

use crate::files;

/// Make a tiny Show-o checkpoint with random weights
///
/// Writes showo/, vq/ and tokenizer.json (and clip/) into FOLDER, in the published layout.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write it
    folder: PathBuf,

    /// The seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Make the variant that understands CLIP features, with its vision tower in clip/
    #[arg(long)]
    clip: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    random_model(&args.folder, args.seed, args.clip)?;
    println!("{}", args.folder.display());
    Ok(())
}

/// Writes the checkpoint: 64×64 pictures as 4×4 tokens of 64 codes, two blocks of width 32.
fn random_model(folder: &Path, seed: u64, clip: bool) -> Result<()> {
    let (codes_bits, side) = (6, 4);
    let (tokenizer, words) = train_tokenizer(&hermesflow_scenes::corpus(200, seed), 300)?;
    files::write_atomically(&folder.join("tokenizer.json"), tokenizer.as_bytes())?;

    let vq: MagvitConfig = serde_json::from_value(json!({
        "ch": 8, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1, 1], "z_channels": codes_bits,
        "resolution": side * 16, "norm_groups": 4,
    }))?;
    write_json(&folder.join("vq/config.json"), &vq)?;
    random_magvit(&vq, seed, &Device::Cpu)?
        .save(&folder.join("vq/pytorch_model.safetensors"), DType::F32)
        .context("vq")?;

    let codebook = 1 << codes_bits;
    let showo: ShowoConfig = serde_json::from_value(json!({
        "vocab_size": words + ADDED_TOKENS.len() + codebook + 1, "llm_vocab_size": words, "codebook_size": codebook,
        "num_vq_tokens": side * side, "llm_model_path": "phi", "max_text_len": 64,
        "w_clip_vit": clip,
    }))?;
    let phi: PhiConfig = serde_json::from_value(json!({
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    }))?;
    write_json(&folder.join("showo/config.json"), &showo)?;
    write_json(&folder.join("showo/phi/config.json"), &phi)?;
    let weights = random_showo(&showo, &phi, seed, &Device::Cpu)?;
    // Larger than where training would begin, so that replies depend on the picture.
    let larger = weights.tensors().iter().map(|(name, tensor)| {
        let scale = if tensor.rank() == 2 { 12.0 } else { 1.0 };
        Ok((name.clone(), tensor.affine(scale, 0.0)?))
    });
    let mut larger = larger.collect::<Result<Vec<_>>>()?;
    if clip {
        let tower = random_tower(&folder.join("clip"), seed)?;
        larger.extend(random_projector(tower.hidden_size, phi.hidden_size, seed, &Device::Cpu)?);
    }
    let larger = Weights::from_tensors(larger, "random Show-o");
    larger.save(&folder.join("showo/pytorch_model.safetensors"), DType::F32).context("showo")
}

/// Writes a vision tower: 56×56 pictures as 4×4 patches, three blocks of width 24.
fn random_tower(folder: &Path, seed: u64) -> Result<ClipConfig> {
    let config: ClipConfig = serde_json::from_value(json!({
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
        "image_size": 56, "patch_size": 14,
    }))?;
    write_json(&folder.join("config.json"), &config)?;
    let weights = random_clip(&config, seed, &Device::Cpu)?;
    weights.save(&folder.join("model.safetensors"), DType::F32).context("clip")?;
    Ok(config)
}
